"""The fair queue: order within an owner, shares among owners, bounds, and nothing lost in the books."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from sooner.ordering.fair import FairQueue


def test_owners_take_turns_by_cost() -> None:
    queue: FairQueue[str, int] = FairQueue(most=1000, most_cost=10**9)
    for i in range(100):
        queue.put("flood", i, 1000)
    queue.put("small", -1, 1)
    queue.put("small", -2, 1)
    first = [queue.get() for _ in range(4)]
    assert set(first) >= {-1, -2, 0}
    assert first.index(-1) < first.index(-2)


def test_who_floods_loses_its_own_latest() -> None:
    queue: FairQueue[str, str] = FairQueue(most=10, most_cost=10**9)
    for i in range(10):
        assert queue.put("flood", f"f{i}", 5) == []
    assert queue.put("other", "o", 5) == ["f9"]
    assert queue.put("flood", "f10", 5) == ["f10"]
    assert len(queue) == 10
    assert queue.held_by("flood") == 9


def test_nobody_saves_up_by_waiting() -> None:
    queue: FairQueue[str, str] = FairQueue(most=1000, most_cost=10**9)
    for i in range(50):
        queue.put("busy", f"b{i}", 10)
    for _ in range(40):
        queue.get()
    for i in range(50):
        queue.put("late", f"l{i}", 10)
    taken = [queue.get() for _ in range(10)]
    assert 4 <= sum(str(name).startswith("b") for name in taken) <= 6


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)) | st.sampled_from(["get", "leave", "old"])))
def test_the_books_are_right_whatever_happens(steps: list[object]) -> None:
    queue: FairQueue[int, tuple[int, int]] = FairQueue(most=12, most_cost=200)
    held: dict[int, list[tuple[int, int]]] = {}
    rng = random.Random(0)
    for number, step in enumerate(steps):
        owner = rng.randrange(4)
        if step == "get":
            entry = queue.get()
            assert (entry is None) == (not any(held.values()))
            if entry is not None:
                assert held[entry[0]].pop(0) == entry
        elif step == "leave":
            queue.leave(owner)
            held[owner] = []
        elif step == "old":
            queue.drop_oldest(owner)
            held[owner] = held.get(owner, [])[1:]
        else:
            owner, cost = step  # type: ignore[misc]  # a pair, as none of the words is left
            held.setdefault(owner, []).append((owner, number))
            for dropped in queue.put(owner, (owner, number), cost):
                assert held[dropped[0]].pop() == dropped
        assert len(queue) == sum(map(len, held.values())) <= 12
        for owner, entries in held.items():
            assert queue.held_by(owner) == len(entries)
