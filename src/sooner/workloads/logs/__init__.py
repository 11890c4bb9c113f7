"""Reading logs of finished requests: what was asked, and how many tokens the reply had.

`sources` finds records in files of any packing, encoding and layout; `shapes` say what a record means, one
file a shape; `rows` decides what counts. What is dropped, estimated or not believed is counted in the
report, and nothing is passed over in silence. `docs/logs.md` shows one of each shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sooner.core import DataError, MissingExtra
from sooner.workloads.logs import batches, parts, rows, sources
from sooner.workloads.logs.exchange import Count, LogRow
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.sources import items

__all__ = ["Count", "Log", "LogRow", "Report", "items", "of_records", "read", "tokenizer"]


class Log(NamedTuple):
    """The rows of a log, in its order, and the report on it."""

    rows: list[LogRow]
    report: Report


def read(
    path: str | Path, *, count: Count | None = None, first_turns: bool = False, model: str | None = None
) -> Log:
    """Return the finished requests in `path` ("-": standard input).

    `count` counts a reply's tokens where the record says no number; without it, a token is taken for
    every four bytes. `first_turns` keeps only requests before any reply, `model` those of one served
    model. A record that cannot be used is dropped and counted in the report. Raises DataError when the
    source cannot be read or holds no row.
    """
    report = Report()
    return of_records(
        sources.records(path, report), str(path), report, count=count, first_turns=first_turns, model=model
    )


def of_records(
    records: Iterable[Any],
    source: str,
    report: Report,
    *,
    count: Count | None = None,
    first_turns: bool = False,
    model: str | None = None,
) -> Log:
    """Return the finished requests in records that came from `source`, as `read` does."""
    found: list[tuple[LogRow, bool]] = []
    for number, record in enumerate(batches.joined(records, report)):
        for row, own_name in rows.rows(record, number, count, report, model):
            if first_turns and not rows.first_turn(row):
                report.drop("a later turn")
            else:
                found.append((row, own_name))
    report.rows = len(found)
    if not found:
        raise DataError(f"{source!r} has no usable request ({report}); allowed: {sources.ALLOWED}")
    return Log(parts.gathered(found), report)


def tokenizer(name: str) -> Count:
    """Return what counts tokens with the tokenizer `name`: a tokenizer.json, a folder or a hub's name.

    Raises MissingExtra without `tokenizers`, DataError when there is no such tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("tokenizers", "train") from error
    path = Path(name)
    try:
        if path.exists():
            made = Tokenizer.from_file(str(path / "tokenizer.json" if path.is_dir() else path))
        else:
            made = Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"no tokenizer {name!r}: {error}") from error
    return lambda text: len(made.encode(text, add_special_tokens=False).ids)
