"""When those who wait will start: what goes before them now, and who will come and go before them still."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.gateway.admission.shares import charge
from sooner.gateway.admission.waiting import NOTHING, Amount
from sooner.gateway.settings import QueueSettings
from sooner.gateway.visit import Pool, Visit
from sooner.ordering.queue import Place

FEWEST = 20
"""Newcomers from which it is told how many will come; before, nobody is expected."""

_HALVINGS = 7
_WIDE = 8.0
_Numbers = NDArray[np.float64]


class InTurn(NamedTuple):
    """A waiting request, how much of its own tenant's goes before it now, and how many requests that is."""

    request: Visit
    own: Amount
    requests: int


def in_turn(request: Visit) -> InTurn:
    """Return how much goes before a request among its own, found one by one."""
    place = request.place
    before = [
        other.counted
        for other in request.pool.room.levels[request.level][request.tenant].requests()
        if other.place < place
    ]
    amount = Amount(sum(one.tokens for one in before), sum(one.work for one in before))
    return InTurn(request, amount, len(before))


def next_in_turn(first: Sequence[Visit]) -> list[InTurn]:
    """Return the same of those who are next, each after all of its own that are before it."""
    found, upto = [], dict[tuple[int, str], InTurn]()
    for request in first:
        key, one = (request.level, request.tenant), request.counted
        _, own, n = upto.get(key, InTurn(request, NOTHING, 0))
        found.append(InTurn(request, own, n))
        upto[key] = InTurn(request, Amount(own.tokens + one.tokens, own.work + one.work), n + 1)
    return found


class _Newcomers(NamedTuple):
    """The latest arrivals as columns (n,): an example of those to come. `span` [s] is how long they took."""

    span: float
    group: NDArray[np.int64]
    key: _Numbers
    head: _Numbers  # by how much the key is before the arrival [s]
    tokens: _Numbers
    work: _Numbers


class _Groups(NamedTuple):
    """Tenants of each class as columns (m,): what waits of them, what comes a second, where they stand."""

    level: _Numbers
    counter: _Numbers
    weight: _Numbers
    tokens: _Numbers
    work: _Numbers
    each: _Numbers  # tokens of one that waits
    tokens_rate: _Numbers
    work_rate: _Numbers


