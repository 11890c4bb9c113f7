"""What a gateway learns of its engines' pace from the replies that it streams."""

from __future__ import annotations

import numpy as np
import pytest

from sooner.gateway.engines.reply_pace import FEWEST, ReplyPace
from sooner.work import Pace, work


def seen(
    rng: np.random.Generator, prompt_token: float, gap: float, beside: int
) -> tuple[int, float, float, int]:
    prompt = int(rng.integers(20, 3000))
    noise = float(np.exp(rng.normal(0, 0.15)))
    return prompt, (0.02 + prompt_token * prompt) * noise, gap * noise, beside


@pytest.mark.parametrize(("prompt_token", "gap", "beside"), [(1.5e-3, 0.06, 6), (3e-5, 0.012, 64)])
def test_both_sides_of_an_engine_are_learned(prompt_token: float, gap: float, beside: int) -> None:
    rng, learner = np.random.default_rng(0), ReplyPace()
    told = [learner.add(*seen(rng, prompt_token, gap, beside)) for _ in range(300)]
    assert float(work(learner.pace, 2000.0, 0.0, 0.0)) == pytest.approx(2000 * prompt_token, rel=0.3)
    assert float(work(learner.pace, 0.0, 0.0, 200.0)) == pytest.approx(200 * gap / beside, rel=0.3)
    assert all(pace is None for pace in told[: FEWEST - 1])
    assert sum(pace is not None for pace in told) < 30


def test_pauses_count_as_odd_and_hardly_move_it() -> None:
    rng, learner = np.random.default_rng(1), ReplyPace()
    for i in range(400):
        reply = seen(rng, 1e-3, 0.02, 4)
        learner.add(*((reply[0], 500.0, 20.0, 4) if i % 50 == 49 else reply))
    assert learner.odd == 8
    assert float(work(learner.pace, 2000.0, 0.0, 0.0)) == pytest.approx(2.0, rel=0.6)


def test_what_makes_no_sense_is_left_out() -> None:
    learner = ReplyPace()
    for wrong in ((0, 1.0, 0.1, 1), (10, -1.0, 0.1, 1), (10, 1.0, float("nan"), 1), (10, 1.0, 0.1, 0)):
        assert learner.add(*wrong) is None
    assert (learner.odd, learner.pace) == (4, Pace())


def test_prompts_that_are_all_alike_say_nothing_of_length() -> None:
    learner = ReplyPace()
    for _ in range(100):
        learner.add(500, 0.3, 0.01, 8)
    assert learner.pace.prefill_token_s == Pace().prefill_token_s
