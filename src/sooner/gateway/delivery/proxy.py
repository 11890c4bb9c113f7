"""The way of one request: read, ordered, sent, handed on; tried elsewhere while nothing was seen of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

from aiohttp import web

from sooner.core import EngineError, UnknownName
from sooner.gateway.admission import reading
from sooner.gateway.admission.reading import Asked, BadRequest
from sooner.gateway.admission.room import Waiting
from sooner.gateway.admission.shares import work
from sooner.gateway.delivery import answers, relay, slicing
from sooner.gateway.delivery.stitch import Whole
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.engines.backend import Backend
from sooner.gateway.engines.connections import Connection, Cut
from sooner.gateway.engines.http1 import Head
from sooner.gateway.engines.kinds import with_priority
from sooner.gateway.places import NoBackend, Place, Refused
from sooner.gateway.settings import ClassSettings, GatewaySettings
from sooner.gateway.telemetry import Telemetry

logger = logging.getLogger("sooner.gateway")

GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")
_PARSED_ASIDE = 256 * 1024  # bytes; a larger body is parsed in a thread, so that nobody waits for it
_ELSEWHERE = frozenset((502, 503, 504))  # an engine that says this may have a healthy sister
_DEFAULT_CLASS = ClassSettings(name="default")


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


class Sent(NamedTuple):
    """A reply that began to come, and how it got here."""

    backend: Backend
    connection: Connection
    head: Head
    began: float
    first_byte: float


class Caller(NamedTuple):
    """Who asks: the tenant, and the classes it may use (empty: all)."""

    tenant: str
    classes: tuple[str, ...] = ()


class Proxy:
    """Takes requests to the engines and back. Lives in one event loop."""

    def __init__(
        self, settings: GatewaySettings, dispatcher: Dispatcher, finished: Callable[[Finished], None]
    ) -> None:
        self.dispatcher = dispatcher
        self.telemetry = Telemetry()
        self._finished = finished
        self._active: dict[Connection, bool] = {}  # whether the head has come
        self.uncut: set[str] = set()  # models whose replies cannot be continued
        self.take(settings)

    def take(self, settings: GatewaySettings) -> None:
        """Take settings, at the start and when they were read again."""
        self.settings = settings
        self._classes = {one.name: one for one in settings.classes}

    async def generate(self, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
        """Serve a request that makes the engine generate: in its turn."""
        counters = self.dispatcher.counters
        counters.add("requests")
        try:
            body, asked = await self._read(request)
            level = self._class_of(request, caller)
            waiting = self.dispatcher.arrive(
                self._id(request), caller.tenant, level.level, asked, level.deadline_ms
            )
        except (BadRequest, UnknownName) as error:
            return answers.error(400, str(error), "bad_request")
        except NoBackend as error:
            return answers.error(404, str(error), "model_not_found")
        except Refused as refused:
            counters.add(refused.reason)
            return answers.refusal(refused)
        try:
            return await self._answer(request, waiting, body, time.time())
        except asyncio.CancelledError:
            counters.add("client_gone")
            raise
        except Refused as refused:
            counters.add(refused.reason)
            return answers.refusal(refused)
        except EngineError as error:
            return answers.error(502, f"no engine could serve this: {type(error).__name__}", "engine_failed")
        except ConnectionError:  # the client left in the moment its reply began
            counters.add("client_gone")
            return _gone()
        finally:
            self.dispatcher.leave(waiting)

    async def _read(self, request: web.BaseRequest) -> tuple[bytes, Asked]:
        """Return the body, with its model's alias resolved, and what it asks for. Raises BadRequest."""
        try:
            async with asyncio.timeout(self.settings.limits.body_time):
                body = await request.read()
        except TimeoutError as error:
            raise BadRequest(f"no body within {self.settings.limits.body_time:.0f} s") from error

        def read() -> tuple[bytes, Asked]:
            nonlocal body
            asked = reading.read(
                body,
                client_scores=self.settings.client_scores,
                deadline_ms=request.headers.get("x-sooner-deadline-ms"),
            )
            real = self.settings.aliases.get(asked.model)
            if real is None:
                return body, asked
            return reading.renamed(body, asked.model, real), asked._replace(model=real)

        return await asyncio.to_thread(read) if len(body) > _PARSED_ASIDE else read()

    def _class_of(self, request: web.BaseRequest, caller: Caller) -> ClassSettings:
        name = request.headers.get("x-sooner-class")
        if name is None or not self._classes:
            allowed = caller.classes[0] if caller.classes else "default"
            return self._classes.get(allowed, _DEFAULT_CLASS)
        known = caller.classes or tuple(self._classes)
        if name not in known:
            raise UnknownName("class", name[:40], known)
        return self._classes[name]

    def _id(self, request: web.BaseRequest) -> str:
        given = request.headers.get("x-request-id", "")
        if _ID.match(given) and given not in self.dispatcher.waiting:
            return given
        return secrets.token_hex(12)

    async def _answer(
        self, request: web.BaseRequest, waiting: Waiting, body: bytes, arrival: float
    ) -> web.StreamResponse:
        """Serve in slices where that is wanted and can be done, else whole."""
        cut = slicing.chosen(self, request, waiting, body)
        if cut is not None:
            with contextlib.suppress(Whole):
                return await slicing.Slicer(self, request, waiting, cut, arrival).run()
        return await self._serve(request, waiting, body, arrival)

    async def _serve(
        self, request: web.BaseRequest, waiting: Waiting, body: bytes, arrival: float
    ) -> web.StreamResponse:
        headers = relay.forwarded(request)
        tries = self.settings.limits.retries
        while True:
            backend = await self.dispatcher.place(waiting)
            served: float | None = None
            try:
                sent = await self.send(request, waiting, backend, headers, body)
                if sent.head.status in _ELSEWHERE and tries > 0 and self._another(waiting, backend):
                    self._drop(sent.connection)
                    backend.breaker.failed(time.monotonic())
                    raise EngineError(f"backend {backend.name} says {sent.head.status}")
                response, served = await self._hand_on(request, waiting, sent, arrival)
                return response
            except EngineError as error:
                self.dispatcher.counters.warn("upstream_errors", "backend %s: %s", backend.name, error)
                waiting.host.tried.add(backend.name)
                if tries <= 0:
                    raise
                tries -= 1
                self.dispatcher.counters.add("retries")
            finally:
                self.dispatcher.over(waiting, backend, served)

    def _another(self, waiting: Waiting, backend: Backend) -> bool:
        now = time.monotonic()
        place: Place = waiting.host
        return any(
            one is not backend and one.name not in place.tried and one.open(now)
            for one in place.pool.backends
        )

    async def send(
        self, request: web.BaseRequest, waiting: Waiting, backend: Backend, headers: bytes, body: bytes,
        *, chunks: bool = True,
    ) -> Sent:  # fmt: skip
        """Send the request; return once the head of the reply has come. Raises EngineError.

        Without `chunks` the body comes without its chunks' framing.
        """
        place: Place = waiting.host
        prioritised = backend.hand_on and not place.asked.prioritised
        sent_body = body
        if prioritised and backend.kind.priority is not None:
            key = waiting.ticket.key
            sent_body = with_priority(body, backend.kind.priority(key, backend.quantiles.place(key)))
        sent = await self._exchange(request, backend, headers, sent_body, chunks)
        if prioritised and sent.head.status == 400:
            self._drop(sent.connection)
            sent = await self._exchange(request, backend, headers, body, chunks)
            if sent.head.status != 400 and backend.hand_on:
                backend.hand_on = False
                logger.warning("backend %s takes no priority; order is kept here only", backend.name)
        return sent

    async def _exchange(
        self, request: web.BaseRequest, backend: Backend, headers: bytes, body: bytes, chunks: bool = True
    ) -> Sent:
        """Send once, and once more where an idle connection turned out to be closed. Raises EngineError."""
        fresh = False
        method = request.method
        whole = relay.request_bytes(method, request.rel_url.raw_path_qs, backend, headers, body)
        chunks = chunks and request.version >= (1, 1)
        while True:
            now = time.monotonic()
            try:
                connection = await backend.connections.get(fresh=fresh)
            except EngineError:
                backend.breaker.failed(now, at_once=True)
                raise
            began = time.monotonic()
            self._active[connection] = False
            try:
                connection.begin(whole, method, chunks=chunks)
                head = await connection.head
                self._active[connection] = True
                if head.status < 500:
                    backend.breaker.ok()
                return Sent(backend, connection, head, began, time.monotonic() - began)
            except EngineError as error:
                self._drop(connection)
                if isinstance(error, Cut) and error.reused and not error.started and not fresh:
                    fresh = True
                    continue
                backend.breaker.failed(now)
                raise
            except asyncio.CancelledError:
                self._drop(connection)
                raise

    def ended(self, connection: Connection) -> None:
        """Say that nobody waits for a connection's reply any more."""
        self._active.pop(connection, None)

    def _drop(self, connection: Connection) -> None:
        self._active.pop(connection, None)
        connection.abort()

    async def _hand_on(
        self, request: web.BaseRequest, waiting: Waiting, sent: Sent, arrival: float
    ) -> tuple[web.StreamResponse, float]:
        """Hand the reply on; return it and its work. Raises EngineError only while nothing was seen of it."""
        ticket, place = waiting.ticket, waiting.host
        wait = sent.began - ticket.arrival_time
        on = relay.Relay(request, sent.connection)
        status = sent.head.status
        response: web.StreamResponse | None = None
        try:
            response = await on.run(sent.head, self.extra(waiting, wait))
            sent.backend.connections.give_back(sent.connection)
        except EngineError as error:
            if not on.started:
                raise
            status = 0
            self.dispatcher.counters.warn("cut_streams", "backend %s: %s", sent.backend.name, error)
            sent.backend.breaker.failed(time.monotonic())
        finally:
            self._active.pop(sent.connection, None)
            if response is None:
                sent.connection.abort()  # the engine sees at once that nobody wants the reply
        used = relay.usage(sent.connection, place.asked.stream)
        prompt_len = ticket.prompt_len if used.prompt_len is None else used.prompt_len
        if 200 <= status < 300:
            self.dispatcher.finished(waiting, time.monotonic() - sent.began)
            self.dispatcher.counters.add("finished")
            if place.asked.stream:
                self.learn(sent, prompt_len)
        used = used._replace(prompt_len=prompt_len)
        self.note(waiting, sent, arrival, ticket.arrival_time, wait, used, status)
        return response or _gone(), work(prompt_len, used.output_len)

    def learn(self, sent: Sent, prompt_len: int) -> None:
        """Take from a streamed reply how long the engine's steps last, and whether it queues."""
        backend, connection = sent.backend, sent.connection
        if connection.events > 1 and not connection.slowed:
            gap = (connection.last_time - connection.first_time) / (connection.events - 1)
            backend.window.step(gap)
            self.dispatcher.replied(prompt_len, sent.first_byte, gap, backend.in_flight)
        hungry = self.dispatcher.queued > 0
        backend.window.latency(sent.first_byte, prompt_len, backend.in_flight, hungry)

    def note(
        self, waiting: Waiting, sent: Sent, arrival: float, came: float, wait: float, used: relay.Usage,
        status: int,
    ) -> None:  # fmt: skip
        """Take note of a reply that is over; `came` and `arrival` are both when it came, in two clocks."""
        ticket, place = waiting.ticket, waiting.host
        total = time.monotonic() - came
        self.telemetry.wait.add(wait)
        self.telemetry.first_byte.add(sent.first_byte)
        self.telemetry.total.add(total)
        self._finished(
            Finished(
                waiting.id, waiting.tenant, place.asked, sent.backend.name, arrival, wait, sent.first_byte,
                total, used.prompt_len or 0, used.output_len, used.counted, status,
                ticket.score if place.scored else None, ticket.predicted_len if place.scored else None,
            )
        )  # fmt: skip

    def extra(self, waiting: Waiting, wait: float) -> dict[str, str]:
        """Return the headers that say what happened here."""
        extra = {
            "x-sooner-request-id": waiting.id,
            "x-sooner-wait-ms": f"{wait * 1000:.1f}",
            "x-sooner-rank": str(waiting.host.rank),
        }
        if waiting.host.scored and math.isfinite(waiting.ticket.predicted_len):
            extra["x-sooner-predicted-tokens"] = f"{waiting.ticket.predicted_len:.0f}"
        return extra

    async def pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        """Hand any other request to a living engine, out of turn."""
        now = time.monotonic()
        alive = [one for one in self.dispatcher.backends if one.open(now)]
        if not alive:
            return answers.refusal(Refused("refused_down", "no engine is up", 5.0))
        backend = min(alive, key=lambda one: one.in_flight / one.settings.weight)
        connection: Connection | None = None
        try:
            async with asyncio.timeout(self.settings.limits.body_time):
                body = await request.read()
            sent = await self._exchange(request, backend, relay.forwarded(request), body)
            connection = sent.connection
            response = await relay.Relay(request, connection).run(sent.head, {})
            self._active.pop(connection, None)
            backend.connections.give_back(connection)
            connection = None
            return response
        except TimeoutError:
            return answers.error(408, "the body did not come", "timeout")
        except EngineError as error:
            self.dispatcher.counters.warn("upstream_errors", "backend %s: %s", backend.name, error)
            seen = connection is not None and connection.size > 0
            return _gone() if seen else answers.error(502, "the engine failed", "engine_failed")
        finally:
            if connection is not None:
                self._drop(connection)

    def expire(self, now: float) -> None:
        """Give up on engines that stopped sending, and on clients that left; `now` is the loop's time."""
        limits = self.settings.limits
        for connection, begun in list(self._active.items()):
            if connection.deserted:
                connection.let_go()
                continue
            allowed = limits.between_bytes if begun else limits.first_byte
            if now - connection.last_time > allowed:
                connection.expire(f"nothing came for {allowed:.0f} s")


def _gone() -> web.StreamResponse:
    """Return the answer where one has begun and its connection is closed already."""
    return web.Response(status=502)
