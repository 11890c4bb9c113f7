"""A queue in rank order with vLLM's `RequestQueue` interface: O(log n) add, pop and remove.

It holds a heap whose removed entries stay behind as empty shells until they outnumber the living,
so a removal costs a dictionary look-up and no removed request is kept alive. It imports no vLLM;
`sooner.vllm.compat` registers it as a `RequestQueue`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeAlias, TypeVar

Item = TypeVar("Item", bound=Hashable)


Place: TypeAlias = tuple[int, float, float, int]
"""Where a request stands, the smallest first: (band, key, arrival_time, sequence).

`band` is 0 for what the starvation guard promoted and 1 for the rest; `sequence` is the order of
entry, kept by a request that comes back.
"""

_Entry: TypeAlias = list[Any]
"""What the heap holds: [*place, push number, item], item None once it left or moved.

A list, for it is emptied in place; the push number is unique, so that items are never compared.
"""
_PUSH, _ITEM = 4, 5


class RankedQueue(Generic[Item]):
    """Requests by `place_of(request)`, which is read when a request enters or is moved.

    There is no front to prepend to: a preempted or skipped request takes its own place again. With
    `reorder`, which returns the places of many items at once, every place is read anew before the
    first look at the queue after each `tick`: O(n) in such a step, and none in a step that admits
    nobody, for then vLLM does not look. Places stay frozen between ticks, so a peek and the pop
    after it agree.
    """

    def __init__(
        self,
        place_of: Callable[[Item], Place],
        reorder: Callable[[list[Item]], list[Place]] | None = None,
    ) -> None:
        self._place_of = place_of
        self._reorder = reorder
        self._heap: list[_Entry] = []
        self._entries: dict[Item, _Entry] = {}
        self._pushes = 0
        self._stale_order = False
        self._popped: dict[Item, None] = {}

    def add_request(self, request: Item) -> None:
        """Add a request at its place; one that is queued already moves there."""
        if request in self._entries:
            self._drop(request)
        self._pushes += 1  # two entries may share a place once an item moved away and back
        entry = self._entries[request] = [*self._place_of(request), self._pushes, request]
        heappush(self._heap, entry)
        if self._popped:
            self._popped.pop(request, None)

    def pop_request(self) -> Item:
        """Remove and return the first request. Raises IndexError when there is none."""
        item = self.peek_request()
        heappop(self._heap)
        del self._entries[item]
        self._popped[item] = None
        return item

    def peek_request(self) -> Item:
        """Return the first request. Raises IndexError when there is none."""
        if self._stale_order:
            self._refresh()
        while self._heap:
            item: Item | None = self._heap[0][_ITEM]
            if item is not None:
                return item
            heappop(self._heap)
        raise IndexError("the queue is empty")

    def prepend_request(self, request: Item) -> None:
        """Put a request back at its own place."""
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Item]) -> None:
        """Put requests back, each at its own place."""
        for request in requests:
            self.add_request(request)

    def remove_request(self, request: Item) -> None:
        """Remove a request; one that is not here is tolerated."""
        self._drop(request)
        self._popped.pop(request, None)

    def remove_requests(self, requests: Iterable[Item]) -> None:
        """Remove requests; those that are not here are tolerated."""
        for request in requests:
            if request in self._entries:
                self._drop(request)
            elif self._popped:
                self._popped.pop(request, None)

    def move(self, request: Item) -> None:
        """Read the place of a queued request anew; one that is not here is tolerated."""
        entry = self._entries.get(request)
        if entry is not None and tuple(entry[:_PUSH]) != self._place_of(request):
            self.add_request(request)

    def tick(self) -> None:
        """Say that time has passed: with `reorder`, places are read anew at the next look."""
        self._stale_order = self._reorder is not None

    def take_popped(self) -> list[Item]:
        """Return what was popped and not put back since the last call."""
        popped = list(self._popped)
        self._popped.clear()
        return popped

    def __contains__(self, request: object) -> bool:
        return request in self._entries

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Item]:
        """Iterate in order over what is queued now; O(n log n)."""
        if self._stale_order:
            self._refresh()
        return iter(sorted(self._entries, key=lambda item: self._entries[item][:_PUSH]))

    def __reversed__(self) -> Iterator[Item]:
        """Iterate from the last to the first; O(n log n)."""
        return reversed(list(self))

    def first(self, most: int) -> list[Item]:
        """Return the first few in order, down the heap from its top: O(most log most), however many wait."""
        if not self._entries:
            return []
        self.peek_request()  # reads places anew where that is due
        found: list[Item] = []
        near: list[tuple[_Entry, int]] = [(self._heap[0], 0)]
        while near and len(found) < most:
            entry, at = heappop(near)
            if entry[_ITEM] is not None:
                found.append(entry[_ITEM])
            for child in (2 * at + 1, 2 * at + 2):
                if child < len(self._heap):
                    heappush(near, (self._heap[child], child))
        return found

    def requests(self) -> list[Item]:
        """Return what is queued in no order, whatever state the heap is in."""
        return list(self._entries)

    def _drop(self, item: Item) -> None:
        entry = self._entries.pop(item, None)
        if entry is None:
            return
        entry[_ITEM] = None
        if len(self._heap) > 64 + 2 * len(self._entries):
            self._heap = [entry for entry in self._heap if entry[_ITEM] is not None]
            heapify(self._heap)

    def _refresh(self) -> None:
        self._stale_order = False
        if self._reorder is None or not self._entries:
            return
        entries = self._entries.values()
        for entry, place in zip(entries, self._reorder(list(self._entries)), strict=True):
            entry[:_PUSH] = place
        self._heap = list(entries)  # without the shells
        heapify(self._heap)
