"""What one tenant's requests find at an engine is not taken for everyone's: bounds, breaker, priorities."""

from __future__ import annotations

import itertools

import pytest

from sooner.gateway.delivery.uncut import HOLDS, Uncut
from sooner.gateway.engines.breaker import Breaker
from sooner.gateway.engines.takes_priority import LONGEST, PAUSE, TakesPriority
from sooner.gateway.engines.votes import FRESH, GROUPS, Vote, Votes, group
from sooner.gateway.engines.window import Window

PLACES = 40  # of the engine below
TENANTS = ("ann", "bob", "cem")
assert len({group(name) for name in TENANTS}) == len(TENANTS)


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def served(window: Window, clock: Clock, tenant: str, cached: bool = False, slower: float = 1.0) -> None:
    """Let a full engine of `PLACES` serve one reply; each more than it holds waits for its first byte."""
    in_flight = window.limit
    first_byte = 0.001 if cached else slower * 0.05 * max(1.0, in_flight / PLACES)
    clock.now += 0.5 / min(in_flight, PLACES)
    window.latency(first_byte, 100, in_flight, hungry=True, tenant=tenant)


def window_of(clock: Clock) -> Window:
    return Window(0, 1, 1024, clock=clock)


@pytest.mark.parametrize("tenants", [("ann",), TENANTS])
def test_three_quick_cached_replies_shrink_nothing(tenants: tuple[str, ...]) -> None:
    clock = Clock()
    window = window_of(clock)
    for _ in range(3):
        served(window, clock, "ann", cached=True)
    lowest = 1024
    for tenant in itertools.islice(itertools.cycle(tenants), 400):
        served(window, clock, tenant)
        lowest = min(lowest, window.limit)
    assert lowest >= 16 * 0.4  # no lower than where it looks what is usual
    assert window.limit >= PLACES


