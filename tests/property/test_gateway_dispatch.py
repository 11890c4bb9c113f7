"""The dispatcher under anything that can happen to it: nothing lost, nothing served twice, no place idle."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sooner.chat import ChatRequest
from sooner.core import Prediction
from sooner.gateway.admission.reading import Asked
from sooner.gateway.admission.refusals import TurnedAway
from sooner.gateway.admission.shares import charge
from sooner.gateway.admission.waiting import Waiting
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.engines.backend import Backend
from sooner.gateway.engines.prefixes import NONE
from sooner.gateway.settings import BackendSettings, GatewaySettings, QueueSettings
from sooner.ordering.given import Given

TRIES = 3
MAX_WAIT = 50.0


@dataclass(eq=False)
class Life:
    """One request as its client sees it."""

    waiting: Waiting
    task: asyncio.Task[str] | None = None
    backend: Backend | None = None  # where it runs
    outcome: asyncio.Future[bool] | None = None  # whether the engine serves it to its end
    served: int = 0
    tried: list[str] = field(default_factory=list)


class DispatcherMachine(RuleBasedStateMachine):
    """Arrivals, scores, ends, failures, clients that leave, engines that come and go, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now = 0.0
        self.lives: list[Life] = []
        self.ends: dict[str, str] = {}
        self.arrived = 0

    def teardown(self) -> None:
        """Let all that is left be served, and see that nobody was forgotten."""
        if hasattr(self, "dispatcher"):
            for one in self.dispatcher.backends:
                one.healthy, one.draining = True, False
            self.dispatcher.pump()
            for _ in range(2000):
                self.turn()
                live = [life for life in self.lives if life.task is not None and not life.task.done()]
                if not live:
                    break
                for life in live:
                    if life.outcome is not None and not life.outcome.done():
                        life.outcome.set_result(True)
            assert len(self.ends) == self.arrived
            assert not self.dispatcher.waiting
            assert not any(pool.order.tickets for pool in self.dispatcher.pools)
            assert sum(one.in_flight for one in self.dispatcher.backends) == 0
            self.dispatcher.close()
        self.loop.close()

    @initialize(
        policy=st.sampled_from(["fcfs", "aged", "hrrn"]), limits=st.lists(st.integers(1, 3), min_size=1)
    )
    def begin(self, policy: str, limits: list[int]) -> None:
        self.queue = QueueSettings(max_waiting=12, max_wait=MAX_WAIT, overdue=10.0)
        self.backends = [self.engine(n, limit) for n, limit in enumerate(limits[:3])]
        self.settings = GatewaySettings(
            ranker="",
            learn=False,
            policy=policy,
            queue=self.queue,
            backends=tuple(one.settings for one in self.backends),
        )

        async def make() -> Dispatcher:
            return Dispatcher(self.settings, self.backends, lambda: self.now)

        self.dispatcher = self.loop.run_until_complete(make())

    def engine(self, number: int, limit: int) -> Backend:
        chosen = BackendSettings(url=f"http://engine-{number}", max_in_flight=limit)
        return Backend(chosen, GatewaySettings(ranker="").limits)

    def turn(self) -> None:
        """Let every task run until it waits."""
        for _ in range(4):
            self.loop.run_until_complete(asyncio.sleep(0))

    async def live(self, life: Life) -> str:
        """The way of a request, as the proxy goes it."""
        try:
            for _ in range(TRIES):
                backend = await self.dispatcher.slot(life.waiting)
                served = None
                try:
                    assert backend.accepts(self.now) or backend.draining
                    life.backend, life.outcome = backend, self.loop.create_future()
                    life.tried.append(backend.name)
                    if await life.outcome:
                        life.served += 1
                        self.dispatcher.finished(life.waiting, 1.0, 20)
                        served = charge(10, 20)
                        return "served"
                    life.waiting.tried.add(backend.name)
                finally:
                    life.backend = life.outcome = None
                    self.dispatcher.over(life.waiting, backend, served)
            return "failed"
        except TurnedAway as refused:
            return refused.counter
        except asyncio.CancelledError:
            return "left"
        finally:
            self.dispatcher.leave(life.waiting)

    @rule(
        tenant=st.sampled_from("ab"), level=st.integers(0, 1), length=st.none() | st.integers(1, 500),
        deadline=st.none() | st.floats(1, 100),
    )  # fmt: skip
    def arrive(self, tenant: str, level: int, length: int | None, deadline: float | None) -> None:
        self.arrived += 1
        id = str(self.arrived)
        given = Given(length, length, None if deadline is None else deadline * 1000)
        asked = Asked("m", True, ChatRequest(), 10, NONE, False, given)
        queued = self.dispatcher.queued
        try:
            life = Life(self.dispatcher.arrive(id, tenant, level, asked, 0.0))
        except TurnedAway as refused:
            self.ends[id] = refused.counter
            self.turned_away(refused.counter, refused.retry_after, queued)
            return
        life.task = self.loop.create_task(self.live(life))
        life.task.add_done_callback(lambda task: self.end(id, task.result()))
        self.lives.append(life)
        self.turn()

    def turned_away(self, reason: str, retry_after: float | None, queued: int) -> None:
        assert retry_after is None or retry_after >= 0
        assert reason != "refused_full" or queued > 0

    def end(self, id: str, how: str) -> None:
        assert id not in self.ends, "a request ended twice"
        self.ends[id] = how

    def running(self) -> list[Life]:
        return [life for life in self.lives if life.outcome is not None and not life.outcome.done()]

    @rule(pick=st.integers(0, 99), whole=st.sampled_from([True, True, False]))
    def reply(self, pick: int, whole: bool) -> None:
        """An engine ends a reply, or fails before its first byte."""
        running = self.running()
        if running:
            outcome = running[pick % len(running)].outcome
            assert outcome is not None
            outcome.set_result(whole)
            self.turn()

    @rule(pick=st.integers(0, 99), at_once=st.booleans())
    def client_leaves(self, pick: int, at_once: bool) -> None:
        """`at_once`: in the very moment in which another's end gives it its place."""
        live = [life for life in self.lives if life.task is not None and not life.task.done()]
        if live:
            if at_once and (running := self.running()):
                outcome = running[0].outcome
                assert outcome is not None
                outcome.set_result(True)
                self.loop.run_until_complete(asyncio.sleep(0))
            task = live[pick % len(live)].task
            assert task is not None
            task.cancel()
            self.turn()

    @rule(pick=st.integers(0, 99), score=st.floats(0, 1000))
    def score(self, pick: int, score: float) -> None:
        if self.lives:
            id = self.lives[pick % len(self.lives)].waiting.id
            self.dispatcher.scores._take(id, Prediction(score, score))

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.dispatcher.sweep()
        self.turn()
        for one in self.dispatcher.waiting.values():
            assert not one.queued or self.now - one.ticket.arrival_time < MAX_WAIT

    @rule(pick=st.integers(0, 9), healthy=st.booleans(), draining=st.booleans())
    def engine_changes(self, pick: int, healthy: bool, draining: bool) -> None:
        one = self.backends[pick % len(self.backends)]
        one.healthy, one.draining = healthy, draining
        self.dispatcher.pump()
        self.turn()

    @rule(limit=st.integers(1, 3), waiting=st.integers(1, 12))
    def reload(self, limit: int, waiting: int) -> None:
        """The last engine is taken out of the settings, and another comes."""
        self.arrived_engines = getattr(self, "arrived_engines", 100) + 1
        self.backends = [*self.backends[:-1], self.engine(self.arrived_engines, limit)]
        queue = QueueSettings(max_waiting=waiting, max_wait=MAX_WAIT, overdue=10.0)
        settings = GatewaySettings(
            ranker="", learn=False, policy=self.settings.policy, queue=queue,
            backends=tuple(one.settings for one in self.backends),
        )  # fmt: skip
        self.dispatcher.take(settings, self.backends)
        self.turn()

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "dispatcher"):
            return
        live = [life for life in self.lives if life.task is not None and not life.task.done()]
        for backend in self.dispatcher.backends:
            there = sum(life.backend is backend for life in live)
            assert backend.in_flight == there <= backend.limit
        waiting = sum(life.waiting.queued for life in live)
        assert self.dispatcher.queued == waiting == len(live) - len(self.running())
        assert set(self.dispatcher.waiting) == {life.waiting.id for life in live}
        assert all(life.served <= 1 and len(life.tried) <= TRIES for life in self.lives)

    @invariant()
    def no_place_is_idle_while_someone_waits(self) -> None:
        if not hasattr(self, "dispatcher"):
            return
        open_now = [one for one in self.backends if one.accepts(self.now)]
        free = {one.name for one in open_now if one.in_flight < one.limit}
        for life in self.lives:
            if life.waiting.queued:
                tried = life.waiting.tried
                fresh = {one.name for one in open_now} - tried or {one.name for one in open_now}
                assert not free & fresh, "a place is free, and who could take it waits"


DispatcherMachine.TestCase.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestDispatcher = DispatcherMachine.TestCase


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep the warnings about engines that fail out of the way."""
    caplog.set_level(logging.CRITICAL)


def test_who_was_tried_on_all_that_is_free_holds_nobody_up() -> None:
    machine = DispatcherMachine()
    machine.begin(policy="fcfs", limits=[1, 1])
    for _ in range(3):
        machine.arrive("a", 0, 10, None)
    first, second, third = machine.lives
    assert first.outcome is not None
    first.outcome.set_result(False)  # its engine takes the third now, and it waits for the other one
    machine.turn()
    assert first.waiting.queued
    assert third.backend is not None
    assert third.outcome is not None
    third.outcome.set_result(True)
    machine.turn()
    machine.arrive("a", 0, 10, None)
    assert machine.lives[3].backend is machine.backends[0]
    assert first.waiting.queued
    assert second.outcome is not None
    second.outcome.set_result(True)
    machine.turn()
    assert first.backend is machine.backends[1]
    machine.teardown()
