"""Time as the engine's work: what each of its steps costs at one fixed pace, whatever else the machine does.

Two orders that did the same steps take the same time on this clock, where on the wall clock they may differ
by a tenth. The pace is fitted to all arms of a comparison together, so no arm's noise can favour it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import DataError
from sooner.ordering.pacing import PaceLearner, Step
from sooner.replay.record import Record
from sooner.replay.trace import whole_lines
from sooner.work import Pace


class Steps(NamedTuple):
    """The steps of one engine: columns (n,), the first step is 1. Times are wall clock [s]."""

    time: NDArray[np.float64]
    prefill: NDArray[np.float64]
    decoding: NDArray[np.float64]
    context: NDArray[np.float64]
    waiting: NDArray[np.float64]


def read_steps(trace: Path) -> Steps:
    """Return the steps beside a trace. Raises DataError where they are missing or do not say their work."""
    path = Path(f"{trace}.steps")
    lines = [line for line in whole_lines(path) if "prefill" in line]
    if not lines or [line["step"] for line in lines] != list(range(1, len(lines) + 1)):
        raise DataError(
            f"{str(path)!r} does not have every step's work; allowed: a trace of one start of vLLM"
        )
    table = np.array(
        [
            [line["time"], line["prefill"], line["decoding"], line["context"], line.get("waiting", 0)]
            for line in lines
        ],
        dtype=np.float64,
    )
    return Steps(*table.T)


def pace_of(engines: Sequence[Steps]) -> Pace:
    """Return the pace that fits the steps of all engines; those of pauses are left out."""
    learner = PaceLearner(slots=int(max(float(steps.decoding.max()) for steps in engines)) or 1)
    for steps in engines:
        for seconds, *work in zip(np.diff(steps.time), *steps[1:4], strict=False):
            learner.step(Step(float(seconds), int(work[0]), int(work[1]), float(work[2])), waiting=False)
    return learner.fitted()


class WorkClock:
    """What the engine had done after each step [s] at a pace; 0 before the first."""

    def __init__(self, steps: Steps, pace: Pace) -> None:
        cost = (
            pace.iteration_s + pace.prefill_token_s * steps.prefill + pace.decode_seq_s * steps.decoding
            + pace.context_token_s * steps.context
        )  # fmt: skip
        self._done = np.concatenate([[0.0], np.cumsum(cost)])

    def at(self, step: int | None) -> float | None:
        """Return the work done after a step; None for one that never was."""
        return None if step is None or not 0 <= step < self._done.size else float(self._done[step])

    def record(self, record: Record) -> Record:
        """Return a record with its times on this clock; its arrival is the last step before it."""
        started = None if record.first_scheduled_step is None else record.first_scheduled_step - 1
        arrived = self.at(record.arrival_step)
        if arrived is None:
            raise DataError(
                f"request {record.id!r} has no steps; allowed: a replay beside the engine's trace"
            )
        return replace(
            record,
            arrival_time=arrived,
            sent_time=arrived,
            start_time=self.at(started),
            first_token_time=self.at(record.first_token_step),
            finish_time=self.at(record.finish_step),
            itl=(),
        )
