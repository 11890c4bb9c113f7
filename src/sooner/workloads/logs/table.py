"""Tables as text: CSV with a header, whatever separates its columns."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from sooner.core import DataError
from sooner.workloads.logs.report import Report

_SEPARATORS = (",", ";", "\t", "|")
_TELLING = {
    *("prompt", "messages", "conversation", "output_len", "output_tokens", "completion_tokens"),
    *("prompt_len", "contexttokens", "request tokens", "num_prefill_tokens", "input_length"),
}
_DECIMAL_COMMA = re.compile(r"-?\d{1,3}(\.\d{3})+(,\d+)?|-?\d+,\d+")


def looks_like_one(text: str) -> bool:
    """Return whether a text without a telling name is a table that has a column of prompts or lengths."""
    first = text.lstrip("\n").split("\n", 1)[0]
    names = {name.strip(' "').lower() for name in first.split(_separator(first))}
    return len(names) > 1 and bool(names & _TELLING)


def rows(text: str, name: str, report: Report) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a table; an empty cell is None.

    Where semicolons separate columns a comma is a decimal point. Raises DataError for what is no table.
    """
    text = text.lstrip("\n")
    separator = _separator(text.split("\n", 1)[0])
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        for row in reader:
            if None in row:
                report.drop("a row of more cells than the header has", f"the first: line {reader.line_num}")
                continue
            yield {str(column).strip(): _cell(value, separator) for column, value in row.items()}
    except csv.Error as error:
        raise DataError(f"{name!r} is not a CSV with a header: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _separator(header: str) -> str:
    """What stands between the names of a header, outside of its quotes."""
    bare = re.sub(r'"(?:[^"]|"")*"', "", header)
    return max(_SEPARATORS, key=bare.count)


def _cell(value: Any, separator: str) -> Any:
    if value == "":
        return None
    if separator == ";" and isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value.strip()):
        return value.strip().replace(".", "").replace(",", ".")
    return value
