"""SCLS, live (arXiv 2406.13511): a reply is made in slices of S tokens, between which it waits its turn.

To the policy each slice is a request of its own that comes when the one before has ended, with what
was generated as attained service. The client sees one reply, with one usage and one end.
"""

from __future__ import annotations

import asyncio
import time

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from sooner.core import EngineError
from sooner.gateway.admission import headers
from sooner.gateway.admission.refusals import TurnedAway, WaitTooLong
from sooner.gateway.admission.shares import charge
from sooner.gateway.delivery import relay
from sooner.gateway.delivery.context import Delivery
from sooner.gateway.delivery.place import Place
from sooner.gateway.delivery.stitch import Odd, Plan, Reasons, Stitch, Whole, plan
from sooner.gateway.delivery.tongues import cut_event
from sooner.gateway.engines.backend import Backend
from sooner.gateway.engines.client import Sent
from sooner.gateway.engines.connections import Connection
from sooner.gateway.engines.http1 import Head
from sooner.gateway.visit import Visit

_LONGEST_BODY = 256 * 1024  # bytes; a larger request is served whole, for each slice sends it again


def chosen(delivery: Delivery, request: web.BaseRequest, waiting: Visit, body: bytes) -> Plan | None:
    """Return how a request is cut; None where slices are off, or it or an engine cannot be continued."""
    if not delivery.settings.slices.tokens or request.version < (1, 1) or len(body) > _LONGEST_BODY:
        return None
    if not all(backend.kind.continues for backend in waiting.pool.backends):
        return None
    if delivery.uncut.has(waiting.asked.model, waiting.tenant, time.monotonic()):
        return None
    return plan(waiting.asked.endpoint.path, body)


