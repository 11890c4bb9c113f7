"""Traces of requests: lengths, mostly arrival times, sometimes prefixes; one reader for every format.

JSON Lines (also .gz): ours (`prompt_len`, `output_len`, and where known `arrival_time`, `tenant`,
`level`, `deadline`, `cancel_time`, `score`, `predicted_len`), Mooncake's (`timestamp` [ms],
`input_length`, `output_length`, `hash_ids`), a real run (see `engine_run`), or a log with prompts (see
`logs`). CSV (also .gz): Azure's 2023, BurstGPT's, vidur's, or one with the columns of ours.
`.tar.gz`: ServeGen's.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner.chat import ChatRequest
from sooner.core import DataError
from sooner.workloads import logs
from sooner.workloads.jsonl import lines
from sooner.workloads.traces import engine_run, servegen

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """n requests as columns (n,), arrivals never falling; times [s], lengths [tokens].

    What the source does not hold is None. `blocks` holds each request's prefix as ids of blocks of
    `block_size` tokens: equal ids are equal content. `requests` are what was asked, where that
    is known.
    """

    prompt_len: Column
    output_len: Column
    arrival_time: Column | None = None
    tenant: Column | None = None
    level: Column | None = None
    deadline: Column | None = None
    cancel_time: Column | None = None
    score: Column | None = None
    predicted_len: Column | None = None
    blocks: Sequence[NDArray[np.int64]] | None = None
    block_size: int = 512
    requests: Sequence[ChatRequest] | None = None

    def __len__(self) -> int:
        return int(self.prompt_len.shape[0])


OURS = ("arrival_time", "tenant", "level", "deadline", "cancel_time", "score", "predicted_len")
CSV_NAMES = {
    "ContextTokens": "prompt_len",
    "GeneratedTokens": "output_len",
    "Request tokens": "prompt_len",
    "Response tokens": "output_len",
    "num_prefill_tokens": "prompt_len",
    "num_decode_tokens": "output_len",
    "TIMESTAMP": "date",
    "Timestamp": "arrival_time",
    "arrived_at": "arrival_time",
}
"""Columns of Azure's, BurstGPT's and vidur's CSV, and what they are called here."""


def read(path: Path) -> Trace:
    """Return the trace in a file. Raises DataError where it is of no known format or holds no request."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".tar"):
        return _trace(
            dict(zip(("arrival_time", "prompt_len", "output_len"), servegen.sample(path), strict=True))
        )
    if name.endswith(".csv"):
        return _csv(path)
    first = next(iter(lines(path)), "")
    try:
        record = json.loads(first)
    except json.JSONDecodeError:
        record = None
    if isinstance(record, dict):
        if "input_length" in record:
            return _mooncake(path)
        if engine_run.is_engine_run(record) and "queued_ts" in record:
            run = engine_run.read(path).workload
            return _trace({name: getattr(run, name) for name in ("arrival_time", "prompt_len", "output_len")})
        if "prompt_len" in record and "output_len" in record:
            return _ours(path)
    return _log(path)


def _trace(columns: dict[str, Any], **rest: Any) -> Trace:
    """Return a trace of columns, sorted by arrival where that is known; lengths are at least 1."""
    columns = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    for name in ("prompt_len", "output_len"):
        if not np.isfinite(columns[name]).all():
            raise DataError(f"a trace's {name} must be a number in every row")
        columns[name] = np.maximum(columns[name], 1.0)
    if columns["prompt_len"].size == 0:
        raise DataError("the trace holds no request; allowed: at least 1")
    times = columns.get("arrival_time")
    if times is not None and not np.isfinite(times).all():
        del columns["arrival_time"]
    elif times is not None:
        order = np.argsort(times, kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
        rest = {name: [values[i] for i in order] for name, values in rest.items() if values is not None}
        for name in ("deadline", "cancel_time"):
            if name in columns:
                columns[name] = columns[name] - times.min()
        columns["arrival_time"] = columns["arrival_time"] - times.min()
    return Trace(**columns, **rest)


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in lines(path)]
    except json.JSONDecodeError as error:
        raise DataError(f"{str(path)!r} is not JSONL: {error}") from error


def _ours(path: Path) -> Trace:
    records = _records(path)
    names = ["prompt_len", "output_len", *(name for name in OURS if any(name in r for r in records))]
    columns = {name: column(path, name, [record.get(name) for record in records]) for name in names}
    _absent(columns)
    asked = all(isinstance(record.get("prompt"), str) for record in records)
    return _trace(columns, requests=[ChatRequest.of(record) for record in records] if asked else None)


def _mooncake(path: Path) -> Trace:
    records = _records(path)
    names = {"arrival_time": "timestamp", "prompt_len": "input_length", "output_len": "output_length"}
    columns = {ours: column(path, theirs, [r.get(theirs) for r in records]) for ours, theirs in names.items()}
    columns["arrival_time"] /= 1000.0
    return _trace(
        columns, blocks=[np.array(record.get("hash_ids", ()), dtype=np.int64) for record in records]
    )


def _csv(path: Path) -> Trace:
    rows = list(csv.DictReader(lines(path)))
    if not rows:
        raise DataError(f"{str(path)!r} holds no request")
    names = {CSV_NAMES.get(name, name): name for name in rows[0] if name}
    missing = {"prompt_len", "output_len"} - names.keys()
    if missing:
        raise DataError(
            f"{str(path)!r} has the columns {', '.join(rows[0])}; allowed: prompt_len and output_len "
            f"(arrival_time), or those of Azure's, BurstGPT's or vidur's traces"
        )
    columns = {
        ours: column(path, theirs, [row[theirs] for row in rows])
        for ours, theirs in names.items()
        if ours in ("prompt_len", "output_len", *OURS)
    }
    if "date" in names:
        try:
            dates = np.array(
                [row[names["date"]].replace(" ", "T")[:26] for row in rows], dtype="datetime64[us]"
            )
        except ValueError as error:
            raise DataError(f"{str(path)!r}: {names['date']} must be dates: {error}") from error
        columns["arrival_time"] = dates.astype(np.int64) / 1e6
    _absent(columns)
    return _trace(columns)


def _absent(columns: dict[str, Column]) -> None:
    """Put what a missing entry means in its place: never, tenant 0, the most urgent class."""
    for name, meant in (("deadline", math.inf), ("cancel_time", math.inf), ("tenant", 0.0), ("level", 0.0)):
        if name in columns:
            columns[name] = np.nan_to_num(columns[name], nan=meant, posinf=math.inf)


def _log(path: Path) -> Trace:
    """A log of finished requests: prompt lengths are its bytes over four, as a tokenizer is not at hand."""
    rows, _ = logs.read(str(path))
    requests = [row.request for row in rows]
    return _trace(
        {
            "prompt_len": [request.prompt_len for request in requests],
            "output_len": [row.output_len for row in rows],
        },
        requests=requests,
    )


def column(path: Path, name: str, values: Sequence[Any]) -> Column:
    """Return values as floats (n,), NaN for those that are missing. Raises DataError for text."""
    number: Callable[[Any], float] = lambda value: math.nan if value in (None, "") else float(value)  # noqa: E731
    try:
        return np.array([number(value) for value in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{str(path)!r}: {name} must be a number: {error}") from error
