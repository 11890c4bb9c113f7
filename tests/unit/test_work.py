"""A request's expected work, and what is usual."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sooner.core import ConfigError
from sooner.work import WAIT_FLOOR, WAIT_MEMORY, WORK_FLOOR, Pace, Usual, work

PACE = Pace(iteration_s=0.01, prefill_token_s=1e-4, decode_seq_s=2e-5, context_token_s=1e-7, batch=20)


def test_work_counts_the_uncached_prompt_and_each_reply_token() -> None:
    assert work(PACE, 1000, 0, 0) == pytest.approx(0.1)
    assert work(PACE, 1000, 600, 0) == pytest.approx(0.04)
    token = 0.01 / 20 + 2e-5 + 1e-7 * (1000 + 50)
    assert work(PACE, 1000, 0, 100) == pytest.approx(0.1 + 100 * token)
    assert work(PACE, 0, 0, 10, batch=1) > work(PACE, 0, 0, 10, batch=2)


def test_columns_give_what_scalars_give() -> None:
    prompts, cached, replies = np.array([10.0, 2000.0]), np.array([0.0, 500.0]), np.array([300.0, 5.0])
    columns = work(PACE, prompts, cached, replies)
    assert np.asarray(columns).tolist() == [
        work(PACE, *row) for row in zip(prompts, cached, replies, strict=True)
    ]


@pytest.mark.parametrize("name", ["iteration_s", "prefill_token_s", "decode_seq_s", "context_token_s"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_pace_that_cannot_be_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        Pace(**{name: value})
    with pytest.raises(ConfigError, match="batch"):
        Pace(batch=0.5)


def test_usual_wait_is_that_of_the_times_with_a_wait() -> None:
    usual = Usual()
    assert (usual.wait, usual.work) == (WAIT_FLOOR, WORK_FLOOR)
    for _ in range(WAIT_MEMORY // 4):
        for waiting in (0.0, 0.0, 0.0, 8.0):
            usual.arrive(waiting)
    assert usual.tell()
    assert usual.wait == pytest.approx(4.0)  # the mean is 2
    assert not usual.tell()


def test_usual_work_weighs_requests_by_their_work() -> None:
    usual = Usual()
    for amount in (1.0, 1.0, 1.0, 3.0):
        usual.weigh(amount)
    usual.tell()
    assert usual.work == pytest.approx(12 / 6)


def test_a_burst_hardly_moves_what_thousands_taught() -> None:
    usual = Usual()
    for _ in range(3 * WAIT_MEMORY):
        usual.arrive(10.0)
    usual.tell()
    for _ in range(WAIT_MEMORY // 100):
        usual.arrive(30.0)
    usual.tell()
    assert usual.wait == pytest.approx(10.0, rel=0.1)


def test_a_state_is_kept_and_a_wrong_one_refused() -> None:
    usual = Usual()
    usual.arrive(3.0)
    usual.weigh(0.5)
    usual.tell()
    again = Usual()
    assert again.restore(usual.state())
    assert again.state() == usual.state()
    for wrong in ({}, {**usual.state(), "wait": math.nan}, {**usual.state(), "work": 0}, {"wait": "3"}):
        assert not again.restore(wrong)
    assert again.state() == usual.state()
