"""What VTC and EDF promise, on the simulated engine and on its plain reference."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba, the sim extra, is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

from naive import Instance, Job
from sooner import policies
from sooner.sim.cost import Engine
from sooner.sim.engine import Options, Outcome, simulate
from sooner.workloads.columns import Workload

UNIT = Engine(
    iteration_s=0.01, prefill_token_s=0.0, decode_seq_s=0.0, context_token_s=0.0, max_num_seqs=1,
    max_num_batched_tokens=4096, num_blocks=10_000,
)  # fmt: skip
"""One slot, and 10 ms a token whatever the batch."""
PROMPT, REPLY, SLOTS = 12, 9, 3


def job(id: int, arrival: float, tenant: int, prompt: int = PROMPT, output: int = REPLY) -> Job:
    return Job(
        id=id, ready=round(arrival * 1e12), cancel=None, arrival=arrival, prompt=prompt, output=output,
        predicted=1.0, score=0.0, deadline=np.inf, tenant=tenant,
    )  # fmt: skip


def largest_gap(policy: str, jobs: list[Job], weights: dict[int, int], num_blocks: int) -> tuple[float, bool]:
    """Serve jobs on the plain engine; return the largest gap between counters of tenants who wait."""
    engine = Engine(
        max_num_seqs=SLOTS, max_num_batched_tokens=24, block_size=1, num_blocks=num_blocks, iteration_s=0.01
    )
    instance = Instance(engine, policies.get(policy), Options(weights=weights), free=num_blocks, host=0)
    coming, widest = list(jobs), 0.0
    while coming or instance.busy():
        while coming and (coming[0].ready <= instance.now or not instance.busy()):
            instance.arrive(coming.pop(0))
        instance.step(iteration_level=False)
        counters = [instance.counters[tenant] for tenant in {job.tenant for job in instance.waiting}]
        widest = max(widest, (max(counters) - min(counters)) / instance.multiple) if counters else widest
    return widest, any(job.preemptions for job in jobs)


@st.composite
def senders(draw: st.DrawFn) -> list[Job]:
    """Jobs of three tenants, some of whom send far more than others."""
    n = draw(st.integers(5, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    arrival = np.sort(rng.uniform(0, draw(st.sampled_from([0.1, 2.0])), n))
    tenant = rng.choice(3, n, p=draw(st.sampled_from([(0.8, 0.1, 0.1), (1 / 3, 1 / 3, 1 / 3)])))
    return [
        job(i, float(at), int(tenant[i]), int(rng.integers(1, PROMPT + 1)), int(rng.integers(1, REPLY + 1)))
        for i, at in enumerate(arrival)
    ]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(senders(), st.sampled_from([{}, {0: 3, 1: 2}]), st.sampled_from([26, 1000]))
def test_counters_of_waiting_tenants_stay_together(
    jobs: list[Job], weights: dict[int, int], num_blocks: int
) -> None:
    # Lemma 4.3 of the paper, for an engine that does not reserve the longest reply: since its last
    # admission, at the least counter, a tenant gained one prompt and what it then had running.
    bound = PROMPT + 2 * REPLY * SLOTS
    assert largest_gap("vtc", jobs, weights, num_blocks)[0] <= bound


def test_arrival_order_keeps_no_such_bound() -> None:
    flood = [job(i, 0.0, 0) for i in range(150)] + [job(150 + i, 1e-12, 1) for i in range(20)]
    assert largest_gap("fcfs", flood, {}, 1000)[0] > 10 * (PROMPT + 2 * REPLY * SLOTS)


def test_under_pressure_the_bound_is_tried_with_evictions() -> None:
    jobs = [job(i, 0.0, i % 3) for i in range(30)]
    gap, evicted = largest_gap("vtc", jobs, {}, 26)
    assert evicted
    assert gap <= PROMPT + 2 * REPLY * SLOTS


def served(workload: Workload, policy: str, until: float, **options: object) -> list[float]:
    """Return the work of requests that ended by `until`, of tenants 0 and 1."""
    engine = Engine(max_num_seqs=8)
    outcome = simulate(workload, engine, policies.get(policy), options=Options(**options))  # type: ignore[arg-type]
    done, ended = outcome.completed, np.asarray(outcome.completed.finish_time) < until
    work = np.asarray(done.prompt_len) + 2 * np.asarray(done.output_len)
    tenant = workload.tenant[np.asarray(done.id).astype(int)]
    return [float(work[ended & (tenant == one)].sum()) for one in (0, 1)]


def test_tenants_who_always_wait_share_by_their_weights() -> None:
    n, rng = 3_000, np.random.default_rng(0)
    workload = Workload(
        arrival_time=np.zeros(n), prompt_len=rng.integers(10, 200, n), output_len=rng.integers(10, 200, n),
        tenant=rng.choice(2, n, p=[0.7, 0.3]),
    )  # fmt: skip
    for weights, share in (({}, 1.0), ({1: 2}, 2.0)):
        first, second = served(workload, "vtc", 100.0, weights=weights)  # by when neither has run out
        assert second / first == pytest.approx(share, rel=0.05)
    first, second = served(workload, "fcfs", 100.0)
    assert second / first == pytest.approx(3 / 7, rel=0.2)


def lateness(outcome: Outcome, workload: Workload) -> float:
    rows = np.asarray(outcome.completed.id).astype(int)
    return float(np.max(np.asarray(outcome.completed.finish_time) - workload.deadline[rows]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 12), st.integers(0, 10**6))
def test_edf_has_the_least_greatest_lateness_of_a_burst(n: int, seed: int) -> None:
    # Jackson (1955): one server, all there at once, nobody interrupted.
    rng = np.random.default_rng(seed)
    workload = Workload(
        arrival_time=np.zeros(n), prompt_len=rng.integers(1, 50, n), output_len=rng.integers(1, 30, n),
        deadline=rng.uniform(0.01, 2.0, n),
    )  # fmt: skip
    best = lateness(simulate(workload, UNIT, policies.get("edf")), workload)
    for order in range(5):
        score = np.random.default_rng([seed, order]).permutation(n).astype(float)
        other = simulate(workload, UNIT, policies.get("ltr"), score=score)
        assert best <= lateness(other, workload) + 1e-9


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(2, 10), st.integers(0, 10**6), st.sampled_from([1.0, 1.5, 4.0]))
def test_edf_meets_every_deadline_that_can_be_met(n: int, seed: int, slack: float) -> None:
    # Dertouzos (1974): one server, interrupted at will. Arrivals fall on iterations, a token is one.
    rng = np.random.default_rng(seed)
    arrival = np.sort(rng.integers(0, 20, n))
    size = rng.integers(1, 8, n)
    due = arrival + np.ceil(size * slack * rng.uniform(1.0, 2.0, n)).astype(int)
    possible = all(
        size[(arrival >= a) & (due <= d)].sum() <= d - a for a in arrival for d in due if d > a
    )  # fmt: skip
    workload = Workload(
        arrival_time=arrival * 0.01, prompt_len=np.ones(n, dtype=np.int64), output_len=size,
        deadline=due * 0.01,
    )  # fmt: skip
    outcome = simulate(workload, UNIT, policies.get("edf"), options=Options(iteration_level=True))
    assert (lateness(outcome, workload) <= 1e-9) == possible


def test_a_better_class_is_not_held_up_by_a_worse_one() -> None:
    n, rng = 2_000, np.random.default_rng(1)
    level = rng.choice(2, n, p=[0.2, 0.8])
    columns = {
        "prompt_len": rng.integers(1, 50, n), "output_len": rng.integers(1, 30, n),
        "arrival_time": np.sort(rng.uniform(0, 300, n)), "level": level,
    }  # fmt: skip
    workload = Workload(**columns, deadline=columns["arrival_time"] + np.where(level == 0, 30.0, 0.5))
    alone = workload.take(np.flatnonzero(level == 0))
    for name, held_up in (("edf_classes", False), ("edf", True)):
        both = simulate(workload, UNIT, policies.get(name)).completed
        mine = np.isin(np.asarray(both.id), alone.id)
        wait = np.asarray(both.finish_time - both.arrival_time)[mine]
        undisturbed = simulate(alone, UNIT, policies.get(name)).completed
        longest = 30 * 0.01  # one reply of another class may be under way when it comes, and no more
        queued = wait - np.asarray(undisturbed.finish_time - undisturbed.arrival_time)
        assert (queued.max() > 10 * longest) == held_up
