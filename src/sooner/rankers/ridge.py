"""Ridge regression on sparse rows with nothing but NumPy: conjugate gradients on the normal equations.

CGLS, with damping (Paige and Saunders, 1982, section 2.1): every step costs one pass over the entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sooner.chat import Context
from sooner.rankers.features import hashed as features

Floats32 = NDArray[np.float32]


class Design(NamedTuple):
    """n rows: sparse entries (place, value) with row starts (n + 1,), and dense columns (n, d).

    Places are in [0, width).
    """

    place: NDArray[np.int32]
    value: Floats32
    start: NDArray[np.int64]
    dense: Floats32
    width: int = 1 << features.BITS

    @classmethod
    def of(cls, prompts: Sequence[str], context: Sequence[Context]) -> Self:
        """Return the features of n requests; dense columns are the raw numbers."""
        rows = [features.hashed(prompt, known) for prompt, known in zip(prompts, context, strict=True)]
        plain = [features.numbers(prompt, known) for prompt, known in zip(prompts, context, strict=True)]
        return cls(
            np.concatenate([row.place for row in rows]).astype(np.int32),
            np.concatenate([row.value for row in rows]),
            np.cumsum([0, *(row.place.shape[0] for row in rows)], dtype=np.int64),
            np.array(plain, dtype=np.float32),
        )

    def take(self, index: NDArray[np.int64]) -> Design:
        """Return the rows at `index`."""
        size = np.diff(self.start)[index]
        start = np.cumsum(np.r_[0, size])
        entry = np.arange(start[-1]) + np.repeat(self.start[index] - start[:-1], size)
        return Design(self.place[entry], self.value[entry], start, self.dense[index], self.width)

    def compact(self) -> tuple[Design, NDArray[np.int64]]:
        """Return the same rows over only the places they use, and those places (width,)."""
        seen = np.zeros(self.width, dtype=bool)
        seen[self.place] = True
        used = np.flatnonzero(seen)
        rank = np.cumsum(seen, dtype=np.int32) - 1
        return self._replace(place=rank[self.place], width=used.shape[0]), used

    def with_dense(self, dense: NDArray[np.floating]) -> Design:
        """Return the same sparse rows with other dense columns (n, d)."""
        return self._replace(dense=dense.astype(np.float32))

    def times(self, weights: Weights) -> NDArray[np.float64]:
        """Return rows times weights (n,). Every row has at least one sparse entry."""
        products = self.value * weights.hashed[self.place]
        sparse = np.add.reduceat(products, self.start[:-1], dtype=np.float64)
        return np.asarray(sparse + self.dense @ weights.dense, dtype=np.float64)

    def transposed_times(self, column: NDArray[np.float64]) -> Weights:
        """Return the transpose times a column (n,)."""
        each = np.repeat(column.astype(np.float32), np.diff(self.start)) * self.value
        hashed = np.bincount(self.place, weights=each, minlength=self.width)
        dense = self.dense.T @ column
        return Weights(hashed.astype(np.float64, copy=False), dense.astype(np.float64, copy=False))


class Weights(NamedTuple):
    """Weights of the sparse places (width,) and of the dense columns (d,)."""

    hashed: NDArray[np.float64]
    dense: NDArray[np.float64]

    def plus(self, factor: float, other: Weights) -> Weights:
        """Return self + factor * other."""
        return Weights(self.hashed + factor * other.hashed, self.dense + factor * other.dense)

    def squared(self) -> float:
        """Return the squared length."""
        return float(self.hashed @ self.hashed + self.dense @ self.dense)


def solve(
    design: Design, target: NDArray[np.float64], damping: float, start: Weights | None = None, steps: int = 40
) -> Weights:
    """Return weights w that minimise |design w - target|^2 + damping |w|^2, to 1e-3 of the gradient."""
    w = start or Weights(np.zeros(design.width), np.zeros(design.dense.shape[1]))
    residual = target - design.times(w) if start else target.astype(np.float64)
    gradient = design.transposed_times(residual).plus(-damping, w)
    direction, size = gradient, gradient.squared()
    enough = 1e-6 * design.transposed_times(target).squared()
    noise = 1e-13 * float(design.value @ design.value) * float(target @ target)  # of single precision
    enough = max(enough, noise)  # steps along a gradient that is noise would lead away
    for _ in range(steps):
        if size <= enough:
            break
        image = design.times(direction)
        step = size / (float(image @ image) + damping * direction.squared())
        w = w.plus(step, direction)
        residual = residual - step * image
        gradient = design.transposed_times(residual).plus(-damping, w)
        before, size = size, gradient.squared()
        direction = gradient.plus(size / before, direction)
    return w
