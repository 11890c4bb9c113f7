"""Any log that counts tokens but keeps no prompts, such as LiteLLM's spend logs as they come."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sooner.workloads.logs import fields
from sooner.workloads.logs.shapes import plain
from sooner.workloads.traces.formats import Records, trace_format
from sooner.workloads.traces.trace import Trace, of_columns

_ASKED = (
    "prompt",
    "messages",
    "input",
    "inputs",
    "text_input",
    "conversations",
    "conversation",
    "instruction",
)


def _counts(record: Mapping[str, Any]) -> tuple[float | None, float | None]:
    usages = plain.usages(record, plain.response_of(record), {})
    return fields.prompt_tokens((record,), usages), fields.reply_tokens((record,), usages)


def _is_one(record: Mapping[str, Any]) -> bool:
    asked = any(record.get(name) for name in _ASKED) or bool(plain.request_of(record))
    return not asked and None not in _counts(record)


@trace_format("counts", when=_is_one)
def counts(records: Records, source: str) -> Trace:
    """Read the counts of each request, and when it came where that is said; what has none is dropped."""
    rows = [(*_counts(record), fields.moment_in((record,))) for record in records]
    whole = [row for row in rows if row[0] is not None and row[1]]
    names = ("prompt_len", "output_len", "arrival_time")
    columns = {
        name: [math.nan if value is None else value for value in values]
        for name, values in zip(names, zip(*whole, strict=True), strict=False)
    }
    dropped = len(rows) - len(whole)
    notes = [f"{dropped} rows dropped: no count of tokens, or one of 0"] if dropped else []
    return of_columns(columns or {name: [] for name in names}, source, notes=notes)