class Eta:
    """What one pool looks like at one moment, `now` on its clock [s].

    Work that waits before a request is done at the pace that the engines are seen to have. Meanwhile
    others come, as many and as large as of late; those whose keys will be smaller go before it too, other
    tenants as far as their turns reach, and better classes. The start is where what goes before is done.
    """

    def __init__(self, pool: Pool, bounds: QueueSettings, now: float) -> None:
        self._pool, self._bounds, self._now = pool, bounds, now
        self._each = pool.seconds(1.0)  # of work [s]
        names: dict[tuple[int, str], int] = {}
        for level, tenants in pool.room.levels.items():
            for tenant in tenants:
                names.setdefault((level, tenant), len(names))
        self._names = names
        self._overdue: dict[tuple[int, str], tuple[list[Place], list[float]]] = {}
        self._arrivals: dict[tuple[int, str], list[float]] = {}
        self._newcomers = self._came()
        self._groups = self._standing()

    def _came(self) -> _Newcomers:
        came = list(self._pool.newcomers)
        if len(came) < FEWEST or self._now <= came[0].ticket.arrival_time:
            came = []
        span = self._now - came[0].ticket.arrival_time if came else math.inf
        group = [self._names.setdefault((one.level, one.tenant), len(self._names)) for one in came]
        columns = np.array(
            [
                (
                    one.ticket.key, one.ticket.arrival_time,
                    charge(one.ticket.prompt_len, one.ticket.predicted_len), one.ticket.work,
                )
                for one in came
            ]
        ).reshape(-1, 4).T  # fmt: skip
        key, arrival, tokens, work = columns
        return _Newcomers(span, np.array(group, dtype=np.int64), key, arrival - key, tokens, work)

    def _standing(self) -> _Groups:
        room, shares, new = self._pool.room, self._pool.room.shares, self._newcomers
        waits = [room.waits(tenant, level) for level, tenant in self._names]
        n = len(self._names)
        return _Groups(
            np.array([level for level, _ in self._names], dtype=np.float64),
            np.array([shares[tenant] for _, tenant in self._names]),
            np.array([shares.weight(tenant) for _, tenant in self._names]),
            np.array([amount.tokens for amount in waits]),
            np.array([amount.work for amount in waits]),
            np.array([amount.tokens for amount in waits]) / self._sizes(),
            np.bincount(new.group, new.tokens, n) / new.span,
            np.bincount(new.group, new.work, n) / new.span,
        )

    def _sizes(self) -> _Numbers:
        """Return how many of each group wait, 1 for none."""
        levels = self._pool.room.levels
        return np.array([len(levels.get(level, {}).get(tenant, ())) or 1 for level, tenant in self._names])

    def seconds(self, waiting: Sequence[InTurn]) -> list[float | None]:
        """Return how long each is expected to wait still [s]; None while that is not known."""
        if self._each is None or not waiting:
            return [None] * len(waiting)
        who = np.array([self._names[one.request.level, one.request.tenant] for one in waiting])
        own = np.array([one.own for one in waiting]).T
        until = self._overtaken(waiting, who)
        due = np.array([self._due(one) for one in waiting]).T
        age = np.array([self._now - one.request.ticket.arrival_time for one in waiting])
        last = np.maximum(0.0, self._bounds.max_wait - age)
        low = np.minimum(self._each * self._before(np.zeros(len(waiting)), who, own, until, due), last)
        high = np.minimum(_WIDE * low, last)  # most start within a few times what waits now says
        high = np.where(self._each * self._before(high, who, own, until, due) > high, last, high)
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            later = self._each * self._before(middle, who, own, until, due) > middle
            low, high = np.where(later, middle, low), np.where(later, high, middle)
        found = 0.5 * (low + high)
        late = found > np.maximum(0.0, self._bounds.overdue - age)
        for at in np.flatnonzero(late):
            found[at] = min(found[at], self._when_due(waiting[at].request, age[at], int(who[at])))
        waits: list[float | None] = np.minimum(found, last).tolist()
        return waits

    def _overtaken(self, waiting: Sequence[InTurn], who: NDArray[np.int64]) -> _Numbers:
        """Return until when (k, n) [s] one like each newcomer would go before each of those who wait."""
        new, policy = self._newcomers, self._pool.order.policy
        key = np.array([[one.request.ticket.key] for one in waiting])
        if policy.timeless and "arrival_time" in policy.reads:
            until = key - self._now + new.head
        else:
            until = np.where(new.key < key, math.inf, 0.0)
        urgent = np.array([[one.request.urgent] for one in waiting])
        passes = (who[:, None] == new.group) & ~urgent
        return np.where(passes, np.maximum(until, 0.0), 0.0).astype(np.float64)

    def _due(self, waiting: InTurn) -> tuple[float, float]:
        """Return the mean work of those of its tenant that are overdue and after it, and who is before it.

        While there are such, one of every few starts is theirs.
        """
        request = waiting.request
        if self._now - self._pool.room.oldest < self._bounds.overdue:
            return 0.0, 0.0
        key = request.level, request.tenant
        if key not in self._overdue:
            self._overdue[key] = self._reckon_overdue(*key)
        places, works = self._overdue[key]
        at = bisect_right(places, request.place)
        return works[at] / max(len(places) - at, 1), float(waiting.requests)

    def _reckon_overdue(self, level: int, tenant: str) -> tuple[list[Place], list[float]]:
        """Return where a tenant's overdue requests stand, in order, and the work from each on."""
        last = self._now - self._bounds.overdue
        found = sorted(
            (other.place, other.ticket.work)
            for other in self._pool.room.levels[level][tenant].requests()
            if other.ticket.arrival_time <= last
        )
        works = list(accumulate((work for _, work in reversed(found)), initial=0.0))
        return [place for place, _ in found], works[::-1]

    def _before(
        self, seconds: _Numbers, who: NDArray[np.int64], own: _Numbers, until: _Numbers, due: _Numbers
    ) -> _Numbers:
        """Return the work (k,) that goes before each within so many `seconds` (k,)."""
        new, groups = self._newcomers, self._groups
        come = np.minimum(seconds[:, None], until) / new.span
        mine_tokens, mine_work = own[0] + come @ new.tokens, own[1] + come @ new.work
        mean, requests = due
        mine_work += mean * (requests + come.sum(axis=1)) / max(self._bounds.overdue_every - 1, 1)
        tokens = groups.tokens + groups.tokens_rate * seconds[:, None]
        work = groups.work + groups.work_rate * seconds[:, None]
        turn = groups.counter[who] + mine_tokens / groups.weight[who]
        reach = (turn[:, None] - groups.counter) * groups.weight
        reach += groups.each * np.where(
            reach > 0.0, 1.0, np.where(reach < 0.0, 0.0, 0.5)
        )  # in whole requests
        part = np.clip(reach / np.maximum(tokens, 1e-9), 0.0, 1.0)
        level = groups.level[who][:, None]
        same = (groups.level == level) & (np.arange(groups.level.size) != who[:, None])
        others = np.where(groups.level < level, work, np.where(same, part * work, 0.0))
        return np.asarray(mine_work + others.sum(axis=1))

    def _when_due(self, request: Visit, age: float, group: int) -> float:
        """Return when a request starts because it, and those of its tenant before it, waited too long [s]."""
        bounds, pool = self._bounds, self._pool
        key = request.level, request.tenant
        if key not in self._arrivals:
            waiting = pool.room.levels[request.level][request.tenant].requests()
            self._arrivals[key] = sorted(other.ticket.arrival_time for other in waiting)
        came = self._arrivals[key]
        older = bisect_left(came, request.ticket.arrival_time)
        begins = max(0.0, bounds.overdue - (self._now - came[0]))
        part = float(self._groups.weight[group]) / max(
            sum(map(pool.room.shares.weight, pool.room.by_tenant)), 1e-9
        )
        start = pool.service.value / max(pool.capacity, 1) / part  # seconds for a start of its tenant
        return max(bounds.overdue - age, begins + (older + 1) * bounds.overdue_every * start)