def test_one_tenant_that_floods_with_cached_replies_moves_nobodys_bound() -> None:
    clock = Clock()
    window = window_of(clock)
    for n in range(3000):
        served(window, clock, TENANTS[n // 10 % 3] if n % 10 == 0 else "ann", cached=n % 10 != 0)
    for n in range(300):  # then its own are not cached any more
        served(window, clock, "ann" if n % 10 else TENANTS[n // 10 % 3])
    assert window.limit >= PLACES


def test_what_one_alone_has_spoilt_is_measured_again() -> None:
    clock = Clock()
    window = window_of(clock)
    for _ in range(100):
        served(window, clock, "ann", cached=True)
    for _ in range(400):
        served(window, clock, "ann")
    assert window.limit >= PLACES


def test_an_engine_that_became_slower_is_believed() -> None:
    clock = Clock()
    window = window_of(clock)
    for n in range(600):
        served(window, clock, TENANTS[n % 3])
    for n in range(1500):
        served(window, clock, TENANTS[n % 3], slower=4.0)
    assert window.limit >= PLACES


def test_under_lasting_load_the_usual_does_not_drift_and_the_bound_stays() -> None:
    clock = Clock()
    window = window_of(clock)
    lows = 0
    bounds = []
    while clock.now < 3600.0:
        before = window.limit
        served(window, clock, TENANTS[int(clock.now) % 3])
        lows += window.limit < 0.6 * before
        bounds.append(window.limit)
    assert PLACES <= sum(bounds) / len(bounds) <= 3 * PLACES
    assert 5 <= lows <= 15  # seen again every five minutes, and quickly


def test_the_middle_of_what_groups_say_counts_while_they_say_it() -> None:
    votes = Votes()
    assert votes.middle(0.0) is None
    for of, value in enumerate((1.0, 9.0, 2.0)):
        votes.say(of, value, 0.0)
    assert votes.middle(1.0) == Vote(2.0, 2)
    votes.say(2, 3.0, FRESH)
    assert votes.middle(FRESH) == Vote(3.0, 2)
    assert all(0 <= group(f"t{n}") < GROUPS for n in range(100))


def test_one_tenants_steps_are_not_the_engines() -> None:
    window = Window(0, 1, 1024)
    for _ in range(50):
        for name in TENANTS:
            window.step(30.0 if name == "bob" else 0.02, name)
    assert window.step_time == pytest.approx(0.02)


def test_one_tenants_failures_open_no_breaker_for_others() -> None:
    breaker = Breaker()
    for n in range(100):
        breaker.failed(n * 0.1, "bad")
    assert not breaker.tripped(9.9)
    assert breaker.avoids("bad", 10.0)
    assert not breaker.avoids("good", 10.0)
    assert not breaker.avoids("bad", 50.0)  # tried again in the end
    breaker.ok("good")
    breaker.failed(50.0, "bad")
    breaker.failed(50.0, "good")
    assert not breaker.tripped(50.0)
    breaker.failed(50.0, "good")
    assert breaker.tripped(50.0)


def test_a_tenant_that_fails_first_after_each_pause_keeps_no_engine_closed() -> None:
    breaker = Breaker()
    for name in ("good", "bad", "good"):
        breaker.failed(0.0, name)
    assert breaker.tripped(0.5)
    for _ in range(10):
        breaker.failed(1.0, "bad")
    assert not breaker.tripped(1.0)


def test_failures_of_ever_other_tenants_are_remembered_in_bounds() -> None:
    breaker = Breaker(failures=10**9)
    for n in range(10_000):
        breaker.failed(0.0, str(n))
    assert len(breaker._row) <= 256
    assert len(breaker._own) <= 256


def test_a_priority_is_refused_for_all_by_the_word_of_two() -> None:
    takes = TakesPriority()
    assert takes.sends("ann", 0.0)
    assert takes.asks_again("ann", 0.0, 0.1)
    assert not takes.answered("ann", 0.0, 0.2, refused=True)
    assert not takes.sends("ann", 1.0)  # its own word
    assert takes.sends("bob", 1.0)  # and nobody else's
    assert not takes.refused(1.0)
    assert takes.answered("bob", 1.0, 1.2, refused=True)
    assert takes.refused(1.3)
    assert not takes.sends("cem", 1.3)
    asks = 1.3 + PAUSE
    assert takes.sends("cem", asks)
    assert not takes.sends("dan", asks)  # one asks at a time
    takes.taken("cem", asks + 1.0)
    assert takes.sends("dan", asks + 1.0)
    assert not takes.refused(asks + 1.0)


def test_asking_in_vain_becomes_rare() -> None:
    takes, now, asked = TakesPriority(), 0.0, 0
    while now < 10 * LONGEST:
        for name in TENANTS:
            if takes.sends(name, now):
                asked += 1
                assert takes.asks_again(name, now, now)
                takes.answered(name, now, now, refused=True)
        now += 10.0
    assert asked < 3 * 22


def test_a_crowd_that_went_out_together_is_one_word() -> None:
    takes = TakesPriority()
    for n in range(24):
        assert takes.sends("ann", n * 0.001)
    for n in range(24):
        assert takes.asks_again("ann", n * 0.001, 1.0)  # none of them fails for the priority
        takes.answered("ann", n * 0.001, 1.0, refused=True)
    assert not takes.sends("ann", 1.0)
    assert takes.sends("ann", 1.0 + PAUSE)


def test_one_tenants_reply_that_reasons_cuts_nobody_elses_off_and_holds_for_minutes() -> None:
    uncut = Uncut()
    uncut.add("m", "ann", 0.0)
    assert uncut.has("m", "ann", 1.0)
    assert not uncut.has("m", "bob", 1.0)
    assert not uncut.has("other", "ann", 1.0)
    assert not uncut.has("m", "ann", HOLDS)
    uncut.add("m", "ann", HOLDS)
    uncut.add("m", "bob", HOLDS + 1.0)
    assert uncut.has("m", "cem", HOLDS + 2.0)
    for n in range(3000):
        uncut.add(str(n), "ann", HOLDS + 3.0)
    assert len(uncut._words) <= 1024


def test_slots_that_an_engine_says_stay_within_the_bounds_that_are_set() -> None:
    window = Window(0, 2, 8)
    for slots, limit in ((1, 2), (4, 4), (100, 8)):
        window.slots = slots
        assert window.limit == window.potential == limit
