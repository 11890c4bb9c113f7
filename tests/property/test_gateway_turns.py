"""Whose turn it is, found in heaps, beside the plain search through everyone."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sooner import policies
from sooner.gateway.admission.room import Room
from sooner.gateway.admission.shares import Shares
from sooner.gateway.admission.waiting import Waiting
from sooner.gateway.settings import QueueSettings
from sooner.ordering.counters import Counters
from sooner.ordering.order import Order

TENANTS = "abcdefg"
WEIGHTS = {"a": 2.0, "b": 0.5, "c": 4.0}


def room_of(shares: Shares) -> tuple[Order, Room[Waiting]]:
    counters = Counters(["policy_errors", "promotions"], logging.getLogger("test"))
    order = Order(policies.get("fcfs"), None, counters)
    return order, Room(order, shares, QueueSettings(overdue=1e9, max_wait=1e9))


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
    assert room._turns.lowest == min((shares[name] for name in room.by_tenant), default=None)


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
