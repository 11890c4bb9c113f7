"""The truth as a ranker, whole or spoiled to a chosen Kendall tau: for bounds and experiments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from sooner.chat import Context
from sooner.core import ConfigError, DataError
from sooner.metrics import kendall_tau
from sooner.rankers import ranker
from sooner.rankers.contract import Floats, Progress, Ranker, Rows, State
from sooner.rankers.offers import Term
from sooner.rankers.scaling import normal_quantiles


@ranker("oracle")
class Oracle(Ranker):
    """Knows the reply lengths it was given: the score of a prompt is its own true length [tokens].

    A prompt seen several times scores the mean of its lengths; one never seen, the mean of all.
    """

    lengths_: dict[str, float]

    def _fit(self, rows: Rows, progress: Progress) -> None:
        seen: dict[str, list[float]] = {}
        for prompt, length in zip(rows.prompts, rows.lengths, strict=True):
            seen.setdefault(prompt, []).append(float(length))
        self.lengths_ = {prompt: float(np.mean(lengths)) for prompt, lengths in seen.items()}
        self.mean_ = float(rows.lengths.mean())

    def _score(self, prompts: Sequence[str], context: Sequence[Context]) -> Floats:
        return np.array([self.lengths_.get(prompt, self.mean_) for prompt in prompts], dtype=np.float64)

    def explain(self, prompt: str, context: Context) -> list[Term]:
        """Return the score as its one term."""
        return [Term("score", self.name, float(self._score([prompt], [context])[0]))]

    def predict_len(self, prompts: Sequence[str], *, context: Sequence[Context] | None = None) -> Floats:
        """Return the true lengths (n,) [tokens]: the score itself, nothing to calibrate."""
        return self.predict(prompts, context=context)

    def _lengths(self, scores: Floats, context: Sequence[Context]) -> Floats:
        return scores

    def _state(self) -> State:
        texts = [prompt.encode("utf-8", "surrogatepass") for prompt in self.lengths_]
        return State(
            {
                "text": np.frombuffer(b"".join(texts), dtype=np.uint8),
                "size": np.array([len(text) for text in texts], dtype=np.int64),
                "length": np.array(list(self.lengths_.values()), dtype=np.float64),
                "mean": np.array([self.mean_]),
            }
        )

    def _restore(self, state: State) -> None:
        stream = state.arrays["text"].tobytes()
        ends = np.cumsum(state.arrays["size"])
        texts = [
            stream[end - size : end].decode("utf-8", "surrogatepass")
            for end, size in zip(ends, state.arrays["size"], strict=True)
        ]
        self.lengths_ = dict(zip(texts, state.arrays["length"].tolist(), strict=True))
        self.mean_ = float(state.arrays["mean"][0])


def degrade(lengths: ArrayLike, tau: float, rng: np.random.Generator) -> Floats:
    """Return scores (n,) whose Kendall tau-b with `lengths` (n,) is within 0.01 of `tau`, in [-1, 1].

    Gaussian noise of the right size is added to the normal scores of the ranks: the size is found by
    bisection on one draw of the noise. Raises ConfigError for a tau out of range, DataError when ties
    or too few rows put `tau` out of reach.
    """
    if not -1.0 <= tau <= 1.0:
        raise ConfigError(f"tau={tau!r}, allowed: -1 to 1")
    y = np.asarray(lengths, dtype=np.float64)
    n = y.shape[0]
    if n < 2:
        raise DataError(f"{n} lengths have no order to degrade; allowed: at least 2")
    place = np.empty(n)
    place[np.lexsort(np.stack([rng.random(n), y]))] = (np.arange(n) + 0.5) / n
    truth = normal_quantiles(place)
    noise = rng.standard_normal(n)
    best, best_gap = truth, np.inf
    low, high = 0.0, np.pi  # of the angle from the truth, by way of the noise, to its reverse
    for _ in range(40):
        angle = (low + high) / 2
        scores = np.cos(angle) * truth + np.sin(angle) * noise
        reached = kendall_tau(scores, y)
        if abs(reached - tau) < best_gap:
            best, best_gap = scores, abs(reached - tau)
        if reached > tau:  # each pair changes its order once on the way, so tau only falls
            low = angle
        else:
            high = angle
    if best_gap > 0.01:
        raise DataError(
            f"no scores of tau {tau} for these {n} lengths; the nearest reached is {best_gap:.3f} off"
        )
    return np.asarray(best, dtype=np.float64)
