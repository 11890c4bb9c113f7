"""Who goes where, and when: the waiting rooms, the engines, and the scores as they come."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

from sooner.gateway import outlook, policy_shadow
from sooner.gateway.admission.gate import Gate
from sooner.gateway.admission.reading import Asked
from sooner.gateway.admission.refusals import DeadlineMissed, TurnedAway, UnknownModel, WaitTooLong
from sooner.gateway.admission.room import Late, Room
from sooner.gateway.admission.shares import Shares
from sooner.gateway.counts import COUNTERS
from sooner.gateway.engines.backend import Backend
from sooner.gateway.engines.choice import Choice, LeastWork
from sooner.gateway.engines.kept_engines import KeptEngines
from sooner.gateway.engines.offload import Offload
from sooner.gateway.scores import WaitingScores
from sooner.gateway.settings import GatewaySettings
from sooner.gateway.visit import Newcomer, Pool, Visit
from sooner.ordering.counters import Counters
from sooner.ordering.order import Order
from sooner.ordering.wire import Ending
from sooner.policies import Policy

logger = logging.getLogger("sooner.gateway")

_ALIKE = 256  # waiting requests that are priced anew when an engine gets what they begin with


class Dispatcher:
    """Hands out the engines' slots in the policy's order. Lives in one event loop.

    `clock` is monotonic [s]; what the wall clock does changes nothing here.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        backends: Sequence[Backend],
        clock: Callable[[], float] = time.monotonic,
        kept: KeptEngines | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.counters = Counters(COUNTERS, logger)
        self.shares = Shares({tenant.name: tenant.weight for tenant in settings.tenants})
        self.policy_shadow = policy_shadow.of(settings, self.counters)
        self._policy = self.policy_shadow.acting
        self.gate = Gate(settings)
        self.choice: Choice = Offload() if settings.slices.tokens else LeastWork()
        self.backends = list(backends)
        self._kept = KeptEngines("") if kept is None else kept
        self._know(self.backends)
        self._pools: dict[tuple[str, ...], Pool] = {}
        self.waiting: dict[str, Visit] = {}  # by request id, until the reply has ended
        self._alike: dict[int, dict[str, Visit]] = {}  # that had to wait, by their shortest beginning
        self._swept = clock()
        self._loop = asyncio.get_running_loop()
        self.scores = WaitingScores(settings, self.waiting, self.counters)

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
        gone = [backend for backend in self.backends if backend not in backends]
        for backend in gone:
            backend.retired = backend.draining = True
        self.gate.take(settings)
        self.shares.take({tenant.name: tenant.weight for tenant in settings.tenants})
        self.settings = settings
        self._know([backend for backend in backends if backend not in self.backends])
        self.backends = [*backends, *gone]
        for pool in self._pools.values():
            pool.room.take(settings.queue)
            pool.backends = [
                backend
                for backend in self.backends
                if backend.serves(pool.model) and pool.path in backend.kind.paths
            ]
        self.pump()

    def _know(self, backends: Iterable[Backend]) -> None:
        """Give new engines what is remembered of them."""
        self._kept.paces(backends)
        self.counters.add("odd_paces", sum(backend.pace.odd for backend in backends))

    def keep(self) -> None:
        """Keep what was learned for the next start; called a few times a second, it does so once a minute."""
        self._kept.tick(self.backends, {names: pool.order for names, pool in self._pools.items()})

    @property
    def policy(self) -> Policy:
        """The order that holds now."""
        return self._policy

    def choose(self, policy: Policy) -> None:
        """Order by another policy from now on, all that wait too."""
        self._policy = policy
        for pool in self._pools.values():
            pool.order.choose(policy)
        self.pump()

    def close(self) -> None:
        """Stop the scorer, and keep what was learned."""
        self.scores.close()
        self._kept.save(self.backends, {names: pool.order for names, pool in self._pools.items()})

    def pool_for(self, model: str, path: str) -> Pool:
        """Return the pool of the engines that serve `model` at `path`. Raises UnknownModel."""
        serving = [
            backend for backend in self.backends if path in backend.kind.paths and backend.serves(model)
        ]
        if not serving:
            raise self._unserved(model, path)
        names = tuple(backend.name for backend in serving)
        pool = self._pools.get(names)
        if pool is None:
            order = Order(self._policy, None, self.counters, weighs=True)
            room: Room[Visit] = Room(order, self.shares, self.settings.queue)
            pool = self._pools[names] = Pool(model, path, serving, order, room, self.clock)
            pool.take_pace()
            self._kept.usual(names, order)
        pool.backends = serving
        return pool

    def _unserved(self, model: str, path: str) -> UnknownModel:
        if any(backend.serves(model) for backend in self.backends):
            return UnknownModel(f"no engine for model {model[:80]!r} serves {path}")
        known = sorted({name for backend in self.backends for name in backend.offers})
        return UnknownModel(f"unknown model {model[:80]!r}; known: {', '.join(known[:20])}")

    def arrive(self, id: str, tenant: str, level: int, asked: Asked, default_ms: float) -> Visit:
        """Give a request its ticket and ask for its score. Raises TurnedAway, UnknownModel."""
        pool = self.pool_for(asked.model, asked.endpoint.path)
        now = self.clock()
        pool.order.begin_step(now)
        said = asked.given
        if default_ms and said.deadline_ms is None:
            said = said._replace(deadline_ms=default_ms)
        usual = pool.order.mean_predicted_len or pool.order.usual_len
        claimed = asked.claim.total(usual)
        if said.predicted_len is None and claimed != usual:
            said = said._replace(predicted_len=claimed)
        held = max(backend.sent.part(asked.beginnings) for backend in pool.backends)
        ticket = pool.order.arrive(
            id,
            now,
            asked.prompt_len,
            said,
            level,
            cached_len=round(held * asked.prompt_len),
            ahead=self._ahead(pool),
        )
        request = Visit(id, tenant, level, ticket, asked=asked, pool=pool)
        request.expect()
        try:
            self.gate.admit(request, now, at_once=not len(pool.room) and bool(self._free(request, now)))
        except TurnedAway:
            pool.order.leave(id)
            raise
        pool.newcomers.append(Newcomer(ticket, tenant, level))
        self.waiting[id] = request
        self.scores.ask(request)
        return request

    def _ahead(self, pool: Pool) -> float:
        """Return the work that waits for each engine of a pool [s], in other pools with these engines too."""
        if len(self._pools) == 1:
            return pool.ahead
        mine = set(pool.backends)
        return sum(
            other.ahead * len(mine.intersection(other.backends)) / len(mine) for other in self._pools.values()
        )

    def ended(self, request: Visit, output_len: int, status: int, *, cut: bool) -> tuple[str, str]:
        """Let the learner know of a reply that is over; `cut` at a limit, or by whatever `status` says.

        Returns the hashes of the request's sender and template.
        """
        request.told = True
        groups = self.scores.groups(request.id)
        if request.asked.endpoint.generates and (status == 0 or 200 <= status < 300):
            how = _ending(status, cut=cut)
            self.scores.ended(request.id, output_len, how)
            if how is Ending.STOP:
                self.policy_shadow.finished(request.id, request.ticket, request.pool.order, output_len)
        else:
            self.scores.ended(request.id, 0, Ending.ABORTED)
        return groups

    def replied(self, backend: Backend, computed: int, first_byte: float, gap: float, beside: float) -> None:
        """Learn an engine's pace from a streamed reply: seconds, seconds a token, and requests with it.

        `computed` are the tokens of its prompt that no cache held.
        """
        odd = backend.pace.odd
        learned = backend.pace.add(computed, first_byte, gap, beside)
        self.counters.add("odd_paces", backend.pace.odd - odd)
        if learned is not None:
            for pool in self._pools.values():
                if backend in pool.backends:
                    pool.take_pace()

    async def slot(self, request: Visit) -> Backend:
        """Return the engine a request may go to, once it is its turn. Raises TurnedAway.

        Whoever calls this calls `leave` in the end, and `over` for each engine it was given.
        """
        pool, now = request.pool, self.clock()
        backend = self._at_once(request, now)
        if backend is not None:
            self._start(request, backend, now)
            return backend
        granted: asyncio.Future[Backend] = self._loop.create_future()
        request.granted = granted
        pool.room.push(request, now)
        self.policy_shadow.waits(request.id, request.ticket, policy_shadow.beside(request))
        if request.asked.beginnings.hashes:
            self._alike.setdefault(request.asked.beginnings.hashes[0], {})[request.id] = request
        if not request.rank:
            request.rank = len(pool.room)
        if pool.free(now):  # all others that wait were tried on what is free
            self.pump()
        try:
            return await granted
        except asyncio.CancelledError:
            waited = pool.room.remove(request)
            if not waited and granted.done() and not granted.cancelled() and not granted.exception():
                self.over(request, granted.result())  # it was its turn in the very moment its client left
            raise

    def _at_once(self, request: Visit, now: float) -> Backend | None:
        return None if len(request.pool.room) else self._choose(request, now)

    def _free(self, request: Visit, now: float) -> list[Backend]:
        """Return the engines with a free slot; those that failed it, or its tenant, if none else lives."""
        fresh = [backend for backend in request.pool.backends if backend.accepts(now)]
        if request.tried:
            alive = [backend for backend in fresh if backend.name not in request.barred]
            fresh = [backend for backend in alive if backend.name not in request.tried] or alive
        fresh = [backend for backend in fresh if not backend.breaker.avoids(request.tenant, now)] or fresh
        return [backend for backend in fresh if backend.in_flight < backend.limit]

    def _choose(self, request: Visit, now: float) -> Backend | None:
        """Return the best of the free engines."""
        free = self._free(request, now)
        return self.choice.choose(free, request) if free else None

    def _start(self, request: Visit, backend: Backend, now: float) -> None:
        request.pool.order.now = now
        request.pool.order.admitted(request.id)
        self.policy_shadow.started(request.id, request.pool.order, now)
        request.charged = request.tokens
        self.shares.charge(request.tenant, request.charged)
        self.choice.began(request, backend)
        request.load = request.work_at(backend)
        request.computed = 1.0 - backend.sent.part(request.asked.beginnings)
        backend.began(request.load, request.asked.beginnings, request.ticket.prompt_len)
        if request.computed > 0.0 and request.asked.beginnings.hashes:
            self._held(request.asked.beginnings.hashes[0], backend)

    def _held(self, beginning: int, backend: Backend) -> None:
        """Price those anew that wait and begin as what an engine now has; of a crowd the first."""
        for other in islice(self._alike.get(beginning, {}).values(), _ALIKE):
            if not other.queued or backend not in other.pool.backends:
                continue
            ticket = other.ticket
            held = round(backend.sent.part(other.asked.beginnings) * ticket.prompt_len)
            if held > ticket.cached_len and other.pool.order.cached(other.id, held):
                other.pool.room.moved(other)

    def _give_back(self, request: Visit, backend: Backend, served: float) -> None:
        backend.ended(request.load)
        self.choice.ended(request, backend)
        self.shares.charge(request.tenant, served - request.charged)
        request.charged = 0.0
        request.served += served

    def over(self, request: Visit, backend: Backend, served: float | None = None) -> None:
        """Give the slot at an engine back. `served` are the tokens really done, None for none."""
        self._give_back(request, backend, served or 0.0)
        self.pump()

    def again(self, request: Visit, prompt_len: int, attained: int) -> None:
        """Let a request come back for its next slice, as one that comes now; it keeps its id and score."""
        request.pool.order.again(request.id, self.clock(), prompt_len + attained, attained)
        request.expect()

    def leave(self, request: Visit) -> None:
        """Forget a request, however it ended."""
        request.pool.room.remove(request)
        self.policy_shadow.left(request.id)
        if not request.told:
            self.scores.ended(request.id, request.made, Ending.ABORTED)
        self.gate.limits.correct(request.tenant, request.served - request.admitted)
        request.pool.order.leave(request.id)
        self.waiting.pop(request.id, None)
        if request.asked.beginnings.hashes:
            beginning = request.asked.beginnings.hashes[0]
            alike = self._alike.get(beginning, {})
            alike.pop(request.id, None)
            if not alike:
                self._alike.pop(beginning, None)

    def pump(self) -> None:
        """Hand free slots to those who wait; between pools, to who waited longest."""
        now = self.clock()
        for pool in self._pools.values():
            if pool.order.take_news():
                pool.room.place_anew()
        ready = [pool for pool in self._pools.values() if len(pool.room)]
        while ready:
            pool = ready[0] if len(ready) == 1 else min(ready, key=lambda pool: pool.room.oldest)
            if not (pool.free(now) and self._grant(pool, now) and len(pool.room)):
                ready.remove(pool)

    def _grant(self, pool: Pool, now: float) -> bool:
        """Give one slot to who is next; who was tried already on all that is free, waits on."""
        passed: list[Visit] = []
        while (request := pool.room.pop(now)) is not None:
            backend = self._choose(request, now)
            if backend is not None:
                break
            passed.append(request)
        for kept in passed:
            pool.room.push(kept, now)
        if request is None or backend is None:
            return False
        self._start(request, backend, now)
        if request.granted is None or request.granted.done():
            self._give_back(request, backend, 0.0)  # its client left in the same moment
        else:
            request.granted.set_result(backend)
        return True

    def sweep(self) -> None:
        """Tell those who waited too long, and fill slots that opened; called a few times a second."""
        now = self.clock()
        for pool in self._pools.values():
            for late in pool.room.late(now):
                granted = late.request.granted
                if granted is not None and not granted.done():
                    granted.set_exception(self._refusal(pool, late))
        for backend in [backend for backend in self.backends if backend.retired and not backend.in_flight]:
            backend.close()
            self.backends.remove(backend)
        self._refill(now)
        self.scores.sweep(now)
        self.pump()

    def _refill(self, now: float) -> None:
        pace = sum(pool.pace for pool in self._pools.values())
        busy = {name for pool in self._pools.values() for name in pool.room.by_tenant}
        self.shares.refill(now - self._swept, pace, self.settings.queue.burst, busy)
        self.shares.forget(busy)
        self._swept = now

    def _refusal(self, pool: Pool, late: Late[Visit]) -> TurnedAway:
        if late.reason is DeadlineMissed:
            return DeadlineMissed("the deadline cannot be kept any more")
        ahead = pool.room.ahead(late.request.tenant, late.request.level)
        most = self.settings.queue.max_wait
        return WaitTooLong(f"waited {most:.0f} s, which is the most", pool.seconds(ahead))

    def finished(self, request: Visit, seconds: float, output_len: int) -> None:
        """Learn from a reply that ended how long its expectation took; biased predictions cancel out."""
        pool = request.pool
        if request.asked.endpoint.generates:
            pool.reply.add(output_len)
            if pool.order.set_usual_len(pool.reply.value):
                pool.room.reckon()
        pool.service.add(seconds)
        pool.cost.add(max(1.0, request.charged))
        pool.load.add(request.ticket.work)

    def gauges(self) -> Mapping[str, float]:
        """Return what `/metrics` shows besides the counters."""
        gauges = outlook.gauges(list(self.pools), self.backends, self.settings.queue, self.clock())
        return {**gauges, **self.scores.gauges(), **self.policy_shadow.gauges()}


def _ending(status: int, *, cut: bool) -> Ending:
    if not status:
        return Ending.ABORTED
    return Ending.LIMIT if cut else Ending.STOP
