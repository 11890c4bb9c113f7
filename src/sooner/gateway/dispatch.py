"""Who goes where, and when: the waiting rooms, the engines, and the scores as they come."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from sooner.core import Prediction
from sooner.gateway.admission.limits import Limits
from sooner.gateway.admission.reading import Asked
from sooner.gateway.admission.room import Room, Waiting
from sooner.gateway.admission.shares import Shares
from sooner.gateway.engines.backend import Backend
from sooner.gateway.engines.offload import Offload
from sooner.gateway.engines.reply_pace import ReplyPace
from sooner.gateway.places import COUNTERS, NoBackend, Place, Pool, Refused
from sooner.gateway.settings import GatewaySettings
from sooner.ordering.client import ScorerClient
from sooner.ordering.counters import Counters
from sooner.ordering.order import Order

logger = logging.getLogger("sooner.gateway")

_KEPT_FREE = 9.0  # a tenant may hold at most this many times the places that are left in the waiting room


class Dispatcher:
    """Hands out places at engines in the policy's order. Lives in one event loop.

    `clock` is monotonic [s]; what the wall clock does changes nothing here.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        backends: Sequence[Backend],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.counters = Counters(COUNTERS, logger)
        policy = settings.chosen_policy
        self.order = Order(policy, None, self.counters)
        self.shares = Shares({one.name: one.weight for one in settings.tenants})
        self.backends = list(backends)
        self._pools: dict[tuple[str, ...], Pool] = {}
        self.waiting: dict[str, Waiting] = {}  # by request id, until the reply has ended
        self.limits = Limits(settings.tenants)
        self._swept = clock()
        self.offload = Offload()
        self._pace = ReplyPace()
        self._tenants = {one.name: one for one in settings.tenants}
        self._loop = asyncio.get_running_loop()
        self._scorer: ScorerClient | None = None
        if settings.ranker and (policy.uses_predictions or settings.journal.url):
            self._scorer = ScorerClient(
                "", settings.ranker, "", self._deliver, self.counters, settings.scorer_timeout
            )

    @property
    def pools(self) -> Iterable[Pool]:
        """Every pool that was asked for."""
        return self._pools.values()

    @property
    def queued(self) -> int:
        """How many wait."""
        return sum(len(pool.room) for pool in self._pools.values())

    def take(self, settings: GatewaySettings, backends: Sequence[Backend]) -> None:
        """Take new settings; engines that are gone finish what they run, and those who wait go elsewhere."""
        gone = [one for one in self.backends if one not in backends]
        for one in gone:
            one.retired = one.draining = True
        if settings.tenants != self.settings.tenants:
            self.limits.take(settings.tenants)
        self.shares.take({one.name: one.weight for one in settings.tenants})
        self.settings = settings
        self._tenants = {one.name: one for one in settings.tenants}
        self.backends = [*backends, *gone]
        for pool in self._pools.values():
            pool.room.take(settings.queue)
            pool.backends = [one for one in self.backends if one.serves(pool.model)]
        self.pump()

    def close(self) -> None:
        """Stop the scorer."""
        if self._scorer is not None:
            self._scorer.close()

    def pool_for(self, model: str) -> Pool:
        """Return the pool of the engines that serve `model`. Raises NoBackend."""
        serving = [one for one in self.backends if one.serves(model)]
        if not serving:
            known = sorted({name for one in self.backends for name in one.cards or one.settings.models})
            raise NoBackend(f"unknown model {model!r}; known: {', '.join(known[:20])}", known=False)
        names = tuple(one.name for one in serving)
        pool = self._pools.get(names)
        if pool is None:
            pool = self._pools[names] = Pool(
                model, serving, Room(self.order, self.shares, self.settings.queue), self.clock
            )
        pool.backends = serving
        return pool

    def arrive(self, id: str, tenant: str, level: int, asked: Asked, default_ms: float) -> Waiting:
        """Give a request its ticket and ask for its score. Raises Refused, NoBackend."""
        pool = self.pool_for(asked.model)
        now = self.clock()
        self.order.begin_step(now)
        said = asked.given
        if default_ms and said.deadline_ms is None:
            said = said._replace(deadline_ms=default_ms)
        ticket = self.order.arrive(id, now, asked.prompt_len, said, level, ahead=self._ahead(pool))
        request = Waiting(id, tenant, level, ticket, Place(asked, pool))
        self._expect(request)
        try:
            self._admit(request, now)
            self._limit(request, now)
        except Refused:
            self.order.leave(id)
            raise
        self.waiting[id] = request
        if self._scorer is not None and asked.request.readable and said.score is None:
            self._scorer.submit(id, asked.request, tenant)
        return request

    def _ahead(self, pool: Pool) -> float:
        """Return the work that waits for each engine of a pool [s]."""
        share = len(pool.room) / max(self.queued, 1)
        return self.order.backlog * share / max(sum(one.healthy for one in pool.backends), 1)

    def replied(self, prompt_len: int, first_byte: float, gap: float, in_flight: int) -> None:
        """Learn the engines' pace from a streamed reply: tokens, seconds, seconds a token, requests there."""
        learned = self._pace.add(prompt_len, first_byte, gap, in_flight)
        if learned is not None:
            self.order.set_pace(learned)

    def _admit(self, request: Waiting, now: float) -> None:
        """Refuse what cannot be served in time. Raises Refused."""
        pool: Pool = request.host.pool
        room, bounds = pool.room, self.settings.queue
        if not any(one.healthy for one in pool.backends):
            raise Refused("refused_down", "no engine for this model is up", 5.0)
        if not len(room) and self._choose(request, now) is not None:
            return
        wait = pool.seconds(room.ahead(request.tenant, request.level))
        left = bounds.max_waiting - len(room)
        if left <= 0:
            raise Refused("refused_full", f"{len(room)} requests wait already", wait)
        part = min(self._room_share(request.tenant) * bounds.max_waiting, _KEPT_FREE * left)
        if room.by_tenant.get(request.tenant, 0) >= part:
            raise Refused("refused_full", f"tenant {request.tenant!r} fills its part of the queue", wait)
        if wait is not None and wait > bounds.max_wait * pool.promise:
            told = f"the wait would be {wait:.0f} s, allowed: {bounds.max_wait:.0f} s"
            raise Refused("refused_wait", told, wait)
        if request.ticket.deadline - request.service < now:
            raise Refused("refused_deadline", "the deadline is out of reach")

    def _limit(self, request: Waiting, now: float) -> None:
        """Take from the tenant's limits. Raises Refused where nothing is left."""
        request.host.admitted = request.work
        wait = self.limits.admit(request.tenant, request.work, now)
        if wait:
            raise Refused("refused_limit", f"tenant {request.tenant!r} is over its limit", wait)

    def _room_share(self, tenant: str) -> float:
        found = self._tenants.get(tenant)
        if found is not None:
            return found.queue_share
        return 0.5 if self.settings.keys else 1.0

    async def place(self, request: Waiting) -> Backend:
        """Return the engine a request may go to, once it is its turn. Raises Refused, NoBackend.

        Whoever calls this calls `leave` in the end, and `over` for each engine it was given.
        """
        place: Place = request.host
        pool, now = place.pool, self.clock()
        if not len(pool.room):
            backend = self._choose(request, now)
            if backend is not None:
                self._start(request, backend, now)
                return backend
        place.granted = self._loop.create_future()
        pool.room.push(request, now)
        if not place.rank:
            place.rank = len(pool.room)
        if pool.free(now):  # all others that wait were tried on what is free
            self.pump()
        try:
            return await place.granted
        except asyncio.CancelledError:
            granted = place.granted
            if (
                not pool.room.remove(request)
                and granted.done()
                and not granted.cancelled()
                and not granted.exception()
            ):
                self.over(request, granted.result())  # it was its turn in the very moment its client left
            raise

    def _choose(self, request: Waiting, now: float) -> Backend | None:
        """Return the engine with room and the least predicted work; a tried one only if no other lives."""
        place: Place = request.host
        alive = [one for one in place.pool.backends if one.open(now)]
        fresh = [one for one in alive if one.name not in place.tried] or alive
        free = [one for one in fresh if one.in_flight < one.limit]
        if not free:
            return None
        if self.settings.slices.tokens:
            return self.offload.choose(free, request)
        asked, amount = place.asked, request.work
        return min(free, key=lambda one: one.cost(amount, asked.prompt_len, asked.prefix))

    def _start(self, request: Waiting, backend: Backend, now: float) -> None:
        place: Place = request.host
        self.order.now = now
        self.order.admitted(request.id)
        place.charged = request.work
        self.shares.charge(request.tenant, place.charged)
        if self.settings.slices.tokens:
            self.offload.began(request, backend)
        backend.began(place.charged, place.asked.prefix)

    def over(self, request: Waiting, backend: Backend, served: float | None = None) -> None:
        """Give the place at an engine back. `served` is the work that was really done, None for none."""
        place: Place = request.host
        backend.ended(place.charged)
        self.offload.ended(request, backend)
        self.shares.charge(request.tenant, (served or 0.0) - place.charged)
        place.charged = 0.0
        place.served += served or 0.0
        self.pump()

    def again(self, request: Waiting, prompt_len: int, attained: int) -> None:
        """Let a request come back for its next slice, as one that comes now; it keeps its id and score."""
        self.order.again(request.id, self.clock(), prompt_len + attained, attained)
        self._expect(request)

    def leave(self, request: Waiting) -> None:
        """Forget a request, however it ended."""
        place: Place = request.host
        place.pool.room.remove(request)
        self.limits.correct(request.tenant, place.served - place.admitted)
        self.order.leave(request.id)
        self.waiting.pop(request.id, None)

    def pump(self) -> None:
        """Hand free places to those who wait; between pools, to who waited longest."""
        now = self.clock()
        if self.order.take_news():
            for pool in self._pools.values():
                pool.room.place_anew()
        ready = [pool for pool in self._pools.values() if len(pool.room)]
        while ready:
            pool = ready[0] if len(ready) == 1 else min(ready, key=lambda one: one.room.oldest)
            if not (pool.free(now) and self._grant(pool, now) and len(pool.room)):
                ready.remove(pool)

    def _grant(self, pool: Pool, now: float) -> bool:
        """Give one place to who is next; who was tried already on all that is free, waits on."""
        passed: list[Waiting] = []
        while (request := pool.room.pop(now)) is not None:
            backend = self._choose(request, now)
            if backend is not None:
                break
            passed.append(request)
        for one in passed:
            pool.room.push(one, now)
        if request is None or backend is None:
            return False
        self._start(request, backend, now)
        granted = request.host.granted
        if granted is None or granted.done():
            self.over_quietly(request, backend)
        else:
            granted.set_result(backend)
        return True

    def over_quietly(self, request: Waiting, backend: Backend) -> None:
        """Take back a place whose client left in the same moment."""
        backend.ended(request.host.charged)
        self.offload.ended(request, backend)
        self.shares.charge(request.tenant, -request.host.charged)
        request.host.charged = 0.0

    def sweep(self) -> None:
        """Tell those who waited too long, and fill places that opened; called a few times a second."""
        now = self.clock()
        for pool in self._pools.values():
            for request, reason in pool.room.late(now):
                granted = request.host.granted
                if granted is not None and not granted.done():
                    granted.set_exception(self._late(pool, request, reason))
        for one in [one for one in self.backends if one.retired and not one.in_flight]:
            one.close()
            self.backends.remove(one)
        self._share(now)
        self.pump()

    def _share(self, now: float) -> None:
        pace = sum(pool.pace for pool in self._pools.values())
        busy = {name for pool in self._pools.values() for name in pool.room.by_tenant}
        self.shares.refill(now - self._swept, pace, self.settings.queue.burst, busy)
        self.shares.forget(busy)
        self._swept = now

    def _late(self, pool: Pool, request: Waiting, reason: str) -> Refused:
        if reason == "deadline":
            return Refused("refused_deadline", "the deadline cannot be kept any more")
        return Refused(
            "refused_wait",
            f"waited {self.settings.queue.max_wait:.0f} s, which is the most",
            pool.seconds(pool.room.ahead(request.tenant, request.level)),
        )

    def finished(self, request: Waiting, seconds: float) -> None:
        """Learn from a reply that ended how long its predicted work took; biased predictions cancel out."""
        place: Place = request.host
        place.pool.service.add(seconds)
        place.pool.cost.add(max(1.0, place.charged))

    def eta(self, request: Waiting, position: int) -> float | None:
        """Return how long a waiting request is expected to wait still [s]."""
        pool: Pool = request.host.pool
        share = position / max(1, len(pool.room))
        return pool.seconds(pool.room.work * min(1.0, share))

    def _expect(self, request: Waiting) -> None:
        pool: Pool = request.host.pool
        if pool.cost.value:
            request.service = pool.service.value * request.work / pool.cost.value

    def _deliver(self, id: str, prediction: Prediction) -> None:
        self._loop.call_soon_threadsafe(self._scored, id, prediction)

    def _scored(self, id: str, prediction: Prediction) -> None:
        request = self.waiting.get(id)
        if request is None:
            return
        request.host.scored = True
        if prediction.predicted_len is not None and not math.isfinite(prediction.predicted_len):
            return
        before = request.work
        if self.order.predicted(id, prediction, 0):
            self._expect(request)
            if request.queued:
                self.counters.add("scored")
                request.host.pool.room.moved(request, before)

    def gauges(self) -> Mapping[str, float]:
        """Return what `/metrics` shows besides the counters."""
        now = self.clock()
        overdue = sum(sum(pool.room.overdue(now).values()) for pool in self._pools.values())
        found: dict[str, float] = {
            "waiting": self.queued,
            "running": sum(one.in_flight for one in self.backends),
            "overdue": overdue,
            "waiting_work_tokens": sum(pool.room.work for pool in self._pools.values()),
            "pressure_seconds_per_token": self.order.pressure,
            "mean_predicted_len_tokens": self.order.mean_predicted_len,
        }
        bound = self._bound(now)
        if bound is not None:
            found["wait_bound_seconds"] = bound
        return found

    def _bound(self, now: float) -> float | None:
        """Return the most a request that came now would wait: overdue, then its share of the starts."""
        pools = [pool for pool in self._pools.values() if pool.capacity and pool.service.value]
        if not pools:
            return None
        longest = max(pool.room.bound(now) * pool.service.value / pool.capacity for pool in pools)
        return min(self.settings.queue.max_wait, self.settings.queue.overdue + longest)
