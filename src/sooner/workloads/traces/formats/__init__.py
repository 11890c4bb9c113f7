"""The formats of traces: one file a format, and each registers itself; the first record tells it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from sooner.workloads.traces.trace import Trace

Records: TypeAlias = Sequence[Mapping[str, Any]]
ReadTrace: TypeAlias = Callable[[Records, str], Trace]


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """A format: its name, how its first record is recognised, and how its records are read."""

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
    read: ReadTrace


_FORMATS: list[TraceFormat] = []


def trace_format(name: str, *, when: Callable[[Mapping[str, Any]], bool]) -> Callable[[ReadTrace], ReadTrace]:
    """Register how the records of one format are read: (records, the file's name) to a trace."""

    def register(read: ReadTrace) -> ReadTrace:
        _FORMATS.append(TraceFormat(name, when, read))
        return read

    return register


@cache
def known() -> tuple[TraceFormat, ...]:
    """Return every format in the order of their files' names; bare `counts` are tried last."""
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        importlib.import_module(f"{__name__}.{module}")
    return tuple(sorted(_FORMATS, key=lambda found: found.name == "counts"))


def of(records: Sequence[Any]) -> TraceFormat | None:
    """Return the format that the first record is of, None for what is no trace."""
    first = next((record for record in records if isinstance(record, Mapping)), None)
    return None if first is None else next((found for found in known() if found.recognises(first)), None)
