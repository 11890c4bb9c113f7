"""The account of what was kept: on jobs whose lengths are all known, the corrected means are right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from slots import job, play

from sooner.generate import bias
from sooner.generate.course import Course, Stage
from sooner.generate.expecting import Expectation
from sooner.generate.goals import Goal

CAP = 4096


def samples_of(chosen: Course, expected: Any) -> bias.SampleColumns:
    stage = chosen.stage
    kept = stage == Stage.KEPT
    return bias.SampleColumns(
        length=chosen.length.astype(float),
        finished=kept | (stage == Stage.CONTROL) | (stage == Stage.EXTRA),
        ended=stage == Stage.ABORTED,
        kept=kept,
        control=chosen.control,
        expected=expected,
        tenth=chosen.tenth.astype(np.int64),
        group=np.zeros(stage.shape[0], dtype=np.int64),
        limit=np.full(stage.shape[0], float(CAP)),
    )


def served(n: int, first: int, seed: int, control: float = 0.1) -> tuple[bias.SampleColumns, Any]:
    told, true = job(n, seed=seed, told_sd=0.7, own_sd=0.7)
    true = np.minimum(true, CAP)
    limits = np.full(n, float(CAP))
    expecting = Expectation(told, np.full(n, 20.0), limits=limits)
    expected = expecting.mean.astype(float)
    chosen = Course(Goal(kind="first", n=first, control=control), expecting, np.full(n, 20.0), seed=seed)
    play(chosen, true, slots=256)
    return samples_of(chosen, expected), true


def test_the_corrected_means_are_within_3_percent_where_the_plain_one_is_off_by_half() -> None:
    for seed in range(3):
        samples, true = served(40_000, 4_000, seed)
        told = bias.report(samples)
        truth = true.mean()
        assert told["kept_mean_len"] < 0.5 * truth
        assert told["estimated_mean_len"] == pytest.approx(truth, rel=0.03)
        assert told["corrected_mean_len"] == pytest.approx(truth, rel=0.03)
        assert told["estimated_mean_se"] == pytest.approx(0.016 * truth, rel=0.1)  # so 3 % is two errors


def test_the_weights_say_how_much_of_the_sample_they_cost() -> None:
    samples, _ = served(4_000, 400, 0)
    weight = bias.weights(samples)
    assert weight[samples.finished].mean() == pytest.approx(1.0)
    assert not weight[~samples.finished].any()
    told = bias.report(samples)
    assert told["weights_variance"] == pytest.approx(weight[samples.finished].var(), abs=0.01)
    assert told["weights_variance"] > 0.5
    kept = [tenth["kept"] for tenth in told["tenths"]]
    assert kept[0] > 3 * kept[-1]


def test_kaplan_and_meier_by_hand() -> None:
    length = np.array([1.0, 2.0, 2.0, 3.0])
    finished = np.array([True, False, True, True])
    assert bias.kaplan_meier(length, finished).tolist() == pytest.approx([0.25, 0.0, 0.25, 0.5])


def test_where_the_controls_contradict_the_prediction_they_decide() -> None:
    n = 3_000
    rng = np.random.default_rng(1)
    expected = rng.normal(5.0, 0.7, n)
    length = np.exp(expected + rng.normal(0.0, 0.3, n))
    long = expected > 5.5  # of these nothing but controls was run, and they are far longer than foretold
    length[long] *= 6.0
    control = rng.random(n) < 0.1
    finished = control | ~long
    tenth = (np.argsort(np.argsort(expected)) * 10 // n).astype(np.int64)
    samples = bias.SampleColumns(
        np.where(finished, length, 0.0), finished, ~finished & False, finished & ~long, control, expected,
        tenth, np.zeros(n, dtype=np.int64), np.full(n, np.inf),
    )  # fmt: skip
    made = bias.estimate(samples)
    assert made.basis == "controls"
    assert abs(made.mean - length.mean()) < 3 * made.error


def test_without_controls_no_error_is_claimed() -> None:
    samples, _ = served(2_000, 200, 0, control=0.0)
    told = bias.report(samples)
    assert told["control_mean_len"] is None
    assert told["estimated_mean_se"] is None
