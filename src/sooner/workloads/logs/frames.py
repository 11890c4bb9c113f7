"""JSON as pandas writes a frame: by columns (its default), by rows, in lists, or split from its header."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TELLING = ("prompt", "messages", "conversation", "conversations", "instruction", "input", "prompt_len")


def rows(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]] | None:
    """Return the rows of a frame, None where a record is none."""
    columns: Any = record.get("columns")
    data: Any = record.get("data")
    if _of(columns, str) and _of(data, list):
        return ({str(name): cell for name, cell in zip(columns, row, strict=False)} for row in data)
    values = list(record.values())
    if not values:
        return None
    if all(isinstance(value, Mapping) for value in values):
        if all(str(name).isdigit() for name in record):
            return iter(values)
        first = list(values[0])
        told = any(name in _TELLING for name in record)
        if (
            told
            and first
            and all(str(name).isdigit() for name in first)
            and all(list(v) == first for v in values)
        ):
            return ({name: record[name][row] for name in record} for row in first)
    if (
        len(record) > 1
        and _of(record.get("prompt"), str)
        and all(_as_long(v, record["prompt"]) for v in values)
    ):
        return ({name: record[name][row] for name in record} for row in range(len(record["prompt"])))
    return None


def _of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)


def _as_long(value: Any, other: list[Any]) -> bool:
    return isinstance(value, list) and len(value) == len(other)
