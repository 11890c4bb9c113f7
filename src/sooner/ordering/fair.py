"""A queue that is fair among owners by what their entries cost, and bounded: a flood crowds out itself."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

Entry = TypeVar("Entry")
Owner = TypeVar("Owner", bound=Hashable)


class _Queued(NamedTuple, Generic[Entry]):
    entry: Entry
    cost: int


class FairQueue(Generic[Owner, Entry]):
    """Entries of many owners; the owner that was given least goes next, each owner's own in their order.

    What an owner was given is counted in cost while it has entries; one that comes (again) starts level with
    who goes next, so that nobody saves up and nobody is made to pay for having been alone. Costs a logarithm
    of the owners. Not thread-safe.
    """

    def __init__(self, *, most: int, most_cost: int) -> None:
        """`most` entries are kept, and at most `most_cost` of cost."""
        self._most, self._most_cost = most, most_cost
        self._queues: dict[Owner, deque[_Queued[Entry]]] = {}
        self._held: dict[Owner, int] = {}  # cost of what waits
        self._given: dict[Owner, int] = {}
        self._turns: list[tuple[int, int, Owner]] = []  # given, a number against ties, owner
        self._level = 0
        self._number = 0
        self._count = 0
        self._cost = 0

    def __len__(self) -> int:
        return self._count

    def put(self, owner: Owner, entry: Entry, cost: int) -> list[Entry]:
        """Add an entry; return those that had to go for want of room, perhaps this one.

        They are the latest of the owner that holds most.
        """
        if owner not in self._queues:
            self._queues[owner] = deque()
            self._held[owner] = 0
            self._given[owner] = self._level
            self._take_turn(owner)
        self._queues[owner].append(_Queued(entry, cost))
        self._add(owner, cost, 1)
        dropped = []
        while self._count > self._most or (self._cost > self._most_cost and self._count > 1):
            dropped.append(self._drop(owner))
        return dropped

    def get(self) -> Entry | None:
        """Return the next entry, None where there is none."""
        while self._turns:
            given, _, owner = heapq.heappop(self._turns)
            queue = self._queues.get(owner)
            if not queue:
                self._forget(owner)
                continue
            self._level = max(self._level, given)
            entry, cost = queue.popleft()
            self._add(owner, -cost, -1)
            self._given[owner] = given + max(cost, 1)
            self._take_turn(owner)
            return entry
        return None

    def held_by(self, owner: Owner) -> int:
        """Return how many entries of an owner wait."""
        return len(self._queues.get(owner, ()))

    def drop_oldest(self, owner: Owner) -> None:
        """Drop the entry of an owner that would be its next."""
        queue = self._queues.get(owner)
        if queue:
            self._add(owner, -queue.popleft().cost, -1)

    def leave(self, owner: Owner) -> None:
        """Drop all that an owner has."""
        queue = self._queues.get(owner)
        while queue:
            self._add(owner, -queue.pop().cost, -1)

    def _drop(self, newest: Owner) -> Entry:
        """Drop the latest entry of who holds most; the newest comer where it holds its share or more."""
        share = self._cost / max(len(self._queues), 1)
        largest = newest if self._held[newest] > share else max(self._held, key=self._held.__getitem__)
        entry, cost = self._queues[largest].pop()
        self._add(largest, -cost, -1)
        return entry

    def _add(self, owner: Owner, cost: int, count: int) -> None:
        self._held[owner] += cost
        self._cost += cost
        self._count += count

    def _take_turn(self, owner: Owner) -> None:
        self._number += 1
        heapq.heappush(self._turns, (self._given[owner], self._number, owner))

    def _forget(self, owner: Owner) -> None:
        for column in (self._queues, self._held, self._given):
            column.pop(owner, None)
