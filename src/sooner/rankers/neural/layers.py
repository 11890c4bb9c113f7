"""A small dense network in NumPy, as torch trained it: rectified layers, the last one linear."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray


class Layers(NamedTuple):
    """Weights (inputs, outputs) and biases (outputs,) of each layer, in order."""

    weights: Sequence[NDArray[np.float32]]
    biases: Sequence[NDArray[np.float32]]

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return outputs (n, width) of inputs (n, d)."""
        last = len(self.weights) - 1
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight.astype(np.float64) + bias
            if number < last:
                x = np.maximum(x, 0.0)
        return x

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is saved."""
        named: dict[str, NDArray[Any]] = {f"weight.{i}": array for i, array in enumerate(self.weights)}
        return named | {f"bias.{i}": array for i, array in enumerate(self.biases)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Return what was saved. Raises KeyError or ValueError for layers that do not fit together."""
        count = sum(name.startswith("weight.") for name in arrays)
        made = cls([arrays[f"weight.{i}"] for i in range(count)], [arrays[f"bias.{i}"] for i in range(count)])
        shapes = [array.shape for array in made.weights]
        joined = all(a[1] == b[0] for a, b in itertools.pairwise(shapes))
        ends = all(bias.shape == shape[1:] for bias, shape in zip(made.biases, shapes, strict=True))
        if not count or not joined or not ends:
            raise ValueError(f"layers of shapes {shapes}")
        return made
