"""`--learn` in the simulator: it helps, and it knows nothing of the future."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba, the sim extra, is not installed")

from sooner import policies
from sooner.learning import prequential
from sooner.metrics import kendall_tau
from sooner.sim.cost import load
from sooner.sim.engine import Outcome, simulate
from sooner.sim.learned import learned
from sooner.sim.predictions import Predictions
from sooner.workloads.columns import Workload


def workload(seed: int, n: int = 1500) -> Workload:
    rng = np.random.default_rng(seed)
    means = rng.normal(5.0, 1.0, 10)
    sender = rng.integers(0, 10, n)
    return Workload(
        arrival_time=np.cumsum(rng.exponential(0.2, n)),
        prompt_len=np.full(n, 50),
        output_len=np.maximum(1, np.exp(means[sender] + 0.4 * rng.standard_normal(n))).astype(np.int64),
        sender=sender,
    )


def serve(part: Workload, told: Predictions) -> Outcome:
    order = policies.get("boost")
    return simulate(part, load("llama3-8b-a100"), order, predicted_len=told.predicted_len, score=told.score)


def test_senders_order_a_workload() -> None:
    work = workload(1)
    told = learned(work, prequential.of_senders(work.sender.tolist(), work.arrival_time), serve)
    assert told.kind == "learned"
    warm = slice(len(work) // 2, None)  # the first blocks know next to nothing
    assert kendall_tau(told.score[warm], work.output_len[warm]) > 0.5
    assert (told.predicted_len >= 1).all()


def test_what_is_predicted_does_not_depend_on_what_comes_later() -> None:
    work = workload(2)
    other = workload(3).output_len.copy()
    other[:1000] = work.output_len[:1000]
    changed = Workload(
        arrival_time=work.arrival_time, prompt_len=work.prompt_len, output_len=other, sender=work.sender
    )
    facts = prequential.of_senders(work.sender.tolist(), work.arrival_time)
    first, second = (learned(each, facts, serve).score for each in (work, changed))
    assert np.array_equal(first[:1000], second[:1000])
    assert not np.array_equal(first, second)
