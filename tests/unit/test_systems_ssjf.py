"""SSJF by hand-made cases: its three ways of batching, its guard, its predictors and its arrivals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sooner.core import ConfigError, DataError, UnknownName
from sooner.metrics import kendall_tau
from sooner.sim.systems import ssjf
from sooner.sim.systems.ssjf import SsjfSettings
from sooner.sim.systems.ssjf_predictors import PREDICTORS, Jobs, azure_gaps_s


def serve(
    arrival: list[float], tokens: list[int], key: list[float] | None, **settings: object
) -> ssjf.SsjfServed:
    keys = None if key is None else np.array(key, dtype=float)
    chosen = SsjfSettings(**settings)  # type: ignore[arg-type]  # each case says what it needs
    return ssjf.serve(np.array(arrival, dtype=float), np.array(tokens), keys, chosen)


def test_alone_the_shortest_waiting_job_runs_next() -> None:
    # Durations are 0.1 + 0.02 x tokens: 2.1, 4.1 and 0.6 s; the second and third arrive during the first.
    served = serve([0, 1, 1.5], [100, 200, 25], [100, 200, 25])
    np.testing.assert_allclose(served.finish, [2.1, 6.8, 2.7])
    np.testing.assert_allclose(served.start, [0, 2.7, 2.1])
    np.testing.assert_allclose(serve([0, 1, 1.5], [100, 200, 25], None).finish, [2.1, 6.2, 6.8])


def test_a_static_batch_ends_with_its_longest_member() -> None:
    served = serve([0, 0, 0], [100, 20, 45], [100, 20, 45], mode="static", batch_size=2)
    np.testing.assert_allclose(served.finish, [3.1, 1.0, 1.0])


def test_continuous_batches_form_anew_at_each_completion() -> None:
    # 0.6 and 2.1 s start; at 0.6 the newcomer of 1.1 s takes the free place; the first key never shrinks.
    served = serve([0, 0, 0.3], [25, 100, 50], [25, 100, 50], mode="continuous", batch_size=2)
    np.testing.assert_allclose(served.finish, [0.6, 2.1, 1.7])


def test_a_newcomer_displaces_a_running_job_at_a_re_batch_point() -> None:
    # At 0.6 the job of 2.1 s has run 0.6 s; two newcomers with smaller keys take both places.
    served = serve([0, 0, 0.3, 0.3], [25, 100, 45, 45], [25, 100, 45, 45], mode="continuous", batch_size=2)
    np.testing.assert_allclose(served.finish, [0.6, 3.1, 1.6, 1.6])


def test_with_shrink_the_key_falls_with_what_has_run() -> None:
    # After 0.6 s the job of 100 tokens has 70 left, so it goes before a newcomer of 80.
    args = ([0, 0, 0.3, 0.3], [25, 100, 45, 80], [25.0, 100.0, 45.0, 80.0])
    kept = serve(*args, mode="continuous", batch_size=2)
    shrunk = serve(*args, mode="continuous", batch_size=2, shrink=True)
    assert shrunk.finish[1] < kept.finish[1]


def test_the_guard_flips_the_whole_order() -> None:
    # The job of 0.5 s waits 5.1 > 10 x 0.5: order of arrival, so the job of 4.1 s goes before that of 0.2.
    arrival, tokens = [0.0, 0.0, 0.1, 0.2], [250, 20, 200, 5]
    key = [0.0, 300.0, 200.0, 5.0]
    guarded = serve(arrival, tokens, key)
    assert guarded.start[1] < guarded.start[3]
    free = serve(arrival, tokens, key, guard=False)
    assert free.start[3] < free.start[2] < free.start[1]


def test_a_live_guard_reads_the_prediction() -> None:
    arrival, tokens, key = np.array([0.0, 0.0, 0.1]), np.array([250, 20, 5]), np.array([0.0, 300.0, 5.0])
    believed = np.array([250.0, 400.0, 5.0])
    live = ssjf.serve(arrival, tokens, key, SsjfSettings(guard_live=True), predicted=believed)
    assert live.start[2] < live.start[1]


def test_the_released_fcfs_holds_a_batch_that_is_not_full() -> None:
    held = serve([0, 4], [20, 20], None, mode="static", batch_size=2, hold_s=10.0)
    np.testing.assert_allclose(held.finish, [4.5, 4.5])
    alone = serve([0], [20], None, mode="static", batch_size=2, hold_s=10.0)
    np.testing.assert_allclose(alone.finish, [10.5])


def test_prediction_latency_delays_a_job() -> None:
    np.testing.assert_allclose(serve([1], [20], [1], predict_s=0.25).finish, [1.75])


@given(
    st.lists(st.tuples(st.floats(0, 50), st.integers(1, 511), st.floats(-5, 5)), min_size=1, max_size=30),
    st.sampled_from(ssjf.MODES),
    st.integers(1, 5),
    st.booleans(),
)
def test_every_job_is_served_once_and_never_faster_than_alone(
    jobs: list[tuple[float, int, float]], mode: str, batch: int, guard: bool
) -> None:
    jobs.sort()
    arrival, tokens, key = (np.array(column, dtype=float) for column in zip(*jobs, strict=True))
    settings = SsjfSettings(mode=mode, batch_size=1 if mode == "none" else batch, guard=guard)
    served = ssjf.serve(arrival, tokens.astype(int), key, settings)
    assert (served.start >= arrival).all()
    assert (served.finish - arrival >= 0.1 + 0.02 * tokens - 1e-9).all()
    if mode == "none":  # one server that never idles while a job waits: the same makespan as FCFS
        plain = ssjf.serve(arrival, tokens.astype(int), None, settings)
        assert served.finish.max() == pytest.approx(plain.finish.max())


def test_measures_by_hand() -> None:
    served = ssjf.SsjfServed(np.array([0.0, 2, 4, 6]), np.array([2.0, 4, 6, 8]))
    found = ssjf.measures(np.array([0.0, 1, 1, 1]), served)
    assert found["mean_jct_s"] == pytest.approx((2 + 3 + 5 + 7) / 4)
    assert found["early_throughput"] == pytest.approx(1 / 2)
    assert found["throughput"] == pytest.approx(4 / 8)
    assert found["mean_wait_s"] == pytest.approx((0 + 1 + 3 + 5) / 4)


def test_jobs_follow_the_released_predictions() -> None:
    jobs = Jobs(30_000, np.random.default_rng(3))
    assert jobs.length.min() > 1
    assert jobs.length.max() <= 511
    assert jobs.length.mean() == pytest.approx(176.8, abs=3)
    assert np.percentile(jobs.length, 50) == pytest.approx(140, abs=6)
    tau = {name: kendall_tau(jobs.key(name), jobs.length) for name in (*PREDICTORS, "random")}
    assert tau["cls-3"] == pytest.approx(0.567, abs=0.01)
    assert tau["multi-5"] == pytest.approx(0.635, abs=0.01)
    assert tau["reg-L1"] == pytest.approx(0.635, abs=0.02)
    assert abs(tau["random"]) < 0.02
    truth = np.searchsorted((42, 141, 294, 503), jobs.length, side="right")
    assert np.mean(truth == jobs.key("multi-5")) == pytest.approx(0.600, abs=0.02)
    with pytest.raises(UnknownName, match="did you mean 'cls-3'"):
        jobs.key("cls-4")


def test_arrivals_are_as_the_released_code_makes_them() -> None:
    rng = np.random.default_rng(0)
    counts = ssjf.poisson_counts(4000, 2.0, rng)
    assert (counts == np.floor(counts)).all()
    assert counts[-1] == pytest.approx(2000, rel=0.1)
    gaps = np.diff(ssjf.sorted_gamma(50, 0.03, 2.0, rng))
    assert (np.diff(gaps) >= 0).all()
    window = ssjf.trace_window(50, azure_gaps_s(), 1000.0, rng)
    assert window.shape == (50,)
    assert window[0] == 0


def test_what_is_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'static'"):
        SsjfSettings(mode="statik")
    with pytest.raises(ConfigError, match="batch_size=2, allowed: 1"):
        SsjfSettings(batch_size=2)
    with pytest.raises(ConfigError, match=">= 0"):
        SsjfSettings(guard_wait_s=-math.inf)
    with pytest.raises(DataError, match="never fall"):
        serve([1, 0], [5, 5], None)
