"""What earlier turns of a conversation say of the next reply: how far replies were from what was expected.

A long reply to a request for an essay says little of the next reply; a long one to "thanks" says much. So
each earlier request is scored as it stood then, by the lexical ranker, and what counts is by how much its
reply was longer than that. On later turns of ShareGPT this is worth 0.01 of Kendall's tau beside the
lengths of the replies themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sooner.chat import Context
from sooner.rankers.contract import Floats

NUMBERS = (
    "earlier requests known",
    "last reply, beyond what was expected",
    "earlier replies, beyond what was expected (mean)",
    "earlier replies, beyond what was expected (recent)",
    "expected of the last request",
    "expected of the earlier requests (mean)",
)
"""Names of the columns; all are 0 where no earlier request is known."""

_DEVIATES = np.linspace(-2.5, 2.5, 41)
_FADING = 0.7  # weight of a reply beside that of the one after it
_ONE_MORE, _HALF_MORE = 1.0, 0.5  # replies as expected that a mean is drawn to: one reply says little

Score = Callable[[Sequence[str], Sequence[Context]], Floats]
"""What gives scores (n,), in normal deviates of the length, to n requests."""


class History(NamedTuple):
    """How long earlier replies are: lengths (k,) [tokens, as `estimate_tokens` counts] at normal deviates."""

    lengths: NDArray[np.float64]

    @classmethod
    def of(cls, context: Sequence[Context]) -> Self:
        """Return what the last replies in these contexts are like."""
        last = [known.reply_lens[-1] for known in context if known.reply_lens]
        shares = [NormalDist().cdf(deviate) for deviate in _DEVIATES.tolist()]
        lengths = np.quantile(np.array(last or [0.0], dtype=np.float64), shares)
        return cls(np.asarray(lengths, dtype=np.float64))

    def __call__(self, context: Sequence[Context], score: Score) -> NDArray[np.float64]:
        """Return columns (n, len(NUMBERS)) for n requests; `score` is asked about the earlier ones."""
        asked = [_earlier(known) for known in context]
        prompts = [prompt for turns in asked for prompt, _ in turns]
        columns = np.zeros((len(context), len(NUMBERS)))
        if not prompts:
            return columns
        expected = np.asarray(score(prompts, [known for turns in asked for _, known in turns]))
        end = np.cumsum([len(turns) for turns in asked])
        for row, (known, turns, stop) in enumerate(zip(context, asked, end.tolist(), strict=True)):
            if turns:
                told = expected[stop - len(turns) : stop]
                columns[row] = _summary(self._deviates(known.reply_lens[-len(turns) :]) - told, told)
        return columns

    def _deviates(self, lengths: Sequence[float]) -> NDArray[np.float64]:
        if self.lengths[-1] <= self.lengths[0]:  # no replies to compare with
            return np.zeros(len(lengths))
        return np.interp(lengths, self.lengths, _DEVIATES)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is saved."""
        return {"history.lengths": self.lengths}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self | None:
        """Return what was saved, None where nothing was. Raises ValueError for another shape."""
        lengths = arrays.get("history.lengths")
        if lengths is None:
            return None
        if lengths.shape != _DEVIATES.shape:
            raise ValueError(f"history of shape {lengths.shape}")
        return cls(lengths.astype(np.float64))


def _earlier(known: Context) -> list[tuple[str, Context]]:
    """The earlier requests that are known, oldest first, each with its context as it was then."""
    n = min(len(known.asked), len(known.reply_lens))
    skipped = len(known.reply_lens) - n
    return [
        (
            prompt,
            Context(
                turn=max(known.turn - n + i, 0),
                reply_lens=known.reply_lens[: skipped + i],
                system=known.system,
            ),
        )
        for i, prompt in enumerate(known.asked[len(known.asked) - n :])
    ]


def _summary(beyond: NDArray[np.float64], expected: NDArray[np.float64]) -> list[float]:
    n = len(beyond)
    weight = _FADING ** np.arange(n)[::-1]
    return [
        1.0,
        float(beyond[-1]),
        float(beyond.sum() / (n + _ONE_MORE)),
        float(weight @ beyond / (weight.sum() + _HALF_MORE)),
        float(expected[-1]),
        float(expected.mean()),
    ]
