"""What a job begins next, what it keeps, and when it is over: the course, played without an engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from slots import job, play

from sooner.core import ConfigError
from sooner.generate.course import Course, Fate, Stage
from sooner.generate.expecting import Expectation
from sooner.generate.goals import Goal

N = 400


def course(goal: Goal, told: Any, **more: Any) -> Course:
    prompt_len = np.full(told.shape[0], 20.0)
    return Course(goal, Expectation(told, prompt_len), prompt_len, **more)


def test_all_runs_everything_once_and_the_longest_first() -> None:
    told, true = job(N)
    end, begun = play(course(Goal(), told), true)
    assert sorted(begun) == list(range(N))
    by_arrival, _ = play(course(Goal(), told, order="arrival"), true)
    assert end < 0.97 * by_arrival
    assert true[begun[:100]].mean() > 1.5 * true[begun[-100:]].mean()


def cut(n: int, seed: int) -> Any:
    """Return lengths of which a third are cut at 512, as a small model's are."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < 1 / 3, 512, np.exp(rng.normal(4.7, 0.8, n)).clip(5, 500)).astype(int)


@pytest.mark.parametrize("goal", [Goal(), Goal(kind="sample", n=N // 2)])
def test_taking_turns_at_the_end_packs_it_where_nothing_is_foretold(goal: Goal) -> None:
    told, prompt_len = np.full(N, np.nan), np.full(N, 20.0)

    def ends(order: str, turns: bool, seed: int) -> tuple[float, Course]:
        expecting = Expectation(told, prompt_len, limits=np.full(N, 512.0))
        chosen = Course(goal, expecting, prompt_len, order=order, turns=turns, seed=seed)
        return play(chosen, cut(N, seed), slots=40)[0], chosen

    for seed in range(3):
        in_turns, chosen = ends("auto", True, seed)
        assert in_turns < 0.96 * ends("arrival", False, seed)[0]
        assert chosen.kept == (goal.n or N)
        assert 0 < chosen.paused < N
        lengths = cut(N, seed)
        kept = chosen.stage == Stage.KEPT
        assert (chosen.length[kept] == lengths[kept]).all()


def test_nobody_makes_room_while_much_waits_nor_for_who_has_had_more() -> None:
    def cut_at(limit: float, n: int) -> Course:
        expecting = Expectation(np.full(n, np.nan), np.full(n, 20.0), limits=np.full(n, limit))
        chosen = Course(Goal(), expecting, np.full(n, 20.0), turns=True)
        for sample in [chosen.next() for _ in range(4)]:
            chosen.finished(sample or 0, 400)
        for place, sample in enumerate([chosen.next() for _ in range(16)]):
            chosen.progress(sample or 0, 400.0 - place)
        return chosen

    def leaving(chosen: Course) -> list[int]:
        return [sample for sample in chosen.running if chosen.due(sample)]

    assert leaving(cut_at(512.0, N)) == []  # much waits
    assert leaving(cut_at(50_000.0, 24)) == []  # one might be far longer, and must go on
    few = cut_at(512.0, 24)
    first = list(few.running)[:4]
    assert leaving(few) == first  # as many as wait, the furthest
    few.made_room(first[0], 400)
    assert few.left() == 5
    assert [few.next() for _ in range(5)][-1] == first[0]  # after all that were never begun
    assert few.running[first[0]] == 400


def test_a_sample_is_drawn_before_anything_runs_and_is_unbiased() -> None:
    told, true = job(N)
    chosen = course(Goal(kind="sample", n=100), told, seed=3)
    _, begun = play(chosen, true)
    assert len(begun) == chosen.kept == 100
    again = course(Goal(kind="sample", n=100), told, seed=3, order="arrival")
    assert sorted(play(again, true)[1]) == sorted(begun)
    assert (again.stage == Stage.LEFT_OUT).sum() == N - 100


def test_the_first_are_short_and_controls_run_to_their_end() -> None:
    told, true = job(N)
    chosen = course(Goal(kind="first", n=100), told)
    met, _ = play(chosen, true)
    assert chosen.kept == (chosen.stage == Stage.KEPT).sum() == 100
    assert true[chosen.stage == Stage.KEPT].mean() < 0.6 * true.mean()
    controls = np.flatnonzero(chosen.control)
    assert controls.size == round(0.05 * N)
    assert all(chosen.stage[controls] != Stage.ABORTED)
    assert set(chosen.stage[controls]) <= {Stage.KEPT, Stage.CONTROL}
    assert (chosen.length[controls] == true[controls]).all()
    by_arrival, _ = play(course(Goal(kind="first", n=100), told, order="arrival"), true)
    assert met < 0.6 * by_arrival


def test_balanced_keeps_as_many_of_each_tenth() -> None:
    told, true = job(N)
    chosen = course(Goal(kind="first", n=100, balanced=True), told)
    play(chosen, true)
    kept = chosen.stage == Stage.KEPT
    assert np.bincount(chosen.tenth[kept]).tolist() == [10] * 10
    told_price = np.sort(told).reshape(10, -1)[:, :10].sum() / np.sort(told)[:100].sum()
    assert chosen.price == pytest.approx(told_price, rel=0.25)
    plain = course(Goal(kind="first", n=100), told)
    play(plain, true)
    assert abs(true[kept].mean() / true.mean() - 1) < abs(
        true[plain.stage == Stage.KEPT].mean() / true.mean() - 1
    )


def test_a_budget_ends_it_and_only_begun_controls_run_on() -> None:
    told, true = job(N)
    chosen = course(Goal(kind="budget", seconds=300.0), told)
    met, _ = play(chosen, true, budget=300.0)
    assert met == 300.0
    assert 0 < chosen.kept < N
    assert chosen.left() > 0
    assert not chosen.running


def test_siblings_teach_the_order_of_the_rest() -> None:
    _, true = job(60, samples=8)
    unknown = np.full(60, np.nan)
    end, begun = play(course(Goal(), unknown, samples=8), true, slots=48)
    assert sorted(begun) == list(range(480))
    assert sorted(sample % 8 for sample in begun[:60]) == [0] * 60  # a first one of each, then the longest
    by_arrival, _ = play(course(Goal(), unknown, samples=8, order="arrival"), true, slots=48)
    assert end < 0.97 * by_arrival


def test_where_prompts_are_most_of_the_work_groups_stay_together() -> None:
    told, true = job(20, samples=4)
    prompt_len = np.full(20, 8000.0)
    chosen = Course(Goal(), Expectation(told, prompt_len), prompt_len, samples=4)
    begun = play(chosen, true, slots=1000)[1]
    assert all(begun[at : at + 4] == list(range(begun[at], begun[at] + 4)) for at in range(0, 80, 4))


def test_what_returns_is_begun_again_and_what_failed_is_not() -> None:
    told, true = job(10)
    chosen = course(Goal(), told)
    first, second = chosen.next(), chosen.next()
    assert first is not None
    assert second is not None
    chosen.returned(first)
    chosen.failed(second)
    begun = play(chosen, true)[1]
    assert begun[0] == first
    assert second not in begun
    assert chosen.kept == 9


def test_what_was_finished_before_is_not_begun_again() -> None:
    told, true = job(N)
    whole = course(Goal(), told)
    order = play(whole, true)[1]
    chosen = course(Goal(), told)
    for sample in order[:150]:
        chosen.restore(sample, int(true[sample]))
    chosen.resume()
    assert sorted(play(chosen, true)[1]) == sorted(order[150:])
    assert chosen.kept == N


def test_a_reply_that_comes_after_the_goal_is_a_control_or_nothing() -> None:
    told, _ = job(40)
    chosen = course(Goal(kind="first", n=1, control=0.2), told)
    begun = [chosen.next() for _ in range(30)]
    fates = [chosen.finished(sample, 5) for sample in begun if sample is not None]
    assert fates[0] is Fate.KEEP
    assert set(fates[1:]) == {Fate.CONTROL, Fate.DISCARD}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "frist"}, "did you mean 'first'"),
        ({"kind": "first"}, "first=None, allowed: at least 1"),
        ({"kind": "budget", "seconds": 0.0}, "budget=0.0, allowed: above 0"),
        ({"control": 1.0}, "control=1.0, allowed"),
        ({"balanced": True}, "balanced with the goal 'all', allowed: first or budget"),
    ],
)
def test_a_goal_that_is_none_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Goal(**settings)


def test_more_than_there_are_is_refused() -> None:
    told, _ = job(10)
    with pytest.raises(ConfigError, match="first=11, allowed: at most 10"):
        course(Goal(kind="first", n=11), told)
    with pytest.raises(ConfigError, match="sample=3, allowed: a multiple of samples=2"):
        course(Goal(kind="sample", n=3), told, samples=2)
