"""The waiting room: classes, then tenants in fair shares, then the policy; and a bound on waiting.

Pure logic without I/O. Of every `overdue_every` places at most one goes to the oldest request that
waited `overdue` seconds, whatever its class, tenant or length; the others keep their order, so an
overload does not turn everything into order of arrival.

Guarantee: a request that is overdue with m overdue ones before it starts within
`overdue_every * (m + 1)` further starts.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from sooner.gateway.settings import QueueSettings
from sooner.gateway.shares import Shares, work
from sooner.ordering.order import Order, Ticket
from sooner.ordering.queue import Place, RankedQueue

_REORDER = 0.05  # seconds between two readings of all keys, for policies whose keys change


@dataclass(slots=True, eq=False)
class Waiting:
    """One request from its arrival until it has left. Times are the monotonic clock's [s]."""

    id: str
    tenant: str
    level: int
    ticket: Ticket
    host: Any = None  # what the dispatcher keeps with it
    service: float = 0.0  # how long it is expected to run [s]
    urgent: bool = False
    queued: bool = False

    @property
    def place(self) -> Place:
        """Where it stands among its tenant's requests of its class."""
        if self.urgent:
            return (0, self.ticket.deadline, self.ticket.arrival_time, self.ticket.sequence)
        return self.ticket.place

    @property
    def work(self) -> float:
        """What it is expected to cost."""
        return work(self.ticket.prompt_len, self.ticket.predicted_len)


class Late(NamedTuple):
    """A request to be told that it will not be served, and why: "deadline" or "max_wait"."""

    request: Waiting
    reason: str


