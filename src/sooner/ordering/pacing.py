"""How fast the engine works, learned from its own steps: `sooner.work.Pace`, by least squares.

A step's time is the time between two calls of `schedule` while there is work. What is not a step's time is
kept out: the first steps (compilation), the pause after the engine was idle, and steps that take many times
what is known, unless all do.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.work import Pace, work

SKIPPED = 3
"""Steps at the start that say more of compilation than of the engine."""
WARM_UP = 32
"""Steps that decide the engine's scale, before anything else is asked of them."""
EVERY = 64
"""Steps between two fits."""
MEMORY = 0.999
"""What a step's weight keeps with each further step: about a thousand steps count."""
FAR = 10.0
"""Times what is expected: such a step is a pause. So many in a row are a new engine:"""
CHANGED = 20
PRIOR = 0.02
"""Steps' worth of what was believed before, for each of the four numbers."""
LEAST_USUAL = np.array([1.0, 64.0, 1.0, 256.0])
"""Counts of a mean step, where the first steps had fewer."""
TOLD = 1.2
"""The factor by which a request's work must move for a new pace to be told."""


class Step(NamedTuple):
    """What one step did: seconds, prompt tokens, decoding requests, the tokens of KV memory in use."""

    seconds: float
    prefill: int
    decoding: int
    context: float


@dataclass(slots=True)
class _Known:
    """Coefficients (4,) that a fit gave, the sums that it came from, and in what they are counted.

    What is fitted are the shares (4,) of the four terms in a mean step of `seconds`, whose counts are
    `usual`; `believed` are the shares that were believed before.
    """

    coefficients: list[float]
    seconds: float
    usual: list[float]
    believed: NDArray[np.float64]
    gram: list[float]  # its upper triangle, row by row
    moment: list[float]


class PaceLearner:
    """Learns the four coefficients and the usual batch; `pace` is the best that is known.

    `slots` is how many requests may run at once: the batch until anybody was seen to wait.
    """

    def __init__(self, slots: int, prior: Pace | None = None) -> None:
        prior = Pace() if prior is None else prior
        self.pace = Pace(**{**_named(_coefficients(prior)), "batch": float(max(slots, 1))})
        self.paused = 0  # steps that were taken for pauses
        self._prior = _coefficients(prior)
        self._told = self.pace
        self._batch = float(max(slots, 1))
        self._skipped = 0
        self._first: list[Step] = []
        self._known: _Known | None = None
        self._seen = 0
        self._far = 0

    def step(self, step: Step, *, waiting: bool) -> Pace | None:
        """Take in a step; return a new pace where one is learned that is clearly another."""
        if self._skipped < SKIPPED:
            self._skipped += 1
            return None
        if not (0.0 < step.seconds < 3600.0) or step.prefill + step.decoding < 1:
            return None
        if waiting and step.decoding:
            self._batch += (step.decoding - self._batch) * 0.02
        if self._known is None:
            self._first.append(step)
            if len(self._first) < WARM_UP:
                return None
            self._start()
            return self._tell()
        a, b, c, d = self._known.coefficients
        expected = a + b * step.prefill + c * step.decoding + d * step.context
        if step.seconds > FAR * expected:
            self.paused += 1
            self._far += 1
            if self._far >= CHANGED:  # not a pause: the engine is another
                self._known, self._first, self._far = None, [], 0
            return None
        self._far = 0
        self._add(step)
        self._seen += 1
        return self._tell() if self._seen % EVERY == 0 else None

    def fitted(self) -> Pace:
        """Return the pace that all steps so far say, however few they are."""
        if self._known is None and self._first:
            self._start()
        if self._known is not None:
            self._tell()
        return self.pace

    def _start(self) -> None:
        """Scale what was believed to what the first steps took, then learn from those that fit it."""
        expected = np.array([float(_row(step) @ self._prior) for step in self._first])
        ratios = np.array([step.seconds for step in self._first]) / expected
        scale = float(np.median(ratios))
        self._prior = self._prior * scale
        seconds = float(np.median(expected)) * scale
        usual = np.maximum(np.mean([_row(step) for step in self._first], axis=0), LEAST_USUAL)
        shares = self._prior * usual / seconds
        self._known = _Known(self._prior.tolist(), seconds, usual.tolist(), shares, [0.0] * 10, [0.0] * 4)
        for step, ratio in zip(self._first, ratios, strict=True):
            if ratio <= FAR * scale:
                self._add(step)
            else:
                self.paused += 1
        self._first = []

    def _add(self, step: Step) -> None:
        """Count a step by its relative error. Plain floats: NumPy would cost ten times as much a step."""
        known = self._known
        assert known is not None
        share = known.seconds / step.seconds
        row = [count / usual * share for count, usual in zip((1.0, *step[1:]), known.usual, strict=True)]
        gram, moment, at = known.gram, known.moment, 0
        for i, a in enumerate(row):
            moment[i] = moment[i] * MEMORY + a
            for b in row[i:]:
                gram[at] = gram[at] * MEMORY + a * b
                at += 1

    def _tell(self) -> Pace | None:
        """Fit, and return the pace where some request's work moved enough."""
        known = self._known
        assert known is not None
        gram = np.zeros((4, 4))
        gram[np.triu_indices(4)] = known.gram
        gram = gram + np.triu(gram, 1).T + PRIOR * np.eye(4)
        shares = _non_negative(gram, np.array(known.moment) + PRIOR * known.believed)
        coefficients = shares * known.seconds / np.array(known.usual)
        known.coefficients = coefficients.tolist()
        self.pace = Pace(**_named(coefficients), batch=max(self._batch, 1.0))
        if all(
            max(now, before) <= TOLD * min(now, before)
            for now, before in zip(_examples(self.pace), _examples(self._told), strict=True)
        ):
            return None
        self._told = self.pace
        return self.pace


