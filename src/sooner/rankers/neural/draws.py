"""Which rows a network is trained on in each epoch, within a budget of wordpieces."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def draws(
    sizes: NDArray[np.int64], later: NDArray[np.bool_], *, epochs: int, budget: int, seed: int
) -> list[NDArray[np.int64]]:
    """Return the rows (indices) of each epoch, for rows of `sizes` (n,) [wordpieces].

    Without need of the budget [wordpieces in all] every epoch is every row once. Where it does not
    suffice, first turns and `later` (n,) ones get half of it each, and what one of them does not need goes
    to the other: first turns are the few, and their text is all that is known of them. Each kind is gone
    through from end to end, so no row comes a second time before all have come once.
    """
    kinds = [np.flatnonzero(~later), np.flatnonzero(later)]
    pieces = np.array([sizes[kind].sum() for kind in kinds], dtype=np.float64)
    wanted = epochs * pieces
    given = np.minimum(wanted, budget / 2)
    given = np.minimum(wanted, np.maximum(given, budget - given[::-1]))
    rng = np.random.default_rng(seed)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(epochs)]
    for kind, share in zip(kinds, given / np.maximum(pieces, 1), strict=True):
        count = round(share * len(kind))
        passes = [rng.permutation(kind) for _ in range(epochs)]
        stream = np.concatenate(passes)[: max(count, 1 if len(kind) else 0)]
        for part, rows in zip(parts, np.array_split(stream, epochs), strict=True):
            part.append(rows)
    return [np.concatenate(part) for part in parts]
