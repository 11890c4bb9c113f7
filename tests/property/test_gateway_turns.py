"""Whose turn it is, found in heaps, beside the plain search through everyone."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sooner import policies
from sooner.gateway.admission.ahead import Corner, _Run
from sooner.gateway.admission.room import Room
from sooner.gateway.admission.shares import Shares
from sooner.gateway.admission.waiting import Waiting
from sooner.gateway.settings import QueueSettings
from sooner.ordering.counters import Counters
from sooner.ordering.order import Order

TENANTS = "abcdefg"
WEIGHTS = {"a": 2.0, "b": 0.5, "c": 4.0}


def room_of(shares: Shares, **bounds: float) -> tuple[Order, Room[Waiting]]:
    counters = Counters(["policy_errors", "promotions"], logging.getLogger("test"))
    order = Order(policies.get("fcfs"), None, counters, weighs=True)
    return order, Room(order, shares, QueueSettings(**{"overdue": 1e9, "max_wait": 1e9, **bounds}))


def plain(room: Room[Waiting], among: dict[str, Any]) -> str:
    """Return who is next as it was found before: by looking at everyone, the first in among ties."""
    shares, waits = room.shares, dict.fromkeys(room.by_tenant, 0.0)
    for one in room:
        waits[one.tenant] += one.tokens
    allowed = shares.allowed(sum(map(shares.weight, room.by_tenant)))
    return min(
        among, key=lambda name: (shares.need(name, waits[name]) > allowed, shares[name], room.by_tenant[name])
    )


STEPS = st.one_of(
    st.tuples(st.just("push"), st.sampled_from(TENANTS), st.integers(0, 2), st.integers(1, 64)),
    st.tuples(st.just("pop"), st.just(""), st.just(0), st.just(0)),
    st.tuples(st.just("charge"), st.sampled_from(TENANTS), st.integers(0, 0), st.integers(-256, 256)),
    st.tuples(st.just("refill"), st.just(""), st.integers(1, 3), st.integers(0, 64)),
    st.tuples(st.just("weigh"), st.sampled_from(TENANTS), st.just(0), st.sampled_from([1, 2, 4])),
)


@given(st.lists(STEPS, max_size=60), st.booleans())
@hypothesis_settings(max_examples=250, deadline=None)
def test_the_heaps_say_what_looking_at_everyone_says(
    steps: list[tuple[str, str, int, int]], two: bool
) -> None:
    """Numbers are small and whole, so that sums are exact and ties are many."""
    shares, weights = Shares(WEIGHTS), dict(WEIGHTS)
    order, room = room_of(shares)
    _, other = room_of(shares)
    for number, (kind, tenant, level, amount) in enumerate(steps):
        if kind == "push":
            chosen = other if two and amount % 5 == 0 else room
            id = str(number)
            chosen.push(Waiting(id, tenant, level, order.arrive(id, 0.0, amount)), 0.0)
        elif kind == "pop" and len(room):
            levels = [at for at in sorted(room._levels) if room._levels[at]]
            expected = plain(room, room._levels[levels[0]])
            request = room.pop(0.0)
            assert request is not None
            assert request.tenant == expected
            shares.charge(request.tenant, request.tokens)
        elif kind == "charge":
            shares.charge(tenant, float(amount))
        elif kind == "refill":
            shares.refill(float(level), float(amount), 8.0, {*room.by_tenant, *other.by_tenant})
            shares.forget({*room.by_tenant, *other.by_tenant})
        elif kind == "weigh":
            weights[tenant] = float(amount)
            shares.take(weights)
        for asks in ("a", "b", "new"):
            for at in range(3):
                assert room.ahead(asks, at) == pytest.approx(plain_ahead(room, asks, at), rel=1e-6, abs=1e-9)
    assert room._turns.lowest == min((shares[name] for name in room.by_tenant), default=None)


def plain_ahead(room: Room[Waiting], tenant: str, level: int) -> float:
    """Return the work before a tenant's newcomer as it was found before: by adding up everyone's part."""
    shares, waits = room.shares, dict.fromkeys(room.by_tenant, (0.0, 0.0))
    for one in room:
        if one.level == level:
            tokens, work = waits[one.tenant]
            waits[one.tenant] = tokens + one.tokens, work + one.ticket.work
    own_tokens, own_work = waits.pop(tenant, (0.0, 0.0))
    lowest = min((shares[name] for name in room.by_tenant), default=None)
    counter = shares[tenant] if tenant in room.by_tenant else shares.on_entry(tenant, lowest)
    turn = counter + own_tokens / shares.weight(tenant)
    return (
        sum(one.ticket.work for one in room if one.level < level)
        + own_work
        + sum(
            work * min(1.0, max(0.0, turn - shares[name]) * shares.weight(name) / tokens)
            for name, (tokens, work) in waits.items()
            if tokens
        )
    )


def readings(monkeypatch: pytest.MonkeyPatch, tenants: int) -> float:
    """Return how many standings are compared for a start, with so many tenants waiting."""
    shares = Shares({})
    order, room = room_of(shares)
    for n in range(2 * tenants):
        id = str(n)
        room.push(Waiting(id, f"t{n % tenants}", 0, order.arrive(id, 0.0, 1 + n % 7)), 0.0)
    shares.refill(1.0, 100.0, 10.0, room.by_tenant)
    seen = 0
    for turns in (room._turns, *room._turns_of.values()):
        read = turns._read

        def counting(tenant: str, read: Any = read) -> Any:
            nonlocal seen
            seen += 1
            return read(tenant)

        monkeypatch.setattr(turns, "_read", counting)
    starts = tenants // 2
    for _ in range(starts):
        request = room.pop(1.0)
        assert request is not None
        shares.charge(request.tenant, request.tokens)
    return seen / starts


def test_a_start_among_a_thousand_tenants_looks_at_few(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = readings(monkeypatch, 50), readings(monkeypatch, 1000)
    assert many <= few + 1
    assert many < 10


def work_of_asking(monkeypatch: pytest.MonkeyPatch, tenants: int) -> float:
    """Return what is looked at for a newcomer's wait, with so many tenants waiting: corners, runs, standings.

    Between two newcomers a request starts, one ends as another tenant's, and one comes.
    """
    shares = Shares({})
    order, room = room_of(shares)
    for n in range(2 * tenants):
        id = str(n)
        room.push(Waiting(id, f"t{n % tenants}", 0, order.arrive(id, 0.0, 1 + n % 7)), 0.0)
        shares.charge(f"t{n % tenants}", float(n % 13))
    room.ahead("t0", 0)
    looked = 0
    made, standing = _Run.of, room._amounts[0]._standing

    def counting_run(corners: list[Corner]) -> _Run:
        nonlocal looked
        looked += len(corners)
        return made(corners)

    def counting_standing(tenant: str) -> tuple[float, float]:
        nonlocal looked
        looked += 1
        return standing(tenant)

    monkeypatch.setattr(_Run, "of", counting_run)
    monkeypatch.setattr(room._amounts[0], "_standing", counting_standing)
    asked = 2 * tenants
    for n in range(asked):
        request = room.pop(1.0)
        assert request is not None
        shares.charge(request.tenant, request.tokens)
        shares.charge(f"t{(7 * n) % tenants}", 1.0)
        id = f"new{n}"
        room.push(Waiting(id, f"t{(3 * n) % tenants}", 0, order.arrive(id, 1.0, 1 + n % 7)), 1.0)
        room.ahead(f"t{(5 * n) % tenants}", 0)
        corners = room._amounts[0]._corners
        looked += len(corners._loose) + sum(len(run.corners).bit_length() for run in corners._runs)
    return looked / asked


def test_a_newcomer_among_a_thousand_tenants_looks_at_few(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = work_of_asking(monkeypatch, 30), work_of_asking(monkeypatch, 1000)
    assert many < 4 * few
    assert many < 300


def test_the_longest_patience_is_found_without_asking_every_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `overdue_ratio` somebody may be overdue who is not the oldest; a start looks at few."""
    shares = Shares({})
    order, room = room_of(shares, overdue=100.0, overdue_ratio=2.0, overdue_every=2)
    for n in range(1000):
        id = str(n)
        room.push(Waiting(id, f"t{n}", n % 2, order.arrive(id, n / 1000, 10), service=30.0), n / 1000)
    short = Waiting("short", "quick", 1, order.arrive("short", 5.0, 10), service=1.0)
    room.push(short, 5.0)
    asked = 0
    patience = room._patience

    def counting(request: Waiting) -> float:
        nonlocal asked
        asked += 1
        return patience(request)

    monkeypatch.setattr(room, "_patience", counting)
    room.pop(6.0)
    assert room._passed_classes == 0  # nobody is overdue
    room.pop(7.5)
    assert room._passed_classes == 1  # the short one is: it waited twice what it runs
    assert asked < 20


def test_a_reply_in_slices_that_comes_back_does_not_hide_who_waited_longer() -> None:
    """Its entry by age is an old one; who is told to have waited too long is found behind it all the same."""
    order, room = room_of(Shares({}), max_wait=10.0)
    sliced, other = (
        Waiting(id, id, 0, order.arrive(id, when, 10)) for id, when in (("sliced", 0.0), ("other", 1.0))
    )
    room.push(sliced, 0.0)
    room.push(other, 1.0)
    assert room.remove(sliced)
    order.again("sliced", 8.0, 20, 10)
    room.push(sliced, 8.0)
    assert room.oldest == 1.0
    assert [late.request for late in room.late(11.5)] == [other]
