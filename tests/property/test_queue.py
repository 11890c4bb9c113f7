"""The ranked queue against a sorted list."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sooner.ordering.queue import Place, RankedQueue


class Item:
    def __init__(self, sequence: int, key: float, arrival: float) -> None:
        self.sequence, self.key, self.arrival, self.band = sequence, key, arrival, 1

    @property
    def place(self) -> Place:
        return (self.band, self.key, self.arrival, self.sequence)


keys = st.integers(0, 5).map(float) | st.floats(-1e6, 1e6)


class QueueMachine(RuleBasedStateMachine):
    """Every operation, with ties, moves there and back, and requests that are not there."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: RankedQueue[Item] = RankedQueue(lambda item: item.place)
        self.model: list[Item] = []
        self.gone: list[Item] = []
        self.popped: list[Item] = []
        self.count = 0

    def expected(self) -> list[Item]:
        return sorted(self.model, key=lambda item: item.place)

    @rule(key=keys, arrival=st.integers(0, 3))
    def add(self, key: float, arrival: int) -> None:
        self.count += 1
        item = Item(self.count, key, float(arrival))
        self.queue.add_request(item)
        self.model.append(item)

    @precondition(lambda self: self.model)
    @rule()
    def pop(self) -> None:
        first = self.queue.peek_request()
        assert first is self.queue.pop_request() is self.expected()[0]
        self.model.remove(first)
        self.gone.append(first)
        self.popped.append(first)

    @precondition(lambda self: self.gone)
    @rule(data=st.data(), several=st.booleans())
    def put_back(self, data: st.DataObject, several: bool) -> None:
        item = self.gone.pop(data.draw(st.integers(0, len(self.gone) - 1)))
        if several:
            self.queue.prepend_requests([item])
        else:
            self.queue.prepend_request(item)
        self.model.append(item)
        self.popped = [one for one in self.popped if one is not item]

    @precondition(lambda self: self.model or self.gone)
    @rule(data=st.data(), several=st.booleans())
    def remove(self, data: st.DataObject, several: bool) -> None:
        item = data.draw(st.sampled_from(self.model + self.gone))
        if several:
            self.queue.remove_requests({item})
        else:
            self.queue.remove_request(item)
        self.popped = [one for one in self.popped if one is not item]
        if item in self.model:
            self.model.remove(item)
            self.gone.append(item)

    @precondition(lambda self: self.model or self.gone)
    @rule(data=st.data(), key=keys, band=st.integers(0, 1))
    def move(self, data: st.DataObject, key: float, band: int) -> None:
        item = data.draw(st.sampled_from(self.model + self.gone))
        item.key, item.band = key, band
        self.queue.move(item)

    @rule()
    def take_popped(self) -> None:
        assert self.queue.take_popped() == self.popped
        self.popped = []

    @invariant()
    def agrees(self) -> None:
        assert len(self.queue) == len(self.model)
        assert bool(self.queue) == bool(self.model)
        assert list(self.queue) == self.expected()
        assert all(item in self.queue for item in self.model)
        if self.model:
            assert self.queue.peek_request() is self.expected()[0]
        assert len(self.queue._heap) <= 65 + 2 * len(self.model) + 1


TestQueue = QueueMachine.TestCase


def test_an_empty_queue_has_no_first() -> None:
    queue: RankedQueue[Item] = RankedQueue(lambda item: item.place)
    for look in (queue.peek_request, queue.pop_request):
        with pytest.raises(IndexError):
            look()


def test_a_removed_request_is_not_kept_alive() -> None:
    queue: RankedQueue[Item] = RankedQueue(lambda item: item.place)
    items = [Item(i, float(i), 0.0) for i in range(10)]
    for item in items:
        queue.add_request(item)
    watched = [weakref.ref(item) for item in items]
    queue.remove_requests(items[3:6])
    queue.pop_request()
    queue.take_popped()
    del items, item
    gc.collect()
    assert [i for i, ref in enumerate(watched) if ref() is None] == [0, 3, 4, 5]


def test_places_are_read_anew_once_after_each_tick_and_frozen_between() -> None:
    reads = []

    def reorder(items: list[Item]) -> list[Place]:
        reads.append(len(items))
        return [item.place for item in items]

    queue: RankedQueue[Item] = RankedQueue(lambda item: item.place, reorder)
    items = [Item(i, float(i), 0.0) for i in range(4)]
    for item in items:
        queue.add_request(item)
    for item in items:
        item.key = -item.key
    assert queue.peek_request() is items[0]
    queue.tick()
    assert reads == []
    assert queue.peek_request() is items[3]
    items[0].key = -99.0
    assert queue.pop_request() is items[3]
    queue.tick()
    assert next(iter(queue)) is items[0]
    assert reads == [4, 3]
    queue.remove_requests(items)
    queue.tick()
    assert not list(queue)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=200), st.integers(0, 50))
def test_the_first_few_are_those_that_iterating_gives(steps: list[tuple[int, bool]], most: int) -> None:
    places: dict[int, Place] = {}
    queue: RankedQueue[int] = RankedQueue(places.__getitem__)
    for n, (key, leaves) in enumerate(steps):
        places[n] = (1, float(key), float(n), n)
        queue.add_request(n)
        if leaves and len(queue) > 1:
            queue.remove_request(n // 2)
    assert queue.first(most) == list(queue)[:most]
