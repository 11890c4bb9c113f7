"""Requests to engines and the beginnings of their replies: one client for whole and sliced delivery."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import NamedTuple

from sooner.core import EngineError
from sooner.gateway.engines.backend import Backend
from sooner.gateway.engines.connections import Connection, Cut, SlowClient
from sooner.gateway.engines.http1 import Head
from sooner.gateway.engines.kinds import with_priority
from sooner.gateway.engines.takes_priority import REFUSALS
from sooner.gateway.settings import LimitSettings

logger = logging.getLogger("sooner.gateway")

_APART = 256 * 1024  # bytes of a body above which it is sent without being copied behind its head


class Call(NamedTuple):
    """A request as engines get it: header lines without those that are an engine's own, and the body.

    `key` is what the engine's own priority is made of, None where none is handed on. `chunks` says
    whether a reply's chunks are handed on as such. `tenant` is whose it is: what becomes of it tells of
    the engine, but as one tenant's word.
    """

    method: str
    target: str
    headers: bytes
    body: bytes
    key: float | None = None
    chunks: bool = True
    tenant: str = ""


class Sent(NamedTuple):
    """A reply that began to come, and how it got here; `beside` were there when it was sent, itself too."""

    backend: Backend
    connection: Connection
    head: Head
    began: float
    first_byte: float
    beside: int = 1


class EngineClient:
    """Sends calls and watches over the connections until `ended`."""

    def __init__(self, limits: LimitSettings) -> None:
        self.limits = limits
        self._active: dict[Connection, bool] = {}  # whether the head has come

    async def send(self, backend: Backend, call: Call) -> Sent:
        """Send a call; return once the head of the reply has come. Raises EngineError."""
        kind, now = backend.kind, time.monotonic()
        takes = backend.takes_priority(call.target) if call.key is not None else None
        if call.key is None or kind.priority is None or takes is None or not takes.sends(call.tenant, now):
            return await self._exchange(backend, call)
        priority = kind.priority(call.key, backend.quantiles.of(call.key))
        sent = await self._exchange(backend, call, *with_priority(call.body, priority))
        status = sent.head.status
        if 200 <= status < 300:
            takes.taken(call.tenant, time.monotonic())
        elif status in REFUSALS and takes.asks_again(call.tenant, now, time.monotonic()):
            self.drop(sent.connection)
            sent = await self._exchange(backend, call)
            served = 200 <= sent.head.status < 300
            if takes.answered(call.tenant, now, time.monotonic(), refused=served):
                logger.warning("backend %s takes no priority; order is kept here only", backend.name)
        return sent

    async def _exchange(
        self, backend: Backend, call: Call, front: bytes = b"", rest: memoryview | None = None
    ) -> Sent:
        """Send once, and once more where an idle connection turned out to be closed. Raises EngineError.

        `front` and `rest` are the body, where it is not the call's own.
        """
        fresh: Cut | None = None  # what the idle connection ended with
        body: bytes | memoryview = call.body if rest is None else rest
        apart = body if len(body) > _APART else b""
        whole = b"".join((_head(call, backend, len(front) + len(body)), front, b"" if apart else body))
        while True:
            now = time.monotonic()
            try:
                connection = await backend.connections.get(fresh=fresh is not None)
            except EngineError as error:
                backend.unreachable(error, now)
                raise fresh or error from error  # an engine that is gone now may have died of this request
            began, beside = time.monotonic(), backend.in_flight
            self._active[connection] = False
            try:
                connection.begin(whole, call.method, chunks=call.chunks, body=apart)
                head = await connection.head
                self._active[connection] = True
                if head.status < 400:  # a refusal is no reply that was made
                    backend.breaker.ok(call.tenant)
                return Sent(backend, connection, head, began, time.monotonic() - began, beside)
            except EngineError as error:
                self.drop(connection)
                if isinstance(error, Cut) and error.reused and not error.started and fresh is None:
                    fresh = error
                    continue
                backend.breaker.failed(now, call.tenant)
                raise
            except asyncio.CancelledError:
                self.drop(connection)
                raise

    def ended(self, connection: Connection) -> None:
        """Say that nobody waits for a connection's reply any more."""
        self._active.pop(connection, None)

    def drop(self, connection: Connection) -> None:
        """Give a reply up; the engine sees at once that nobody wants it."""
        self._active.pop(connection, None)
        connection.abort()

    def expire(self, now: float) -> None:
        """Give up on engines that stopped sending, and on clients that left; `now` is the loop's time."""
        limits = self.limits
        for connection, begun in list(self._active.items()):
            if connection.deserted:
                connection.let_go()
                continue
            if connection.paused:  # it is the client that is slow, not the engine
                if connection.held_up(now) > limits.client_time:
                    connection.let_go(SlowClient("the client does not take its reply"))
                continue
            allowed = limits.between_bytes if begun else limits.first_byte
            if now - connection.last_time > allowed:
                connection.expire(f"nothing came for {allowed:.0f} s")


def _head(call: Call, backend: Backend, size: int) -> bytes:
    """Return the head of a request to an engine, whose body has `size` bytes."""
    line = f"{call.method} {backend.address.base}{call.target} HTTP/1.1\r\n".encode()
    sized = size or call.method not in ("GET", "HEAD", "DELETE")
    length = b"Content-Length: %d\r\n" % size if sized else b""
    return b"".join((line, backend.head, call.headers, length, b"\r\n"))
