"""Keeps the engines' windows full and takes in what comes, until the goal is met."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence

from sooner.core import EngineError
from sooner.generate.course import Course, Fate
from sooner.generate.engines import Answer, Begun, Declined, Maker, OutOfReach, Unwell
from sooner.generate.prompts import Ask

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds before a request is sent again; after the last it is given up."""

_MOST_LOST = 5
"""Times that the engine may vanish under one request before that request is taken to be the reason."""

PATIENCE = 300.0
"""Seconds without any engine after which the job breaks off, to be gone on with."""

Take = Callable[[int, Answer, Fate], None]
"""Told of each finished sample, its reply and its fate; it is on disk when this returns."""


Partial = Callable[[int, int, str, bool], None]
"""Told of a dropped sample: its tokens, its text where it was streamed, and whether the goal ended it."""


class Drive:
    """One run of a course on some engines. `failed` names the samples that were given up, and why.

    `partial` is told of each sample that was dropped.
    """

    def __init__(
        self, course: Course, makers: Sequence[Maker], ask: Callable[[int], Ask], take: Take, *,
        partial: Partial | None = None, patience: float = PATIENCE,
        pauses: Sequence[float] = PAUSES,
    ) -> None:  # fmt: skip
        self._course, self._makers, self._ask, self._take = course, list(makers), ask, take
        self._partial = partial
        self._patience, self._pauses = patience, pauses
        self._open: dict[Maker, int] = dict.fromkeys(makers, 0)
        self._down: dict[Maker, asyncio.Task[None]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._said: dict[int, list[str]] = {}
        self._interrupts = all(maker.pauses for maker in makers)
        self._begun: dict[int, Begun] = {}  # samples that made room
        self._ended: set[int] = set()
        self._tries: dict[int, int] = {}
        self._lost: dict[int, int] = {}
        self._errors: deque[BaseException] = deque()
        self._later = 0
        self._wake = asyncio.Event()
        self.failed: dict[int, str] = {}

    async def run(self, budget: float | None = None) -> None:
        """Run the course to its end; `budget` [s] is what is left of it.

        When cancelled, the requests under way are dropped; they will be begun again.
        Raises EngineError where no engine is left, OSError where what came cannot be kept.
        """
        loop = asyncio.get_running_loop()
        timer = None if budget is None else loop.call_later(max(budget, 0.0), self._expired)
        try:
            while True:
                self._abort_doomed()
                began = self._fill()
                if self._errors:
                    raise self._errors.popleft()
                if not began and self._course.over and not self._later and not self._tasks:
                    return
                await self._wake.wait()
                self._wake.clear()
        finally:
            if timer is not None:
                timer.cancel()
            await self._drop([*self._tasks.values(), *self._down.values()])

    def _expired(self) -> None:
        self._course.expire()
        self._wake.set()

    def _fill(self) -> bool:
        """Begin samples while there is room; return whether one was begun."""
        began = False
        while maker := self._roomy():
            sample = self._course.next()
            if sample is None:
                break
            began = True
            self._open[maker] += 1
            task = asyncio.get_running_loop().create_task(self._one(maker, sample))
            self._tasks[sample] = task
        return began

    def _roomy(self) -> Maker | None:
        """Return the engine with the largest share of its window free, None where all are full."""
        best, most = None, 0.0
        for maker in self._makers:
            free = 0.0 if maker in self._down else 1.0 - self._open[maker] / max(maker.window, 1)
            if free > most:
                best, most = maker, free
        return best

    async def _one(self, maker: Maker, sample: int) -> None:
        begun = self._begun.pop(sample, None)

        def told(tokens: int, text: str) -> bool:
            self._course.progress(sample, tokens)
            if self._partial is not None and text:
                self._said.setdefault(sample, []).append(text)
            return self._interrupts and self._course.due(sample)

        try:
            answer = await maker.reply(self._ask(sample), told, begun)
            if isinstance(answer, Begun):
                self._begun[sample] = answer
                self._course.made_room(sample, len(answer.ids))
            else:
                self._take(sample, answer, self._course.finished(sample, answer.output_len))
        except asyncio.CancelledError:
            tokens = int(self._course.running.get(sample, 0))
            self._course.aborted(sample, tokens)
            if self._partial is not None:
                text = ("" if begun is None else begun.text) + "".join(self._said.get(sample, ()))
                self._partial(sample, tokens, text, sample in self._ended)
        except Declined as error:
            self._give_up(sample, str(error))
        except OutOfReach as error:
            self._lost[sample] = self._lost.get(sample, 0) + 1
            self._went_down(maker, error)
            if self._lost[sample] >= _MOST_LOST:
                self._give_up(sample, f"the engine was lost {_MOST_LOST} times under it: {error}")
            else:
                self._course.returned(sample)
        except Unwell as error:
            self._again(sample, error)
        except Exception as error:
            self._errors.append(error)
        finally:
            self._said.pop(sample, None)
            self._open[maker] -= 1
            self._tasks.pop(sample, None)
            self._wake.set()

    def _again(self, sample: int, error: Unwell) -> None:
        """Send a sample again after a pause, or give it up."""
        tries = self._tries[sample] = self._tries.get(sample, 0) + 1
        if tries > len(self._pauses):
            self._give_up(sample, f"{error} (tried {tries} times)")
            return
        self._later += 1
        asyncio.get_running_loop().call_later(self._pauses[tries - 1], self._returned, sample)

    def _returned(self, sample: int) -> None:
        self._later -= 1
        self._course.returned(sample)
        self._wake.set()

    def _give_up(self, sample: int, why: str) -> None:
        self._course.failed(sample)
        self.failed[sample] = why

    def _went_down(self, maker: Maker, error: OutOfReach) -> None:
        if maker not in self._down:
            self._down[maker] = asyncio.get_running_loop().create_task(self._wait_for(maker, error))

    async def _wait_for(self, maker: Maker, error: OutOfReach) -> None:
        if await maker.recovered(self._patience):
            self._down.pop(maker)
        else:
            self._makers.remove(maker)
            self._down.pop(maker)
            if not self._makers:
                lost = f"no engine answers any more ({error}); the same command goes on from here"
                self._errors.append(EngineError(lost))
        self._wake.set()

    def _abort_doomed(self) -> None:
        for sample in self._course.doomed():
            task = self._tasks.get(sample)
            if task is not None and sample not in self._ended:
                self._ended.add(sample)
                task.cancel()

    async def _drop(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
