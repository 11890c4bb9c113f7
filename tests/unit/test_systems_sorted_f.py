"""Sorted-F: batches that fit, of small F, and the backlog on which shortest first is bad."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba", reason="numba, the sim extra, is not installed")

from sooner import policies
from sooner.core import DataError
from sooner.sim.cost import Engine
from sooner.sim.engine import simulate
from sooner.sim.systems.sorted_f import _batch, measure, ranks
from sooner.workloads.columns import Workload

requests = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=9)


@given(requests)
@settings(deadline=None)
def test_every_request_has_one_rank(some: list[tuple[int, int]]) -> None:
    prompt, reply = np.array(some, dtype=np.float64).T
    assert sorted(ranks(prompt, reply, 40.0)) == list(range(len(some)))


@given(requests)
@settings(deadline=None, max_examples=60)
def test_a_batch_fits_and_is_near_the_best_of_all(some: list[tuple[int, int]]) -> None:
    prompt, reply = np.array(some, dtype=np.float64).T
    held = prompt + reply
    chosen = _batch(reply, held, 40.0)
    assert held[chosen].sum() <= 40.0
    every = (
        list(rows)
        for size in range(1, len(some) + 1)
        for rows in itertools.combinations(range(len(some)), size)
        if held[list(rows)].sum() <= 40.0
    )
    assert measure(reply[chosen]) <= 1.6 * min(measure(reply[rows]) for rows in every)


def test_where_prompts_differ_shortest_first_is_bad_and_sorted_f_is_not() -> None:
    long, many = 40, 2_000
    prompt_len = np.array([1_900] * long + [10] * many)
    output_len = np.array([60] * long + [64] * many)
    workload = Workload(arrival_time=np.zeros(long + many), prompt_len=prompt_len, output_len=output_len)
    engine = Engine(max_num_seqs=256, max_num_batched_tokens=2048, num_blocks=128, block_size=16)
    score = ranks(prompt_len.astype(float), output_len.astype(float), 128 * 16.0)
    ours, shortest = (
        np.asarray(simulate(workload, engine, policies.get(name), score=given).completed.finish_time)
        for name, given in (("ltr", score), ("sjf", None))
    )
    assert ours.mean() < 0.75 * shortest.mean()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="50 tokens, allowed: at most the room, 40"):
        ranks(np.array([30.0]), np.array([20.0]), 40.0)
