"""The engine's pace, learned from steps of a known engine with noise, pauses and compilations among them."""

from __future__ import annotations

import numpy as np
import pytest

from sooner.ordering.pacing import CHANGED, EVERY, SKIPPED, WARM_UP, PaceLearner, Step
from sooner.work import Pace, work

GPU = Pace(iteration_s=8e-3, prefill_token_s=3e-5, decode_seq_s=1e-5, context_token_s=6e-8, batch=64)
CPU = Pace(iteration_s=1e-2, prefill_token_s=1.5e-3, decode_seq_s=8e-3, context_token_s=2e-6, batch=6)


def steps(engine: Pace, n: int, rng: np.random.Generator, noise: float = 0.1) -> list[Step]:
    """Return n steps of an engine as a mixed load makes them."""
    made = []
    for _ in range(n):
        decoding = int(rng.integers(1, engine.batch + 1))
        prefill = int(rng.integers(1, 2000)) if rng.random() < 0.2 else 0
        context = decoding * float(rng.integers(50, 2000))
        seconds = (
            engine.iteration_s + engine.prefill_token_s * prefill + engine.decode_seq_s * decoding
            + engine.context_token_s * context
        )  # fmt: skip
        made.append(Step(seconds * float(np.exp(rng.normal(0, noise))), prefill, decoding, context))
    return made


def learned(engine: Pace, made: list[Step]) -> PaceLearner:
    learner = PaceLearner(slots=int(engine.batch))
    for step in made:
        learner.step(step, waiting=True)
    return learner


def error(got: Pace, want: Pace) -> float:
    """The worst relative error of the work of four unlike requests."""
    kinds = [(2000, 0, 20), (50, 0, 400), (2000, 0, 400), (8000, 6000, 50)]
    ratios = [work(got, *kind, batch=8.0) / work(want, *kind, batch=8.0) for kind in kinds]
    return float(max(abs(float(ratio) - 1) for ratio in ratios))


@pytest.mark.parametrize("engine", [GPU, CPU], ids=["gpu", "cpu"])
@pytest.mark.parametrize("seed", range(3))
def test_unlike_engines_are_learned_from_their_steps(engine: Pace, seed: int) -> None:
    made = steps(engine, 1500, np.random.default_rng(seed))
    assert error(learned(engine, made).pace, engine) < 0.1


def test_pauses_and_compilations_do_not_count() -> None:
    rng = np.random.default_rng(0)
    made = steps(CPU, 1500, rng)
    for at in (*range(SKIPPED), 10, 25, *rng.integers(100, 1500, 30)):
        made[int(at)] = made[int(at)]._replace(seconds=60.0)
    learner = learned(CPU, made)
    assert error(learner.pace, CPU) < 0.1
    assert learner.paused > 20


def test_another_engine_is_learned_anew() -> None:
    rng = np.random.default_rng(0)
    slow = Pace(iteration_s=1.0, prefill_token_s=0.1, decode_seq_s=0.5, context_token_s=1e-4, batch=6)
    made = steps(CPU, 600, rng) + steps(slow, CHANGED + SKIPPED + WARM_UP + 1000, rng)
    assert error(learned(slow, made).pace, slow) < 0.15


def test_a_pace_is_told_when_it_moved_and_not_at_every_step() -> None:
    learner = PaceLearner(slots=6)
    told = [learner.step(step, waiting=True) for step in steps(CPU, 2000, np.random.default_rng(1))]
    news = [pace for pace in told if pace is not None]
    assert 1 <= len(news) <= 8
    assert all(pace is None for pace in told[: SKIPPED + WARM_UP - 1])
    assert len(told) / EVERY > len(news)


def test_what_cannot_be_a_step_is_not_learned_from() -> None:
    learner = PaceLearner(slots=4)
    before = learner.pace
    for step in (
        Step(-1.0, 1, 1, 1.0),
        Step(0.0, 1, 1, 1.0),
        Step(float("nan"), 1, 1, 1.0),
        Step(1.0, 0, 0, 0),
    ):
        for _ in range(100):
            assert learner.step(step, waiting=False) is None
    assert learner.pace == before


def test_before_anything_is_known_there_are_sane_values() -> None:
    pace = PaceLearner(slots=256).pace
    assert pace.batch == 256
    assert 0 < float(work(pace, 100.0, 0.0, 100.0)) < 10
