"""Conversations that a log keeps in parts: `VY7cMKG_0`, `VY7cMKG_13`. A running number is no part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from sooner.workloads.logs.exchange import LogRow
from sooner.workloads.logs.messages import role_of

_PART = re.compile(r"(.+)_(\d+)", re.DOTALL)
_WORDS = re.compile(r"[a-z]+(?:[-_. ][a-z]+)*|[A-Z]+(?:[-_. ][A-Z]+)*|(?:[A-Z][a-z]+[-_. ]?)+")
_MOST_PARTS = 4.0
"""Parts that a conversation has in the mean, beyond which the number counts something else."""

_MANY = 20
"""So many names are those of conversations, however many parts each has."""


def gathered(rows: Sequence[tuple[LogRow, bool]]) -> list[LogRow]:
    """Return the rows, those of one conversation's parts under one name.

    The flag says that a row's conversation is the record's own name. Its number is a part where the parts
    follow one another, or where what stands before it is an id of which the log has many.
    """
    found = [_PART.fullmatch(row.conversation) if own else None for row, own in rows]
    parts: dict[str, dict[int, list[LogRow]]] = {}
    for match, (row, _) in zip(found, rows, strict=True):
        if match:
            parts.setdefault(match[1], {}).setdefault(int(match[2][:18]), []).append(row)
    several = sum(map(len, parts.values())) / max(len(parts), 1)
    ids = len(parts) > 1 and (several <= _MOST_PARTS or len(parts) >= _MANY)
    whole = {
        name
        for name, numbers in parts.items()
        if len(numbers) == 1 or (ids and not _WORDS.fullmatch(name)) or _follow(numbers)
    }
    return [
        replace(row, conversation=match[1]) if match and match[1] in whole else row
        for match, (row, _) in zip(found, rows, strict=True)
    ]


def _follow(numbers: dict[int, list[LogRow]]) -> bool:
    """Whether a later part goes on where an earlier one ended: with a reply, or with the same messages."""
    first, *later = (numbers[number] for number in sorted(numbers))
    for part in later:
        begin = part[0].messages
        if begin and role_of(begin[0]) == "assistant":
            return True
        before = first[-1].messages
        if before and len(begin) > len(before) and list(begin[: len(before)]) == list(before):
            return True
        first = part
    return False
