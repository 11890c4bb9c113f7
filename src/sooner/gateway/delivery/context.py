"""What whole and sliced delivery share: the dispatcher, the client of engines, the notes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from aiohttp import web

from sooner.core import EngineError
from sooner.gateway.admission import headers
from sooner.gateway.admission.reading import Asked
from sooner.gateway.admission.refusals import KeyRevoked
from sooner.gateway.delivery import relay
from sooner.gateway.delivery.backlog import Backlog
from sooner.gateway.delivery.retries import Retries
from sooner.gateway.delivery.uncut import Uncut
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.engines.backend import Backend
from sooner.gateway.engines.client import Call, EngineClient, Sent
from sooner.gateway.settings import GatewaySettings
from sooner.gateway.telemetry import Telemetry
from sooner.gateway.tracing import EngineCall
from sooner.gateway.visit import Visit


class Finished(NamedTuple):
    """What is known of a request once it is over; times are durations [s], lengths tokens."""

    id: str
    tenant: str
    asked: Asked
    backend: str
    arrival: float  # Unix time
    wait: float
    first_byte: float
    total: float
    prompt_len: int
    output_len: int
    counted: bool
    status: int
    score: float | None
    predicted_len: float | None
    sender: str = ""  # hashes of the groups that it was learned in
    template: str = ""
    trace: str = ""  # the id of its trace, where that is sampled


class Delivery:
    """Lives in one event loop, as long as the gateway."""

    def __init__(
        self, settings: GatewaySettings, dispatcher: Dispatcher, finished: Callable[[Finished], None]
    ) -> None:
        self.settings = settings
        self.dispatcher = dispatcher
        self.client = EngineClient(settings.limits)
        self.backlog = Backlog(settings.limits)
        self.retries = Retries(dispatcher, settings.limits)
        self.telemetry = Telemetry()
        self.uncut = Uncut()
        self._finished = finished

    def take(self, settings: GatewaySettings) -> None:
        """Take settings that were read again."""
        self.settings = settings
        self.client.limits = self.backlog.limits = self.retries.limits = settings.limits

    async def slot(self, waiting: Visit) -> Backend:
        """Return the engine a request may go to, once it is its turn. Raises TurnedAway.

        A key that was revoked meanwhile buys no place.
        """
        backend = await self.dispatcher.slot(waiting)
        if waiting.good():
            return backend
        self.dispatcher.over(waiting, backend)
        raise KeyRevoked("the key was revoked while the request waited")

    async def send(
        self, request: web.BaseRequest, waiting: Visit, backend: Backend, body: bytes, *, chunks: bool = True
    ) -> Sent:
        """Send the request; return once the head of the reply has come. Raises EngineError.

        Without `chunks` the body comes without its chunks' framing. A redirection is an error: it would
        tell the client where the engine is.
        """
        asked = waiting.asked
        key = None if asked.prioritised else waiting.ticket.key
        chunks = chunks and request.version >= (1, 1)
        path = asked.endpoint.path
        trace = waiting.trace
        ours = {} if trace is None else trace.sent(_call(asked, backend), waiting.rank)
        lines = headers.forwarded(
            request.headers.items(), backend.settings.kind, path, waiting.id, asked.content_type, ours
        )
        call = Call("POST", path + asked.query, lines, body, key, chunks, waiting.tenant)
        sent = await self.client.send(backend, call)
        if trace is not None:
            trace.first_byte(sent.began, sent.first_byte, sent.head.status, stream=asked.stream)
        if 300 <= sent.head.status < 400:
            self.client.drop(sent.connection)
            raise EngineError(f"backend {backend.name} redirects {path} ({sent.head.status})")
        waiting.connection = sent.connection
        return sent

    def learn(self, sent: Sent, prompt_len: int, waiting: Visit) -> None:
        """Take from a streamed reply how long the engine's steps last, and whether it queues."""
        backend, connection = sent.backend, sent.connection
        if connection.events > 1 and not connection.slowed:
            gap = (connection.last_time - connection.first_time) / (connection.events - 1)
            backend.window.step(gap, waiting.tenant)
            computed = max(1, round(prompt_len * waiting.computed))
            beside = 0.5 * (sent.beside + backend.in_flight)
            self.dispatcher.replied(backend, computed, sent.first_byte, gap, beside)
        hungry = self.dispatcher.queued > 0
        backend.window.latency(
            sent.first_byte, prompt_len, backend.in_flight, hungry, waiting.tenant, sent.beside
        )

    def note(
        self, waiting: Visit, sent: Sent, arrival: float, came: float, wait: float, used: relay.Usage,
        status: int,
    ) -> None:  # fmt: skip
        """Take note of a reply that is over; `came` and `arrival` are both when it came, in two clocks."""
        ticket = waiting.ticket
        groups = self.dispatcher.ended(waiting, used.output_len, status, cut=used.cut)
        total = time.monotonic() - came
        trace = "" if waiting.trace is None else waiting.trace.id
        self.telemetry.wait.add(wait, trace)
        self.telemetry.first_byte.add(sent.first_byte, trace)
        self.telemetry.total.add(total, trace)
        self._finished(
            Finished(
                waiting.id, waiting.tenant, waiting.asked, sent.backend.name, arrival, wait, sent.first_byte,
                total, used.prompt_len or 0, used.output_len, used.counted, status,
                ticket.score if waiting.scored else None, ticket.predicted_len if waiting.scored else None,
                *groups, trace,
            )
        )  # fmt: skip

    def extra(self, waiting: Visit, wait: float) -> dict[str, str]:
        """Return the headers that say what happened here."""
        extra = {
            "x-sooner-request-id": waiting.id,
            "x-sooner-wait-ms": f"{wait * 1000:.1f}",
            "x-sooner-rank": str(waiting.rank),
        }
        if waiting.scored and math.isfinite(waiting.ticket.predicted_len):
            extra["x-sooner-predicted-tokens"] = f"{waiting.ticket.predicted_len:.0f}"
        return extra


def _call(asked: Asked, backend: Backend) -> EngineCall:
    """Return what a trace tells of a request to an engine."""
    address, said = backend.address, asked.request.signals
    return EngineCall(
        asked.endpoint.path, asked.model, backend.settings.kind, address.host, address.port, asked.stream,
        said.max_tokens, said.temperature,
    )  # fmt: skip
