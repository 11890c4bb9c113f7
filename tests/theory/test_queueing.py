"""The simulator against queueing theory: one server, service in proportion to the reply's length.

With one slot, a cost per iteration and nothing else, a request of k tokens is served for k
iterations, so the engine is an M/G/1 queue whose service times are known exactly. Means are
compared within four standard errors of batch means, which are large enough to be independent.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("numba", reason="numba, the sim extra, is not installed")

from sooner import policies
from sooner.core import Completed
from sooner.sim.cost import Engine
from sooner.sim.engine import simulate
from sooner.workloads.arrivals import poisson
from sooner.workloads.columns import Workload

Column = NDArray[np.float64]
TICK_S = 0.001
N = 400_000
SERVER = Engine(
    iteration_s=TICK_S,
    prefill_token_s=0.0,
    decode_seq_s=0.0,
    context_token_s=0.0,
    max_num_seqs=1,
    max_num_batched_tokens=64,
    num_blocks=2_000_000,
)


def queue(load: float, lengths: NDArray[np.int64], seed: int) -> Workload:
    """Return Poisson arrivals that keep the server busy for a share `load` of the time."""
    rate = load / (float(lengths.mean()) * TICK_S)
    return Workload(
        arrival_time=poisson(lengths.shape[0], rate, np.random.default_rng(seed)),
        prompt_len=np.ones_like(lengths),
        output_len=lengths,
    )


def geometric(mean: float, n: int = N, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).geometric(1 / mean, n)


def serve(workload: Workload, policy: str, engine: Engine = SERVER) -> Completed:
    return simulate(workload, engine, policies.get(policy)).completed


def assert_mean(sample: Column, expected: float, batches: int = 40, slack: float = 0.0) -> None:
    """Hold the mean of a stationary sample to `expected` within four standard errors."""
    warm = sample[sample.shape[0] // 20 :]
    means = np.array([batch.mean() for batch in np.array_split(warm, batches)])
    error = float(means.std(ddof=1) / math.sqrt(batches))
    assert abs(float(warm.mean()) - expected) <= 4 * error + slack * expected, (warm.mean(), expected, error)
    assert error < 0.1 * expected, "the sample is too small to say anything"


def moments(lengths: NDArray[np.int64]) -> tuple[float, float]:
    """Return the mean service time [s] and the mean of its square."""
    service = lengths * TICK_S
    return float(service.mean()), float(np.mean(service**2))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.85])
def test_mm1_time_in_system(load: float) -> None:
    lengths = geometric(200.0)
    done = serve(queue(load, lengths, 1), "fcfs")
    mean, _ = moments(lengths)
    assert_mean(np.asarray(done.finish_time - done.arrival_time), mean / (1 - load), slack=0.004)


@pytest.mark.parametrize("name", ["constant", "two sizes", "lognormal"])
def test_mg1_wait_is_pollaczek_khinchine(name: str) -> None:
    rng = np.random.default_rng(3)
    lengths = {
        "constant": np.full(N, 100),
        "two sizes": rng.choice([10, 400], N, p=[0.8, 0.2]),
        "lognormal": np.clip(np.rint(np.exp(rng.normal(4.5, 0.8, N))), 1, 3000),
    }[name].astype(np.int64)
    done = serve(queue(0.7, lengths, 4), "fcfs")
    mean, square = moments(lengths)
    expected = 0.7 / mean * square / (2 * (1 - 0.7))
    assert_mean(np.asarray(done.start_time - done.arrival_time), expected)


def test_mg1_shortest_job_first_wait_by_size() -> None:
    """Nonpreemptive priority by size: Conway, Maxwell and Miller, 1967, chapter 8."""
    sizes, shares = np.array([20, 80, 300]), np.array([0.5, 0.3, 0.2])
    lengths = np.random.default_rng(5).choice(sizes, N, p=shares)
    load = 0.8
    done = serve(queue(load, lengths, 6), "sjf")
    mean, square = moments(lengths)
    rate = load / mean
    residual = rate * square / 2
    wait = np.asarray(done.start_time - done.arrival_time)
    ahead = 0.0
    for size, share in zip(sizes, shares, strict=True):
        upto = ahead + rate * share * size * TICK_S
        assert_mean(wait[lengths == size], residual / ((1 - ahead) * (1 - upto)), slack=0.01)
        ahead = upto


def test_mg1_srpt_time_in_system() -> None:
    """Schrage and Miller, 1966, summed over the sizes; a newcomer waits for the iteration under way."""
    load, lengths = 0.8, geometric(200.0)
    done = serve(queue(load, lengths, 7), "srpt")
    mean, _ = moments(lengths)
    rate = load / mean
    size = np.arange(1, lengths.max() + 1)
    share = np.bincount(lengths, minlength=size[-1] + 1)[1:] / lengths.shape[0]
    second = np.cumsum(share * (size * TICK_S) ** 2)
    busy = rate * np.cumsum(share * size * TICK_S)  # load of jobs of at most this size
    longer = 1 - np.cumsum(share)
    waiting = rate * (second + longer * (size * TICK_S) ** 2) / (2 * (1 - busy) ** 2)
    residence = np.cumsum(TICK_S / (1 - np.concatenate([[0.0], busy[:-1]])))
    expected = float(np.sum(share * (waiting + residence)))
    assert_mean(np.asarray(done.finish_time - done.arrival_time), expected, slack=0.015)
    fifo = serve(queue(load, lengths, 7), "fcfs")
    assert np.mean(done.finish_time - done.arrival_time) < 0.6 * np.mean(fifo.finish_time - fifo.arrival_time)


@pytest.mark.parametrize("policy", ["fcfs", "sjf", "srpt", "las", "hrrn"])
def test_littles_law(policy: str) -> None:
    """The number in the system at random times is the arrival rate by the mean time in it."""
    lengths = geometric(200.0, 100_000, seed=8)
    load = queue(0.7, lengths, 9)
    done = serve(load, policy)
    span = float(load.arrival_time[-1])
    at = np.sort(np.random.default_rng(10).uniform(0.05 * span, 0.95 * span, 20_000))
    arrived = np.searchsorted(load.arrival_time, at, side="right")
    left = np.searchsorted(np.sort(np.asarray(done.finish_time)), at, side="right")
    rate = len(load) / span
    spent = float(np.mean(done.finish_time - done.arrival_time))
    assert np.mean(arrived - left) == pytest.approx(rate * spent, rel=0.08)


def test_work_is_conserved() -> None:
    """No order makes the server idle: it ends its last request at one time whatever the order is."""
    lengths = geometric(50.0, 20_000, seed=11)
    load = queue(0.9, lengths, 12)
    ends = {name: float(np.max(serve(load, name).finish_time)) for name in policies.names()}
    service = lengths * TICK_S
    idle_until = 0.0
    for arrival, work in zip(load.arrival_time.tolist(), service.tolist(), strict=True):
        idle_until = max(idle_until, arrival) + work
    for name, end in ends.items():
        # An arrival between two iterations waits for the next one, so idling may differ by ticks.
        assert end == pytest.approx(idle_until, abs=0.05), name
    assert len({round(end, 9) for name, end in ends.items()}) == 1


def test_a_batch_is_work_conserving() -> None:
    """Whoever waits, waits because every slot is taken."""
    engine = Engine(max_num_seqs=4, num_blocks=100_000)
    lengths = geometric(50.0, 5_000, seed=13)
    load = Workload(
        arrival_time=poisson(5_000, 8.0, np.random.default_rng(14)),
        prompt_len=np.ones_like(lengths),
        output_len=lengths,
    )
    done = serve(load, "aged", engine)
    start, finish = np.asarray(done.start_time), np.asarray(done.finish_time)
    arrival = load.arrival_time
    longest = engine.iteration_s + 10 * (engine.decode_seq_s + engine.prefill_token_s) + 1e-3
    late = np.flatnonzero(start - arrival > longest)
    assert late.size > 100
    for i in late[::10]:
        middle = (arrival[i] + longest + start[i]) / 2
        assert np.sum((start <= middle) & (finish > middle)) == 4
