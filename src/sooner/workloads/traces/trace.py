"""Requests as columns: what every format of a trace becomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner.chat import ChatRequest
from sooner.core import DataError
from sooner.workloads.numbers import number, seconds

Column = NDArray[np.float64]

LENGTHS = ("prompt_len", "output_len")
NAMED = ("tenant", "sender")
"""Columns that may hold names; each name becomes a number, in the order in which names come."""

_LARGEST = 1e9
"""A length or a level is below this."""

_ABSENT = {"deadline": math.inf, "cancel_time": math.inf, "tenant": 0.0, "sender": 0.0, "level": 0.0}
"""What a missing entry means: never, the first tenant and sender, the most urgent class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """n requests as columns (n,), arrivals never falling; times [s], lengths [tokens].

    What the source does not hold is None. `blocks` holds each request's prefix as ids of blocks of
    `block_size` tokens: equal ids are equal content. `requests` are what was asked, where that
    is known. `names` says what the numbers of `tenant` and `sender` stand for, `notes` what was dropped
    and how the source was understood.
    """

    prompt_len: Column
    output_len: Column
    arrival_time: Column | None = None
    tenant: Column | None = None
    sender: Column | None = None
    level: Column | None = None
    deadline: Column | None = None
    cancel_time: Column | None = None
    score: Column | None = None
    predicted_len: Column | None = None
    blocks: Sequence[NDArray[np.int64]] | None = None
    block_size: int = 512
    requests: Sequence[ChatRequest] | None = None
    names: Mapping[str, Sequence[str]] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.prompt_len.shape[0])

    def noted(self, *notes: str) -> Trace:
        """Return the trace with more notes."""
        return replace(self, notes=(*self.notes, *notes))


def of_columns(columns: Mapping[str, Any], source: str, *, notes: Sequence[str] = (), **rest: Any) -> Trace:
    """Return a trace of columns, sorted by arrival where that is known; lengths are at least 1.

    A row with a length below 0 is a request that failed, and one without its arrival cannot be placed
    among others that have theirs: both are dropped, and `notes` say how many. Raises DataError where a
    length is no number or no request is left.
    """
    made = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    said = list(notes)
    for name in LENGTHS:
        bad = np.flatnonzero(~(made[name] < _LARGEST))  # and what is no number
        if bad.size:
            raise DataError(
                f"{source!r}: a trace's {name} must be a number in every row; {bad.size} are not, "
                f"row {bad[0] + 1} the first"
            )
    if "level" in made and not np.all(np.abs(made["level"]) < _LARGEST):
        raise DataError(f"{source!r}: a trace's level must be a number below {_LARGEST:.0f}")
    kept = (made["prompt_len"] >= 0) & (made["output_len"] >= 0)
    _say(said, ~kept, "rows dropped: a length below 0, a request that failed")
    kept &= _placed(made, kept, said)
    made = {name: column[kept] for name, column in made.items()}
    rest = {name: _taken(values, kept) for name, values in rest.items()}
    if made["prompt_len"].size == 0:
        raise DataError(f"{source!r}: the trace holds no request; allowed: at least 1")
    _say(said, made["output_len"] == 0, "replies of 0 tokens were taken for 1")
    for name in LENGTHS:
        made[name] = np.maximum(made[name], 1.0)
    return Trace(**_sorted(made, rest), notes=tuple(said))


def _placed(made: dict[str, Column], kept: NDArray[np.bool_], said: list[str]) -> NDArray[np.bool_]:
    """Which rows have their place in time; where most have none, times are left out."""
    times = made.get("arrival_time")
    if times is None:
        return kept
    known = np.isfinite(times)
    missing = int((kept & ~known).sum())
    if not missing:
        return kept
    if 2 * missing < int(kept.sum()):
        said.append(f"{missing} rows dropped: no arrival time, which the others have")
        return known
    del made["arrival_time"]
    if known.any():
        said.append(f"{missing} of {int(kept.sum())} rows have no arrival time, so none is used")
    return kept


def _sorted(made: dict[str, Column], rest: dict[str, Any]) -> dict[str, Any]:
    times = made.get("arrival_time")
    if times is None:
        return {**made, **rest}
    order = np.argsort(times, kind="stable")
    made = {name: column[order] for name, column in made.items()}
    for name in ("deadline", "cancel_time"):
        if name in made:
            made[name] = made[name] - times.min()
    made["arrival_time"] = made["arrival_time"] - times.min()
    return {**made, **{name: _taken(values, order) for name, values in rest.items()}}


def _taken(values: Any, rows: NDArray[Any]) -> Any:
    if not isinstance(values, list):
        return values
    index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
    return [values[i] for i in index.tolist()]


def _say(said: list[str], rows: NDArray[np.bool_], what: str) -> None:
    if count := int(rows.sum()):
        said.append(f"{count} {what}")


def column(source: str, name: str, values: Sequence[Any]) -> Column:
    """Return values as floats (n,), NaN for those that are missing. Raises DataError for text."""
    found = np.full(len(values), math.nan)
    for row, value in enumerate(values):
        if value is None or value == "":
            continue
        read = number(value)
        if read is None:
            raise DataError(f"{source!r}: {name} must be a number, row {row + 1} has {str(value)[:40]!r}")
        found[row] = read
    return found


def moments(source: str, name: str, values: Sequence[Any]) -> Column:
    """Return dates or numbers of any unit of the epoch as seconds (n,), NaN for those that are missing.

    Raises DataError for what is neither.
    """
    found = np.full(len(values), math.nan)
    for row, value in enumerate(values):
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            continue
        moment = seconds(value)
        if moment is None and number(value) is None:
            raise DataError(
                f"{source!r}: {name} must be dates or seconds, row {row + 1} has {str(value)[:40]!r}"
            )
        found[row] = math.nan if moment is None else moment
    return found


def coded(source: str, name: str, values: Sequence[Any]) -> tuple[Column, list[str]]:
    """Return a column of names as numbers (n,), and the names; numbers stay as they are, without names."""
    given = [value for value in values if value is not None and value != ""]
    numbers = [number(value) for value in given]
    if all(value is not None and value.is_integer() and abs(value) < _LARGEST for value in numbers):
        return column(source, name, values), []
    codes: dict[str, int] = {}
    found = [
        math.nan if value is None or value == "" else codes.setdefault(str(value), len(codes))
        for value in values
    ]
    return np.array(found, dtype=np.float64), list(codes)


def absent(columns: dict[str, Column]) -> None:
    """Put what a missing entry means in its place."""
    for name, meant in _ABSENT.items():
        if name in columns:
            columns[name] = np.nan_to_num(columns[name], nan=meant, posinf=math.inf)
