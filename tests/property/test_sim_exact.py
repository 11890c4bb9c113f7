"""The compiled engine equals the plain one, to the picosecond, for every policy and option."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from naive import simulate as naive_simulate
from sooner import policies
from sooner.core import EngineError
from sooner.sim.cost import Engine
from sooner.sim.engine import ROUTERS, Options, simulate
from sooner.workloads.columns import Workload

CASES = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@st.composite
def engines(draw: st.DrawFn) -> Engine:
    seqs = draw(st.integers(1, 6))
    return Engine(
        iteration_s=draw(st.sampled_from([0.001, 0.01])),
        prefill_token_s=draw(st.sampled_from([0.0, 1e-4])),
        decode_seq_s=draw(st.sampled_from([0.0, 1e-3])),
        context_token_s=draw(st.sampled_from([0.0, 1e-5])),
        max_num_seqs=seqs,
        max_num_batched_tokens=draw(st.integers(seqs, 30)),
        block_size=draw(st.integers(1, 5)),
        num_blocks=draw(st.integers(8, 60)),
        watermark=draw(st.sampled_from([0.0, 0.1])),
        swap_blocks=draw(st.integers(0, 30)),
        swap_block_s=1e-4,
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    n = draw(st.integers(1, 14))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.0, 0.003, 0.02, 0.2]), min_size=n, max_size=n))
    arrival = np.cumsum(gaps)
    lengths = st.lists(st.integers(1, 16), min_size=n, max_size=n)
    prompt_len = np.array(draw(lengths))
    leaves = st.lists(st.sampled_from([np.inf, np.inf, np.inf, 0.0, 0.05, 0.3]), min_size=n, max_size=n)
    return Workload(
        arrival_time=arrival,
        prompt_len=prompt_len,
        output_len=np.array(draw(lengths)),
        cached_len=prompt_len - np.minimum(prompt_len, draw(lengths)),
        prefix=np.array(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))),
        tenant=np.array(draw(st.lists(st.integers(3, 5), min_size=n, max_size=n))),
        level=np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))),
        deadline=arrival + np.array(draw(st.lists(st.sampled_from([0.1, 1.0]), min_size=n, max_size=n))),
        cancel_time=arrival + np.array(draw(leaves)),
    )


@st.composite
def options(draw: st.DrawFn, iteration_level: bool | None) -> Options:
    return Options(
        iteration_level=iteration_level,
        swap=bool(iteration_level) and draw(st.booleans()),
        backfill=iteration_level is False and draw(st.booleans()),
        guard=draw(st.sampled_from([0, 0, 1, 3, 10])),
        quantum=draw(st.integers(1, 4)),
        predict_s=draw(st.sampled_from([0.0, 0.0, 0.004])),
        predict_blocks=draw(st.booleans()),
        weights=draw(st.sampled_from([{}, {}, {3: 2, 4: 3}])),
    )


def assert_same(workload, engine, policy, opts, seed, router="round-robin"):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    n = len(workload)
    predicted = np.rint(workload.output_len * rng.uniform(0.5, 1.5, n)).clip(1).astype(float)
    score = rng.integers(0, 4, n).astype(float)
    cluster = engine if isinstance(engine, list) else [engine]
    truth = workload.output_len.astype(float) if policy.oracle else predicted
    jobs = naive_simulate(workload, cluster, policy, truth.tolist(), score.tolist(), opts, router)
    endless = sum(job.finish == -1 for job in jobs)
    if endless:  # requests that only evict each other: both engines must say so
        with pytest.raises(EngineError, match=f"{endless} of {n} requests"):
            simulate(
                workload, cluster, policy, predicted_len=predicted, score=score, options=opts, router=router
            )
        return
    outcome = simulate(
        workload, cluster, policy, predicted_len=predicted, score=score, options=opts, router=router
    )
    done = [job for job in jobs if job.finish >= 0]
    assert outcome.cancelled.tolist() == [job.id for job in jobs if job.finish == -2]
    assert outcome.rejected.tolist() == [job.id for job in jobs if job.finish == -3]
    assert outcome.completed.id.tolist() == [job.id for job in done]
    for field, column in (("start", "start_time"), ("first", "first_token_time"), ("finish", "finish_time")):
        expected = [getattr(job, field) / 1e12 for job in done]
        assert getattr(outcome.completed, column).tolist() == expected, field
    assert outcome.completed.preemptions.tolist() == [job.preemptions for job in done]
    assert outcome.instance.tolist() == [job.place for job in done]


@pytest.mark.parametrize("name", policies.names())
@CASES
@given(data=st.data())
def test_admission_order(name: str, data: st.DataObject) -> None:
    assert_same(
        data.draw(workloads()), data.draw(engines()), policies.get(name), data.draw(options(False)), 1
    )


@pytest.mark.parametrize("name", policies.names())
@CASES
@given(data=st.data())
def test_iteration_level_order(name: str, data: st.DataObject) -> None:
    assert_same(data.draw(workloads()), data.draw(engines()), policies.get(name), data.draw(options(True)), 1)


@pytest.mark.parametrize("router", ROUTERS)
@CASES
@given(data=st.data())
def test_cluster(router: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["fcfs", "sjf", "aged", "hrrn"]))
    cluster = data.draw(st.lists(engines(), min_size=1, max_size=4))
    opts = dataclasses.replace(data.draw(options(False)), predict_blocks=False)
    assert_same(data.draw(workloads()), cluster, policies.get(name), opts, 1, router)


@pytest.mark.parametrize("name", [name for name in policies.names() if policies.get(name).linear])
@pytest.mark.parametrize("rate", [np.inf, 40.0])
def test_many_waiting_are_searched_in_part_with_the_same_result(name: str, rate: float) -> None:
    n, rng = 1_500, np.random.default_rng(0)
    arrival = np.zeros(n) if np.isinf(rate) else np.cumsum(rng.exponential(1 / rate, n))
    workload = Workload(
        arrival_time=arrival, prompt_len=rng.integers(1, 60, n), output_len=rng.integers(1, 40, n),
        cancel_time=np.where(rng.uniform(size=n) < 0.02, arrival + 3.0, np.inf),
    )  # fmt: skip
    engine = Engine(max_num_seqs=6, max_num_batched_tokens=128, num_blocks=40, iteration_s=0.02)
    predicted = rng.integers(1, 40, n).astype(float)
    for backfill in (False, True):
        options = Options(backfill=backfill)
        chosen = policies.get(name)
        every = dataclasses.replace(chosen, linear=False)
        one, other = (
            simulate(workload, engine, policy, predicted_len=predicted, options=options)
            for policy in (chosen, every)
        )
        assert np.array_equal(one.completed.finish_time, other.completed.finish_time)
        assert np.array_equal(one.cancelled, other.cancelled)
