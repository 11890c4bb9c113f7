"""Fitting a shipped ranker to one served model from a few dozen of its finished requests, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import DataError

_WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Prior variances of the correction, in units of the noise; the first is the shipped order itself."""

_PRIOR = 100.0
"""Prior variance of level and slope: as good as free."""


class Refit(NamedTuple):
    """A new last layer: log length = level + slope x score + vectors @ weights."""

    level: float
    slope: float
    weights: NDArray[np.float64]  # (d,)

    @classmethod
    def fit(
        cls, scores: NDArray[np.float64], vectors: NDArray[np.float64], lengths: NDArray[np.float64]
    ) -> tuple[Refit, NDArray[np.float64]]:
        """Return the layer for scores (n,), vectors (n, d) and lengths (n,) [tokens], and honest scores (n,).

        A ridge regression in its dual form, so it costs n^3 whatever d. How far the weights may leave
        zero is chosen by the leave-one-out error, in closed form too (Rasmussen and Williams, 2006,
        section 5.4.2); the honest scores are the leave-one-out predictions. Raises DataError below 2 rows.
        """
        n = scores.shape[0]
        if n < 2:
            raise DataError(f"{n} finished requests to refit on; allowed: at least 2")
        logs = np.log1p(lengths)
        noise = max(float(logs.var()), 1e-9) * 0.7
        centre, spread = float(scores.mean()), max(float(scores.std()), 1e-9)
        z = (scores - centre) / spread
        target = (logs - logs.mean()) / np.sqrt(noise)
        fixed = _PRIOR * (1.0 + np.outer(z, z))
        similar = vectors @ vectors.T
        best: tuple[float, float, NDArray[np.float64], NDArray[np.float64]] | None = None
        for weight in _WEIGHTS:
            inverse = np.linalg.inv(fixed + weight * similar + np.eye(n))
            dual = inverse @ target
            left_out = dual / np.diag(inverse)
            error = float(np.mean(left_out**2))
            if best is None or error < best[0]:
                best = error, weight, dual, left_out
        assert best is not None  # there is at least one weight to try
        _, weight, dual, left_out = best
        slope = _PRIOR * float(z @ dual) * np.sqrt(noise) / spread
        level = float(logs.mean()) + _PRIOR * float(dual.sum()) * np.sqrt(noise) - slope * centre
        refitted = cls(level, slope, weight * np.sqrt(noise) * (vectors.T @ dual))
        return refitted, logs - left_out * np.sqrt(noise)

    def __call__(self, scores: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return scores (n,) for the served model."""
        return np.asarray(self.level + self.slope * scores + vectors @ self.weights, dtype=np.float64)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is saved."""
        return {"refit.line": np.array([self.level, self.slope]), "refit.weights": self.weights}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Refit | None:
        """Return what was saved, or None where nothing was. Raises ValueError for another shape."""
        if "refit.line" not in arrays:
            return None
        level, slope = arrays["refit.line"].tolist()
        return cls(level, slope, arrays["refit.weights"].astype(np.float64))
