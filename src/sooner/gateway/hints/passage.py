"""One client's connection on its way to the target: requests are read and hinted, replies go by as bytes.

Each client's connection has one of its own to the target, so what the target does with it, the client sees:
no byte of a reply is changed, and a connection that one side closes is closed on the other.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from sooner.core import EngineError
from sooner.gateway.delivery.answers import error_body
from sooner.gateway.engines.http1 import MAX_HEAD, Chunked, Framing, Garbage, Length
from sooner.gateway.hints.following import ReplyFollower
from sooner.gateway.hints.hinter import generates
from sooner.gateway.hints.request_head import BadHead, RequestHead, read_request_head, written

if TYPE_CHECKING:
    from sooner.gateway.hints.hinter import Hint
    from sooner.gateway.hints.server import HintServer

_REASONS = {400: b"Bad Request", 413: b"Content Too Large", 502: b"Bad Gateway"}
_REFUSAL = (
    b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
)


class Passage(asyncio.Protocol):
    """A client's connection; one request after the other goes on, whole."""

    def __init__(self, server: HintServer) -> None:
        self._server = server
        self._hinter = server.hinter
        self.transport: asyncio.Transport | None = None
        self._far: FarSide | None = None
        self._buffer = b""
        self._head: RequestHead | None = None
        self._body: list[bytes] = []
        self._framing: Framing = Length(0)
        self._tunnel = False
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a request is being read or sent, or its reply has not ended."""
        begun = self._head is not None or self._task is not None or bool(self._buffer)
        return begun or (self._far is not None and self._far.busy)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over the transport."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not its subclasses
        self._server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the target see that the client has left."""
        self.transport = None
        self._server.closed(self)
        if self._task is not None:
            self._task.cancel()
        if self._far is not None:
            self._far.abort()

    def pause_writing(self) -> None:
        """Make the target wait: the client does not take what was written."""
        if self._far is not None:
            self._far.pause_reading()

    def resume_writing(self) -> None:
        """Read from the target again."""
        if self._far is not None:
            self._far.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Take in bytes of requests."""
        if self._tunnel and self._far is not None:
            self._far.write(data)
            return
        self._buffer += data
        if self._task is None:
            self._go_on()

    def _go_on(self) -> None:
        """Take what has come as far as it goes."""
        try:
            while self._buffer and self._task is None and self.transport is not None:
                if not (self._take_head() if self._head is None else self._take_body()):
                    return
        except BadHead as error:
            self.refuse(400, str(error), "bad_request")
        except Garbage as error:
            self.refuse(400, f"the body's chunks cannot be read: {error}", "bad_request")

    def _take_head(self) -> bool:
        """Read a head; return whether it was whole."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise BadHead(f"a head of more than {MAX_HEAD} bytes")
            return False
        head = read_request_head(self._buffer[:end])
        self._buffer = self._buffer[end + 4 :]
        page = self._server.page(head)
        if page is not None:
            self.answer(page)
        elif head.length == 0 or head.upgrades:
            self._send(head, b"")
        elif (head.length or 0) > self._server.settings.max_body:
            self._too_large()
        else:
            self._head, self._body = head, []
            self._framing = Chunked(strip=True) if head.length is None else Length(head.length)
            if head.expects and not self._buffer and self.transport is not None:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _take_body(self) -> bool:
        """Take a body in; return whether it is whole."""
        assert self._head is not None  # it says how the body is framed
        data, self._buffer = self._buffer, b""
        self._body.append(self._framing.feed(data))
        if self._framing.done:
            head, body = self._head, b"".join(self._body)
            self._head, self._body, self._buffer = None, [], self._framing.rest
            self._send(head, body)
            return True
        if sum(map(len, self._body)) > self._server.settings.max_body:
            self._too_large()
        return False

    def _send(self, head: RequestHead, body: bytes) -> None:
        """Send a whole request on: at once where nothing has to be waited for."""
        hinted = generates(head.method, head.path)
        if hinted:
            self._hinter.counters.add("requests")
        if self._far is not None and not (hinted and self._hinter.waits):
            self._write(head, body, self._hinter.now(body) if hinted else None)
            return
        if self.transport is not None:
            self.transport.pause_reading()  # what is sent meanwhile waits at the client
        self._task = asyncio.get_running_loop().create_task(self._later(head, body, hinted))
        self._task.add_done_callback(self._sent)

    async def _later(self, head: RequestHead, body: bytes, hinted: bool) -> None:
        hint = None
        if hinted:
            hint = await self._hinter.later(body) if self._hinter.waits else self._hinter.now(body)
        if self._far is None:
            try:
                await self._server.connect(self)
            except EngineError as error:
                self._hinter.counters.warn("no_backend", "%s", error)
                self.refuse(502, str(error), "engine_failed")
                return
        self._write(head, body, hint)

    def reached(self, far: FarSide) -> None:
        """Take the connection to the target; it is of no use where the client has left meanwhile."""
        if self.transport is None:
            far.abort()
        else:
            self._far = far

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if self.transport is not None:
            self.transport.resume_reading()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._hinter.counters.warn("hook_errors", "a connection failed: %r", error)
            self.close()
        self._go_on()

    def _write(self, head: RequestHead, body: bytes, hint: Hint | None) -> None:
        far = self._far
        if far is None or self.transport is None:
            return
        far.replies.methods.append(head.method)
        if hint is None:
            far.write(written(head, len(body), base=far.base) + body)
        else:
            top = written(head, len(hint.body), base=far.base, drop=hint.drop, add=hint.header)
            far.write(top + hint.body)
        if head.upgrades:
            self._tunnel = far.tunnel = True
            far.write(self._buffer)
            self._buffer = b""

    def close(self) -> None:
        """Close both connections, once the client has what was written."""
        if self.transport is not None:
            self.transport.close()

    def answer(self, page: bytes) -> None:
        """Write a page of the hinter's own; the client waits for nothing else then."""
        if self.transport is not None:
            self.transport.write(page)

    def refuse(self, status: int, message: str, code: str) -> None:
        """Answer in the hinter's own name, and close: what follows cannot be told from the body."""
        if status < 500:
            self._hinter.counters.add("refused")
        body = error_body(message, code, "invalid_request_error" if status < 500 else "server_error")
        self._buffer, self._head = b"", None
        self.answer(_REFUSAL % (status, _REASONS[status], len(body)) + body)
        self.close()

    def _too_large(self) -> None:
        most = self._server.settings.max_body
        self.refuse(413, f"the body is larger than {most} bytes", "body_too_large")


