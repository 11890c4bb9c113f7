"""vllm-ltr's arms: what they are told, what PO pays, and the order they must stand in."""

from __future__ import annotations

import numpy as np
import pytest

from sooner import metrics
from sooner.core import ConfigError, UnknownName
from sooner.metrics import kendall_tau
from sooner.sim.systems import vllm_ltr
from sooner.sim.systems.lengths import LLAMA3_SHAREGPT_REPLY, SHAREGPT_PROMPT
from sooner.sim.systems.vllm_ltr import LtrArm, arms, predictions
from sooner.workloads.columns import Workload


def burst(n: int) -> Workload:
    rng = np.random.default_rng(4)
    return Workload(
        arrival_time=np.zeros(n),
        prompt_len=SHAREGPT_PROMPT.draw(n, rng),
        output_len=LLAMA3_SHAREGPT_REPLY.draw(n, rng),
    )


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.54, 0.9])
def test_predictions_have_the_tau_and_the_distribution_asked_for(tau: float) -> None:
    lengths = LLAMA3_SHAREGPT_REPLY.draw(3000, np.random.default_rng(0))
    told = predictions(lengths, tau, 0, np.random.default_rng(1))
    assert kendall_tau(told, lengths) == pytest.approx(tau, abs=0.025)
    np.testing.assert_array_equal(np.sort(told), np.sort(lengths))


@pytest.mark.parametrize(("width", "tau"), [(1, 0.32), (10, 0.46), (100, 0.49), (820, 0.24)])
def test_classes_have_the_tau_asked_for(width: int, tau: float) -> None:
    lengths = LLAMA3_SHAREGPT_REPLY.draw(3000, np.random.default_rng(0))
    told = predictions(lengths, tau, width, np.random.default_rng(1))
    assert kendall_tau(told, lengths) == pytest.approx(tau, abs=0.03)
    assert (told == np.floor(told)).all()
    assert told.max() <= 8192 // width


def test_a_perfect_ranking_is_the_truth() -> None:
    lengths = np.array([5, 900, 40])
    np.testing.assert_array_equal(predictions(lengths, 1.0, 0, np.random.default_rng(0)), lengths)
    assert vllm_ltr.class_accuracy(lengths, np.floor(lengths / 820), 820) == 1.0
    with pytest.raises(ConfigError, match="width=-1"):
        predictions(lengths, 0.5, -1, np.random.default_rng(0))


def test_the_arms_stand_in_order_in_a_burst() -> None:
    workload, engine = burst(600), vllm_ltr.machine("8B")
    found = {}
    for name, arm in arms(0.52).items():
        done = vllm_ltr.serve(arm, workload, engine, np.random.default_rng(0))
        assert sorted(np.asarray(done.id).astype(int)) == list(range(600))
        by_id = np.argsort(np.asarray(done.id))
        np.testing.assert_array_equal(np.asarray(done.output_len)[by_id], workload.output_len)
        found[name] = float(np.mean(metrics.normalized_latency(done)))
    assert found["SRTF oracle"] < found["Ranking"] < found["Class-10"] < found["FCFS"]
    assert found["FIFO"] == pytest.approx(found["FCFS"], rel=0.25)


def test_po_pays_for_its_announcement() -> None:
    one = Workload(arrival_time=np.zeros(1), prompt_len=np.array([10]), output_len=np.array([20]))
    engine, rng = vllm_ltr.machine("8B"), np.random.default_rng(0)
    plain = vllm_ltr.serve(LtrArm(policy="fcfs"), one, engine, rng)
    announced = vllm_ltr.serve(LtrArm(policy="po", tau=1.0, announce=15), one, engine, rng)
    assert announced.output_len == plain.output_len == 20
    ratio = float(np.asarray(announced.finish_time).item() / np.asarray(plain.finish_time).item())
    assert ratio == pytest.approx(35 / 20, rel=0.05)


def test_what_is_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean '70B'"):
        vllm_ltr.machine("7B")
