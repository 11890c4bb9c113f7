"""A request's way through the gateway, and the engines it may go to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sooner.gateway.admission.reading import Asked
from sooner.gateway.admission.room import Room
from sooner.gateway.admission.waiting import Waiting
from sooner.gateway.delivery.comments import Comments
from sooner.gateway.engines.backend import Backend
from sooner.gateway.engines.connections import Connection
from sooner.gateway.engines.paces import mixed
from sooner.gateway.tracing import RequestTrace
from sooner.ordering.order import Mean, Order
from sooner.ordering.ticket import Ticket


@dataclass(slots=True, eq=False, kw_only=True)
class Visit(Waiting):
    """A request from its arrival until its reply has ended."""

    asked: Asked
    pool: Pool
    granted: asyncio.Future[Backend] | None = None
    tried: set[str] = field(default_factory=set)
    barred: set[str] = field(default_factory=set)  # engines that it never goes to again
    tries: int = 0  # how often it was sent again
    lost: int = 0  # how many engines failed while it was in flight there
    rank: int = 0  # how many waited when it came, itself included; 0: it never waited
    scored: bool = False
    computed: float = 1.0  # part of its prompt that its engine has to compute
    charged: float = 0.0  # tokens that its tenant was charged with, while it runs
    load: float = 0.0  # work that its engine has of it, while it runs [s]
    admitted: float = 0.0  # tokens that were taken from its tenant's limit
    served: float = 0.0  # tokens that were really done
    slice: int = 0  # tokens at most of its next slice; 0: the whole reply
    last: str = ""  # the engine of its last slice
    good: Callable[[], bool] = lambda: True  # whether its key is good still
    cut: Callable[[ConnectionError], None] | None = None  # ends its reply, once that has begun
    connection: Connection | None = None  # its reply comes over it
    told: bool = False  # its reply has ended, and the learner was told
    trace: RequestTrace | None = None  # its spans, where OpenTelemetry is on
    comments: Comments | None = None  # what its client hears while it waits, where that is on

    @property
    def made(self) -> int:
        """Tokens of a streamed reply so far; 0 where that cannot be told."""
        streams = self.asked.stream and not self.slice and self.connection is not None
        return max(0, self.connection.events - 1) if streams and self.connection is not None else 0

    def work_at(self, backend: Backend) -> float:
        """Return its work at an engine [s]."""
        ticket = self.ticket
        return backend.work(self.asked.beginnings, ticket.prompt_len, ticket.reply_len, self.pool.order.pace)

    def expect(self) -> None:
        """Reckon how long it will run, from what its pool has learned."""
        if self.pool.load.value:
            self.service = self.pool.service.value * self.ticket.work / self.pool.load.value


class Newcomer(NamedTuple):
    """What is remembered of a request that came: an example of those to come."""

    ticket: Ticket
    tenant: str
    level: int


@dataclass(slots=True, eq=False)
class Pool:
    """The engines that serve `model` and its like at `path`, who waits for them, and in what order."""

    model: str
    path: str
    backends: Sequence[Backend]
    order: Order
    room: Room[Visit]
    clock: Callable[[], float]
    service: Mean = field(default_factory=lambda: Mean(0.02))  # seconds that a request runs
    cost: Mean = field(default_factory=lambda: Mean(0.02))  # its predicted tokens
    made: Mean = field(default_factory=lambda: Mean(0.02))  # its tokens as they came
    reply: Mean = field(default_factory=lambda: Mean(0.02))  # the tokens of its reply
    load: Mean = field(default_factory=lambda: Mean(0.02))  # its expected work [s]
    newcomers: deque[Newcomer] = field(default_factory=lambda: deque(maxlen=256))  # the latest arrivals

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

    def seconds(self, work: float) -> float | None:
        """Return how long the engines need for `work` [s of one of them], None while unknown.

        What they are seen to do in that time counts, so an error in all of the expectations cancels out.
        """
        done = self.capacity * self.load.value  # while a request runs
        return work * self.service.value / done if done and self.service.value else None

    @property
    def ahead(self) -> float:
        """The work that waits, for each of its engines [s]."""
        return self.order.backlog / max(sum(backend.healthy for backend in self.backends), 1)

    def take_pace(self) -> None:
        """Price what waits by the engines' paces as they are now known."""
        known = [backend.pace.pace for backend in self.backends if backend.pace.known]
        factor = self.order.set_pace(mixed(known))
        self.load.value *= factor
        self.room.reckon()
