"""Real runs of vLLM: per-request engine times as LLMServingSim's benchmark writes them (JSONL, .gz).

Fields: `input_toks`, `output_toks`, `arrival_time` (wall clock), and on the engine's own clock
`queued_ts`, `scheduled_ts`, `first_token_ts`, `last_token_ts` [s].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sooner.core import Completed, DataError
from sooner.workloads.columns import Workload
from sooner.workloads.text import lines

NEEDED = ("input_toks", "output_toks", "queued_ts", "first_token_ts", "last_token_ts")


class EngineRun(NamedTuple):
    """What arrived and what became of it, row by row, times from the first arrival [s]."""

    workload: Workload
    completed: Completed


def is_engine_run(record: dict[str, Any]) -> bool:
    """Return whether a JSON line is of this format."""
    return all(field in record for field in NEEDED)


def read(path: Path) -> EngineRun:
    """Return a run. Requests that never ended are left out; raises DataError where none is left.

    Arrivals are on the client's clock and the rest on the engine's; the clocks are aligned so that
    the request that was queued fastest was queued at once.
    """
    records = [json.loads(line) for line in lines(path)]
    if records and not is_engine_run(records[0]):
        raise DataError(f"{str(path)!r} is no engine run: a line needs {', '.join(NEEDED)}")
    rows = [r for r in records if all(r.get(field) is not None for field in NEEDED)]
    if not rows:
        raise DataError(f"{str(path)!r} holds no finished request")
    columns = {field: np.array([float(r[field]) for r in rows]) for field in NEEDED}
    arrival = columns["queued_ts"]
    if all(r.get("arrival_time") is not None for r in rows):
        client = np.array([float(r["arrival_time"]) for r in rows])
        arrival = client + (columns["queued_ts"] - client).min()
    order = np.argsort(arrival, kind="stable")
    zero = arrival.min()
    started = np.array([float(r["scheduled_ts"] if r.get("scheduled_ts") is not None else "nan") for r in rows])
    workload = Workload(
        arrival_time=arrival[order] - zero,
        prompt_len=np.rint(columns["input_toks"][order]).astype(np.int64),
        output_len=np.maximum(np.rint(columns["output_toks"][order]), 1).astype(np.int64),
    )
    completed = Completed(
        id=workload.id.astype(np.float64),
        arrival_time=workload.arrival_time,
        first_token_time=columns["first_token_ts"][order] - zero,
        finish_time=columns["last_token_ts"][order] - zero,
        prompt_len=workload.prompt_len.astype(np.float64),
        output_len=workload.output_len.astype(np.float64),
        start_time=started[order] - zero,
    )
    return EngineRun(workload, completed)
