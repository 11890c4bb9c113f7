"""Magnus's batcher: put a request where it wastes the least memory access (WMA; arXiv 2406.04785).

For member p of a batch B with L = longest input and G = longest generation, both in tokens, padding
is read G(p) (L - L(p)) times while p generates, and the whole cache while p waits for the longest
member, sum over g = G(p) .. G - 1 of (g + L). Both together are c(L, G) - c(L(p), G(p)) with
c(L, G) = G L + G (G - 1) / 2, so a batch needs only its least or total c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sooner.core import ConfigError, Number, UnknownName
from sooner.sim.static import Counts

AGGREGATES = ("max", "sum")


def cache_reads(length: Number, generation: Number) -> Number:
    """Return c(L, G), the cached tokens one row reads over its whole generation."""
    return generation * length + generation * (generation - 1) / 2


def wma(length: Sequence[int], generation: Sequence[int], aggregate: str = "max") -> float:
    """Return the WMA of a batch: the largest of its members', or their sum."""
    if aggregate not in AGGREGATES:
        raise UnknownName("WMA aggregate", aggregate, AGGREGATES)
    reads = cache_reads(np.asarray(length, dtype=np.float64), np.asarray(generation, dtype=np.float64))
    wasted = cache_reads(float(max(length)), float(max(generation))) - np.asarray(reads)
    return float(wasted.max() if aggregate == "max" else wasted.sum())


@dataclass(slots=True)
class MagnusBatch:
    """A batch in the queue: its members, and what the test of a newcomer needs. `open` takes newcomers."""

    members: list[int] = field(default_factory=list)
    length: int = 0
    generation: int = 0
    least: float = np.inf
    total: float = 0.0
    open: bool = True
    estimate_s: float | None = None

    def add(self, request: int, length: int, generation: int) -> None:
        """Take in a request; what was estimated of the batch no longer holds."""
        reads = float(cache_reads(float(length), float(generation)))
        self.members.append(request)
        self.length, self.generation = max(self.length, length), max(self.generation, generation)
        self.least, self.total = min(self.least, reads), self.total + reads
        self.estimate_s = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batcher:
    """Where a newcomer goes: the open batch of least resulting WMA under `threshold`, or a new one.

    `memory_tokens` bounds size x (L + G) on predicted lengths, `max_rows` the size (None: no bound).
    """

    memory_tokens: int
    threshold: float = 50_000.0
    aggregate: str = "max"
    max_rows: int | None = None

    def __post_init__(self) -> None:
        if self.aggregate not in AGGREGATES:
            raise UnknownName("WMA aggregate", self.aggregate, AGGREGATES)
        if self.memory_tokens < 1 or self.threshold < 0 or (self.max_rows is not None and self.max_rows < 1):
            raise ConfigError(f"memory and rows must be >= 1 and the threshold >= 0: {self}")

    def insert(self, queue: list[MagnusBatch], request: int, length: int, generation: int) -> MagnusBatch:
        """Put a request in `queue` and return the batch it went to."""
        candidates = [batch for batch in queue if batch.open]
        place = self._best(candidates, length, generation) if candidates else -1
        if place < 0:
            candidates, place = [MagnusBatch()], 0
            queue.append(candidates[0])
        candidates[place].add(request, length, generation)
        return candidates[place]

    def _best(self, batches: Sequence[MagnusBatch], length: int, generation: int) -> int:
        state = np.array([(len(b.members), b.length, b.generation, b.least, b.total) for b in batches])
        rows, longest, most = (
            state[:, 0] + 1,
            np.maximum(state[:, 1], length),
            np.maximum(state[:, 2], generation),
        )
        own, whole = cache_reads(float(length), float(generation)), cache_reads(longest, most)
        if self.aggregate == "max":
            wasted = whole - np.minimum(state[:, 3], own)
        else:
            wasted = rows * whole - (state[:, 4] + own)
        fits = (rows * (longest + most) <= self.memory_tokens) & (wasted < self.threshold)
        if self.max_rows is not None:
            fits &= rows <= self.max_rows
        if not fits.any():
            return -1
        return int(np.argmin(np.where(fits, wasted, np.inf)))


def halves(batch: MagnusBatch, length: Counts, generation: Counts) -> list[MagnusBatch]:
    """Return a batch that ran out of memory as two, closed to newcomers; by order of generation."""
    ordered = sorted(batch.members, key=lambda request: int(generation[request]))
    middle = len(ordered) // 2
    parts = []
    for members in (ordered[:middle], ordered[middle:]):
        part = MagnusBatch(open=False)
        for request in members:
            part.add(request, int(length[request]), int(generation[request]))
        parts.append(part)
    return parts
