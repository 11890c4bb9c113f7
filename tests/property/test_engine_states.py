"""Priorities at an engine, whatever its clients send: nobody fails for one, nobody speaks for others."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from sooner.gateway.engines.takes_priority import PAUSE, TakesPriority

GOOD, BAD, TRICKY = "good", "bad", "tricky"  # tricky: refused once, served when it is sent again
STEP = st.tuples(
    st.sampled_from("abc"), st.sampled_from([GOOD, GOOD, BAD, TRICKY]), st.floats(0, 40), st.integers(1, 3)
)


def sent(takes: TakesPriority, tenant: str, what: str, now: float, engine_takes: bool) -> tuple[int, int]:
    """Send one request as the client of engines does; return its tries and its status."""
    if not takes.sends(tenant, now):
        return 1, 400 if what != GOOD else 200
    if what == GOOD and engine_takes:
        takes.taken(tenant, now)
        return 1, 200
    if not takes.asks_again(tenant, now, now):
        return 1, 400
    status = 400 if what == BAD else 200
    takes.answered(tenant, now, now, refused=status == 200)
    return 2, status


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEP, max_size=60), engine_takes=st.booleans())
def test_a_good_request_never_fails_and_a_bad_one_is_not_sent_twice_each_time(
    steps: list[tuple[str, str, float, int]], engine_takes: bool
) -> None:
    takes, now = TakesPriority(), 0.0
    twice: dict[str, list[float]] = {}
    for tenant, what, pause, times in steps:
        now += pause
        for _ in range(times):
            now += 1e-3
            tries, status = sent(takes, tenant, what, now, engine_takes)
            assert status == 200 or what != GOOD
            if what == BAD and tries == 2:
                twice.setdefault(tenant, []).append(now)
    for times_of in twice.values():
        assert all(b - a >= PAUSE for a, b in itertools.pairwise(times_of))


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(STEP, max_size=60))
def test_one_tenant_cannot_switch_priorities_off_for_others(
    steps: list[tuple[str, str, float, int]],
) -> None:
    takes, now = TakesPriority(), 0.0
    for _, what, pause, _ in steps:
        now += pause
        sent(takes, "one", what, now, engine_takes=True)
        assert takes.sends("other", now)
        assert not takes.refused(now)
