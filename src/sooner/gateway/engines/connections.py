"""Connections to engines: one request at a time each, bytes handed on the moment they come.

A connection is an asyncio protocol, not a stream: a piece from the engine is written to the client
in the same callback, without waking a task.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import ClassVar, NamedTuple, cast

from sooner.core import ConfigError, EngineError, SoonerError
from sooner.gateway.engines.certificates import trusting
from sooner.gateway.engines.dialing import Dialer
from sooner.gateway.engines.http1 import MAX_HEAD, Framing, Garbage, Head, framing, read_head

_HIGH_WATER = 256 * 1024  # bytes waiting for a slow reader before the engine is made to wait too
_IDLE = 3.0  # seconds; uvicorn, under most engines, closes after 5
_MOST_IDLE = 256
_TAIL = 3  # pieces kept for the usage at the end of a reply


class Unreachable(EngineError):
    """No connection could be made."""


class Cut(EngineError):
    """The connection ended before the reply did; `started` says whether any of it had come."""

    def __init__(self, message: str, started: bool, reused: bool) -> None:
        super().__init__(message)
        self.started = started
        self.reused = reused


class FellSilent(Cut):
    """Nothing came in time, and the connection was given up."""


class CutOff(SoonerError, ConnectionError):
    """The gateway itself ends a reply, and its client's connection; `counter` counts why."""

    counter: ClassVar[str]


class SlowClient(CutOff):
    """A client that did not take its reply in time."""

    counter = "slow_clients"


class KeyGone(CutOff):
    """The key that a running reply was asked for with was revoked."""

    counter = "refused_key"


class Address(NamedTuple):
    """Where an engine listens; `at` is the one address of its host that is meant, empty: any."""

    host: str
    port: int
    secure: bool
    base: str = ""  # a path in front of /v1
    authority: str = ""
    at: str = ""

    @classmethod
    def of(cls, url: str) -> Address:
        """Return the address in a URL, with or without a trailing `/v1`. Raises ConfigError."""
        from urllib.parse import urlsplit

        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"backend {url!r}: {error}; allowed: http://host:port") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ConfigError(f"backend {url!r}, allowed: http://host:port or https://host, without a key")
        secure = parts.scheme == "https"
        base = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if secure else 80), secure, base, parts.netloc)