class Slicer:
    """One reply in slices."""

    def __init__(
        self, delivery: Delivery, request: web.BaseRequest, waiting: Visit, cut: Plan, arrival: float
    ) -> None:
        self._delivery = delivery
        self._request = request
        self._waiting = waiting
        self._waiting.slice = self._most = delivery.settings.slices.tokens
        if not waiting.ticket.predicted_len:  # without a ranker all that is known is the slice's length
            waiting.ticket.predicted_len = float(self._most)
        self._stream = cut.stream
        self._stitch = Stitch(cut)
        self._arrival = arrival
        self._came = waiting.ticket.arrival_time
        self._prompt_len = waiting.ticket.prompt_len
        self._response: web.StreamResponse | None = None
        self._writer: AbstractStreamWriter | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._early = b""  # what came before the first text
        self._drainer: asyncio.Task[None] | None = None
        self._failed: Exception | None = None
        self._first: Sent | None = None
        self._wait = 0.0

    async def run(self) -> web.StreamResponse:
        """Serve the reply. Raises Whole, EngineError, TurnedAway only while the client has seen nothing."""
        try:
            while not self._stitch.reason:
                place = await self._turn()
                try:
                    await self._slice(place)
                    self._waiting.tries = 0
                    self._waiting.tried.clear()
                except EngineError as error:
                    self._delivery.dispatcher.counters.warn(
                        "upstream_errors", "backend %s: %s", place.backend.name, error
                    )
                    place.failed(error)
                    if not self._delivery.retries.may(self._waiting, place.backend, error):
                        raise
                    self._stitch.lose()  # the next slice goes on from what the client has
                finally:
                    place.left()
                if not self._stitch.reason:
                    self._again()
            return await self._close()
        except (EngineError, TurnedAway) as error:
            if self._response is None:
                raise
            return self._broken(self._response, error)
        except Whole as why:
            self._waiting.slice = 0
            if isinstance(why, Reasons):
                waiting = self._waiting
                self._delivery.uncut.add(waiting.asked.model, waiting.tenant, time.monotonic())
            raise
        finally:
            if self._drainer is not None:
                self._drainer.cancel()
            self._delivery.backlog.forget(self)

    async def _turn(self) -> Place:
        """Wait for a place; a reply that has begun is not given up for having waited."""
        while True:
            try:
                backend = await self._delivery.slot(self._waiting)
            except TurnedAway as refused:
                if not self._stitch.tokens or not isinstance(refused, WaitTooLong):
                    raise
                self._again()
            else:
                self._wait += time.monotonic() - self._waiting.ticket.arrival_time
                first = not self._stitch.tokens  # a prompt counts once
                return Place(self._delivery.dispatcher, self._waiting, backend, prompt=first)

    def _again(self) -> None:
        self._delivery.dispatcher.again(self._waiting, self._prompt_len, self._stitch.tokens)

    async def _slice(self, place: Place) -> None:
        """Serve one slice. Raises EngineError, Whole."""
        delivery, stitch, backend = self._delivery, self._stitch, place.backend
        first = not stitch.tokens
        stitch.context = _context(backend, self._waiting.asked.model)
        body = stitch.next_slice(self._most)
        running = backend.in_flight
        sent = await delivery.send(self._request, self._waiting, backend, body, chunks=False)
        place.sent, whole = sent, False
        self._waiting.cut = sent.connection.let_go
        try:
            if sent.head.status != 200:
                place.give_back(0.0)
                if first:
                    raise Whole(f"the engine answers {sent.head.status}")  # and may say why to the client
                raise EngineError(f"backend {backend.name} answers {sent.head.status} to a slice")
            self._first = self._first or sent
            await (self._hand_on(sent) if self._stream else self._gather(sent.connection))
            made = stitch.end()
            whole = True
        except Odd:
            raise
        except EngineError:
            backend.breaker.failed(time.monotonic(), self._waiting.tenant)
            raise
        finally:
            self._waiting.cut = None
            delivery.client.ended(sent.connection)
            if whole:
                backend.connections.give_back(sent.connection)
            else:
                sent.connection.abort()
        seconds = time.monotonic() - sent.began
        delivery.dispatcher.finished(self._waiting, seconds, made)
        delivery.dispatcher.choice.learn(backend, running, self._waiting.ticket.prompt_len, made, seconds)
        if self._stream:
            prompt_len = self._waiting.ticket.prompt_len  # what was generated before is part of it
            delivery.learn(sent, prompt_len, self._waiting)
        if self._waiting.trace is not None:
            self._waiting.trace.used(self._waiting.ticket.prompt_len, made)
        place.done(charge(self._prompt_len if first else 0, made))

    async def _gather(self, connection: Connection) -> None:
        body = bytearray()
        connection.attach(body.extend)
        await connection.finished
        self._stitch.take(bytes(body))

    async def _hand_on(self, sent: Sent) -> None:
        """Hand a streamed slice on; what comes before the first text is kept until it is there."""
        connection = sent.connection
        text: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def take(data: bytes) -> None:
            self._write(self._fed(connection, data))
            if (self._stitch.shown or self._failed) and not text.done():
                text.set_result(None)

        def wait_for_client() -> None:
            self._drainer = asyncio.get_running_loop().create_task(self._drained(connection))

        if self._response is None:
            connection.attach(take)
            await asyncio.wait({connection.finished, text}, return_when=asyncio.FIRST_COMPLETED)
            if self._stitch.shown and self._failed is None:
                await self._start(sent.head)
        connection.attach(take, self._transport, wait_for_client, self._keeps)
        await asyncio.wait({connection.finished})
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
        await connection.finished

    def _fed(self, connection: Connection, data: bytes) -> bytes:
        try:
            return self._stitch.feed(data)
        except (EngineError, Whole) as error:
            self._failed = error
            connection.expire(str(error))
            return b""

    def _write(self, events: bytes) -> None:
        if self._transport is None:
            self._early += events
        elif events and not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(events), events))

    def _keeps(self, size: int) -> bool:
        return self._delivery.backlog.keeps(self, size)

    async def _drained(self, connection: Connection) -> None:
        if self._response is not None:
            await self._response.drain()
        connection.resume()

    async def _start(self, head: Head) -> web.StreamResponse:
        comments = self._waiting.comments
        begun = None if comments is None else await comments.stop()
        response = self._begun(head) if begun is None else begun
        self._writer = writer = await response.prepare(self._request)
        self._transport = self._request.transport
        if writer is None or self._transport is None:
            raise ConnectionResetError("the client has gone")
        flush = getattr(writer, "send_headers", None)  # before aiohttp 3.12 they have gone already
        if flush is not None:
            flush()
        self._response = response
        self._write(self._early)
        return response

    def _begun(self, head: Head) -> web.StreamResponse:
        response = web.StreamResponse(status=head.status)
        for name, value in head.headers:
            if headers.returned(name) and name.lower() != "content-length":
                response.headers.add(name, value)
        response.headers.update(self._delivery.extra(self._waiting, self._wait))
        response.enable_chunked_encoding()
        return response

    async def _close(self) -> web.StreamResponse:
        """End the reply."""
        assert self._first is not None  # a slice has ended
        self._note(200)
        if not self._stream:
            extra = self._delivery.extra(self._waiting, self._wait)
            return web.Response(body=self._stitch.whole(), headers=extra, content_type="application/json")
        response = self._response or await self._start(self._first.head)
        assert self._transport is not None  # a stream has begun
        assert self._writer is not None
        patience = self._delivery.settings.limits.client_time
        await relay.drain(response, self._writer, self._transport, patience, self._stitch.closing())
        return response

    def _broken(self, response: web.StreamResponse, error: Exception) -> web.StreamResponse:
        """End a reply that cannot go on so that it does not look whole."""
        self._delivery.dispatcher.counters.warn("cut_streams", "a reply in slices: %s", error)
        if self._transport is not None and not self._transport.is_closing():
            path = self._waiting.asked.endpoint.path
            self._transport.write(cut_event(path, f"the reply cannot go on: {type(error).__name__}"))
            self._transport.close()
        response.force_close()
        self._note(0)
        return response

    def _note(self, status: int) -> None:
        if self._first is None:
            return
        if status:
            self._delivery.dispatcher.counters.add("finished")
        told = self._stitch.prompt_len
        self._delivery.note(
            self._waiting, self._first, self._arrival, self._came, self._wait,
            relay.Usage(self._prompt_len if told is None else told, self._stitch.tokens, told is not None,
                self._stitch.reason == "length",
            ),
            status,
        )  # fmt: skip


def _context(backend: Backend, model: str) -> int | None:
    known = backend.cards.get(model, {}).get("max_model_len")
    return known if type(known) is int else None