class StepTimer:
    """Turns calls of a scheduler into steps with their times: a step lasts until the next call.

    Where the engine schedules a step `ahead`, the time between two calls is that of the step before.
    """

    def __init__(self, learner: PaceLearner, *, ahead: bool) -> None:
        self.learner = learner
        self._late = 2 if ahead else 1
        self._done: deque[tuple[int, int, float]] = deque(maxlen=2)
        self._called: float | None = None

    def next(self, now: float, *, waiting: bool) -> Pace | None:
        """Say that the next step is called at `now` [s]; return a pace where another is learned."""
        before, self._called = self._called, now
        if before is None or len(self._done) < self._late:
            return None
        return self.learner.step(Step(now - before, *self._done[-self._late]), waiting=waiting)

    def did(self, prefill: int, decoding: int, context: float) -> None:
        """Say what the step that was called computes."""
        self._done.append((prefill, decoding, context))

    def idle(self) -> None:
        """Say that nothing ran since the last call: what passed since is no step."""
        self._called = None


def _coefficients(pace: Pace) -> NDArray[np.float64]:
    return np.array([pace.iteration_s, pace.prefill_token_s, pace.decode_seq_s, pace.context_token_s])


def _named(coefficients: NDArray[np.float64]) -> dict[str, float]:
    names = ("iteration_s", "prefill_token_s", "decode_seq_s", "context_token_s")
    return dict(zip(names, coefficients.tolist(), strict=True))


def _row(step: Step) -> NDArray[np.float64]:
    return np.array([1.0, step.prefill, step.decoding, step.context])


def _non_negative(gram: NDArray[np.float64], moment: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve for four numbers >= 0: what comes out negative is held at 0, the most negative first."""
    free = np.ones(4, dtype=bool)
    found = np.zeros(4)
    while free.any():
        found[:] = 0.0
        found[free] = np.linalg.solve(gram[np.ix_(free, free)], moment[free])
        if found.min() >= 0.0:
            break
        free[int(np.argmin(found))] = False
    return np.maximum(found, 0.0)


def _examples(pace: Pace) -> tuple[float, float]:
    """The work of a prompt of 1,000 tokens and of a reply of 100, the two sides that an order weighs."""
    return float(work(pace, 1000.0, 0.0, 0.0)) + 1e-12, float(work(pace, 100.0, 100.0, 100.0)) + 1e-12
