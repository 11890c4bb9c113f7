"""Which of the free engines a request goes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sooner.gateway.engines.backend import Backend
from sooner.gateway.visit import Visit


class Choice(Protocol):
    """A rule of routing; it is told what goes where, and what has ended."""

    def choose(self, free: Sequence[Backend], request: Visit) -> Backend:
        """Return the engine for a request; `free` has at least one."""

    def began(self, request: Visit, backend: Backend) -> None:
        """Say that a request goes to an engine."""

    def ended(self, request: Visit, backend: Backend) -> None:
        """Say that it is over there."""

    def learn(self, backend: Backend, running: int, prompt_len: float, made: int, seconds: float) -> None:
        """Take in how long an engine took for `made` tokens, `running` at once."""


class LeastWork:
    """The engine with the least predicted work, what its cache holds of the prompt taken off."""

    def choose(self, free: Sequence[Backend], request: Visit) -> Backend:
        """Return the engine that costs least; of equals the emptiest."""
        if len(free) == 1:
            return free[0]
        return min(
            free,
            key=lambda backend: (backend.cost(request.work_at(backend)), backend.in_flight / backend.limit),
        )

    def began(self, request: Visit, backend: Backend) -> None:
        """Do nothing: an engine knows what runs there."""

    def ended(self, request: Visit, backend: Backend) -> None:
        """Do nothing: an engine knows what runs there."""

    def learn(self, backend: Backend, running: int, prompt_len: float, made: int, seconds: float) -> None:
        """Do nothing."""
