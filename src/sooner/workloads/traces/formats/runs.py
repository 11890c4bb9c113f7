"""What benchmarks of engines write down: LLMServingSim's runs of vLLM, `vllm bench`, AIPerf."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sooner.workloads.logs.fields import mapping
from sooner.workloads.numbers import seconds, tokens
from sooner.workloads.traces import engine_run
from sooner.workloads.traces.formats import Records, trace_format
from sooner.workloads.traces.trace import Trace, column, of_columns


@trace_format("engine run", when=lambda record: "queued_ts" in record and "input_toks" in record)
def run(records: Records, source: str) -> Trace:
    """Read a real run of an engine; its times are those of its queue."""
    found = engine_run.of_records([dict(record) for record in records], source).workload
    return of_columns(
        {name: getattr(found, name) for name in ("arrival_time", "prompt_len", "output_len")}, source
    )


@trace_format("vllm bench", when=lambda record: isinstance(record.get("output_lens"), list))
def vllm_bench(records: Records, source: str) -> Trace:
    """Read the lengths of `vllm bench serve --save-detailed`, and the times where a newer one says them."""
    columns: dict[str, list[Any]] = {"prompt_len": [], "output_len": [], "arrival_time": []}
    failed = 0
    for record in records:
        prompts, outputs = _list(record, "input_lens"), _list(record, "output_lens")
        errors, starts = _list(record, "errors"), _list(record, "start_times")
        for row in range(min(len(prompts), len(outputs))):
            if row < len(errors) and errors[row]:
                failed += 1
                continue
            columns["prompt_len"].append(prompts[row])
            columns["output_len"].append(outputs[row])
            columns["arrival_time"].append(starts[row] if row < len(starts) else None)
    made = {name: column(source, name, values) for name, values in columns.items()}
    return of_columns(made, source, notes=[f"{failed} rows dropped: a request that failed"] if failed else [])


@trace_format("aiperf", when=lambda record: "input_sequence_length" in mapping(record.get("metrics")))
def aiperf(records: Records, source: str) -> Trace:
    """Read AIPerf's records of requests; those with an error are dropped."""
    served = [record for record in records if not record.get("error")]
    measured = [mapping(record.get("metrics")) for record in served]
    about = [mapping(record.get("metadata")) for record in served]
    times = [seconds(item.get("request_start_ns")) for item in about]
    columns: dict[str, Any] = {
        "prompt_len": [_tokens(item, "input_sequence_length") for item in measured],
        "output_len": [_tokens(item, "output_sequence_length") for item in measured],
        "arrival_time": [math.nan if time is None else time for time in times],
    }
    failed = len(records) - len(served)
    return of_columns(
        columns, source, notes=[f"{failed} rows dropped: a request that failed"] if failed else []
    )


def _list(record: Mapping[str, Any], name: str) -> list[Any]:
    found = record.get(name)
    return found if isinstance(found, list) else []


def _tokens(measured: Any, name: str) -> float:
    found = tokens(measured.get(name))
    return math.nan if found is None else found
