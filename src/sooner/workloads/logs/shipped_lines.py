"""What shippers and loggers put around a line: Docker's and Google's JSON, prefixes, colours."""

from __future__ import annotations

import json
import re

_PREFIX = re.compile(r"\S+ (?:stdout|stderr) ([FP]) |[\w.-]+\s*\| ")
_LOGGER = re.compile(r"^[^{\n]{1,200}(?=\{)", re.MULTILINE)  # a time, a level, a name, and then JSON
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_KEYS = ("log", "textPayload", "MESSAGE", "message", "msg", "line", "body")
_OWN = ("prompt", "messages", "conversations", "input", "inputs", "request", "span")


def unwrapped(text: str) -> str:
    """Return the lines that a program wrote, without what a shipper put around them."""
    if "\x1b[" in text:
        text = _COLOUR.sub("", text)
    first = text.lstrip().split("\n", 1)[0]
    if _PREFIX.match(first):
        return _without_prefix(text)
    if _is_record_of_a_logger(first):
        return _LOGGER.sub("", text)
    key = _key(first)
    return text if key is None else _inner(text, key)


def _is_record_of_a_logger(line: str) -> bool:
    """Whether a line is a record as JSON behind what a logger puts before its messages."""
    found = _LOGGER.match(line)
    if found is None:
        return False
    try:
        record = json.loads(line[found.end() :])
    except (ValueError, RecursionError):
        return False
    return any(name in record for name in _OWN)


def _without_prefix(text: str) -> str:
    """The text without prefixes; Kubernetes cuts a long line into parts, all but the last marked P."""
    lines: list[str] = []
    for line in text.split("\n"):
        found = _PREFIX.match(line)
        bare = line[found.end() :] if found else line
        lines += [bare, "" if found and found[1] == "P" else "\n"]
    return "".join(lines)


def _key(line: str) -> str | None:
    """Under what name a shipper's JSON keeps the line itself, None where the JSON is a record of its own."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or any(name in record for name in _OWN):
        return None
    for name in _KEYS:
        value = record.get(name)
        if isinstance(value, str) and re.match(
            r"\s*\{|.*(?:Received request|Generated response|Receive:)", value
        ):
            return name
    return None


def _inner(text: str, key: str) -> str:
    lines = []
    for line in text.split("\n"):
        try:
            record = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            record = line
        value = record.get(key, "") if isinstance(record, dict) else line
        lines.append(str(value).rstrip("\n"))
    return "\n".join(lines)
