"""What the dispatcher works with: a request's way, the engines it may go to, and why it is turned away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sooner.gateway.admission.reading import Asked
from sooner.gateway.admission.room import Room
from sooner.gateway.engines.backend import Backend
from sooner.ordering.order import Mean

COUNTERS = {
    "requests": "Requests that came to a generating endpoint",
    "finished": "Requests whose reply was handed on to its end",
    "refused_full": "Requests refused because the waiting room, or the tenant's part of it, was full",
    "refused_wait": "Requests refused because they would wait too long",
    "refused_deadline": "Requests refused because their deadline was out of reach",
    "refused_down": "Requests refused because no engine for their model was up",
    "refused_limit": "Requests refused because of their tenant's limits",
    "client_gone": "Requests whose client left before the end",
    "retries": "Requests sent to another engine before their first byte",
    "upstream_errors": "Failures of engines, one for each try",
    "cut_streams": "Replies that an engine broke off after the first byte",
    "journal_lost": "Finished requests that could not be written to the journal",
    "journal_failures": "Tries to write the journal that failed; its rows wait",
    "scored": "Requests whose score came while they waited",
    "scorer_timeouts": "Requests that kept their neutral place because no score came in time",
    "scorer_failures": "Scores that the ranker could not give",
    "scorer_restarts": "Times the scorer process was started again",
    "policy_errors": "Keys that the policy could not give; such a request takes its arrival's place",
    "hook_errors": "Exceptions that were caught",
}


class Refused(Exception):
    """A request is turned away: `reason` is a counter's name, `retry_after` [s] None where unknown."""

    def __init__(self, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after


class NoBackend(Exception):
    """No engine serves the model, or none is up."""

    def __init__(self, message: str, known: bool) -> None:
        super().__init__(message)
        self.known = known


@dataclass(slots=True, eq=False)
class Place:
    """A request's way through the gateway, kept as `Waiting.host`."""

    asked: Asked
    pool: Pool
    granted: asyncio.Future[Backend] | None = None
    tried: set[str] = field(default_factory=set)
    rank: int = 0  # where it stood when it came, 1 is next; 0: it never waited
    scored: bool = False
    charged: float = 0.0  # work that its tenant was charged with, while it runs
    admitted: float = 0.0  # work that was taken from its tenant's limit
    served: float = 0.0  # work that was really done
    slice: int = 0  # tokens at most of its next slice; 0: the whole reply
    last: str = ""  # the engine of its last slice


@dataclass(slots=True, eq=False)
class Pool:
    """The engines that serve `model` and its like, and who waits for them."""

    model: str
    backends: Sequence[Backend]
    room: Room
    clock: Callable[[], float]
    service: Mean = field(default_factory=lambda: Mean(0.02))  # seconds that a request runs
    cost: Mean = field(default_factory=lambda: Mean(0.02))  # its predicted work

    @property
    def capacity(self) -> int:
        """How many may run at once."""
        now = self.clock()
        return sum(one.limit for one in self.backends if one.open(now))

    def free(self, now: float) -> bool:
        """Return whether an engine takes another request."""
        return any(one.open(now) and one.in_flight < one.limit for one in self.backends)

    @property
    def promise(self) -> float:
        """How many times as many could run as the bounds allow now, for those are still being found."""
        now = self.clock()
        alive = [one.window for one in self.backends if one.open(now)]
        now_at_once = sum(one.limit for one in alive)
        return sum(one.potential for one in alive) / now_at_once if now_at_once else 1.0

    @property
    def pace(self) -> float:
        """Predicted work a second with all places taken (Little's law); 0: unknown."""
        return self.capacity * self.cost.value / self.service.value if self.service.value else 0.0

    def seconds(self, amount: float) -> float | None:
        """Return how long the engines need for `amount` of work, None while unknown."""
        pace = self.pace
        return amount / pace if pace else None
