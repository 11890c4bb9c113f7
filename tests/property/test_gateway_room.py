"""The waiting room: nothing lost, nothing twice, and the bound on waiting holds."""

from __future__ import annotations

import logging
import math

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sooner import policies
from sooner.core import Prediction
from sooner.gateway.admission.room import Room
from sooner.gateway.admission.shares import Shares
from sooner.gateway.admission.waiting import Waiting
from sooner.gateway.settings import QueueSettings
from sooner.ordering.counters import Counters
from sooner.ordering.given import Given
from sooner.ordering.order import Order
from sooner.work import Pace

OVERDUE, EVERY = 20.0, 3


class RoomMachine(RuleBasedStateMachine):
    """Pushes, scores, pops and removes in any order, beside a plain set of who must be waiting."""

    @initialize(name=st.sampled_from(["fcfs", "aged", "ltr", "hrrn", "edf", "sprpt"]))
    def begin(self, name: str) -> None:
        counters = Counters(["policy_errors", "promotions"], logging.getLogger("test"))
        self.order = Order(policies.get(name), None, counters, weighs=True)
        self.bounds = QueueSettings(overdue=OVERDUE, overdue_every=EVERY, max_wait=100.0, urgent=2.0)
        self.room = Room(self.order, Shares({"a": 2.0}), self.bounds)
        self.inside: dict[str, Waiting] = {}
        self.left: set[str] = set()
        self.starts_due: dict[str, int] = {}  # overdue requests: further starts of its tenant until it goes
        self.now = 0.0
        self.count = 0
        self.passed_over = 0  # starts in a row that went to who was not served least, for the sake of classes

    @rule(tenant=st.sampled_from("abc"), level=st.integers(0, 1), deadline=st.none() | st.floats(1, 60))
    def push(self, tenant: str, level: int, deadline: float | None) -> None:
        self.count += 1
        id = str(self.count)
        self.order.now = self.now
        said = Given(deadline_ms=None if deadline is None else deadline * 1000)
        request = Waiting(id, tenant, level, self.order.arrive(id, self.now, 10, said), service=1.0)
        self.room.push(request, self.now)
        self.inside[id] = request

    @rule(pick=st.integers(0, 99), score=st.floats(0, 1000))
    def score(self, pick: int, score: float) -> None:
        if self.inside:
            id = list(self.inside)[pick % len(self.inside)]
            request = self.inside[id]
            if self.order.predicted(id, Prediction(score, score), 0):
                self.room.moved(request)

    @rule(token=st.floats(1e-6, 1e-2), step=st.floats(1e-4, 1.0))
    def another_pace(self, token: float, step: float) -> None:
        self.order.set_pace(Pace(prefill_token_s=token, iteration_s=step))
        self.room.reckon()

    @rule(pick=st.integers(0, 99))
    def remove(self, pick: int) -> None:
        if self.inside:
            id = list(self.inside)[pick % len(self.inside)]
            assert self.room.remove(self.inside[id])
            assert not self.room.remove(self.inside[id])
            self.gone(id)

    @rule(seconds=st.floats(0, 15))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def late(self) -> None:
        for request, reason in self.room.late(self.now):
            waited = self.now - request.ticket.arrival_time
            assert waited >= 100.0 if reason == "max_wait" else request.ticket.deadline - 1.0 <= self.now
            self.gone(request.id)
        assert all(self.now - one.ticket.arrival_time < 100.0 for one in self.inside.values())
        assert all(one.ticket.deadline - 1.0 > self.now for one in self.inside.values())

    @rule()
    def pop(self) -> None:
        ahead: dict[str, int] = {}
        for one in sorted(self.inside.values(), key=lambda one: one.ticket.sequence):
            if self.now - one.ticket.arrival_time >= OVERDUE:
                ahead[one.tenant] = ahead.get(one.tenant, 0) + 1
                allowed = EVERY * ahead[one.tenant]
                self.starts_due[one.id] = min(self.starts_due.get(one.id, allowed), allowed)
        waited = list(self.inside.values())
        counters = self.turns(waited)
        request = self.room.pop(self.now)
        if request is None:
            assert not self.inside
            return
        assert request.id in self.inside
        self.gone(request.id)
        self.who_was_served_least(request, waited, counters, bool(ahead))
        for id in self.starts_due:
            self.starts_due[id] -= self.inside[id].tenant == request.tenant
            assert self.starts_due[id] > 0, "an overdue request waited for more starts than the bound allows"
        self.room.shares.charge(request.tenant, request.tokens)

    def turns(self, waited: list[Waiting]) -> dict[str, tuple[bool, float]]:
        """Return of each tenant whether it asks for more than its allowance, and its counter."""
        work, shares = dict.fromkeys([one.tenant for one in waited], 0.0), self.room.shares
        for one in waited:
            work[one.tenant] += one.tokens
        return {name: (n > shares.allowance(name, work) + 1e-6, shares[name]) for name, n in work.items()}

    @rule(seconds=st.floats(0, 5), pace=st.floats(0, 200))
    def refill(self, seconds: float, pace: float) -> None:
        self.room.shares.refill(seconds, pace, 10.0, self.room.by_tenant)

    def who_was_served_least(
        self, request: Waiting, waited: list[Waiting], counters: dict[str, tuple[bool, float]], overdue: bool
    ) -> None:
        best = min(one.level for one in waited)
        beside = [counters[one.tenant] for one in waited if one.level == best]
        of_all = counters[request.tenant] == min(counters.values())
        assert of_all or counters[request.tenant] == min(beside)
        if overdue and any(one.level > best for one in waited):
            self.passed_over = 0 if of_all else self.passed_over + 1
            assert self.passed_over < EVERY, "a class was passed over for more starts than the bound allows"

    def gone(self, id: str) -> None:
        assert id not in self.left
        self.left.add(id)
        del self.inside[id]
        self.starts_due.pop(id, None)
        self.order.leave(id)

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "room"):
            return
        assert len(self.room) == len(self.inside)
        assert {one.id for one in self.room} == set(self.inside)
        assert sum(self.room.by_tenant.values()) == len(self.inside)
        assert math.isclose(
            self.room.work, sum(one.ticket.work for one in self.inside.values()), rel_tol=1e-6, abs_tol=1e-6
        )
        for tenant in "abc":
            ahead = self.room.ahead(tenant, 1)
            first = [one for one in self.inside.values() if one.tenant == tenant or one.level == 0]
            assert sum(one.ticket.work for one in first) - 1e-6 <= ahead <= self.room.work + 1e-6
        for one in self.inside.values():
            assert 1 <= self.room.position(one) <= len(self.inside)


