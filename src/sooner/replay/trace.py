"""Joining the engine's own step counts to the client's records.

vLLM builds a request's id from the header X-Request-Id: `chatcmpl-{header}` for a chat (and
`cmpl-{header}-{i}` for a completion), and inside the engine it appends `-` and eight random
characters. So our ids are made to be found whole inside a longer one.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sooner.core import DataError
from sooner.replay.record import Record
from sooner.workloads.jsonl import read_jsonl

_OURS = re.compile(r"sooner[0-9a-f]{12}\.\d+")
_STEPS = ("arrival_step", "first_scheduled_step", "first_token_step", "finish_step", "preemptions")


def request_ids(n: int) -> list[str]:
    """Return n request ids that no other replay uses."""
    run = secrets.token_hex(6)
    return [f"sooner{run}.{index}" for index in range(n)]


def join_trace(
    records: Sequence[Record], path: Path, *, started_at: float | None = None, patience: float = 0.0
) -> list[Record]:
    """Return the records with the steps that the engine's trace at `path` has for them.

    The trace is JSONL, a line for each finished request: `request_id`, `arrival_step`,
    `first_scheduled_step`, `first_token_step`, `finish_step`, `preemptions`. Lines of other runs are
    passed over. Where `<path>.steps` tells the wall clock of each step and `started_at` [s] that of
    the replay's start, the start times follow. For up to `patience` seconds the lines of all
    finished requests are waited for.

    Raises DataError where the trace has no line for a request that finished.
    """
    wanted = {record.request_id for record in records if record.finished}
    deadline = time.monotonic() + patience
    while True:
        steps = _read(path)
        missing = wanted - steps.keys()
        if not missing or time.monotonic() >= deadline:
            break
        time.sleep(0.2)
    if missing:
        raise DataError(
            f"{str(path)!r} has no line for {len(missing)} of {len(wanted)} finished requests,"
            f" {min(missing)!r} among them; is it the trace of this server?"
        )
    joined = [replace(record, **steps.get(record.request_id, {})) for record in records]
    if started_at is None:
        return joined
    clock = _step_times(Path(f"{path}.steps"))
    return [_started(record, clock, started_at) for record in joined]


def _started(record: Record, clock: Mapping[int, float], started_at: float) -> Record:
    if record.first_scheduled_step is None or record.first_scheduled_step not in clock:
        return record
    return replace(record, start_time=clock[record.first_scheduled_step] - started_at)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for line in whole_lines(path):
        if match := _OURS.search(str(line.get("request_id", ""))):
            found[match[0]] = {name: int(line[name]) for name in _STEPS if line.get(name, -1) >= 0}
    return found


def _step_times(path: Path) -> dict[int, float]:
    return {int(line["step"]): float(line["time"]) for line in whole_lines(path)}


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file that another process may be writing: a torn last line is left."""
    if path.exists():
        for _, line in read_jsonl(path, torn=True):
            yield line
