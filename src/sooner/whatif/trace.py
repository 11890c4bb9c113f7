"""The plugin's trace as served traffic, on the clock of the engine's work."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner.core import DataError
from sooner.replay.trace import whole_lines
from sooner.replay.work_clock import Steps, pace_of, read_steps
from sooner.sim.cost import Engine
from sooner.sim.runs import read_limits
from sooner.whatif.served import ServedRow, ServedTraffic, ample_blocks, columns, order_of
from sooner.work import Pace

FIELDS = ("arrival_step", "first_scheduled_step", "finish_step", "prompt_tokens", "output_tokens")

_LEAST_ITERATION = 1e-6  # seconds; steps that hold nothing of it are fitted with 0, which no engine takes


def read_trace(
    path: Path, policy: str | None = None, *, since: float = 0.0, pace: Pace | None = None
) -> ServedTraffic:
    """Return what the trace at `path` and the files beside it say was served.

    `policy` names the order that served where `<path>.engine` does not; `pace` what a step costs where
    not its own steps are to say so, as for the arms of a comparison. Raises DataError where the
    trace has no steps, is of several starts of vLLM, or is none.
    """
    lines = [line for line in whole_lines(path) if _ended(line, path)]
    steps = read_steps(path)
    if lines and max(line["finish_step"] for line in lines) > steps.time.size:
        raise DataError(
            f"{str(path)!r} names steps that {path.name}.steps lacks; allowed: files of one start"
        )
    pace = pace_of([steps]) if pace is None else pace
    clock = _Clock(steps, pace, lines)
    kept = [line for line in lines if line["arrival_time"] >= since]
    made = columns([_row(line, clock) for line in kept], str(path))
    about = _about(path)
    limits = read_limits(Path(f"{path}.engine"), {}) if about else None
    engine = dataclasses.replace(
        _seen(steps) if limits is None else limits.engine, name=path.name, approximate=False,
        source="the trace's steps",
    )  # fmt: skip
    if limits is None or "num_blocks" not in limits.known:
        needed = ample_blocks(made.workload, engine.block_size)
        bound = _memory_seen(steps, engine)
        engine = dataclasses.replace(engine, num_blocks=bound or needed)
    engine = engine.with_coefficients(
        max(pace.iteration_s, _LEAST_ITERATION), pace.prefill_token_s, pace.decode_seq_s, pace.context_token_s
    )
    served_by = order_of(policy or about.get("policy"), about.get("parameters") if policy is None else None)
    return ServedTraffic(*made, engine, True, "work", served_by)


def _ended(line: dict[str, Any], path: Path) -> bool:
    """Return whether a line is a request that ran and ended. Raises DataError for one that is no request."""
    if not all(isinstance(line.get(name), int) for name in FIELDS):
        raise DataError(f"{str(path)!r}: a line without {', '.join(FIELDS)}; allowed: the plugin's trace")
    return bool(line["first_scheduled_step"] > 0 and line["finish_step"] > 0 and line["output_tokens"] > 0)


class _Clock:
    """Seconds of work at each step; where the engine stood idle, what the wall clock says it did."""

    def __init__(self, steps: Steps, pace: Pace, lines: list[dict[str, Any]]) -> None:
        cost = (
            pace.iteration_s + pace.prefill_token_s * steps.prefill + pace.decode_seq_s * steps.decoding
            + pace.context_token_s * steps.context
        )  # fmt: skip
        before = cost * 0.0
        for step, came in _after_idle(lines).items():
            if 1 < step <= cost.size:
                ended = steps.time[step - 2] + cost[step - 2]
                before[step - 1] = max(0.0, came - ended)
        self._begin = np.cumsum(before + cost) - cost
        self._end = self._begin + cost

    def begin(self, step: int) -> float:
        """Return when a step began."""
        return float(self._begin[min(step, self._begin.size) - 1])

    def end(self, step: int) -> float:
        """Return when a step ended; NaN for one that never was."""
        return float(self._end[step - 1]) if 1 <= step <= self._end.size else math.nan


def _after_idle(lines: list[dict[str, Any]]) -> dict[int, float]:
    """Return the steps before which nobody was there, and when the first of their requests came [wall s]."""
    found, there = {}, 0
    for line in sorted(lines, key=lambda line: (line["arrival_step"], line["arrival_time"])):
        step = line["arrival_step"] + 1
        if step > there:
            found[step] = float(line["arrival_time"])
        there = max(there, line["finish_step"])
    return found


def _row(line: dict[str, Any], clock: _Clock) -> ServedRow:
    told = bool(line.get("scored"))
    return ServedRow(
        arrival=clock.begin(line["arrival_step"] + 1),
        start=clock.begin(line["first_scheduled_step"]),
        first=clock.end(int(line.get("first_token_step", -1))),
        finish=clock.end(line["finish_step"]),
        prompt_len=line["prompt_tokens"],
        cached_len=int(line.get("cached_tokens") or 0),
        output_len=line["output_tokens"],
        score=float(line["score"]) if told else math.nan,
        predicted_len=float(line["predicted_len"]) if told else math.nan,
        tenant=str(line.get("tag") or "default"),
    )


def _about(path: Path) -> dict[str, Any]:
    """Return what the plugin wrote of itself beside the trace; older traces have nothing."""
    beside = Path(f"{path}.engine")
    if not beside.is_file():
        return {}
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
        parameters = {name: float(value) for name, value in found["parameters"].items()}
        return {"policy": str(found["policy"]), "parameters": parameters}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{str(beside)!r}: {error!r}, allowed: what the plugin writes beside its trace"
        ) from error


def _seen(steps: Steps) -> Engine:
    """Return the limits that the steps reached; exact where anybody waited for them."""
    slots = int(max(steps.decoding.max(), 1))
    budget = int(max((steps.prefill + steps.decoding).max(), slots))
    return Engine(max_num_seqs=slots, max_num_batched_tokens=budget)


def _memory_seen(steps: Steps, engine: Engine) -> int | None:
    """Return the KV blocks that were in use at most, where requests waited for memory and not for slots."""
    waits = steps.waiting > 0
    if not waits.any() or steps.decoding[waits].mean() >= 0.9 * engine.max_num_seqs:
        return None
    return int(_most(steps.context) / engine.block_size)


def _most(column: NDArray[np.float64]) -> float:
    return float(np.ceil(column.max()))
