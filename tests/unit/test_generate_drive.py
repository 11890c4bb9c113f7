"""What the drive does when engines fail: sent again, given up, waited for; and windows are kept to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sooner.core import EngineError
from sooner.generate.course import Course
from sooner.generate.drive import Drive
from sooner.generate.engines import Answer, Begun, Declined, OutOfReach, Told, Unwell
from sooner.generate.expecting import Expectation
from sooner.generate.goals import Goal
from sooner.generate.prompts import Ask

N = 30


class Scripted:
    """An engine that answers as it is told: `act(id, attempt)` may raise."""

    name = model = "scripted"
    steps = None
    pauses = False

    def __init__(self, act: Callable[[int, int], None], window: int = 4) -> None:
        self.act, self.window = act, window
        self.tries: Counter[int] = Counter()
        self.open = self.most = self.recoveries = 0

    async def start(self) -> None: ...

    async def reply(self, ask: Ask, told: Told | None, begun: Begun | None = None) -> Answer | Begun:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await asyncio.sleep(0)
            self.tries[int(ask.id)] += 1
            self.act(int(ask.id), self.tries[int(ask.id)])
            return Answer("text", 5, 3, "stop", {})
        finally:
            self.open -= 1

    async def recovered(self, patience: float) -> bool:
        self.recoveries += 1
        return patience > 0

    async def close(self) -> None: ...


def drive(*makers: Scripted, goal: Goal | None = None, **more: Any) -> tuple[Drive, Course, list[int]]:
    course = Course(goal or Goal(), Expectation(np.full(N, 50.0), np.full(N, 5.0)), np.full(N, 5.0))
    taken: list[int] = []
    made = Drive(
        course, makers, lambda sample: Ask(sample, "/v1/chat/completions", {}),
        lambda sample, answer, fate: taken.append(sample), pauses=(0.0, 0.001, 0.002), **more,
    )  # fmt: skip
    return made, course, taken


def test_what_is_unwell_is_sent_again_and_at_last_given_up() -> None:
    def act(id: int, attempt: int) -> None:
        if id == 7 or (id == 8 and attempt < 4):
            raise Unwell("503 busy")
        if id == 9:
            raise Declined("400 no")

    engine = Scripted(act)
    made, course, taken = drive(engine)
    asyncio.run(made.run())
    assert sorted(taken) == [i for i in range(N) if i not in (7, 9)]
    assert made.failed == {7: "503 busy (tried 4 times)", 9: "400 no"}
    assert (engine.tries[7], engine.tries[8], engine.tries[9]) == (4, 4, 1)
    assert engine.most <= engine.window
    assert course.over


def test_a_request_under_which_the_engine_always_dies_is_given_up() -> None:
    def act(id: int, attempt: int) -> None:
        if id == 3:
            raise OutOfReach("gone")

    engine = Scripted(act)
    made, _, taken = drive(engine)
    asyncio.run(made.run())
    assert sorted(taken) == [i for i in range(N) if i != 3]
    assert "lost 5 times under it" in made.failed[3]
    assert engine.recoveries >= 1


def test_the_other_engine_goes_on_and_with_none_left_the_job_ends() -> None:
    def gone(id: int, attempt: int) -> None:
        raise OutOfReach("gone")

    dead, well = Scripted(gone), Scripted(lambda id, attempt: None)
    made, _, taken = drive(dead, well, patience=0.0)
    asyncio.run(made.run())
    assert sorted(taken) == list(range(N))
    made, _, _ = drive(Scripted(gone), patience=0.0)
    with pytest.raises(EngineError, match="no engine answers any more"):
        asyncio.run(made.run())


def test_what_cannot_be_kept_ends_the_job() -> None:
    def full(sample: int, answer: Answer, fate: object) -> None:
        raise OSError(28, "No space left on device")

    made, _, _ = drive(Scripted(lambda id, attempt: None))
    made._take = full
    with pytest.raises(OSError, match="No space left"):
        asyncio.run(made.run())


def test_a_budget_that_is_spent_ends_what_runs() -> None:
    hanging = Scripted(lambda id, attempt: None)

    async def never(ask: Ask, told: Told | None, begun: Begun | None = None) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    hanging.reply = never  # type: ignore[method-assign]
    parts: list[tuple[int, bool]] = []
    goal = Goal(kind="budget", seconds=1.0, control=0.0)
    made, course, taken = drive(
        hanging, goal=goal, partial=lambda sample, tokens, text, ended: parts.append((sample, ended))
    )
    asyncio.run(made.run(budget=0.01))
    assert taken == []
    assert len(parts) == 4
    assert all(ended for _, ended in parts)
    assert course.met


class Counting(Scripted):
    """An engine of 4 slots that makes a token at a time and interrupts a reply where it is told to."""

    pauses = True

    def __init__(self, lengths: list[int]) -> None:
        super().__init__(lambda id, attempt: None)
        self.lengths, self.gone_on = lengths, 0

    async def reply(self, ask: Ask, told: Told | None, begun: Begun | None = None) -> Answer | Begun:
        had = [] if begun is None else list(begun.ids)
        self.gone_on += begun is not None
        assert told is not None
        while len(had) < self.lengths[int(ask.id)]:
            await asyncio.sleep(0)
            had.append(len(had))
            if told(len(had), f"{len(had)} ") and len(had) < self.lengths[int(ask.id)]:
                return Begun(tuple(had), "".join(f"{token} " for token in had))
        return Answer(" ".join(map(str, had)), len(had), 3, "stop", {})


def test_replies_that_make_room_are_gone_on_with_and_come_out_whole() -> None:
    lengths = [200 if i % 3 == 0 else 10 for i in range(N)]
    engine = Counting(lengths)
    expecting = Expectation(np.full(N, np.nan), np.full(N, 5.0), limits=np.full(N, 200.0))
    course = Course(Goal(), expecting, np.full(N, 5.0), turns=True)
    taken: dict[int, Answer] = {}
    made = Drive(
        course, [engine], lambda sample: Ask(sample, "/v1/chat/completions", {}),
        lambda sample, answer, fate: taken.update({sample: answer}),
    )  # fmt: skip
    asyncio.run(made.run())
    assert {sample: answer.output_len for sample, answer in taken.items()} == dict(enumerate(lengths))
    assert all(answer.text == " ".join(map(str, range(answer.output_len))) for answer in taken.values())
    assert engine.gone_on == course.paused > 0


def test_an_engine_that_cannot_go_on_is_never_asked_to() -> None:
    counting, plain = Counting([50] * N), Scripted(lambda id, attempt: None)
    expecting = Expectation(np.full(N, np.nan), np.full(N, 5.0), limits=np.full(N, 50.0))
    course = Course(Goal(), expecting, np.full(N, 5.0), turns=True)
    made = Drive(
        course, [counting, plain], lambda sample: Ask(sample, "/v1/chat/completions", {}),
        lambda sample, answer, fate: None,
    )  # fmt: skip
    asyncio.run(made.run())
    assert course.kept == N
    assert course.paused == counting.gone_on == 0
