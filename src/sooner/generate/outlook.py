"""How far a job is and when it will end, with a range, from the work that is expected to be left."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np

from sooner.generate.course import Course, Stage

_MEMORY = 120.0  # seconds over which the speed is measured
_SURE = 2.0  # standard errors
_LEVEL = 0.5  # log lengths: how far predictions may be off in the mean before anything ended
_LEAST_SEEN = 3
_BLIND = 2.0  # of the length of each running reply of which nothing is said: the error of what was made


class Outlook(NamedTuple):
    """Samples so far, tokens a second, and seconds left with their range; None where it is too early."""

    kept: int
    wanted: int | None
    running: int
    failed: int
    tokens_per_s: float | None
    left_s: float | None
    low_s: float | None
    high_s: float | None

    def __str__(self) -> str:
        of = "" if self.wanted is None else f" of {self.wanted:,}"
        parts = [f"{self.kept:,}{of} kept", f"{self.running:,} running"]
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:,.0f} tokens/s")
        if self.left_s is not None and self.low_s is not None and self.high_s is not None:
            parts.append(f"{_clock(self.left_s)} left ({_clock(self.low_s)} to {_clock(self.high_s)})")
        return ", ".join(parts)


class Forecast:
    """Looks at a course now and then. `budget` [s] is what ends it, where that is time."""

    def __init__(self, course: Course, budget: float | None = None) -> None:
        self._course = course
        self._budget = budget
        self._seen: deque[tuple[float, float, int]] = deque([(0.0, self._done(), course.kept)])

    def look(self, now: float) -> Outlook:
        """Return the outlook `now` [s] after the run began."""
        course = self._course
        self._seen.append((now, self._done(), course.kept))
        while len(self._seen) > 2 and now - self._seen[0][0] > max(_MEMORY, now / 2):
            self._seen.popleft()
        (since, before, _), (_, done, _) = self._seen[0], self._seen[-1]
        speed = (done - before) / (now - since) if now > since and done > before else None
        failed = int((course.stage == Stage.FAILED).sum())
        left = low = high = None
        if self._budget is not None:
            left = low = high = max(self._budget - now, 0.0)
        elif course.goal.kind == "first":
            left, low, high = self._until_kept(now)
        elif speed is not None and course.expecting.seen >= _LEAST_SEEN:
            left, low, high = self._left(speed, done - before)
        return Outlook(course.kept, course.wanted, len(course.running), failed, speed, left, low, high)

    def _done(self) -> float:
        """Tokens made: of what ended, and of what runs as far as is known or guessed."""
        course = self._course
        return float(course.length.sum(dtype=np.int64)) + sum(self._of_running())

    def _of_running(self) -> list[float]:
        """Tokens of each running sample; where the engine does not say, half of what is expected."""
        course = self._course
        tokens = course.expecting.tokens
        return [known or 0.5 * float(tokens[s // course.samples]) for s, known in course.running.items()]

    def _until_kept(self, now: float) -> tuple[float, float, float] | tuple[None, None, None]:
        """Seconds until so many are kept, at the pace at which they came lately; later ones are longer."""
        kept = self._course.kept
        at, _, before = self._seen[len(self._seen) // 2]
        need = (self._course.wanted or 0) - kept
        if kept - before < _LEAST_SEEN or now <= at:
            return None, None, None
        left = need * (now - at) / (kept - before)
        chance = _SURE / math.sqrt(kept - before)
        slower = 1.0 + min(need / kept, 2.0)
        return left, left * max(1.0 - chance - 0.3, 0.0), left * (slower + chance)

    def _left(self, speed: float, made: float) -> tuple[float, float, float]:
        """Seconds left at a speed measured over so many tokens `made`, from what is expected to come."""
        course = self._course
        tokens = course.expecting.tokens
        waiting = tokens[np.flatnonzero(course.stage == Stage.WAITING) // course.samples].astype(np.float64)
        whole = np.array([tokens[sample // course.samples] for sample in course.running], dtype=np.float64)
        running = np.maximum(whole - np.array(self._of_running()), 0.2 * whole)
        work = float(waiting.sum() + running.sum())
        squares = float((waiting**2).sum() + (running**2).sum())
        spread = math.expm1(course.expecting.within + course.expecting.between)
        chance = math.sqrt(spread * squares) / max(work, 1.0)
        level = _LEVEL / math.sqrt(course.expecting.seen / 4 + 1)
        told = any(course.running.values())
        blind = 0.0 if told else _BLIND * math.sqrt(float((whole**2).sum())) / made
        off = _SURE * math.hypot(chance, level, blind)
        left = work / speed
        tail = 0.0
        if whole.size:  # the batch thins out before the last one ends
            alone = speed / whole.size
            tail = float(max(running.max(), waiting.max() if waiting.size else 0.0)) / max(alone, 1e-9)
        middle = max(left, 0.7 * tail)
        return middle, left * max(1.0 - off, 0.0), max(left * (1.0 + off), left + 2.5 * tail)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
