"""When a waiting request is said to start, and when it did, under more load than fits; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from gateway_virtual import drive, poisson, run
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.eta import Eta, in_turn, next_in_turn

PLACES, TOKEN_TIME, MEDIAN, SIGMA = 8, 0.02, 60.0, 0.8
CAPACITY = PLACES / (MEDIAN * np.exp(SIGMA**2 / 2) * TOKEN_TIME)
"""Requests a second that fit."""
BAND = (0.88, 1.14)
"""Within which the median of actual over predicted is to lie."""


@pytest.fixture
def dispatchers(monkeypatch: pytest.MonkeyPatch) -> list[Dispatcher]:
    """Return the dispatchers that are made, as they are."""
    found: list[Dispatcher] = []
    made = Dispatcher.__init__

    def noted(self: Dispatcher, *given: Any, **more: Any) -> None:
        made(self, *given, **more)
        found.append(self)

    monkeypatch.setattr(Dispatcher, "__init__", noted)
    return found


def ratios(
    dispatchers: list[Dispatcher], rates: Mapping[str, float], seconds: float, policy: str
) -> np.ndarray:
    """Return actual over predicted wait (n,) of some who wait every three seconds, if above a second."""
    told: list[tuple[str, float, float]] = []

    async def test() -> None:
        began = asyncio.get_running_loop().time()

        async def look() -> None:
            for n in range(10**6):
                await asyncio.sleep(3.0)
                now = asyncio.get_running_loop().time()
                for pool in dispatchers[0].pools:
                    waits = list(pool.room)
                    places = {n * 7 % len(waits), len(waits) // 3} if waits else set()
                    chosen = [waits[at] for at in sorted(places)]
                    eta = Eta(pool, dispatchers[0].settings.queue, now)
                    for visit, predicted in zip(chosen, eta.seconds([*map(in_turn, chosen)]), strict=True):
                        if predicted is not None:
                            told.append((visit.id, now - began, predicted))

        looking = asyncio.create_task(look())
        load = poisson(rates, seconds, seed=3, median=MEDIAN, sigma=SIGMA, noise=0.4)
        seen = await drive(load, PLACES, TOKEN_TIME, policy=policy)
        assert not looking.done()
        looking.cancel()
        started = {str(id(one)): one.start_time for one in seen}
        found.extend(
            (start - at, predicted)
            for name, at, predicted in told
            if (start := started[name]) is not None and start - at > 1.0
        )

    found: list[tuple[float, float]] = []
    run(test)
    actual, predicted = np.array(found).T
    return np.asarray(actual / np.maximum(predicted, 1e-3))


@pytest.mark.parametrize(
    ("policy", "parts"),
    [("boost", (1.0,)), ("spjf", (1.0,)), ("fcfs", (1.0,)), ("boost", (0.5, 0.3, 0.2))],
    ids=["boost", "spjf", "fcfs", "three tenants"],
)
def test_under_overload_it_is_right_in_the_median(
    policy: str, parts: tuple[float, ...], dispatchers: list[Dispatcher]
) -> None:
    """What waits now alone says 1.7 of `spjf` and 1.9 of three tenants: who overtakes is missing."""
    rates = {f"tenant {n}": 1.1 * CAPACITY * part for n, part in enumerate(parts)}
    found = ratios(dispatchers, rates, 400.0, policy)
    assert found.size > 100
    assert BAND[0] <= np.median(found) <= BAND[1]


def test_the_next_few_are_told_as_each_alone(dispatchers: list[Dispatcher]) -> None:
    async def test() -> None:
        async def look() -> None:
            await asyncio.sleep(60.0)
            (pool,) = dispatchers[0].pools
            assert len(pool.room) > 5
            eta = Eta(pool, dispatchers[0].settings.queue, asyncio.get_running_loop().time())
            for tenant, queue in pool.room.levels[0].items():
                first = queue.first(5)
                assert {visit.tenant for visit in first} == {tenant}
                together = eta.seconds(next_in_turn(first))
                alone = [eta.seconds([in_turn(visit)])[0] for visit in first]
                assert together == pytest.approx(alone)
            assert eta.seconds([]) == []

        looking = asyncio.create_task(look())
        load = poisson({"a": CAPACITY, "b": CAPACITY}, 61.0, seed=4, noise=0.4)
        await drive(load, PLACES, TOKEN_TIME, policy="spjf")
        await looking

    run(test)
