"""What a record of a log means: one file a shape, and each registers itself.

A new shape is one new file here: a function under `@shape`, that yields an `Exchange` for each request of
a record it recognises, or a `Dropped` with the reason.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from sooner.workloads.logs.exchange import Exchange
from sooner.workloads.logs.report import Report

Record: TypeAlias = Mapping[str, Any]


class Dropped(NamedTuple):
    """Why a record, or a part of it, tells nothing about replies."""

    reason: str


Read: TypeAlias = Callable[[Record, Report], Iterator[Exchange | Dropped]]


@dataclass(frozen=True, slots=True)
class LogShape:
    """A shape: its name, how a record of it is recognised, and how one is read."""

    name: str
    recognises: Callable[[Record], bool]
    read: Read


_SHAPES: list[LogShape] = []


def shape(name: str, *, when: Callable[[Record], bool]) -> Callable[[Read], Read]:
    """Register how records of one shape are read; the first that recognises a record reads it."""

    def register(read: Read) -> Read:
        _SHAPES.append(LogShape(name, when, read))
        return read

    return register


@cache
def known() -> tuple[LogShape, ...]:
    """Return every shape in the order of their files' names; `plain` takes what is left."""
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        importlib.import_module(f"{__name__}.{module}")
    return tuple(sorted(_SHAPES, key=lambda found: found.name == "plain"))


def read(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Yield what a record says of each request in it, by the first shape that recognises it."""
    found = next(found for found in known() if found.recognises(record))
    told = False
    for item in found.read(record, report):
        told = True
        yield item
    if not told:
        yield Dropped(f"a record of {found.name} in which nothing is asked")
