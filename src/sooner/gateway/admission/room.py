"""The waiting room: classes, then tenants in fair shares, then the policy; and a bound on waiting.

Pure logic without I/O. Of every `overdue_every` places that a tenant gets one goes to its oldest
request that waited `overdue` seconds, whatever its class or length; the others keep their order, so an
overload does not turn everything into order of arrival. Nor does one tenant's: its overdue requests
take their tenant's places, and nobody else's.

Guarantee: a request that is overdue with m overdue ones of its tenant before it starts within
`overdue_every * (m + 1)` further starts of its tenant; and while anyone is overdue, one of every
`overdue_every` starts goes to the tenant that was served least, of whatever class.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

from sooner.gateway.admission import standing
from sooner.gateway.admission.ahead import Ahead
from sooner.gateway.admission.oldest import Oldest, arrival
from sooner.gateway.admission.refusals import DeadlineMissed, TurnedAway, WaitTooLong
from sooner.gateway.admission.shares import Shares
from sooner.gateway.admission.turns import Turns
from sooner.gateway.admission.waiting import NOTHING, Amount, Waiting
from sooner.gateway.settings import QueueSettings
from sooner.ordering.order import Order
from sooner.ordering.queue import Place, RankedQueue

_FEW_EVENTS = 64
_REORDER = 0.05  # seconds between two readings of all keys, for policies whose keys change


_Guest = TypeVar("_Guest", bound=Waiting)


class Late(NamedTuple, Generic[_Guest]):
    """A request to be told that it will not be served, and why."""

    request: _Guest
    reason: type[TurnedAway]


class Room(Generic[_Guest]):
    """Everyone who waits for one set of engines."""

    def __init__(self, order: Order, shares: Shares, settings: QueueSettings) -> None:
        self._order = order
        self.shares = shares
        self._changes = not order.policy.timeless
        self._levels: dict[int, dict[str, RankedQueue[_Guest]]] = {}
        self._by_age: dict[str, Oldest[_Guest]] = {}
        self._events: list[tuple[float, int, int, _Guest]] = []  # (when, entry, kind, request)
        self._pushes = 0
        self._most_events = _FEW_EVENTS  # of which those who have left are swept out
        self._passed: dict[str, int] = {}  # by tenant: starts in which its oldest was overdue and passed over
        self._passed_classes = 0  # the same, of all tenants, while several classes waited
        self._refreshed = -math.inf
        self._size = 0
        self.work = 0.0  # [s] of one engine
        self.by_tenant: dict[str, int] = {}
        self._weights = 0.0  # of those who wait
        self._turns = Turns(self._standing)
        self._turns_of: dict[int, Turns] = {}  # by class
        self._ages: Oldest[_Guest] = Oldest(arrival)
        self.take(settings)
        shares.watch(self._stands)
        self._amounts: dict[int, Ahead] = {}  # by class

    def take(self, settings: QueueSettings) -> None:
        """Take new bounds."""
        self._settings = settings
        self._starving = Oldest(self._starves_at, self) if settings.overdue_ratio else self._ages

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[_Guest]:
        for tenants in self._levels.values():
            for queue in tenants.values():
                yield from queue

    def push(self, request: _Guest, now: float) -> None:
        """Let a request wait; one that comes back takes its own place by its arrival."""
        tenants = self._levels.setdefault(request.level, {})
        queue = tenants.get(request.tenant)
        new = queue is None
        if queue is None:
            queue = tenants[request.tenant] = RankedQueue(_place, self._places)
        known = request.tenant in self.by_tenant
        if not known:
            self.shares.lift(request.tenant, self._turns.lowest)
        request.queued = True
        queue.add_request(request)
        self._size += 1
        self._count(request, Amount(request.tokens, request.ticket.work))
        self.by_tenant[request.tenant] = self.by_tenant.get(request.tenant, 0) + 1
        self._by_age.setdefault(request.tenant, Oldest(arrival)).push(request)
        self._ages.push(request)
        if self._starving is not self._ages:
            self._starving.push(request)
        self._plan(request)
        if new:
            self._turns_of.setdefault(request.level, Turns(self._standing)).enter(request.tenant)
        if not known:
            self._turns.enter(request.tenant)
            self._weights += self.shares.weight(request.tenant)
        self._stands(request.tenant)

    def moved(self, request: _Guest) -> None:
        """Say that a waiting request's score came, or what else moves it."""
        if not request.queued:
            return
        self._count(request, Amount(request.tokens, request.ticket.work))
        self._stands(request.tenant)
        self._levels[request.level][request.tenant].move(request)
        self._plan(request)

    def remove(self, request: _Guest) -> bool:
        """Take a request out; False where it was not waiting."""
        if not request.queued:
            return False
        self._levels[request.level][request.tenant].remove_request(request)
        self._left(request)
        return True

    def pop(self, now: float) -> _Guest | None:
        """Return who is served next, or None where nobody waits."""
        if not self._size:
            return None
        self._promote(now)
        levels = [level for level in sorted(self._levels) if self._levels[level]]
        classless = len(levels) > 1 and self._classless(now)
        turns = self._turns if classless else self._turns_of[levels[0]]
        tenant = turns.first(self.shares.allowed(self._weights))
        oldest = self._by_age[tenant].first
        if self._starves(oldest, now):
            passed = self._passed.get(tenant, self._settings.overdue_every) + 1
            due = classless or passed >= self._settings.overdue_every
            self._passed[tenant] = 0 if due else passed
            if due:
                self.remove(oldest)
                return oldest
        tenants = next(self._levels[level] for level in levels if tenant in self._levels[level])
        if self._changes and now - self._refreshed >= _REORDER:
            self._order.now = self._refreshed = now
            for other in tenants.values():
                other.tick()
        queue = tenants[tenant]
        request = queue.pop_request()
        queue.take_popped()
        self._left(request)
        return request

    def place_anew(self) -> None:
        """Say that what the keys hang on moved: all places are read anew before the next start."""
        for tenants in self._levels.values():
            for queue in tenants.values():
                queue.tick()

    def reckon(self) -> None:
        """Say that all work is reckoned anew."""
        for request in self:
            self._count(request, Amount(request.tokens, request.ticket.work))
        self._stands(None)

    def late(self, now: float) -> list[Late[_Guest]]:
        """Take out and return who waited too long, and whose deadline is out of reach."""
        found = []
        while self._size and now - self._ages.first.ticket.arrival_time >= self._settings.max_wait:
            request = self._ages.first
            self.remove(request)
            found.append(Late(request, WaitTooLong))
        self._promote(now)
        while self._events and (not self._events[0][3].queued or self._events[0][0] <= now):
            _, _, kind, request = heapq.heappop(self._events)
            if (
                kind == _HOPELESS
                and request.ticket.deadline - request.service <= now
                and self.remove(request)
            ):
                found.append(Late(request, DeadlineMissed))
        return found

    def _classless(self, now: float) -> bool:
        """Return whether this place is given without regard to classes: one of `overdue_every`."""
        self._passed_classes += self._starves(self._starving.first, now)
        if self._passed_classes < self._settings.overdue_every:
            return False
        self._passed_classes = 0
        return True

    def _standing(self, tenant: str) -> tuple[float, int, float]:
        """Return what decides between tenants: served so far, how many wait, the need of an allowance."""
        waits = sum(of[tenant].tokens for of in self._amounts.values())
        return self.shares[tenant], self.by_tenant[tenant], self.shares.need(tenant, waits)

    def _stands(self, tenant: str | None) -> None:
        """Say that a tenant may stand elsewhere among those who wait; None: all may."""
        if tenant is None:
            self._weights = sum(map(self.shares.weight, self.by_tenant))
        elif tenant not in self.by_tenant:
            return  # it has no turn
        for turns in (self._turns, *self._turns_of.values()):
            turns.changed(tenant)
        for amounts in self._amounts.values():
            amounts.moved(tenant)

    def _starves_at(self, request: _Guest) -> float:
        return request.ticket.arrival_time + self._patience(request)

    def _patience(self, request: _Guest) -> float:
        """Return how long it may wait until it is overdue [s]."""
        most, ratio = self._settings.overdue, self._settings.overdue_ratio
        return min(most, ratio * request.service or most)

    def _starves(self, request: _Guest, now: float) -> bool:
        return now - request.ticket.arrival_time >= self._patience(request)

    def ahead(self, tenant: str, level: int) -> float:
        """Return the work that waits before a request of `tenant` that would come now as its last [s].

        All of better classes and its own tenant's, and of each other tenant of its class as much as
        the counters give it until then: a tenant that floods the room is not in the others' way.
        """
        better = sum(of.work for at, of in self._amounts.items() if at < level)
        beside = self._amounts.get(level)
        if beside is None:
            return better
        counter = (
            self.shares[tenant]
            if tenant in self.by_tenant
            else self.shares.on_entry(tenant, self._turns.lowest)
        )
        return better + beside.before(counter + beside[tenant].tokens / self.shares.weight(tenant))

    def overdue(self, now: float) -> dict[str, int]:
        """Return how many of each tenant's are overdue."""
        found = dict.fromkeys(self.by_tenant, 0)
        for request in self:
            found[request.tenant] += self._starves(request, now)
        return found

    def bound(self, now: float) -> float:
        """Return the most starts until any request starts that is overdue now, or one that becomes so next.

        Each tenant is taken to get its share of the starts.
        """
        overdue = self.overdue(now)
        whole = sum(map(self.shares.weight, overdue))
        most = max(((n + 1) * whole / self.shares.weight(name) for name, n in overdue.items()), default=1.0)
        classes = self._settings.overdue_every if sum(map(bool, self._levels.values())) > 1 else 1
        return classes * self._settings.overdue_every * most

    @property
    def levels(self) -> Mapping[int, Mapping[str, RankedQueue[_Guest]]]:
        """Who waits, by class and tenant."""
        return self._levels

    def waits(self, tenant: str, level: int) -> Amount:
        """Return how much of a tenant's waits in a class."""
        return self._amounts[level][tenant] if level in self._amounts else NOTHING

    def position(self, request: _Guest) -> int:
        """Return about how many start before this one does, itself included."""
        return standing.before(self._levels, request).position

    def _plan(self, request: _Guest) -> None:
        """Note when its deadline becomes urgent, and when hopeless."""
        deadline = request.ticket.deadline
        if deadline == math.inf:
            return
        last = deadline - request.service
        heapq.heappush(self._events, (last - self._settings.urgent, self._pushes, _URGENT, request))
        heapq.heappush(self._events, (last, self._pushes, _HOPELESS, request))
        self._pushes += 1
        if len(self._events) > self._most_events:
            self._events = [event for event in self._events if event[3].queued]
            heapq.heapify(self._events)
            self._most_events = _FEW_EVENTS + 2 * len(self._events)

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
        return self._ages.first.ticket.arrival_time if self._size else math.inf

    def _left(self, request: _Guest) -> None:
        request.queued = False
        self._size -= 1
        self._count(request, NOTHING)
        if not self._size:
            self.work = 0.0
        self.by_tenant[request.tenant] -= 1
        if not self.by_tenant[request.tenant]:
            del self.by_tenant[request.tenant]
            self._passed.pop(request.tenant, None)
            del self._by_age[request.tenant]
            self._turns.leave(request.tenant)
            self._weights -= self.shares.weight(request.tenant)
        tenants = self._levels[request.level]
        if not tenants[request.tenant]:
            del tenants[request.tenant]
            self._amounts[request.level].drop(request.tenant)
            self._turns_of[request.level].leave(request.tenant)
        self._stands(request.tenant)

    def _count(self, request: _Guest, amount: Amount) -> None:
        """Let the sums hold so much of a request, whatever they held of it."""
        amounts = self._amounts.get(request.level)
        if amounts is None:
            amounts = self._amounts[request.level] = Ahead(self._counter_and_weight)
        old, tenants = request.counted, amounts[request.tenant]
        tokens = max(0.0, tenants.tokens + amount.tokens - old.tokens)
        amounts.put(request.tenant, Amount(tokens, max(0.0, tenants.work + amount.work - old.work)))
        self.work = max(0.0, self.work + amount.work - old.work)
        request.counted = amount

    def _counter_and_weight(self, tenant: str) -> tuple[float, float]:
        return self.shares[tenant], self.shares.weight(tenant)

    def _places(self, requests: list[_Guest]) -> list[Place]:
        for request in requests:
            request.ticket.counter = self.shares[request.tenant]
        self._order.refresh(
            [request.ticket for request in requests], [request.ticket.attained for request in requests]
        )
        return [request.place for request in requests]


_URGENT, _HOPELESS = 0, 1


def _place(request: Waiting) -> Place:
    return request.place
