"""Where requests stand: neutral places, scores that come late, load, and failing open."""

from __future__ import annotations

import math

import pytest

from sooner import policies
from sooner.core import Number, Prediction, View
from sooner.guard import Guard
from sooner.ordering import given
from sooner.ordering.order import Mean, Order
from sooner.policies import Policy
from sooner.vllm.counters import PluginCounters
from sooner.work import Pace


def make(name: str, guard: Guard[str] | None = None, **parameters: float) -> Order:
    return Order(policies.get(name, **parameters), guard, PluginCounters())


def ranked(order: Order) -> list[str]:
    return sorted(order.tickets, key=lambda id: order.tickets[id].place)


@pytest.mark.parametrize("name", policies.names())
def test_without_scores_requests_stand_in_order_of_arrival(name: str) -> None:
    order = make(name)
    for i in range(20):
        order.begin_step(100.0 + i)
        order.arrive(str(i), 100.0 + i, 10)
    assert ranked(order) == [str(i) for i in range(20)]


def test_a_score_that_comes_late_moves_the_request() -> None:
    order = make("ltr")
    for i in range(3):
        order.arrive(str(i), float(i), 10)
    assert order.predicted("2", Prediction(-5.0, 20.0), 0)
    assert ranked(order) == ["2", "0", "1"]


def test_a_score_for_a_request_that_left_is_dropped() -> None:
    order = make("ltr")
    order.arrive("0", 0.0, 10)
    assert order.leave("0") is not None
    assert not order.predicted("0", Prediction(1.0), 0)
    assert order.leave("0") is None


def test_a_newcomer_stands_at_the_mean_of_what_was_predicted() -> None:
    order = make("spjf")
    for i, length in enumerate((100.0, 300.0)):
        order.arrive(str(i), 0.0, 10)
        order.predicted(str(i), Prediction(length, length), 0)
    order.arrive("new", 0.0, 10)
    assert ranked(order) == ["0", "new", "1"]


def test_pressure_is_the_mean_wait_over_the_mean_length_and_is_frozen_at_arrival() -> None:
    order = make("aged", beta=0.0, follow=1.0)
    first = order.arrive("0", 0.0, 10)
    order.predicted("0", Prediction(100.0, 100.0), 0)
    order.begin_step(10.0)
    order.admitted("0")
    assert order.pressure == pytest.approx(0.1)
    second = order.arrive("1", 10.0, 10)
    order.predicted("1", Prediction(50.0, 50.0), 0)
    assert (first.pressure, second.pressure) == (0.0, pytest.approx(0.1))
    assert second.key == pytest.approx(10.0 + 0.1 * 50.0)


def test_a_failing_policy_leaves_the_order_of_arrival() -> None:
    def broken(view: View, now: float) -> Number:
        raise ZeroDivisionError

    counters = PluginCounters()
    order = Order(Policy("broken", broken, {}, True, True, False), None, counters)
    for i in range(5):
        order.arrive(str(i), float(i), 10, given.Given(score=float(-i)))
    assert ranked(order) == ["0", "1", "2", "3", "4"]
    assert counters.counts["policy_errors"] == 5


def test_a_key_that_is_not_a_number_is_not_used() -> None:
    order = Order(Policy("nan", lambda view, now: math.nan, {}, True, True, False), None, PluginCounters())
    assert order.arrive("0", 1.0, 10).key == 0.0


def test_a_failing_column_leaves_the_keys_as_they_were() -> None:
    def broken(view: View, now: float) -> Number:
        return float(view.arrival_time)  # a column of two cannot be one number

    order = Order(Policy("scalar", broken, {}, False, False, False), None, PluginCounters())
    tickets = [order.arrive(str(i), float(i), 10) for i in range(2)]
    order.refresh(tickets, [0, 0])
    order.refresh([], [])
    assert [ticket.key for ticket in tickets] == [0.0, 1.0]


def test_the_guard_puts_an_idle_request_first() -> None:
    order = make("ltr", Guard(threshold=3, quantum=1))
    order.arrive("old", 0.0, 10, given.Given(score=9.0))
    for step in range(3):
        order.begin_step(float(step))
        order.step += 1
    order.arrive("new", 3.0, 10, given.Given(score=1.0))
    assert ranked(order) == ["new", "old"]
    assert order.begin_step(3.0) == ["old"]
    assert ranked(order) == ["old", "new"]
    order.step += 1
    order.admitted("old")
    assert order.begin_step(4.0) == ["old"]  # its quantum of one step is spent
    assert ranked(order) == ["new", "old"]


def test_a_preempted_request_keeps_its_sequence_and_counts() -> None:
    order = make("sprpt")
    ticket = order.arrive("0", 0.0, 10, given.Given(score=50.0, predicted_len=50.0))
    order.step = 1
    order.admitted("0")
    order.preempted("0", 20)
    order.admitted("0")
    assert (ticket.key, ticket.preemptions, ticket.sequence, ticket.first_scheduled_step) == (30.0, 1, 1, 1)
    for forget in (order.admitted, lambda id: order.preempted(id, 0)):
        forget("unknown")


