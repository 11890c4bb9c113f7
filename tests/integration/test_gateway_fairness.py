"""One tenant's flood and the others: in virtual time, by seconds and by places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from gateway_virtual import Ask, Seen, drive, poisson, run
from sooner.gateway.settings import QueueSettings

PLACES, TOKEN_TIME, MEDIAN, SIGMA = 8, 0.01, 60.0, 0.8
CAPACITY = PLACES / (TOKEN_TIME * MEDIAN * np.exp(SIGMA**2 / 2))  # requests a second
SHARE = CAPACITY / 2  # of each of two tenants
FLOOD_AT, SECONDS = 20.0, 80.0


def p99(values: Sequence[float]) -> float:
    return float(np.percentile(values, 99))


def quiet_beside(flood: float, seed: int, *, policy: str = "aged", burst: float = 10.0) -> list[Seen]:
    """Return what a tenant at 0.8 of its share sees while another goes from its share to `flood` times it."""

    def load(tenant: str, shares: float, begin: float, end: float) -> list[Ask]:
        asks = poisson({tenant: shares * SHARE}, end - begin, seed + round(begin), noise=0.4)
        return [replace(ask, arrival_time=ask.arrival_time + begin) for ask in asks]

    loud = [*load("loud", 1.0, 0.0, FLOOD_AT), *load("loud", flood, FLOOD_AT, SECONDS)]
    asks = sorted([*load("quiet", 0.8, 0.0, SECONDS), *loud], key=lambda ask: ask.arrival_time)
    queue = QueueSettings(max_waiting=1000, burst=burst)  # the flood fills its part of it in two seconds
    found: list[Seen] = []

    async def test() -> None:
        found.extend(await drive(asks, PLACES, TOKEN_TIME, policy=policy, queue=queue))

    run(test)
    return [one for one in found if one.ask.tenant == "quiet" and one.ask.arrival_time >= FLOOD_AT]


@pytest.mark.parametrize(("policy", "seed"), [("aged", 1), ("aged", 2), ("fcfs", 3)])
def test_a_flood_of_100_shares_moves_anothers_p99_by_less_than_two(policy: str, seed: int) -> None:
    calm, flood = (quiet_beside(times, seed, policy=policy) for times in (1.0, 100.0))
    assert len(flood) == len(calm) > 150
    assert all(one.refused is None for one in flood)
    assert p99([one.wait for one in flood]) < 2 * p99([one.wait for one in calm])
    assert p99([one.places for one in flood]) < 2 * p99([one.places for one in calm])


def test_it_is_the_allowance_that_keeps_a_flood_away() -> None:
    """By the counters alone, who stays within its share waits out its own bursts."""
    without, beside = (quiet_beside(20.0, 1, burst=burst) for burst in (0.0, 10.0))
    assert p99([one.wait for one in without]) > 2 * p99([one.wait for one in beside])
