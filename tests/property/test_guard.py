"""The starvation guard against the loop over all requests that vllm-ltr runs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sooner.core import ConfigError
from sooner.guard import Guard


class Counting:
    """vllm-ltr's own rule, O(n) a step: idle counters, promotion, renewal, demotion."""

    def __init__(self, threshold: int, quantum: int) -> None:
        self.threshold, self.quantum = threshold, quantum
        self.idle: dict[int, int] = {}
        self.left: dict[int, int] = {}
        self.promoted: set[int] = set()

    def arrive(self, id: int) -> None:
        self.idle[id] = 0

    def begin(self) -> None:
        for id in self.idle:
            if self.idle[id] >= self.threshold:
                self.promoted.add(id)
                self.idle[id], self.left[id] = 0, self.quantum
            elif id in self.promoted and self.left[id] <= 0:
                self.promoted.discard(id)

    def ran(self, executed: set[int]) -> None:
        for id in self.idle:
            if id in executed:
                self.idle[id] = 0
                if id in self.promoted:
                    self.left[id] -= 1
            else:
                self.idle[id] += 1

    def leave(self, id: int) -> None:
        del self.idle[id]
        self.promoted.discard(id)


@settings(max_examples=200)
@given(st.integers(1, 6), st.integers(1, 4), st.lists(st.sets(st.integers(0, 5)), max_size=60), st.data())
def test_it_does_what_the_loop_over_all_does(
    threshold: int, quantum: int, steps: list[set[int]], data: st.DataObject
) -> None:
    guard: Guard[int] = Guard(threshold, quantum)
    naive = Counting(threshold, quantum)
    running: set[int] = set()
    for step, wanted in enumerate(steps, 1):
        event = data.draw(st.integers(-6, 5))
        if event >= 0 and event not in guard:
            guard.arrive(event, step)
            naive.arrive(event)
        elif event < 0 and -event - 1 in guard:
            guard.leave(-event - 1)
            naive.leave(-event - 1)
            running.discard(-event - 1)
        before = {id for id in range(6) if guard.promoted(id)}
        changes = guard.begin(step)
        naive.begin()
        after = {id for id in range(6) if guard.promoted(id)}
        assert after == naive.promoted
        assert set(changes.promoted) == after - before
        assert set(changes.demoted) == before - after
        executed = {id for id in wanted if id in guard}
        for id in running - executed:
            guard.stop(id, step)
        for id in executed - running:
            guard.start(id, step)
        running = executed
        naive.ran(executed)
    assert len(guard) == len(naive.idle)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 100))
def test_whoever_never_runs_is_promoted_after_exactly_the_threshold(
    threshold: int, quantum: int, arrival: int
) -> None:
    guard: Guard[str] = Guard(threshold, quantum)
    guard.arrive("a", arrival)
    for step in range(arrival, arrival + threshold):
        guard.begin(step)
        assert not guard.promoted("a")
    assert guard.begin(arrival + threshold).promoted == ["a"]


def test_what_is_planned_does_not_grow_with_those_that_left() -> None:
    guard: Guard[int] = Guard(1000, 1)
    for id in range(10_000):
        guard.arrive(id, 0)
        guard.leave(id)
    assert len(guard._idle) <= 65


def test_unknown_requests_are_tolerated() -> None:
    guard: Guard[str] = Guard()
    guard.start("a", 1)
    guard.stop("a", 1)
    guard.leave("a")
    assert not guard.promoted("a")


@pytest.mark.parametrize("wrong", [(0, 1), (1, 0)])
def test_numbers_of_steps_start_at_one(wrong: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="allowed: >= 1"):
        Guard(*wrong)
