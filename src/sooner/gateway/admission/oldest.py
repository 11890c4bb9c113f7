"""Who of those that wait comes first by some time, such as that of arrival, in logarithmic time.

Nobody is taken out who leaves: an entry that does not count any more is dropped when it comes up, and
all such are swept out when as many have come as there were.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from sooner.gateway.admission.waiting import Waiting

_FEW = 64  # entries that are never swept

_Guest = TypeVar("_Guest", bound=Waiting)


class Oldest(Generic[_Guest]):
    """Those that were pushed and wait; `when` returns a request's time [s], which stays while it waits."""

    def __init__(self, when: Callable[[_Guest], float], waiting: Iterable[_Guest] = ()) -> None:
        self._when = when
        self._count = 0
        self._heap: list[tuple[float, int, _Guest]] = []
        self._most = _FEW
        for request in waiting:
            self.push(request)

    def push(self, request: _Guest) -> None:
        """Let a request in, which may have been here before."""
        self._count += 1
        heapq.heappush(self._heap, (self._when(request), self._count, request))
        if len(self._heap) > self._most:
            self._heap = list({entry[2].id: entry for entry in self._heap if self._counts(entry)}.values())
            heapq.heapify(self._heap)
            self._most = _FEW + 2 * len(self._heap)

    @property
    def first(self) -> _Guest:
        """Who comes first; somebody has to wait."""
        while not self._counts(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][2]

    def _counts(self, entry: tuple[float, int, _Guest]) -> bool:
        return entry[2].queued and entry[0] == self._when(entry[2])


def arrival(request: Waiting) -> float:
    """Return when a request came, or came again [s]."""
    return request.ticket.arrival_time
