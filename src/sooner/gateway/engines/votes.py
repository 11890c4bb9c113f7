"""A number learned from several tenants: each says its own, and the middle one counts."""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import NamedTuple

GROUPS = 8
"""Tenants are put into so many groups, so that memory is bounded however many there are."""
FRESH = 60.0
"""Seconds after which a group that says nothing more has no voice."""


@lru_cache(maxsize=1024)
def group(tenant: str) -> int:
    """Return the group of a tenant, always the same."""
    return zlib.crc32(tenant.encode("utf-8", "replace")) % GROUPS


class Vote(NamedTuple):
    """What a group says."""

    value: float
    of: int


class Votes:
    """What each group of tenants says; `middle` is moved by no one group where there are three.

    Of two the smaller counts, and one that is alone is believed.
    """

    def __init__(self) -> None:
        self._said: dict[int, tuple[float, float]] = {}  # by group: value, when

    def say(self, of: int, value: float, now: float) -> None:
        """Take in what a group says at `now` [s]."""
        self._said[of] = value, now

    def middle(self, now: float) -> Vote | None:
        """Return the middle of what was said of late; None where nothing was."""
        fresh = sorted(Vote(value, of) for of, (value, when) in self._said.items() if now - when < FRESH)
        return fresh[(len(fresh) - 1) // 2] if fresh else None

    def forget(self) -> None:
        """Begin anew."""
        self._said.clear()
