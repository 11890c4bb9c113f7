"""How many requests a job keeps open: the slots of an engine nobody named are found, and kept to."""

from __future__ import annotations

import pytest

from sooner.core import ConfigError
from sooner.generate.opening import Opening


def settled(slots: int, looks: int = 60, preempted: int = 0) -> Opening:
    opening = Opening()
    for _ in range(looks):
        opening.look(min(opening.size, slots), max(0, opening.size - slots), preempted)
    return opening


@pytest.mark.parametrize("slots", [1, 4, 64, 1024])
def test_it_settles_a_little_above_the_slots(slots: int) -> None:
    for looks in (60, 61, 62, 75):
        assert slots < settled(slots, looks).size <= slots + max(4, 0.2 * slots)


def test_prompts_that_are_on_their_way_in_are_not_taken_for_a_full_batch() -> None:
    opening = Opening()
    running = 0
    for _ in range(40):  # an engine of 256 slots that takes in 12 prompts a look
        running = min(running + 12, opening.size, 256)
        opening.look(running, opening.size - running)
    assert running == 256


def test_preemptions_make_it_smaller_and_older_ones_do_not() -> None:
    opening = settled(100, preempted=40)  # a server that has preempted before this job
    before = opening.size
    assert before > 100
    opening.look(100, before - 100, preempted=43)
    assert opening.size <= 95


def test_a_job_that_does_not_fill_it_leaves_it_alone() -> None:
    opening = settled(64)
    before = opening.size
    for _ in range(50):
        opening.look(3, 0)
    assert opening.size == before


def test_what_is_given_stays() -> None:
    opening = Opening(7)
    opening.look(7, 100, preempted=5)
    opening.look(7, 0, preempted=9)
    assert opening.size == 7
    with pytest.raises(ConfigError, match="window=0, allowed: at least 1"):
        Opening(0)
