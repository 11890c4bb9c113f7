"""Whatever a log holds, reading it ends with rows, counts or a clear error; nothing is lost in silence."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from log_records import KNOWN
from sooner.core import SoonerError
from sooner.workloads import logs, traces
from sooner.workloads.logs.json_values import values
from sooner.workloads.logs.report import Report

SLOW = [HealthCheck.too_slow]  # a loaded machine is slow, not wrong
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [0, -1, 10**400, 1e308, "", "0", "[", "{}", "[1]", [], {}, [[]], [None], [""], {"a": []}, ["x", 1]]
    ),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
)
TRACES: list[dict[str, Any]] = [
    {"arrival_time": 1, "prompt_len": 3, "output_len": 4, "tenant": "a", "deadline": 5},
    {"timestamp": 1000, "input_length": 1000, "output_length": 5, "hash_ids": [1, 2]},
    {"TIMESTAMP": "2024-05-10 00:00:01", "ContextTokens": 5, "GeneratedTokens": 6},
    {"Timestamp": 5, "Request tokens": 5, "Response tokens": 6},
    {"num_prefill_tokens": 5, "num_decode_tokens": 6, "arrived_at": 1.0},
    {
        "input_toks": 5,
        "output_toks": 6,
        "arrival_time": 1,
        "queued_ts": 1,
        "first_token_ts": 2,
        "last_token_ts": 3,
    },
    {"metrics": {"input_sequence_length": {"value": 5}}, "metadata": {"request_start_ns": 10**18}},
    {"input_lens": [5], "output_lens": [6], "errors": [""]},
    {"prompt_tokens": 5, "completion_tokens": 6, "startTime": "2025-01-01T00:00:00Z"},
]


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    for name in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from _places(value[name], (*at, name))


@st.composite
def spoiled(draw: Callable[..., Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """A record of a known shape, some of whose values are gone or are something else."""
    record = copy.deepcopy(draw(st.sampled_from(records)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(list(_places(record)) or [()]))
        inner: Any = record
        for name in at[:-1]:
            inner = inner[name]
        if not at:
            break
        if draw(st.booleans()):
            inner[at[-1]] = copy.deepcopy(draw(JUNK))
        else:
            del inner[at[-1]]
    return record


def _read(reader: Callable[[Path], Any], data: bytes, name: str = "log") -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            return reader(path)
        except SoonerError as error:
            str(error).encode("utf-8", "replace")
            return None


@settings(max_examples=600, suppress_health_check=SLOW)
@given(st.lists(spoiled([known.record for known in KNOWN.values()]), min_size=1, max_size=3))
def test_a_spoiled_log_is_read_or_counted_or_refused(records: list[dict[str, Any]]) -> None:
    log = _read(logs.read, "\n".join(map(json.dumps, records)).encode())
    if log is not None:
        assert log.report.rows == len(log.rows) > 0
        assert all(0 <= row.output_len < 1e9 for row in log.rows)
        assert len(log.rows) + sum(log.report.dropped.values()) >= len(records)
        for row in log.rows:
            row.request.conversation()
        str(log.report)
    _read(traces.read, "\n".join(map(json.dumps, records)).encode())


@settings(max_examples=600, suppress_health_check=SLOW)
@given(st.lists(spoiled(TRACES), min_size=1, max_size=3))
def test_a_spoiled_trace_is_read_or_refused(records: list[dict[str, Any]]) -> None:
    trace = _read(traces.read, "\n".join(map(json.dumps, records)).encode())
    if trace is not None:
        assert trace.prompt_len.min() >= 1
        assert trace.output_len.min() >= 1
        assert trace.arrival_time is None or trace.arrival_time.min() == 0


@settings(max_examples=300, suppress_health_check=SLOW)
@given(st.binary(max_size=200), st.sampled_from(["log", "a.csv", "a.json", "a.log", "a.parquet", "a.gz"]))
def test_any_bytes_are_read_or_refused(data: bytes, name: str) -> None:
    _read(logs.read, data, name)
    _read(traces.read, data, name)


@settings(max_examples=300, suppress_health_check=SLOW)
@given(st.text(alphabet='{}[]",:\n\\ a1', max_size=60))
def test_any_brackets_are_read_or_refused(text: str) -> None:
    with contextlib.suppress(SoonerError):
        list(values(text, "log", Report()))


@settings(max_examples=200, suppress_health_check=SLOW)
@given(st.integers(1, 399), st.sampled_from(["lines", "list", "pretty", "gzip"]))
def test_a_file_cut_off_anywhere_loses_its_end_only(cut: int, layout: str) -> None:
    records = [{"prompt": f'say {i} {{["', "output_len": i + 1} for i in range(8)]
    whole = {
        "lines": "\n".join(map(json.dumps, records)),
        "list": json.dumps(records),
        "pretty": json.dumps(records, indent=1),
        "gzip": "\n".join(map(json.dumps, records)),
    }[layout].encode()
    data = gzip.compress(whole, 0) if layout == "gzip" else whole
    log = _read(logs.read, data[: len(data) * cut // 400])
    if log is not None:
        read = [row.output_len for row in log.rows]
        assert read == [i + 1 for i in range(len(read))]
        at = len(data) * cut // 400
        between_lines = layout in ("lines", "gzip") and b"\n" in data[at - 1 : at + 1]
        assert len(read) == 8 or between_lines or log.report.dropped or log.report.notes


@pytest.mark.parametrize("bad", ["{'a': 1}", '{"a": 1,}', '{"a" 1}', "{]", '{"a": [}', '{"a": "\\q"}'])
@given(place=st.integers(0, 4))
def test_one_broken_item_of_a_list_costs_itself_alone(bad: str, place: int) -> None:
    items = [json.dumps({"prompt": f"say {i}", "output_len": i + 1}) for i in range(4)]
    text = "[" + ",\n".join([*items[:place], bad, *items[place:]]) + "]"
    report = Report()
    found = [item["output_len"] for item in values(text, "log", report)]
    assert sum(report.dropped.values()) == 1
    assert len(found) >= 3
