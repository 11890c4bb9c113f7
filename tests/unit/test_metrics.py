"""Measures: closed-form cases, and the rank correlations against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sooner import metrics
from sooner.core import Completed, DataError, columns

ONE = Completed(
    id=0, arrival_time=2.0, first_token_time=3.0, finish_time=7.0, prompt_len=10, output_len=5,
    start_time=2.5, arrival_step=10, first_token_step=12, finish_step=30,
)  # fmt: skip


def test_one_request_by_hand() -> None:
    assert metrics.e2e(ONE) == 5.0
    assert metrics.ttft(ONE) == 1.0
    assert metrics.tpot(ONE) == 1.0  # 4 s for the 4 tokens after the first
    assert metrics.normalized_latency(ONE) == 1.0
    assert metrics.wait(ONE) == 0.5
    assert metrics.e2e_steps(ONE) == 20
    assert metrics.normalized_steps(ONE) == 4


def test_a_reply_of_one_token_or_none() -> None:
    single = ONE._replace(output_len=1, finish_time=3.0)
    assert metrics.tpot(single) == 0.0
    assert metrics.normalized_latency(ONE._replace(output_len=0)) == 5.0


def test_columns_give_the_same_as_single_requests() -> None:
    both = columns([ONE, ONE._replace(finish_time=9.0, output_len=2)])
    for measure in (metrics.e2e, metrics.ttft, metrics.tpot, metrics.normalized_latency, metrics.wait):
        assert np.asarray(measure(both)).tolist() == [
            measure(Completed(*(float(np.asarray(field)[i]) for field in both))) for i in (0, 1)
        ]


def test_summary_of_a_burst_by_hand() -> None:
    """Ten replies of 1 to 10 tokens, all arriving at 0, one token a second, never waiting."""
    length = np.arange(1.0, 11.0)
    zero = np.zeros(10)
    done = Completed(length, zero, zero + 1, length, zero, length, zero, zero + 1)
    summary = metrics.summary(done)
    assert summary["n"] == 10
    assert summary["makespan_s"] == 10
    assert summary["mean_e2e_s"] == pytest.approx(5.5)
    assert summary["p50_e2e_s"] == pytest.approx(5.5)
    assert summary["p90_e2e_s"] == pytest.approx(9.1)  # linear between the 9th and the 10th
    assert summary["p99_e2e_s"] == pytest.approx(9.91)
    assert summary["mean_ttft_s"] == summary["p99_ttft_s"] == 1
    assert summary["mean_tpot_s"] == pytest.approx(0.9)  # 1 s each, 0 for the reply of one token
    assert summary["mean_normalized_latency"] == 1
    assert summary["max_wait_s"] == 0
    assert summary["throughput_rps"] == 1
    assert summary["throughput_tps"] == 5.5
    assert (summary["output_tokens"], summary["preemptions"]) == (55, 10)


def test_summary_of_one_request_and_of_none() -> None:
    assert metrics.summary(ONE)["p99_e2e_s"] == 5.0
    instant = ONE._replace(finish_time=2.0)
    assert math.isnan(metrics.summary(instant)["throughput_rps"])
    with pytest.raises(DataError, match="no finished request"):
        metrics.summary(columns([]))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=60))
def test_rank_correlations_equal_scipys(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert metrics.kendall_tau(x, y) == 0.0
        assert metrics.spearman(x, y) == 0.0
        return
    assert metrics.kendall_tau(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40))
def test_pairwise_accuracy_equals_counting(pairs: list[tuple[int, int]]) -> None:
    right = total = 0.0
    for i, (a, b) in enumerate(pairs):
        for c, d in pairs[:i]:
            if b != d:
                total += 1
                right += 0.5 if a == c else float((a < c) == (b < d))
    expected = right / total if total else 0.5
    assert metrics.pairwise_accuracy(*zip(*pairs, strict=True)) == pytest.approx(expected)


def test_extreme_orders() -> None:
    x = np.arange(1000.0)
    assert metrics.kendall_tau(x, x**3) == 1.0
    assert metrics.kendall_tau(x, -x) == -1.0
    assert metrics.pairwise_accuracy(x, x) == 1.0
    assert metrics.pairwise_accuracy(np.zeros(4), x[:4]) == 0.5


def test_a_long_column_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=20_000)
    y = x + rng.normal(size=20_000)
    assert metrics.kendall_tau(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "y"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, math.nan], [1.0, 2.0]), ([[1.0]], [[1.0]])]
)
def test_refuses_columns_that_do_not_fit(x: list[float], y: list[float]) -> None:
    for measure in (metrics.kendall_tau, metrics.spearman, metrics.pairwise_accuracy):
        with pytest.raises(DataError, match="allowed"):
            measure(x, y)
