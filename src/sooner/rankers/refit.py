"""Fitting a shipped ranker to one served model from a few dozen of its finished requests, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import DataError
from sooner.rankers.scaling import normal_scores

_VARIANCES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Prior variances of the correction, in units of the noise; the first is the shipped order itself."""

_FREE = 100.0
"""Prior variance of level and slope: as good as free."""

_NOISE = 0.7
"""Share of the variance of lengths that no prompt explains, about."""


class Refit(NamedTuple):
    """A new last layer: normal score of the length = level + slope x score + vectors @ weights."""

    level: float
    slope: float
    weights: NDArray[np.float64]  # (d,)

    @classmethod
    def fit(
        cls, scores: NDArray[np.float64], vectors: NDArray[np.float64], lengths: NDArray[np.float64]
    ) -> tuple[Refit, NDArray[np.float64]]:
        """Return the layer for scores (n,), vectors (n, d), lengths (n,) [tokens]; and leave-one-out scores.

        Ridge regressions of several strengths, averaged. How far the weights may leave zero is what a few
        rows cannot tell, so each strength counts by its leave-one-out error, as a likelihood (closed form:
        Rasmussen and Williams, 2006, section 5.4.2). Costs about min(n, d)^3. Raises DataError below 2 rows.
        """
        n = scores.shape[0]
        if n < 2:
            raise DataError(f"{n} finished requests to refit on; allowed: at least 2")
        wanted = normal_scores(lengths)
        unit = np.sqrt(max(float(wanted.var()), 1e-9) * _NOISE)
        center, spread = float(scores.mean()), max(float(scores.std()), 1e-9)
        free = np.column_stack([np.ones(n), (scores - center) / spread])
        ridge: _Dual | _Primal = (_Dual if n <= vectors.shape[1] + 2 else _Primal)(free, vectors)
        tried = [ridge(wanted / unit, variance) for variance in _VARIANCES]
        likelihood = np.array([-n / 2 * np.log(max(float(np.mean(e**2)), 1e-12)) for _, e in tried])
        share = np.exp(likelihood - likelihood.max())
        share /= share.sum()
        weights = unit * sum(part * w for part, (w, _) in zip(share, tried, strict=True))
        left_out = unit * sum(part * e for part, (_, e) in zip(share, tried, strict=True))
        slope = float(weights[1]) / spread
        return cls(float(weights[0]) - slope * center, slope, weights[2:]), wanted - left_out

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


class _Dual:
    """Ridge regressions on free columns (n, 2) and vectors (n, d), d large, for any prior variance of theirs.

    One decomposition of the rows' products serves all variances (Rasmussen and Williams, 2006, appendix A.3).
    """

    def __init__(self, free: NDArray[np.float64], vectors: NDArray[np.float64]) -> None:
        self._free, self._vectors = free, vectors
        values, self._axes = np.linalg.eigh(vectors @ vectors.T)
        self._values = np.maximum(values, 0.0)
        self._along = self._axes.T @ free

    def __call__(
        self, y: NDArray[np.float64], variance: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the weights (2 + d,) of noise 1 and the leave-one-out errors (n,)."""
        shrunk = 1.0 / (1.0 + variance * self._values)
        free = self._axes @ (shrunk[:, None] * self._along)
        inner = np.eye(free.shape[1]) / _FREE + self._free.T @ free
        alone = self._axes @ (shrunk * (self._axes.T @ y))
        dual = alone - free @ np.linalg.solve(inner, self._free.T @ alone)
        diagonal = self._axes**2 @ shrunk - np.einsum("ij,ji->i", free, np.linalg.solve(inner, free.T))
        weights = np.concatenate([_FREE * (self._free.T @ dual), variance * (self._vectors.T @ dual)])
        return weights, dual / diagonal


class _Primal:
    """The same where rows are more than columns."""

    def __init__(self, free: NDArray[np.float64], vectors: NDArray[np.float64]) -> None:
        self._columns, self._free = np.column_stack([free, vectors]), free.shape[1]

    def __call__(
        self, y: NDArray[np.float64], variance: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the weights (2 + d,) of noise 1 and the leave-one-out errors (n,)."""
        scale = np.full(self._columns.shape[1], np.sqrt(variance))
        scale[: self._free] = np.sqrt(_FREE)
        x = self._columns * scale
        inverse = np.linalg.inv(x.T @ x + np.eye(x.shape[1]))
        w = inverse @ (x.T @ y)
        leverage = np.einsum("ij,ij->i", x @ inverse, x)
        return scale * w, (y - x @ w) / (1.0 - leverage)
