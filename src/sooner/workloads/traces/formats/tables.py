"""The public tables of lengths: Azure's (2023, 2024, multimodal), BurstGPT's, vidur's; LLMPerf's results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sooner.workloads.traces.formats import Records, trace_format
from sooner.workloads.traces.trace import Column, Trace, column, moments, of_columns


def _columns(records: Records, source: str, prompt: str, output: str, time: str = "") -> dict[str, Any]:
    """Return the lengths, and the arrivals where any record has a `time`."""
    columns: dict[str, Column] = {
        name: column(source, key, [record.get(key) for record in records])
        for name, key in (("prompt_len", prompt), ("output_len", output))
    }
    if time and any(time in record for record in records):
        columns["arrival_time"] = moments(source, time, [record.get(time) for record in records])
    return columns


def _has(*names: str) -> Any:
    def recognised(record: Mapping[str, Any]) -> bool:
        return all(name in record for name in names)

    return recognised


@trace_format("azure", when=_has("ContextTokens", "GeneratedTokens"))
def azure(records: Records, source: str) -> Trace:
    """Read Azure's traces: times without a zone are UTC."""
    columns = _columns(records, source, "ContextTokens", "GeneratedTokens", "TIMESTAMP")
    return of_columns(columns, source)


@trace_format("burstgpt", when=_has("Request tokens", "Response tokens"))
def burstgpt(records: Records, source: str) -> Trace:
    """Read BurstGPT: a request without a response token failed, and is dropped."""
    columns = _columns(records, source, "Request tokens", "Response tokens", "Timestamp")
    served = columns["output_len"] != 0
    failed = int((~served).sum())
    kept = {name: values[served] for name, values in columns.items()}
    notes = [f"{failed} rows dropped: no response token, a request that failed"] if failed else []
    return of_columns(kept, source, notes=notes)


@trace_format("vidur", when=_has("num_prefill_tokens", "num_decode_tokens"))
def vidur(records: Records, source: str) -> Trace:
    """Read vidur's processed traces."""
    columns = _columns(records, source, "num_prefill_tokens", "num_decode_tokens", "arrived_at")
    return of_columns(columns, source)


@trace_format("llmperf", when=_has("number_input_tokens", "number_output_tokens"))
def llmperf(records: Records, source: str) -> Trace:
    """Read LLMPerf's results, request by request; those with an error are dropped."""
    served = [record for record in records if record.get("error_code") in (None, "", 0)]
    columns = _columns(served, source, "number_input_tokens", "number_output_tokens")
    failed = len(records) - len(served)
    return of_columns(
        columns, source, notes=[f"{failed} rows dropped: a request that failed"] if failed else []
    )
