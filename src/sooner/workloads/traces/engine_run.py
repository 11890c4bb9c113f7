"""Real runs with times per request (JSONL, .gz): what arrived, and what became of it.

Two formats. LLMServingSim's benchmark of vLLM: `input_toks`, `output_toks`, `arrival_time` (wall
clock), and on the engine's own clock `queued_ts`, `scheduled_ts`, `first_token_ts`, `last_token_ts`
[s]. And what `sooner replay` writes. A request without times was there all the same: it is served
when the run is simulated, but nothing is compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import Completed, DataError
from sooner.workloads.columns import Workload
from sooner.workloads.jsonl import read_jsonl

ENGINE_FIELDS = ("input_toks", "output_toks", "queued_ts", "first_token_ts", "last_token_ts")
STEP_FIELDS = {
    "arrival_time": "arrival_step",
    "first_token_time": "first_token_step",
    "finish_time": "finish_step",
}
REPLAY_FIELDS = ("arrival_time", "prompt_len", "output_len", "first_token_time", "finish_time")


class EngineRun(NamedTuple):
    """A run, row by row in order of arrival, times from the first arrival [s].

    Times that nobody observed are NaN in `completed`; `score` and `predicted_len` (n,) are what the
    server was told, NaN where nothing was. `by_client`: the times are what a client saw, not the engine.
    """

    workload: Workload
    completed: Completed
    score: NDArray[np.float64]
    predicted_len: NDArray[np.float64]
    by_client: bool = False

    @property
    def observed(self) -> NDArray[np.bool_]:
        """Which requests have a first- and a last-token time, (n,)."""
        done = self.completed
        return np.asarray(np.isfinite(done.first_token_time) & np.isfinite(done.finish_time))


def read(path: Path, *, steps: bool = False) -> EngineRun:
    """Return a run; with `steps`, its times are engine steps, where a replay has them.

    Raises DataError where no request has lengths, an arrival and times.
    """
    return of_records([record for _, record in read_jsonl(path)], str(path), steps=steps)


def of_records(records: Sequence[dict[str, Any]], source: str, *, steps: bool = False) -> EngineRun:
    """Return the run that records hold, as `read` does."""
    engine = bool(records) and all("input_toks" in record for record in records)
    if engine:
        columns = _engine_columns(records)
    else:
        columns = {name: _column(records, name) for name in (*REPLAY_FIELDS, "start_time")}
    if steps:
        columns |= {name: _column(records, field) for name, field in STEP_FIELDS.items()}
    known = np.ones(len(records), dtype=np.bool_)
    for name in ("arrival_time", "prompt_len", "output_len"):
        known &= np.isfinite(columns[name])
    for name in ("prompt_len", "output_len"):
        known &= columns[name] < 1e9  # more is no length
    rows = np.flatnonzero(known)
    if not np.isfinite(columns["finish_time"][rows]).any():
        raise DataError(
            f"{source!r} holds no finished request; a line needs {', '.join(ENGINE_FIELDS)}, "
            f"or {', '.join(REPLAY_FIELDS)}"
        )
    rows = rows[np.argsort(columns["arrival_time"][rows], kind="stable")]
    sent = [records[row].get("attached") or {} for row in rows]
    attached = [body.get("vllm_xargs", body) for body in sent]
    return EngineRun(
        *_run({name: column[rows] for name, column in columns.items()}),
        _column(attached, "sooner_score"),
        _column(attached, "sooner_predicted_len"),
        by_client=not engine and not steps,
    )


def _run(columns: dict[str, NDArray[np.float64]]) -> tuple[Workload, Completed]:
    zero = columns["arrival_time"].min()
    workload = Workload(
        arrival_time=columns["arrival_time"] - zero,
        prompt_len=np.maximum(np.rint(columns["prompt_len"]), 1).astype(np.int64),
        output_len=np.maximum(np.rint(columns["output_len"]), 1).astype(np.int64),
    )
    completed = Completed(
        id=workload.id.astype(np.float64),
        arrival_time=workload.arrival_time,
        first_token_time=columns["first_token_time"] - zero,
        finish_time=columns["finish_time"] - zero,
        prompt_len=workload.prompt_len.astype(np.float64),
        output_len=workload.output_len.astype(np.float64),
        start_time=columns["start_time"] - zero,
    )
    return workload, completed


def _engine_columns(records: Sequence[dict[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """Return the columns of LLMServingSim's format.

    Arrivals are on the client's clock and the rest on the engine's; the clocks are aligned so that
    the request that was queued fastest was queued at once.
    """
    client, queued = _column(records, "arrival_time"), _column(records, "queued_ts")
    arrival = queued
    both = np.isfinite(client) & np.isfinite(queued)
    if both.any() and (both | np.isnan(queued)).all():
        arrival = client + (queued - client)[both].min()
    return {
        "arrival_time": arrival,
        "prompt_len": _column(records, "input_toks"),
        "output_len": _column(records, "output_toks"),
        "first_token_time": _column(records, "first_token_ts"),
        "finish_time": _column(records, "last_token_ts"),
        "start_time": _column(records, "scheduled_ts"),
    }


def _column(records: Sequence[dict[str, Any]], name: str) -> NDArray[np.float64]:
    values = (record.get(name) for record in records)
    try:
        return np.array([math.nan if value is None else float(value) for value in values], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"a run's field {name!r} must be a number: {error}") from error
