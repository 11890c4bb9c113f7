"""What a user may set of the page: when a reply is in time, and how often it is asked what it was worth."""

from __future__ import annotations

from dataclasses import dataclass

from sooner.core import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SloSettings:
    """When a reply counts as in time, for goodput. Times in seconds.

    Its first token is to come within `ttft` of its arrival, where it is streamed, and its end within
    `ttft` and `tpot` for each of its tokens.
    """

    ttft: float = 2.0
    tpot: float = 0.1

    def __post_init__(self) -> None:
        for name in ("ttft", "tpot"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"slo.{name}={getattr(self, name)!r}, allowed: > 0 [s]")

    def in_time(self, first: float | None, total: float, tokens: int) -> bool:
        """Return whether a whole reply was: its first token [s] where that was seen, its end [s]."""
        return (first is None or first <= self.ttft) and total <= self.ttft + self.tpot * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatifSettings:
    """How often the journal is asked what arrival order would have done. Times in seconds.

    Every `every` the last `days` are replayed, of them the last `most` requests, by a process that goes
    behind all others. `every` 0: never.
    """

    every: float = 3600.0
    days: float = 7.0
    most: int = 20_000

    def __post_init__(self) -> None:
        for name, good, allowed in (
            ("every", self.every >= 0, ">= 0 [s]; 0: never"),
            ("days", self.days > 0, "> 0"),
            ("most", self.most >= 20, ">= 20 [requests]"),
        ):
            if not good:
                raise ConfigError(f"whatif.{name}={getattr(self, name)!r}, allowed: {allowed}")
