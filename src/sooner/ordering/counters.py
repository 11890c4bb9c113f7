"""Counts by name, and warnings that do not flood a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

_QUIET = 30.0  # seconds between two warnings of one kind


class Counters:
    """Counts by name; incremented by the host's own thread and the scorer's client."""

    def __init__(self, names: Iterable[str], logger: logging.Logger) -> None:
        self.counts: dict[str, int] = dict.fromkeys(names, 0)
        self.logger = logger
        self._warned: dict[str, float] = {}

    def add(self, name: str, n: int = 1) -> None:
        """Count `n` more of `name`."""
        self.counts[name] += n

    def warn(self, name: str, message: str, *arguments: object) -> None:
        """Count one of `name` and log a warning, of each kind at most one in 30 seconds."""
        self.counts[name] += 1
        now = time.monotonic()
        if now - self._warned.get(name, -_QUIET) >= _QUIET:
            self._warned[name] = now
            self.logger.warning(
                message + " (%d so far; further ones are counted, not logged, for %d s)",
                *arguments,
                self.counts[name],
                _QUIET,
            )
