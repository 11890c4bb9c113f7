"""How long each prompt's replies will be, learned within the job: from siblings, groups and all that ended.

Log lengths are near normal. A prompt's mean is a regression on what a ranker said and the prompt's length,
plus its group's own part, plus the prompt's own part; the last two are drawn to zero by how little is known
of them. Replies that still run enter as what they would be in the mean (`sooner.learning.censoring`), or the
first to end, which are short, would teach that all are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from sooner.learning.censoring import beyond
from sooner.learning.hierarchy import DRAWN

Column = NDArray[np.float64]

_USUAL = math.log1p(200.0)  # before the first reply
_STRENGTH = (
    0.1,
    20.0,
    40.0,
)  # requests' worth of belief in: the level, the ranker's word, no effect of length
_WITHIN, _BETWEEN = 0.25, 0.5  # variances of log lengths: of a prompt's replies, of prompts' own parts
_LEAST = 0.02
_FAR = 2.0
_BELIEF = 20.0


class Expectation:
    """Expected reply lengths of n prompts; `tokens` (n,) are the expected lengths, `mean` (n,) their logs.

    `told` (n,) is what a ranker or an earlier epoch said [tokens], NaN where nothing; `groups` (n,) are
    small integers; `limits` (n,) [tokens] cut replies off, infinity for none.
    """

    def __init__(
        self, told: Column, prompt_len: Column, groups: NDArray[np.int32] | None = None,
        limits: Column | float = math.inf,
    ) -> None:  # fmt: skip
        n = told.shape[0]
        known = np.isfinite(told)
        text = np.log1p(np.maximum(np.where(known, told, 0.0), 0.0))
        middle = float(text[known].mean()) if known.any() else _USUAL
        self._text = np.where(known, text - middle, 0.0).astype(np.float32)
        length = np.log1p(prompt_len)
        self._length = (length - length.mean()).astype(np.float32)
        self._groups = np.zeros(n, dtype=np.int32) if groups is None else groups
        self._limits = np.broadcast_to(np.asarray(limits, dtype=np.float64), (n,))
        self._prior = np.array([middle, 1.0 if known.any() else 0.0, 0.0])
        self._count = np.zeros(n, dtype=np.int32)
        self._sum = np.zeros(n, dtype=np.float32)
        self._square = np.zeros(n, dtype=np.float32)
        self.within, self.between = _WITHIN, _BETWEEN
        self.seen = 0
        self.mean: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        self.tokens: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        self._tell(self._base(self._prior))

    def __len__(self) -> int:
        return int(self._text.shape[0])

    def add(self, prompt: int, length: int) -> None:
        """Take in a reply of `length` tokens; the others are told of it at the next `refit`."""
        value = math.log1p(length)
        self._count[prompt] += 1
        self._sum[prompt] += value
        self._square[prompt] += value * value
        self.seen += 1

    def refit(self, running: Iterable[tuple[int, float]] = ()) -> None:
        """Tell every prompt what was learned; `running` are prompts with their tokens so far."""
        seen = np.flatnonzero(self._count)
        if not seen.size:
            return
        count = self._count[seen].astype(np.float64)
        mean = self._sum[seen] / count
        spread = math.sqrt(self.within + self.between)
        more = [(p, beyond(math.log1p(tokens), float(self.mean[p]), spread).mean) for p, tokens in running]
        rows = np.concatenate([seen, np.array([p for p, _ in more], dtype=np.int64)])
        values = np.concatenate([mean, np.array([value for _, value in more])])
        weights = np.concatenate([count, np.ones(len(more))])
        base = self._base(self._regression(rows, values, weights / (self.between + self.within / weights)))
        apart = values - base[rows]
        most = int(self._groups.max()) + 1
        held = np.bincount(self._groups[rows], weights, most)
        base += (np.bincount(self._groups[rows], weights * apart, most) / (held + DRAWN))[self._groups]
        self._vary(seen, count, mean - base[seen])
        self._tell(base)

    def reach(self, prompts: NDArray[np.int64]) -> float:
        """Return how long a reply to one of `prompts` may well be: two deviations above what is expected."""
        if not prompts.size:
            return 0.0
        far = self.mean[prompts].astype(np.float64) + _FAR * math.sqrt(self.within + self.between)
        return float(np.minimum(np.expm1(np.minimum(far, 30.0)), self._limits[prompts]).max())

    def _base(self, weights: Column) -> Column:
        return np.asarray(weights[0] + weights[1] * self._text + weights[2] * self._length, dtype=np.float64)

    def _regression(self, rows: NDArray[np.int64], values: Column, weights: Column) -> Column:
        x = np.stack([np.ones(rows.shape[0]), self._text[rows], self._length[rows]], axis=1)
        weights = weights * rows.shape[0] / weights.sum()
        square = x.T @ (x * weights[:, None]) + np.diag(_STRENGTH)
        product = x.T @ (weights * (values - x @ self._prior))
        return np.asarray(self._prior + np.linalg.solve(square, product))

    def _vary(self, seen: NDArray[np.int64], count: Column, apart: Column) -> None:
        """Learn how a prompt's replies differ among themselves, and prompts from what is told of them."""
        among = float((self._square[seen] - self._sum[seen] ** 2 / count).sum())
        freedom = float((count - 1).sum())
        self.within = max((among + _BELIEF * _WITHIN) / (freedom + _BELIEF), _LEAST)
        chance = self.within * float((1 / count).sum())
        left = float((apart**2).sum()) - chance
        self.between = max((left + _BELIEF * _BETWEEN) / (seen.shape[0] + _BELIEF), _LEAST)

    def _tell(self, base: Column) -> None:
        trust = self._count + self.within / self.between
        own = (self._sum - self._count * base) / trust
        mean = base + own
        variance = self.within + self.within / trust
        self.mean = mean.astype(np.float32)
        self.tokens = _expected(mean, np.sqrt(variance), self._limits).astype(np.float32)


def _expected(mean: Column, sd: Column, limit: Column) -> Column:
    """Return the means of log-normal laws cut at `limit`."""
    at = (np.log1p(np.minimum(limit, 1e9)) - mean) / sd
    whole = np.exp(mean + sd**2 / 2) * _normal(at - sd)
    cut = np.where(np.isfinite(limit), np.minimum(limit, 1e9) * (1 - _normal(at)), 0.0)
    return np.asarray(np.maximum(whole + cut - 1.0, 1.0), dtype=np.float64)


def _normal(x: Column) -> Column:
    """The normal law's distribution function, right to 0.0004."""
    z: Column = 0.5 * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))
    return z