def test_only_policies_that_read_predictions_need_a_ranker() -> None:
    needless = {name for name in policies.names() if not policies.get(name).uses_predictions}
    assert needless == {
        "boost_blind", "edf", "edf_classes", "fastserve", "fcfs", "hrrn_prompt", "las", "mlfq", "vtc",
        "wspt",
    }  # fmt: skip


def test_the_backlog_is_the_work_that_waits() -> None:
    order = make("boost")
    order.set_pace(Pace(iteration_s=0.0, prefill_token_s=1e-3, decode_seq_s=1e-2, context_token_s=0.0))
    for i in range(3):
        order.arrive(str(i), 0.0, 100)
    assert order.backlog == pytest.approx(0.3)
    order.predicted("1", Prediction(50.0, 50.0), 0)
    assert order.backlog == pytest.approx(0.8)
    order.cached("1", 60)
    assert order.backlog == pytest.approx(0.74)
    order.admitted("1")
    assert order.backlog == pytest.approx(0.2)
    order.preempted("1", 10)
    assert order.backlog == pytest.approx(0.74)
    order.leave("0")
    order.admitted("2")
    order.admitted("1")
    order.leave("1")
    assert order.backlog == 0.0


def test_after_waits_little_work_goes_first_and_after_none_who_came_first() -> None:
    order = make("boost")
    order.set_pace(Pace(iteration_s=0.0, prefill_token_s=1e-3, decode_seq_s=1e-2, context_token_s=0.0))
    for i, length in enumerate((400.0, 200.0, 10.0)):
        order.arrive(str(i), float(i), 10, given.Given(score=length, predicted_len=length))
        assert order.take_news()
    order.refresh(list(order.tickets.values()), [0, 0, 0])
    assert ranked(order) == ["2", "1", "0"]
    calm = make("boost")
    for i, length in enumerate((400.0, 200.0, 10.0)):
        calm.arrive(str(i), float(i), 10, given.Given(score=length, predicted_len=length))
        calm.admitted(str(i))
        calm.take_news()
    calm.refresh(list(calm.tickets.values()), [0, 0, 0])
    assert ranked(calm) == ["0", "1", "2"]


def test_another_pace_counts_what_is_usual_anew() -> None:
    order, slower = make("boost"), Pace(iteration_s=1.0, prefill_token_s=5e-3, decode_seq_s=2e-3)
    for i in range(40):  # a burst at a pace that is only believed, before anything is known of the engine
        order.arrive(str(i), 0.0, 10, given.Given(score=1.0, predicted_len=10.0 + 10 * i))
    order.take_news()
    backlog, wait, work = order.backlog, order.usual.wait, order.usual.work
    order.set_pace(slower)
    assert order.take_news()
    factor = order.backlog / backlog
    assert factor > 50
    assert order.usual.wait == pytest.approx(wait * factor)
    assert order.usual.work == pytest.approx(work * factor)
    order.refresh(list(order.tickets.values()), [0] * 40)
    assert ranked(order)[:10] == [str(i) for i in range(10)]  # not the order of arrival by saturation
    assert order.tickets["0"].key < order.tickets["9"].key - wait


def test_one_key_and_columns_of_keys_agree() -> None:
    order = make("boost")
    for i in range(20):
        order.arrive(str(i), float(i), 10 * i + 1, given.Given(score=1.0, predicted_len=300.0 - 10 * i))
        order.take_news()
        order.refresh(list(order.tickets.values()), [0] * len(order.tickets))
    columns = {id: ticket.key for id, ticket in order.tickets.items()}
    for id, ticket in order.tickets.items():
        order.predicted(id, Prediction(ticket.score, ticket.predicted_len), 0)
        assert ticket.key == pytest.approx(columns[id], rel=1e-12)


def test_a_mean_starts_at_its_first_value() -> None:
    mean = Mean(0.1)
    mean.add(8.0)
    assert mean.value == 8.0
    mean.add(4.0)
    assert mean.value == 6.0


@pytest.mark.parametrize("name", policies.names())
def test_what_only_a_shadow_wants_to_know_of_the_cache_moves_nobody(name: str) -> None:
    """A preempted request whose own blocks are cached keeps its place under a policy that reads no work."""
    watched, alone = (
        Order(policies.get(name), None, PluginCounters(), weighs=weighs) for weighs in (True, False)
    )
    for order in (watched, alone):
        for i in range(4):
            order.arrive(str(i), float(i), 100)
            order.predicted(str(i), Prediction(5.0 * i, 200.0 + i), 0)
        order.admitted("2")
        order.preempted("2", 150)
        order.cached("2", 96)
    if not policies.get(name).reads & {"work", "usual_wait", "usual_work", "cached_len"}:
        assert ranked(watched) == ranked(alone)