class FarSide(asyncio.Protocol):
    """The connection to the target that belongs to a passage; `base` is the path in front of its `/v1`."""

    def __init__(self, passage: Passage, server: HintServer, base: str) -> None:
        self._passage = passage
        self._server = server
        self._transport: asyncio.Transport | None = None
        self.base = base
        self.replies = ReplyFollower()
        self.tunnel = False

    @property
    def busy(self) -> bool:
        """Whether a reply is still to come, or to end."""
        return self.tunnel or bool(self.replies.methods)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self._passage.reached(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the client's side: what was cut is seen as cut, what was idle as idle."""
        self._transport = None
        self._passage.close()

    def data_received(self, data: bytes) -> None:
        """Hand bytes of replies to the client."""
        near = self._passage.transport
        if near is None:
            self.abort()
            return
        if not self.tunnel:
            between = self.replies.between
            try:
                self.replies.feed(data)
            except Garbage as error:
                self._server.hinter.counters.warn("hook_errors", "replies are not followed: %s", error)
                self.tunnel = True
            if between and self._server.closing:
                data = data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        near.write(data)
        if self._server.closing and not self._passage.busy:
            self._passage.close()

    def pause_writing(self) -> None:
        """Make the client wait: the target does not take what was written."""
        if self._passage.transport is not None:
            self._passage.transport.pause_reading()

    def resume_writing(self) -> None:
        """Read from the client again."""
        if self._passage.transport is not None:
            self._passage.transport.resume_reading()

    def pause_reading(self) -> None:
        """Read no more replies for now."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read replies again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Write to the target."""
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """Drop the connection at once: the engine sees that nobody wants the reply."""
        if self._transport is not None:
            self._transport.abort()
