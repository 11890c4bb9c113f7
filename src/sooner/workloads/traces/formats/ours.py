"""Ours, and what `sooner export` writes: `prompt_len`, `output_len`, `arrival_time` where known, and more."""

from __future__ import annotations

from typing import Any

from sooner.chat import ChatRequest
from sooner.workloads.traces.formats import Records, trace_format
from sooner.workloads.traces.trace import NAMED, Trace, absent, coded, column, moments, of_columns

TIMES = ("arrival_time", "deadline", "cancel_time")
COLUMNS = ("level", "score", "predicted_len")
_ASKED = ("prompt", "messages")


@trace_format("ours", when=lambda record: "prompt_len" in record and "output_len" in record)
def ours(records: Records, source: str) -> Trace:
    """Read our own columns; a row of a journal that failed is dropped."""
    notes = []
    served = [record for record in records if record.get("status", 200) == 200]
    if len(served) < len(records):
        notes.append(f"{len(records) - len(served)} rows dropped: a request that failed")
    present = [name for name in COLUMNS if any(record.get(name) not in (None, "") for record in served)]
    columns: dict[str, Any] = {
        name: column(source, name, [record.get(name) for record in served])
        for name in ("prompt_len", "output_len", *present)
    }
    for name in TIMES:
        if any(record.get(name) not in (None, "") for record in served):
            columns[name] = moments(source, name, [record.get(name) for record in served])
    names = {}
    for name in NAMED:
        if any(record.get(name) not in (None, "") for record in served):
            columns[name], listed = coded(source, name, [record.get(name) for record in served])
            if listed:
                names[name] = listed
    absent(columns)
    asked = bool(served) and all(any(record.get(name) for name in _ASKED) for record in served)
    requests = [ChatRequest.of(_body(record)) for record in served] if asked else None
    return of_columns(columns, source, notes=notes, requests=requests, names=names or None)


def _body(record: Any) -> dict[str, Any]:
    """The request in a row: what is empty was not said."""
    return {name: value for name, value in record.items() if value is not None}
