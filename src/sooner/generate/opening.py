"""How many requests a job keeps open at an engine: batch full, queue short, KV cache not overrun."""

from __future__ import annotations

from sooner.core import ConfigError

_FIRST, _LEAST, _MOST = 16, 2, 8192
_LEAP, _CREEP, _LESS = 1.5, 1.03, 0.95
_RESERVE = 0.1
"""Of those that run: so many may wait in the engine, so that a free slot is taken in the same step."""


class Opening:
    """The number of open requests, found from what the engine says runs and waits.

    What waits in the engine can no longer be ordered, and where the KV cache is full, a request that was
    preempted waits too, so both make it smaller. It leaps until something waited, and creeps from then on.
    While more run than at the last look, what waits is on its way in, prompt by prompt: that says nothing.
    """

    def __init__(self, fixed: int | None = None) -> None:
        if fixed is not None and fixed < 1:
            raise ConfigError(f"window={fixed}, allowed: at least 1 request")
        self._fixed = fixed
        self._size = float(fixed or _FIRST)
        self._found = False
        self._preempted: float | None = None
        self._ran = 0.0

    @property
    def size(self) -> int:
        """How many requests may be open."""
        return int(self._size)

    def look(self, running: float, waiting: float, preempted: float = 0.0) -> None:
        """Take in what an engine says of itself; `preempted` counts from its start."""
        before, self._preempted = self._preempted, preempted
        grew, self._ran = running > self._ran, running
        if self._fixed is not None:
            return
        if before is not None and preempted > before:
            self._found = True
            self._size = max(min(self._size, running) * _LESS, _LEAST)
            return
        reserve = max(2.0, _RESERVE * running)
        if waiting > reserve and grew:
            return
        if waiting > reserve:
            self._found = True
            self._size = max(min(self._size, running + waiting) - (waiting - reserve), running, _LEAST)
        elif waiting <= reserve / 2 and running + waiting >= self._size / 2:
            self._size = min(self._size * (_CREEP if self._found else _LEAP) + 1, _MOST)