RoomMachine.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRoom = RoomMachine.TestCase


def test_tenants_share_by_weight_whatever_one_of_them_floods() -> None:
    counters = Counters(["policy_errors", "promotions"], logging.getLogger("test"))
    order = Order(policies.get("fcfs"), None, counters)
    room = Room(order, Shares({"quiet": 1.0, "loud": 1.0}), QueueSettings(overdue=1e9, max_wait=1e9))
    for n in range(1000):
        id = f"loud-{n}"
        room.push(Waiting(id, "loud", 0, order.arrive(id, 0.0, 10)), 0.0)
    for n in range(10):
        id = f"quiet-{n}"
        room.push(Waiting(id, "quiet", 0, order.arrive(id, 1.0, 10)), 1.0)
    first = []
    for _ in range(20):
        request = room.pop(2.0)
        assert request is not None
        room.shares.charge(request.tenant, request.tokens)
        first.append(request.tenant)
    assert first.count("quiet") == 10


def test_who_comes_back_has_saved_nothing_up() -> None:
    shares = Shares({})
    shares.enter("a", [])
    shares.charge("a", 1000.0)
    shares.enter("b", ["a"])
    assert shares["b"] == shares["a"] == 1000.0


def test_an_allowance_is_the_share_of_its_seconds_and_fills_at_its_pace() -> None:
    shares = Shares({"a": 3.0})
    assert shares.allowance("a", []) == 0.0
    shares.refill(0.0, pace=100.0, burst=10.0, waiting=[])
    assert shares.allowance("b", []) == 1000.0
    assert shares.allowance("b", ["a"]) == 250.0
    shares.charge("b", 200.0)
    assert shares.allowance("b", ["a"]) == 50.0
    shares.refill(2.0, pace=100.0, burst=10.0, waiting=["a"])
    assert shares.allowance("b", ["a"]) == 100.0
    shares.charge("b", 10_000.0)  # whoever floods owes no more than the whole of it
    shares.refill(10.0, pace=100.0, burst=10.0, waiting=["a", "b"])
    assert shares.allowance("b", ["a"]) == 250.0
