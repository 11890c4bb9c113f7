"""Three times the capacity, in virtual time: what is served, and whether refusals say the truth."""

from __future__ import annotations

import bisect
import itertools
import math

import numpy as np
import pytest

from gateway_virtual import Seen, drive, poisson, run
from sooner.gateway.admission.shares import charge
from sooner.gateway.settings import QueueSettings

PLACES, TOKEN_TIME, MEDIAN, SIGMA = 16, 0.02, 60.0, 0.8
CAPACITY = PLACES / (TOKEN_TIME * MEDIAN * math.exp(SIGMA**2 / 2))  # requests a second
SECONDS = 90.0


def cost(one: Seen) -> float:
    return charge(one.ask.prompt_len, one.ask.output_len)


def told_over_truth(found: list[Seen]) -> list[float]:
    """Return `Retry-After` over the time until as much work was begun as waited at the refusal."""
    begun = sorted((one.start_time, cost(one)) for one in found if one.start_time is not None)
    times = [at for at, _ in begun]
    total = list(itertools.accumulate((amount for _, amount in begun), initial=0.0))
    ratios = []
    for one in found:
        if one.retry_after is None or one.refused_time is None or one.refused_time > SECONDS:
            continue
        now = one.refused_time
        until = [(x, x.start_time if x.start_time is not None else x.refused_time or 0.0) for x in found]
        ahead = sum(cost(x) for x, left in until if x.ask.arrival_time <= now < left)
        served = bisect.bisect_left(total, total[bisect.bisect_right(times, now)] + ahead)
        if served <= len(times):
            ratios.append(one.retry_after / max(times[served - 1] - now, 1e-3))
    return ratios


@pytest.mark.parametrize("policy", ["aged", "ltr", "fcfs"])
@pytest.mark.parametrize(
    "queue", [QueueSettings(max_waiting=100), QueueSettings(max_wait=20.0)], ids=["full", "too long"]
)
def test_an_overload_is_served_at_capacity_and_refused_honestly(policy: str, queue: QueueSettings) -> None:
    noise = None if policy == "fcfs" else 0.5
    load = poisson({"a": 3 * CAPACITY}, SECONDS, 1, median=MEDIAN, sigma=SIGMA, noise=noise)
    found: list[Seen] = []

    async def test() -> None:
        found.extend(await drive(load, PLACES, TOKEN_TIME, policy=policy, queue=queue))

    run(test)
    done = sum(one.end_time is not None and 30.0 <= one.end_time < SECONDS for one in found)
    assert done / (SECONDS - 30.0) >= 0.9 * CAPACITY
    reasons = {one.refused for one in found if one.refused is not None}
    assert reasons == {"refused_full" if queue.max_waiting == 100 else "refused_wait"}
    ratios = np.array(told_over_truth(found))
    assert len(ratios) > 500
    assert np.mean((ratios >= 0.5) & (ratios <= 2.0)) >= 0.8
