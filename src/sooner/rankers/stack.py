"""One score of several: a ridge regression drawn toward the weights that parts usually get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sooner.rankers.contract import Floats
from sooner.rankers.offers import Term
from sooner.rankers.scaling import Scaling, normal_scores

PARTS = ("transformer", "lexical")
"""The rankers in a blend, in the order of their columns."""

_USUAL = (0.45, 0.15)
"""Weights that the parts usually get, both sides in standard deviations; a few rows move them little."""

_DAMPING = 10.0
"""Rows that the usual weights count for; context numbers are drawn to zero three times as hard."""


class Stack(NamedTuple):
    """A sum of scaled columns: one for each part, the context numbers, those of the earlier turns."""

    scaling: Scaling
    weights: NDArray[np.float64]  # (k,)
    level: float

    @classmethod
    def fit(cls, columns: NDArray[np.float64], lengths: NDArray[np.float64]) -> Self:
        """Return the ridge regression of the lengths' normal scores on columns (n, k)."""
        target = normal_scores(lengths)
        scaling = Scaling.of(columns)
        x = scaling(columns)
        usual = np.zeros(columns.shape[1])
        usual[: len(PARTS)] = _USUAL
        damping = np.full(columns.shape[1], 3 * _DAMPING)
        damping[: len(PARTS)] = _DAMPING
        residual = target - target.mean() - x @ usual
        change = np.linalg.solve(x.T @ x + np.diag(damping), x.T @ residual)
        return cls(scaling, usual + change, float(target.mean()))

    def terms(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what each column adds (n, k); with `level` they sum to the score."""
        return np.asarray(self.scaling(columns) * self.weights, dtype=np.float64)

    def __call__(self, columns: NDArray[np.float64]) -> Floats:
        """Return scores (n,)."""
        return np.asarray(self.level + self.terms(columns).sum(axis=1), dtype=np.float64)

    def spread(self, at: int, terms: Sequence[Term], amount: float) -> list[Term]:
        """Return the terms of the ranker in column `at` in the stack's scale, so that they sum to `amount`.

        One term where the scaling cuts the column: then no part of it has an amount of its own.
        """
        score = sum(term.amount for term in terms)
        slope = float(self.weights[at]) * float(self.scaling.factor[at])
        shift = -slope * float(self.scaling.mean[at])
        if abs(slope * score + shift - amount) > 1e-6:
            return [Term(PARTS[at], "all of the text", amount)]
        level = Term("level", f"of the {PARTS[at]} part", amount - slope * score)
        return [level, *(term._replace(amount=slope * term.amount) for term in terms)]
