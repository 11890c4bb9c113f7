"""JSON however it is laid out: one value a line, a list, or whole values one after another.

What is broken is counted and passed over; the next whole value is found by matching brackets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sooner.core import DataError
from sooner.workloads.logs.report import Report

ALLOWED = "JSON with `prompt` or `messages`, and `output_len` or `output_tokens`"

CUT_OFF = "an end that is cut off"
BROKEN = "JSON that is broken"

_DECODER = json.JSONDecoder(strict=False)
_SPACE = re.compile(r"[\s,]*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)
_LIST = re.compile(r'\s*\[\s*(?:[\[{"\]]|\Z)')
_VALUE = re.compile(r'\s*(?:\{|\[\s*(?:[\[{"\]]|\Z))')
_NEXT = re.compile(r"\n[ \t]*(?=[\[{])")


class _Bad(NamedTuple):
    """Why a text is no JSON value."""

    reason: str


def values(text: str, name: str, report: Report) -> Iterator[Any]:
    """Yield the JSON values in `text`.

    Raises DataError where a line between JSON values is no JSON at all, so that this is another file.
    """
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        return
    first = _value(lines[0][1])
    broken = isinstance(first, _Bad)
    if (isinstance(first, list) and len(lines) == 1) or (broken and _LIST.match(text)):
        yield from _items(text, report)
    elif broken and text.lstrip().startswith("{") and (len(lines) == 1 or _is_bad(lines[1][1])):
        yield from _whole(text, 0, report)
    else:
        yield from _lines(lines, name, report)


def items(text: str) -> Iterator[Any]:
    """Yield the items of a JSON list one at a time; a list that is cut off ends with its last whole item."""
    yield from _items(text, Report())


def is_message(value: object) -> bool:
    """Return whether a value looks like one message of a conversation."""
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(value.get(name), str) for name in ("role", "from")) and "conversations" not in value


def _lines(lines: list[tuple[int, str]], name: str, report: Report) -> Iterator[Any]:
    last = lines[-1][0]
    for at, (number, line) in enumerate(lines):
        value = _value(line)
        if not isinstance(value, _Bad):
            yield from _records(value)
        elif number == last and at > 0:
            report.drop("a last line that is cut off" if value.reason == BROKEN else value.reason)
        elif _VALUE.match(line) and len(lines) > 1:
            report.drop(value.reason, f"the first: line {number}")
        elif at == 0 and len(lines) > 1 and line.rstrip().endswith(("}", "]")):
            report.drop("a first line that is cut off")
        else:
            raise DataError(f"{name!r}, line {number} is not JSON: {line.strip()[:60]!r}; allowed: {ALLOWED}")


def _records(value: Any) -> Iterator[Any]:
    """The records in one line: the value, or the items of a list that is no conversation."""
    if isinstance(value, list) and value and not all(map(is_message, value)):
        yield from value
    else:
        yield value


def _items(text: str, report: Report) -> Iterator[Any]:
    """The items of a list; a list of messages is one conversation."""
    first = text.find("[") + 1
    whole = _value(text)
    if isinstance(whole, list) and whole and all(map(is_message, whole)) and _is_conversation(whole):
        yield whole
        return
    yield from _whole(text, first, report)
    if not text.rstrip().endswith("]") and CUT_OFF not in report.dropped:
        report.notes.append("a list has no end: it is cut off after a whole item")


def _is_conversation(messages: list[Any]) -> bool:
    """Whether messages are one conversation, and not rows that each are one message of a tree."""
    return not any("parent_id" in message for message in messages)


def _whole(text: str, at: int, report: Report) -> Iterator[Any]:
    """Whole values one after another, up to a bracket that closes what is around them."""
    at = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # matches the empty string too
    while at < len(text) and text[at] != "]":
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            end = _end(text, at) if text[at] in "{[" else _later(text, at)
            if end is None:
                report.drop(CUT_OFF)
                return
            report.drop(_reason(error), f"the first: line {text.count(chr(10), 0, at) + 1}")
            at = end
        else:
            yield value
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _end(text: str, start: int) -> int | None:
    """Where the broken value that begins at `start` ends; None where nothing whole comes after it."""
    opened: list[str] = []
    for found in _TOKEN.finditer(text, start):
        mark = found[0]
        if mark in ("{", "["):
            opened.append(mark)
        elif mark in ("}", "]"):
            opener = "{" if mark == "}" else "["
            if opener not in opened:  # it closes what is around the value
                break
            while opened.pop() != opener:
                pass
            if not opened:
                return found.end()
    return _later(text, start)


def _later(text: str, start: int) -> int | None:
    found = _NEXT.search(text, start + 1)
    return found.end() if found else None


def _is_bad(line: str) -> bool:
    return isinstance(_value(line), _Bad)


def _value(line: str) -> Any:
    try:
        return _DECODER.decode(line.strip().lstrip("\ufeff").removesuffix(","))
    except (ValueError, RecursionError) as error:
        return _Bad(_reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "JSON that is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return BROKEN
    return "JSON with a number of too many digits"
