"""Mooncake's traces, and others with its names: `timestamp`, `input_length`, `output_length`, `hash_ids`.

Mooncake counts milliseconds and blocks of 512 tokens, Alibaba's traces of Qwen seconds and blocks of 16.
The size of a block is read from how many ids a prompt has.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner.chat import ChatRequest
from sooner.core import DataError
from sooner.workloads.numbers import number, usable
from sooner.workloads.traces.formats import Records, trace_format
from sooner.workloads.traces.trace import Trace, column, of_columns

MOONCAKE = 512
_SIZES = (512, 16, 32, 64, 128, 256, 1024, 2048)
_IN_SECONDS = ("chat_id", "parent_chat_id")


@trace_format("mooncake", when=lambda record: "input_length" in record and "output_length" in record)
def mooncake(records: Records, source: str) -> Trace:
    """Read lengths, times in the unit they are in, and prefixes."""
    columns: dict[str, Any] = {
        "prompt_len": column(source, "input_length", [record.get("input_length") for record in records]),
        "output_len": column(source, "output_length", [record.get("output_length") for record in records]),
    }
    size = block_size(records)
    notes = []
    if any("timestamp" in record for record in records):
        times = column(source, "timestamp", [record.get("timestamp") for record in records])
        seconds = any(name in records[0] for name in _IN_SECONDS) or _are_seconds(records, size)
        columns["arrival_time"] = times if seconds else times / 1000.0
        notes.append(f"times read as {'seconds' if seconds else 'milliseconds'}, blocks of {size} tokens")
    blocks = None
    if any(record.get("hash_ids") for record in records):
        blocks = [_ids(record.get("hash_ids"), row, source) for row, record in enumerate(records, start=1)]
    return of_columns(columns, source, notes=notes, blocks=blocks, block_size=size)


@trace_format("mooncake text", when=lambda record: "text_input" in record and "output_length" in record)
def with_texts(records: Records, source: str) -> Trace:
    """Read Mooncake's traces that hold texts instead of lengths; prompt lengths are estimated from them."""
    requests = [ChatRequest(str(record.get("text_input") or "")) for record in records]
    times = column(source, "timestamp", [record.get("timestamp") for record in records])
    columns: dict[str, Any] = {
        "prompt_len": [request.prompt_len for request in requests],
        "output_len": column(source, "output_length", [record.get("output_length") for record in records]),
        "arrival_time": times / 1000.0,
    }
    notes = [f"times read as milliseconds; {len(requests)} prompt lengths estimated from text"]
    return of_columns(columns, source, notes=notes, requests=requests)


def _are_seconds(records: Records, size: int) -> bool:
    """Whether times have a point and blocks are not those of Mooncake, which counts whole milliseconds."""
    return size != MOONCAKE and any(isinstance(record.get("timestamp"), float) for record in records)


def _ids(given: Any, row: int, source: str) -> NDArray[np.int64]:
    ids = given or []
    if not isinstance(ids, list) or any(type(item) is not int or abs(item) >= 2**63 for item in ids):
        raise DataError(
            f"{source!r}: hash_ids must be lists of whole numbers, row {row} has {str(given)[:40]!r}"
        )
    return np.array(ids, dtype=np.int64)


def block_size(records: Records) -> int:
    """Return the tokens of a block: of the usual sizes the one that most prompts agree with."""
    agree: Counter[int] = Counter()
    for record in records[:1000]:
        length, ids = number(record.get("input_length")), record.get("hash_ids")
        if length and usable(length) and isinstance(ids, list) and ids:
            agree.update(size for size in _SIZES if math.ceil(length / size) == len(ids))
    if not agree or agree[MOONCAKE] == max(agree.values()):
        return MOONCAKE
    return max(_SIZES, key=lambda size: agree[size])
