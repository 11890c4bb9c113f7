"""The way of one request: read, ordered, sent, handed on; tried elsewhere while nothing was seen of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

from aiohttp import web

from sooner.core import EngineError, UnknownName
from sooner.gateway import tracing
from sooner.gateway.admission import paths, reading
from sooner.gateway.admission.bodies import Bodies, Held
from sooner.gateway.admission.forms import BadRequest
from sooner.gateway.admission.paths import Called
from sooner.gateway.admission.reading import Asked
from sooner.gateway.admission.refusals import TurnedAway, UnknownModel
from sooner.gateway.admission.shares import charge
from sooner.gateway.delivery import answers, relay, sliced
from sooner.gateway.delivery.comments import Comments
from sooner.gateway.delivery.context import Delivery, Finished
from sooner.gateway.delivery.place import Place
from sooner.gateway.delivery.stitch import Whole
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.engines.client import Sent
from sooner.gateway.engines.connections import Cut, CutOff, KeyGone
from sooner.gateway.settings import ClassSettings, GatewaySettings
from sooner.gateway.tracing import RequestTrace
from sooner.gateway.visit import Visit

logger = logging.getLogger("sooner.gateway")

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")
_PARSED_ASIDE = 64 * 1024  # bytes; a larger body is parsed in a thread, so that nobody waits for it
_ELSEWHERE = frozenset((502, 503, 504))  # an engine that says this may have a healthy sister
_DEFAULT_CLASS = ClassSettings(name="default")


def always() -> bool:
    """Return that a caller may ask: it needs no key."""
    return True


class Caller(NamedTuple):
    """Who asks: the tenant, the classes it may use (empty: all), and whether its key is good still."""

    tenant: str
    classes: tuple[str, ...] = ()
    good: Callable[[], bool] = always


class Proxy:
    """Takes requests to the engines and back. Lives in one event loop."""

    def __init__(
        self, settings: GatewaySettings, dispatcher: Dispatcher, finished: Callable[[Finished], None]
    ) -> None:
        self.dispatcher = dispatcher
        self.delivery = Delivery(settings, dispatcher, finished)
        self.client = self.delivery.client
        self.tracing = tracing.opened()
        self._bodies = Bodies(settings.limits, dispatcher.gate.part_of)
        self.take(settings)

    def take(self, settings: GatewaySettings) -> None:
        """Take settings, at the start and when they were read again."""
        self.settings = settings
        self._bodies.limits = settings.limits
        self.delivery.take(settings)
        self._kinds = frozenset(backend.kind for backend in settings.backends)
        self._classes = {entry.name: entry for entry in settings.classes}

    def close(self) -> None:
        """Send the spans that are left."""
        if self.tracing is not None:
            self.tracing.close()

    async def serve(self, request: web.BaseRequest, caller: Caller, called: Called) -> web.StreamResponse:
        """Serve a request that makes an engine work: in its turn, and in a trace where those are wanted."""
        if self.tracing is None:
            return await self._come(request, caller, called, None)
        trace = self.tracing.begin(called.endpoint.path, request.scheme, request.headers)
        try:
            response = await self._come(request, caller, called, trace)
        except BaseException as error:
            gone = isinstance(error, asyncio.CancelledError)
            trace.close(None, "client_gone" if gone else type(error).__name__)
            raise
        trace.close(response.status)
        return response

    async def _come(
        self, request: web.BaseRequest, caller: Caller, called: Called, trace: RequestTrace | None
    ) -> web.StreamResponse:
        """Read a request, give it its ticket and serve it."""
        counters = self.dispatcher.counters
        counters.add("requests")
        self.delivery.retries.came()
        with self._bodies.hold(caller.tenant) as held:
            try:
                self.dispatcher.gate.may_ask(caller.tenant, self.dispatcher.clock())
                body, asked = await self._read(request, called, held)
                level = self._class_of(request, caller)
                waiting = self.dispatcher.arrive(
                    self._id(request), caller.tenant, level.level, asked, level.deadline_ms
                )
            except BadRequest as error:
                return answers.error(error.status, str(error), error.code)
            except UnknownName as error:
                return answers.error(400, str(error), "bad_request")
            except UnknownModel as error:
                return answers.error(404, str(error), "model_not_found")
            except TurnedAway as refused:
                counters.add(refused.counter)
                return answers.refusal(refused)
            waiting.good = caller.good
            if trace is not None:
                trace.came(waiting.id, waiting.tenant, asked.model)
                waiting.trace = trace
            return await self._served(request, waiting, body)

    async def _served(self, request: web.BaseRequest, waiting: Visit, body: bytes) -> web.StreamResponse:
        """Answer a request that has its ticket, with comments while it waits where those are wanted."""
        every, asked = self.settings.queue.comment_every, waiting.asked
        if not every or not asked.streams_events or request.version < (1, 1):
            return await self._ended(request, waiting, body)
        waiting.comments = Comments(request, asked.endpoint.path, every, waiting.id)
        return await waiting.comments.closing(self._ended(request, waiting, body))

    async def _ended(self, request: web.BaseRequest, waiting: Visit, body: bytes) -> web.StreamResponse:
        """Answer a request, whatever becomes of it."""
        counters = self.dispatcher.counters
        try:
            return await self._answer(request, waiting, body, time.time())
        except asyncio.CancelledError:
            counters.add("client_gone")
            raise
        except TurnedAway as refused:
            counters.add(refused.counter)
            return answers.refusal(refused)
        except EngineError as error:
            return answers.error(502, f"no engine could serve this: {type(error).__name__}", "engine_failed")
        except CutOff as cut:
            counters.add(cut.counter)
            if request.transport is not None:
                request.transport.abort()
            return _gone()
        except ConnectionError:  # the client left in the moment its reply began
            counters.add("client_gone")
            return _gone()
        finally:
            self.dispatcher.leave(waiting)

    def cut_revoked(self) -> None:
        """End the replies whose key was revoked."""
        for waiting in list(self.dispatcher.waiting.values()):
            if waiting.cut is not None and not waiting.good():
                waiting.cut(KeyGone("the key was revoked"))

    async def _read(self, request: web.BaseRequest, called: Called, held: Held) -> tuple[bytes, Asked]:
        """Return the body as an engine gets it, and what it asks for. Raises BadRequest, TurnedAway."""
        body = await self._body(request, held)
        deadline_ms = request.headers.get("x-sooner-deadline-ms")
        endpoint, model = called

        def read() -> tuple[bytes, Asked]:
            aliases = self.settings.aliases
            if endpoint.form:
                kind = request.headers.get("Content-Type", "")
                return reading.read_form(
                    body, kind, aliases=aliases, deadline_ms=deadline_ms, endpoint=endpoint, model=model
                )
            return reading.read_json(
                body, client_scores=self.settings.client_scores, deadline_ms=deadline_ms, endpoint=endpoint,
                kinds=self._kinds, aliases=aliases, model=model, query=paths.query(request.raw_path),
            )  # fmt: skip

        if len(body) <= _PARSED_ASIDE:
            return read()
        async with self._bodies.aside:
            return await asyncio.to_thread(read)

    async def _body(self, request: web.BaseRequest, held: Held) -> bytes:
        if request.content.is_eof():  # as with most it came with the head
            return await self._bodies.read(request, held)
        patience = self.settings.limits.body_time
        try:
            async with asyncio.timeout(patience):
                return await self._bodies.read(request, held)
        except TimeoutError as error:
            raise BadRequest(f"no body within {patience:.0f} s") from error

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
        self, request: web.BaseRequest, waiting: Visit, body: bytes, arrival: float
    ) -> web.StreamResponse:
        """Serve in slices where that is wanted and can be done, else whole."""
        cut = sliced.chosen(self.delivery, request, waiting, body)
        if cut is not None:
            with contextlib.suppress(Whole):
                return await sliced.Slicer(self.delivery, request, waiting, cut, arrival).run()
        return await self._serve(request, waiting, body, arrival)

    async def _serve(
        self, request: web.BaseRequest, waiting: Visit, body: bytes, arrival: float
    ) -> web.StreamResponse:
        retries = self.delivery.retries
        while True:
            place = Place(self.dispatcher, waiting, await self.delivery.slot(waiting))
            backend = place.backend
            try:
                place.sent = sent = await self.delivery.send(
                    request, waiting, backend, body, chunks=waiting.comments is None
                )
                lost = sent.head.status == 500 and backend.kind.replicas
                if lost or (sent.head.status in _ELSEWHERE and retries.another(waiting, backend)):
                    words = f"backend {backend.name} says {sent.head.status}"
                    said = Cut(words, started=False, reused=False) if lost else EngineError(words)
                    if retries.may(waiting, backend, said):
                        place.give_back(0.0)
                        self.client.drop(sent.connection)
                        if not lost:  # else one replica of it is gone, and the others serve
                            backend.breaker.failed(time.monotonic(), waiting.tenant)
                        self.dispatcher.counters.warn("upstream_errors", "%s", said)
                        continue
                return await self._hand_on(request, waiting, place, sent, arrival)
            except EngineError as error:
                self.dispatcher.counters.warn("upstream_errors", "backend %s: %s", backend.name, error)
                place.failed(error)
                if not retries.may(waiting, backend, error):
                    raise
            finally:
                place.left()

    async def _hand_on(
        self, request: web.BaseRequest, waiting: Visit, place: Place, sent: Sent, arrival: float
    ) -> web.StreamResponse:
        """Hand the reply on. Raises EngineError only while nothing was seen of it."""
        on = relay.Relay(
            request, sent.connection, self.delivery.backlog, waiting.asked.endpoint.path, waiting.comments
        )
        wait = sent.began - waiting.ticket.arrival_time
        over = False
        waiting.cut = sent.connection.let_go

        def done(status: int = sent.head.status) -> None:
            nonlocal over
            over = True
            self._note(waiting, place, sent, arrival, status)

        try:
            return await on.run(sent.head, self.delivery.extra(waiting, wait), done)
        except EngineError as error:
            if not on.started:
                raise
            self.dispatcher.counters.warn("cut_streams", "backend %s: %s", sent.backend.name, error)
            sent.backend.breaker.failed(time.monotonic(), waiting.tenant)
            done(0)
            return _gone()
        finally:
            if not over:
                self.client.drop(sent.connection)  # the engine sees at once that nobody wants the reply

    def _note(self, waiting: Visit, place: Place, sent: Sent, arrival: float, status: int) -> None:
        """Take note of a reply that the engine is done with, and give its place to the next."""
        ticket = waiting.ticket
        waiting.cut = None
        self.client.ended(sent.connection)
        used = relay.usage(sent.connection, waiting.asked)
        prompt_len = ticket.prompt_len if used.prompt_len is None else used.prompt_len
        made = used.output_len if status < 400 else 0
        if 200 <= status < 300:
            self.dispatcher.finished(waiting, time.monotonic() - sent.began, made)
            self.dispatcher.counters.add("finished")
            if waiting.asked.stream:
                self.delivery.learn(sent, prompt_len, waiting)
        wait = sent.began - ticket.arrival_time
        if waiting.trace is not None:
            waiting.trace.used(prompt_len, made)
        used = relay.Usage(prompt_len, made, used.counted, used.cut)
        self.delivery.note(waiting, sent, arrival, ticket.arrival_time, wait, used, status)
        work = charge(prompt_len, made)
        (place.done if 200 <= status < 300 else place.give_back)(work)
        sent.backend.connections.give_back(sent.connection)


def _gone() -> web.StreamResponse:
    """Return the answer where one has begun and its connection is closed already."""
    return web.Response(status=502)
