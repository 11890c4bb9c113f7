"""Weights of what is known of a request, kept up to date in closed form: recursive least squares that fades.

The normal equations are summed up and solved every few rows; Plackett (1950) gives the recursion, and
the prior is a ridge about the weights one starts with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MEMORY = 3000.0
_EVERY = 16


class Regression:
    """y = w . x for rows of k numbers, from the prior weights on."""

    def __init__(self, prior: Sequence[float], strength: float) -> None:
        self._prior = np.asarray(prior, dtype=np.float64)
        self._strength = strength
        k = self._prior.shape[0]
        self._square: NDArray[np.float64] = np.zeros((k, k))
        self._product: NDArray[np.float64] = np.zeros(k)
        self._rows: list[Sequence[float]] = []
        self._values: list[float] = []
        self.weights: list[float] = self._prior.tolist()

    def add(self, row: Sequence[float], value: float) -> None:
        """Take in one finished request."""
        self._rows.append(row)
        self._values.append(value)
        if len(self._rows) >= _EVERY:
            self._solve()

    def forget(self, share: float) -> None:
        """Keep only a share of what was learned."""
        self._square *= share
        self._product *= share

    def _solve(self) -> None:
        x, y = np.array(self._rows), np.array(self._values)
        self._rows, self._values = [], []
        fade = (1.0 - 1.0 / _MEMORY) ** x.shape[0]
        self._square = fade * self._square + x.T @ x
        self._product = fade * self._product + x.T @ (y - x @ self._prior)
        ridge = self._square + self._strength * np.eye(x.shape[1])
        self.weights = (self._prior + np.linalg.solve(ridge, self._product)).tolist()

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return what is saved."""
        return {"square": self._square, "product": self._product}

    def load(self, state: dict[str, NDArray[np.float64]]) -> None:
        """Take over what was saved. Raises ValueError for another number of weights."""
        k = self._prior.shape[0]
        if state["square"].shape != (k, k) or state["product"].shape != (k,):
            raise ValueError(f"a regression of shape {state['square'].shape}; allowed: {(k, k)}")
        self._square, self._product = state["square"].copy(), state["product"].copy()
        ridge = self._square + self._strength * np.eye(k)
        self.weights = (self._prior + np.linalg.solve(ridge, self._product)).tolist()
