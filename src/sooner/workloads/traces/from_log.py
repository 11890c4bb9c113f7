"""A log of finished requests as a trace: its arrivals and prompt tokens where it says them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sooner.workloads import logs
from sooner.workloads.logs.report import Report
from sooner.workloads.traces.trace import Trace, absent, coded, of_columns


def read(records: Sequence[Any], source: str, report: Report) -> Trace:
    """Return the trace of a log's records; a prompt of no said length is estimated from its text."""
    rows, _ = logs.of_records(records, source, report)
    requests = [row.request for row in rows]
    lengths = [row.prompt_len or request.prompt_len for row, request in zip(rows, requests, strict=True)]
    columns: dict[str, Any] = {"prompt_len": lengths, "output_len": [row.output_len for row in rows]}
    times = [math.nan if row.arrival_time is None else row.arrival_time for row in rows]
    notes = [f"a log with prompts: {report}"]
    if not all(map(math.isnan, times)):
        columns["arrival_time"] = times
    if estimated := sum(row.prompt_len is None for row in rows):
        notes.append(f"{estimated} prompt lengths estimated from text")
    names = {}
    if any(row.sender for row in rows):
        columns["sender"], names["sender"] = coded(source, "sender", [row.sender for row in rows])
        absent(columns)
    return of_columns(columns, source, notes=notes, requests=requests, names=names or None)
