"""A request's way through the gateway, and the engines it may go to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sooner.gateway.admission.reading import Asked
from sooner.gateway.admission.room import Room, Waiting
from sooner.gateway.engines.backend import Backend
from sooner.ordering.order import Mean


@dataclass(slots=True, eq=False, kw_only=True)
class Visit(Waiting):
    """A request from its arrival until its reply has ended."""

    asked: Asked
    pool: Pool
    granted: asyncio.Future[Backend] | None = None
    tried: set[str] = field(default_factory=set)
    rank: int = 0  # how many waited when it came, itself included; 0: it never waited
    scored: bool = False
    charged: float = 0.0  # tokens that its tenant was charged with, while it runs
    admitted: float = 0.0  # tokens that were taken from its tenant's limit
    served: float = 0.0  # tokens that were really done
    slice: int = 0  # tokens at most of its next slice; 0: the whole reply
    last: str = ""  # the engine of its last slice

    def expect(self) -> None:
        """Reckon how long it will run, from what its pool has learned."""
        if self.pool.cost.value:
            self.service = self.pool.service.value * self.tokens / self.pool.cost.value


@dataclass(slots=True, eq=False)
class Pool:
    """The engines that serve `model` and its like at `path`, and who waits for them."""

    model: str
    path: str
    backends: Sequence[Backend]
    room: Room[Visit]
    clock: Callable[[], float]
    service: Mean = field(default_factory=lambda: Mean(0.02))  # seconds that a request runs
    cost: Mean = field(default_factory=lambda: Mean(0.02))  # its predicted tokens
    made: Mean = field(default_factory=lambda: Mean(0.02))  # its tokens as they came

    @property
    def capacity(self) -> int:
        """How many may run at once."""
        now = self.clock()
        return sum(backend.limit for backend in self.backends if backend.accepts(now))

    def free(self, now: float) -> bool:
        """Return whether an engine takes another request."""
        return any(backend.accepts(now) and backend.in_flight < backend.limit for backend in self.backends)

    @property
    def promise(self) -> float:
        """How many times as many could run as the bounds allow now, for those are still being found."""
        now = self.clock()
        alive = [backend.window for backend in self.backends if backend.accepts(now)]
        now_at_once = sum(window.limit for window in alive)
        return sum(window.potential for window in alive) / now_at_once if now_at_once else 1.0

    @property
    def pace(self) -> float:
        """Predicted tokens a second with all engines full (Little's law); 0: unknown."""
        return self.capacity * self.cost.value / self.service.value if self.service.value else 0.0

    def seconds(self, tokens: float) -> float | None:
        """Return how long the engines need for `tokens`, None while unknown."""
        pace = self.pace
        return tokens / pace if pace else None