class Room:
    """Everyone who waits for one set of engines."""

    def __init__(self, order: Order, shares: Shares, settings: QueueSettings) -> None:
        self._order = order
        self.shares = shares
        self._settings = settings
        self._reorder = None if order.policy.timeless else self._places
        self._levels: dict[int, dict[str, RankedQueue[Waiting]]] = {}
        self._by_age: list[tuple[float, int, Waiting]] = []
        self._events: list[tuple[float, int, int, Waiting]] = []  # (when, entry, kind, request)
        self._pushes = 0
        self._since_overdue = settings.overdue_every
        self._refreshed = -math.inf
        self._size = 0
        self.work = 0.0
        self.by_tenant: dict[str, int] = {}

    def take(self, settings: QueueSettings) -> None:
        """Take new bounds."""
        self._settings = settings

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Waiting]:
        for tenants in self._levels.values():
            for queue in tenants.values():
                yield from queue

    def push(self, request: Waiting, now: float) -> None:
        """Let a request wait; one that comes back takes its own place by its arrival."""
        tenants = self._levels.setdefault(request.level, {})
        queue = tenants.get(request.tenant)
        if queue is None:
            queue = tenants[request.tenant] = RankedQueue(_place, self._reorder)
        if not self.by_tenant.get(request.tenant):
            self.shares.enter(request.tenant, [name for name, n in self.by_tenant.items() if n])
        request.queued = True
        queue.add_request(request)
        self._pushes += 1
        self._size += 1
        self.work += request.work
        self.by_tenant[request.tenant] = self.by_tenant.get(request.tenant, 0) + 1
        heapq.heappush(self._by_age, (request.ticket.arrival_time, self._pushes, request))
        self._plan(request)

    def moved(self, request: Waiting, work_before: float) -> None:
        """Say that a waiting request's score came."""
        if not request.queued:
            return
        self.work += request.work - work_before
        self._levels[request.level][request.tenant].move(request)
        self._plan(request)

    def remove(self, request: Waiting) -> bool:
        """Take a request out; False where it was not waiting."""
        if not request.queued:
            return False
        self._levels[request.level][request.tenant].remove_request(request)
        self._left(request)
        return True

    def pop(self, now: float) -> Waiting | None:
        """Return who is served next, or None where nobody waits."""
        if not self._size:
            return None
        self._promote(now)
        oldest = self._first_in()
        if self._starves(oldest, now):
            if self._since_overdue + 1 >= self._settings.overdue_every:
                self._since_overdue = 0
                self.remove(oldest)
                return oldest
            self._since_overdue += 1
        level = min(level for level, tenants in self._levels.items() if any(tenants.values()))
        tenants = self._levels[level]
        tenant = min((name for name, queue in tenants.items() if queue), key=self.shares.__getitem__)
        queue = tenants[tenant]
        if self._reorder is not None and now - self._refreshed >= _REORDER:
            self._order.now = self._refreshed = now
            for other in tenants.values():
                other.tick()
        request = queue.pop_request()
        queue.take_popped()
        self._left(request)
        return request

    def late(self, now: float) -> list[Late]:
        """Take out and return who waited too long, and whose deadline is out of reach."""
        found = []
        while self._by_age and (
            not self._by_age[0][2].queued
            or now - self._by_age[0][2].ticket.arrival_time >= self._settings.max_wait
        ):
            request = heapq.heappop(self._by_age)[2]
            if self.remove(request):
                found.append(Late(request, "max_wait"))
        self._promote(now)
        while self._events and (not self._events[0][3].queued or self._events[0][0] <= now):
            _, _, kind, request = heapq.heappop(self._events)
            if (
                kind == _HOPELESS
                and request.ticket.deadline - request.service <= now
                and self.remove(request)
            ):
                found.append(Late(request, "deadline"))
        return found

    def _starves(self, request: Waiting, now: float) -> bool:
        waited, bounds = now - request.ticket.arrival_time, self._settings
        long = bounds.overdue_ratio * request.service
        return waited >= bounds.overdue or 0.0 < long <= waited

    def overdue(self, now: float) -> int:
        """Return how many waited `overdue` seconds."""
        return sum(now - one.ticket.arrival_time >= self._settings.overdue for one in self)

    def position(self, request: Waiting) -> int:
        """Return about how many start before this one does, itself included.

        Its tenant's requests before it count, as many of each other tenant of its class, and all of
        better classes.
        """
        place = request.place
        own = sum(other.place <= place for other in self._levels[request.level][request.tenant])
        ahead = sum(
            len(queue)
            for level, tenants in self._levels.items()
            if level < request.level
            for queue in tenants.values()
        )
        beside = sum(
            min(len(queue), own)
            for name, queue in self._levels[request.level].items()
            if name != request.tenant
        )
        return own + ahead + beside

    def _plan(self, request: Waiting) -> None:
        """Note when its deadline becomes urgent, and when hopeless."""
        deadline = request.ticket.deadline
        if deadline == math.inf:
            return
        last = deadline - request.service
        heapq.heappush(self._events, (last - self._settings.urgent, self._pushes, _URGENT, request))
        heapq.heappush(self._events, (last, self._pushes, _HOPELESS, request))
        self._pushes += 1

    def _promote(self, now: float) -> None:
        """Put those whose deadline is near before the rest of their tenant's, earliest deadline first."""
        kept = []
        while self._events and self._events[0][0] <= now:
            event = heapq.heappop(self._events)
            _, _, kind, request = event
            if not request.queued:
                continue
            if kind == _HOPELESS:
                kept.append(event)
            elif not request.urgent:
                request.urgent = True
                self._levels[request.level][request.tenant].move(request)
        for event in kept:
            heapq.heappush(self._events, event)

    @property
    def oldest(self) -> float:
        """When the oldest came; infinity where nobody waits."""
        return self._first_in().ticket.arrival_time if self._size else math.inf

    def _first_in(self) -> Waiting:
        while not self._by_age[0][2].queued:
            heapq.heappop(self._by_age)
        return self._by_age[0][2]

    def _left(self, request: Waiting) -> None:
        request.queued = False
        self._size -= 1
        self.work = max(0.0, self.work - request.work) if self._size else 0.0
        self.by_tenant[request.tenant] -= 1
        if not self.by_tenant[request.tenant]:
            del self.by_tenant[request.tenant]
        tenants = self._levels[request.level]
        if not tenants[request.tenant]:
            del tenants[request.tenant]
        if len(self._by_age) > 64 + 2 * self._size:
            self._by_age = [entry for entry in self._by_age if entry[2].queued]
            heapq.heapify(self._by_age)
            self._events = [event for event in self._events if event[3].queued]
            heapq.heapify(self._events)

    def _places(self, requests: list[Waiting]) -> list[Place]:
        self._order.refresh([one.ticket for one in requests], [0] * len(requests))
        return [one.place for one in requests]


_URGENT, _HOPELESS = 0, 1


def _place(request: Waiting) -> Place:
    return request.place