class Connection(asyncio.Protocol):
    """One connection to an engine, and the reply that comes over it.

    `begin` sends a request; `head` resolves to the reply's head once the body's first byte is here,
    or its end, for engines send a stream's head long before its first token and may still fail;
    `attach` says where the body goes; `finished` resolves when the body has ended. Both fail with
    Cut or Garbage.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.transport: asyncio.Transport | None = None
        self.reused = False
        self.since = 0.0  # when it became idle
        self._busy = False
        self._reset("POST", True)

    def _reset(self, method: str, chunks: bool) -> None:
        self._method = method
        self._chunks = chunks
        self._buffer: bytes | None = b""
        self._framing: Framing | None = None
        self._read: Head | None = None
        self._sink: Callable[[bytes], object] | None = None
        self._target: asyncio.WriteTransport | None = None
        self._on_full: Callable[[], None] | None = None
        self._keeps: Callable[[int], bool] | None = None
        self._waiting: list[bytes] = []
        self._paused = False
        self._paused_at = 0.0
        self._paused_for = 0.0  # seconds, of the pauses that are over
        self.slowed = False  # whether a slow client ever made the engine wait
        self.pieces: deque[bytes] = deque(maxlen=_TAIL)
        self.events = 0
        self.size = 0
        self.first_time = 0.0
        self.last_time = 0.0
        self.keep_alive = False

    def begin(self, request: bytes, method: str, *, chunks: bool, body: bytes | memoryview = b"") -> None:
        """Send a whole request; `chunks` says whether the reply's chunks are handed on as such.

        A large `body` comes apart from the rest, so that it need not be copied.
        """
        assert self.transport is not None  # only a made connection is handed out
        self._reset(method, chunks)
        self.head: asyncio.Future[Head] = self._loop.create_future()
        self.finished: asyncio.Future[None] = self._loop.create_future()
        self._busy = True
        self.last_time = self._loop.time()
        self.transport.write(request)
        if body:
            self.transport.write(body)

    @property
    def clean(self) -> bool:
        """Whether the body so far ends where something of our own may follow."""
        return self._framing is not None and self._framing.whole()

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return self.transport is not None and not self.transport.is_closing() and not self._busy

    def attach(
        self,
        sink: Callable[[bytes], object],
        target: asyncio.WriteTransport | None = None,
        on_full: Callable[[], None] | None = None,
        keeps: Callable[[int], bool] | None = None,
    ) -> None:
        """Hand what came, and all that comes, to `sink`.

        Where `target` is full the engine is made to wait, and `on_full` is called once; it has to
        see to it that `resume` is called. `keeps` says whether so many bytes may wait there all the same.
        """
        waiting, self._waiting = self._waiting, []
        self._sink, self._target, self._on_full, self._keeps = sink, target, on_full, keeps
        if waiting and not (target is not None and target.is_closing()):
            sink(b"".join(waiting))
        if self._paused:
            if not self._full():
                self.resume()
            elif on_full is not None:
                on_full()

    def resume(self) -> None:
        """Read from the engine again, once the client has taken what was written."""
        if self._paused:
            self.last_time = self._loop.time()  # it was not the engine that was silent
            self._paused_for += self.last_time - self._paused_at
        self._paused = False
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    @property
    def paused(self) -> bool:
        """Whether the engine is made to wait for a slow client."""
        return self._paused

    def held_up(self, now: float) -> float:
        """Return how long in all the engine was made to wait for this reply's client [s]."""
        return self._paused_for + (now - self._paused_at if self._paused else 0.0)

    def abort(self) -> None:
        """Drop the connection at once: the engine sees that nobody wants the reply."""
        self._busy = False
        if self.transport is not None:
            self.transport.abort()

    @property
    def deserted(self) -> bool:
        """Whether the client that the reply is handed to has left."""
        return self._target is not None and self._target.is_closing()

    def let_go(self, error: ConnectionError | None = None) -> None:
        """Drop a reply whose client has left: who waits for it gets the error."""
        self._fail(error or ConnectionResetError("the client has gone"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over the transport."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not its subclasses

    def data_received(self, data: bytes) -> None:
        """Take in bytes from the engine; a body's go straight to the client."""
        self.last_time = self._loop.time()
        if not self._busy:  # nobody asked: whatever it is, it must not be taken for the next reply
            self.keep_alive = False
            self.abort()
            return
        if self.deserted:  # its task will be told, but that may take until the last byte has gone
            self.let_go()
            return
        cutter = self._framing
        try:
            if cutter is None:
                self._take_head(data)
                return
            out = cutter.feed(data)
        except Garbage as error:
            self._fail(error)
            return
        if out:
            self._hand_on(out)
        if cutter.done:
            self._finish(cutter)

    def _hand_on(self, out: bytes) -> None:
        if not self.size:
            self.first_time = self.last_time
            self._show_head()
        self.size += len(out)
        self.events += out.count(b"data: {")
        self.pieces.append(out)
        if self._sink is None:
            self._waiting.append(out)
        else:
            self._sink(out)
        if self._full() and not self._paused and self.transport is not None:
            self._paused = self.slowed = True
            self._paused_at = self.last_time
            self.transport.pause_reading()
            if self._on_full is not None:
                self._on_full()

    def _full(self) -> bool:
        if self._target is None:
            return self._sink is None and sum(map(len, self._waiting)) > _HIGH_WATER
        size = self._target.get_write_buffer_size()
        return size > _HIGH_WATER and not (self._keeps is not None and self._keeps(size))

    def _take_head(self, data: bytes) -> None:
        assert self._buffer is not None  # until the head is read
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = read_head(self._buffer[:end], self._method)
            self._buffer = self._buffer[end + 4 :]
            if head.status >= 200:
                self._begin_body(head)
                return
        if len(self._buffer) > MAX_HEAD:
            raise Garbage(f"the head of a reply is longer than {MAX_HEAD} bytes")

    def _begin_body(self, head: Head) -> None:
        rest, self._buffer = self._buffer or b"", None
        self.keep_alive = head.keep_alive
        self._framing = cutter = framing(head, self._chunks)
        self._read = head
        out = cutter.feed(rest)
        if out:
            self._hand_on(out)
        if cutter.done:
            self._finish(cutter)

    def _show_head(self) -> None:
        if self._read is not None and not self.head.done():
            self.head.set_result(self._read)

    def _finish(self, cutter: Framing) -> None:
        self._show_head()
        self._busy = False
        if cutter.rest or not self.keep_alive:
            self.keep_alive = False
            if self.transport is not None:
                self.transport.close()
        if not self.finished.done():
            self.finished.set_result(None)

    def _fail(self, error: Exception) -> None:
        self.keep_alive = False
        busy, self._busy = self._busy, False
        if self.transport is not None:
            self.transport.abort()
        if not busy:
            return
        for future in (self.head, self.finished):
            if not future.done():
                future.set_exception(error)
                future.exception()  # seen: a reply that nobody waits for any more is no warning

    def expire(self, message: str) -> None:
        """Give up on a reply that does not come on."""
        self._fail(FellSilent(message, self._framing is not None, False))

    def connection_lost(self, exc: Exception | None) -> None:
        """End the body where that is how it ends; anything else was cut."""
        self.transport = None
        if self._busy and self._framing is not None and self._framing.eof():
            self._finish(self._framing)
            return
        started = self._framing is not None or bool(self._buffer)
        self._fail(Cut(f"the engine closed the connection ({exc!r})", started, self.reused))


class Connections:
    """The connections to one engine, idle ones kept for reuse. Unbounded: the queue bounds them."""

    def __init__(self, address: Address, connect_timeout: float, ca_file: str = "") -> None:
        self.address = address
        self._timeout = connect_timeout
        self._dialer = Dialer(address.host, address.port, address.at)
        self._idle: list[Connection] = []
        self._tls = trusting(ca_file) if address.secure else None

    def take(self, connect_timeout: float, tls: ssl.SSLContext | None) -> None:
        """Take what was read again; connections that were trusted by another authority are not reused."""
        self._timeout = connect_timeout
        if tls is not None:
            self._tls = tls
            self.close()

    async def get(self, *, fresh: bool = False) -> Connection:
        """Return a connection that no one uses. Raises Unreachable."""
        loop = asyncio.get_running_loop()
        while self._idle and not fresh:
            found = self._idle.pop()
            if found.usable and loop.time() - found.since < _IDLE:
                found.reused = True
                return found
            found.abort()
        try:
            async with asyncio.timeout(self._timeout):
                made = await self._dialer.dial(lambda: Connection(loop), self._tls)
        except (OSError, TimeoutError) as error:
            raise Unreachable(f"cannot connect to {self.address.authority}: {error!r}") from error
        return made

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose reply has ended; one that cannot be used again is dropped."""
        if connection.usable and connection.keep_alive and len(self._idle) < _MOST_IDLE:
            if connection.paused:
                connection.resume()
            connection.since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.abort()

    def prune(self) -> None:
        """Close what has been idle too long."""
        now = asyncio.get_running_loop().time()
        keep = [
            connection for connection in self._idle if connection.usable and now - connection.since < _IDLE
        ]
        for connection in self._idle:
            if connection not in keep:
                connection.abort()
        self._idle = keep

    def close(self) -> None:
        """Close what is idle."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
