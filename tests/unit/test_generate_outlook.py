"""The time left, and its range: held against when jobs really ended, on an engine of slots."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pytest
from slots import job

from sooner.generate.course import Course
from sooner.generate.expecting import Expectation
from sooner.generate.goals import Goal
from sooner.generate.outlook import Forecast, Outlook


def watched(
    goal: Goal, seed: int, *, says_tokens: bool, told_off: float = 1.0
) -> list[tuple[float, Outlook]]:
    """Play a job, look at it every 10 steps; return (share of the time to the goal, outlook), and the end."""
    told, true = job(600, seed=seed)
    course = Course(goal, Expectation(told * told_off, np.full(600, 20.0)), np.full(600, 20.0), seed=seed)
    forecast, now, end = Forecast(course), 0.0, None
    seen: list[tuple[float, Outlook]] = []
    since: dict[int, float] = {}
    ends: list[tuple[float, int]] = []
    look = 10.0
    while end is None:
        while len(course.running) < 32 and (sample := course.next()) is not None:
            since[sample] = now
            heapq.heappush(ends, (now + true[sample], sample))
        if not ends:
            end = now
            break
        if ends[0][0] > look:
            now = look
            look += 10.0
            for other in course.running:
                course.progress(other, now - since[other] if says_tokens else 0.0)
            seen.append((now, forecast.look(now)))
            continue
        now, sample = heapq.heappop(ends)
        course.finished(sample, int(true[sample]))
        end = now if course.met else None
    return [(at / end, outlook) for at, outlook in seen if outlook.left_s is not None] + [(end, seen[-1][1])]


@pytest.mark.parametrize("goal", [Goal(), Goal(kind="sample", n=300), Goal(kind="first", n=200)], ids=str)
@pytest.mark.parametrize("says_tokens", [True, False])
def test_the_end_is_in_the_range_and_the_middle_near(goal: Goal, says_tokens: bool) -> None:
    inside: list[Any] = []
    apart: list[Any] = []
    for seed in range(5):
        *seen, (end, _) = watched(goal, seed, says_tokens=says_tokens, told_off=(0.7, 1.4)[seed % 2])
        for share, outlook in seen:
            left = end * (1 - share)
            assert outlook.low_s is not None
            assert outlook.high_s is not None
            assert outlook.left_s is not None
            if share > 0.1:
                inside.append(outlook.low_s <= left + 1 and left <= outlook.high_s + 1)
            if 0.2 < share < 0.7:
                apart.append(abs(outlook.left_s - left) / left)
    assert np.mean(inside) > 0.8
    assert np.median(apart) < 0.35


def test_it_says_what_people_ask() -> None:
    told = str(Outlook(120, 400, 32, 5, 1240.0, 190.0, 170.0, 3800.0))
    assert told == "120 of 400 kept, 32 running, 5 failed, 1,240 tokens/s, 3:10 left (2:50 to 1:03:20)"
    assert str(Outlook(3, None, 2, 0, None, None, None, None)) == "3 kept, 2 running"


def test_a_budget_says_what_is_left_of_it() -> None:
    told, _ = job(10)
    course = Course(Goal(kind="budget", seconds=60.0), Expectation(told, np.full(10, 5.0)), np.full(10, 5.0))
    assert Forecast(course, 60.0).look(20.0).left_s == 40.0
