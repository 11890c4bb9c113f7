"""From an ordinal score to a distribution of the reply length, by nearest out-of-fold scores.

Around each of at most 64 knots of the score, the empirical distribution of the nearest training
rows is kept as quantiles. Measured on ShareGPT it is as good as quantile regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sooner.core import DataError

LEVELS = np.array(
    [0.0, *np.linspace(0.01, 0.09, 5), *np.linspace(0.1, 0.9, 33), *np.linspace(0.91, 0.99, 5), 1.0]
)
"""Probabilities of the kept quantiles; 0.1, 0.25, 0.5, 0.75 and 0.9 are among them."""

_KNOTS = 64
_NEAREST = 400


@dataclass(frozen=True, slots=True)
class Calibration:
    """Score to length: knots (k,) ascending, mean (k,) [tokens] and quantile (k, levels) [tokens]."""

    knot: NDArray[np.float64]
    mean: NDArray[np.float64]
    quantile: NDArray[np.float64]

    @classmethod
    def fit(cls, scores: ArrayLike, lengths: ArrayLike) -> Self:
        """Return the map learned from scores (n,) the ranker gave to rows it had not been fitted on.

        Means and quantiles never fall as the score rises (pooled adjacent violators), so the order
        of expected lengths is the order of scores. Raises DataError for a score that is not finite.
        """
        x, y = np.asarray(scores, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
        if not np.isfinite(x).all():
            raise DataError("the ranker gave scores that are not finite; nothing can be calibrated on them")
        order = np.argsort(x, kind="stable")
        x, y = x[order], y[order]
        n = x.shape[0]
        near = min(n, max(20, min(_NEAREST, n // 8)))
        knot = np.unique(np.quantile(x, np.linspace(0, 1, min(_KNOTS, n))))
        first, last = np.searchsorted(x, knot, "left"), np.searchsorted(x, knot, "right")
        start = np.clip((first + last - near) // 2, 0, n - near)
        start, stop = np.minimum(start, first), np.maximum(start + near, last)
        mean = np.array([y[a:b].mean() for a, b in zip(start, stop, strict=True)])
        quantile = np.array([np.quantile(y[a:b], LEVELS) for a, b in zip(start, stop, strict=True)])
        saved = (knot, _rising(mean), np.apply_along_axis(_rising, 0, quantile))
        return cls(*(part.astype(np.float32).astype(np.float64) for part in saved))

    def expected(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Return expected lengths (n,) [tokens]; outside the knots the nearest one's."""
        return np.interp(np.asarray(scores, dtype=np.float64), self.knot, self.mean)

    def quantiles(self, scores: ArrayLike, levels: ArrayLike) -> NDArray[np.float64]:
        """Return lengths (n, levels) [tokens] that the reply stays below with the given probabilities."""
        table = self._table(scores)
        q = np.asarray(levels, dtype=np.float64)
        return np.stack([np.interp(q, LEVELS, row) for row in table])

    def expected_remaining(self, scores: ArrayLike, generated: ArrayLike) -> NDArray[np.float64]:
        """Return the expected tokens still to come (n,), given that `generated` (n,) came and no end.

        Where the reply has outlived every length seen, one token is expected.
        """
        table = self._table(scores)
        g = np.asarray(generated, dtype=np.float64)[:, None]
        mass = np.diff(LEVELS)[None, :]
        low, high = table[:, :-1], table[:, 1:]
        width = np.where(high > low, high - low, 1.0)
        alive = mass * np.where(high > low, np.clip((high - np.maximum(low, g)) / width, 0, 1), low > g)
        middle = (np.maximum(low, g) + high) / 2
        total = alive.sum(axis=1)
        rest = (alive * (middle - g)).sum(axis=1) / np.where(total > 0, total, 1.0)
        return np.where(total > 0, np.maximum(rest, 1.0), 1.0)

    def score_at(self, lengths: ArrayLike) -> NDArray[np.float64]:
        """Return the largest score (n,) whose expected length is at most the given one; inf above all."""
        y = np.asarray(lengths, dtype=np.float64)
        rising, at = np.unique(self.mean[::-1], return_index=True)
        knot = self.knot[::-1][at]
        inside = np.interp(y, rising, knot)
        below = knot[0] - np.maximum(rising[0] - y, 0) / max(float(rising[0]), 1.0)
        return np.where(y >= rising[-1], np.inf, np.where(y < rising[0], below, inside))

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return what is saved."""
        return {
            "knot": self.knot.astype(np.float32),
            "mean": self.mean.astype(np.float32),
            "quantile": self.quantile.astype(np.float32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float32]]) -> Self:
        """Return what was saved. Raises ValueError for arrays that do not fit together."""
        knot, mean, quantile = (arrays[name].astype(np.float64) for name in ("knot", "mean", "quantile"))
        k = knot.shape[0]
        if k == 0 or mean.shape != (k,) or quantile.shape != (k, LEVELS.shape[0]):
            raise ValueError(f"calibration of shapes {knot.shape}, {mean.shape}, {quantile.shape}")
        return cls(knot, mean, quantile)

    def _table(self, scores: ArrayLike) -> NDArray[np.float64]:
        x = np.clip(np.asarray(scores, dtype=np.float64), self.knot[0], self.knot[-1])
        right = np.clip(np.searchsorted(self.knot, x), 1, max(self.knot.shape[0] - 1, 1))
        right = np.minimum(right, self.knot.shape[0] - 1)
        left = np.maximum(right - 1, 0)
        gap = self.knot[right] - self.knot[left]
        share = np.where(gap > 0, (x - self.knot[left]) / np.where(gap > 0, gap, 1.0), 0.0)[:, None]
        table: NDArray[np.float64] = self.quantile[left] * (1 - share) + self.quantile[right] * share
        return table


def _rising(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pool adjacent violators: the nearest column (n,) in least squares that never falls."""
    level: list[float] = []
    size: list[int] = []
    for value in values:
        level.append(float(value))
        size.append(1)
        while len(level) > 1 and level[-2] > level[-1]:
            total = size[-2] + size[-1]
            level[-2] = (level[-2] * size[-2] + level[-1] * size[-1]) / total
            size[-2] = total
            level.pop()
            size.pop()
    return np.repeat(np.array(level), size)
