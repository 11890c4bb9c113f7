"""A reply on its way from an engine to a client: the head rewritten, the body's bytes as they come."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from sooner.core import EngineError
from sooner.gateway.admission.headers import returned
from sooner.gateway.admission.reading import Asked
from sooner.gateway.delivery.backlog import Backlog
from sooner.gateway.delivery.comments import Comments, chunk
from sooner.gateway.delivery.tongues import cut_event
from sooner.gateway.engines.connections import Connection, CutOff, SlowClient
from sooner.gateway.engines.http1 import Head

# A search leaps to a name's last letters; then it looks whether the name is whole, its quote not escaped.
_OUTPUT = re.compile(
    rb'_tokens"(?:(?<=[^\\]"completion_tokens")|(?<=[^\\]"output_tokens"))\s*:\s*([0-9]{1,9})'
)
_PROMPT = re.compile(rb'_tokens"(?:(?<=[^\\]"prompt_tokens")|(?<=[^\\]"input_tokens"))\s*:\s*([0-9]{1,9})')
_CUT = re.compile(
    rb'reason"(?:(?<=[^\\]"finish_reason")|(?<=[^\\]"stop_reason")|(?<=[^\\]"reason"))'
    rb'\s*:\s*"(?:length|max_tokens|max_output_tokens)"'
)
_TAIL = 16 * 1024  # bytes at the end of a reply in which its usage is looked for


class Usage(NamedTuple):
    """Lengths of a finished reply [tokens]; `counted` says that they are the engine's own.

    `cut` says that the reply ended at a limit: it would have been longer.
    """

    prompt_len: int | None
    output_len: int
    counted: bool
    cut: bool = False


class Relay:
    """One reply being handed on. `started` says whether the client has seen anything of it.

    `path` is its endpoint's. With `comments`, which may have begun the reply, the engine's chunks come
    without their framing.
    """

    def __init__(
        self, request: web.BaseRequest, connection: Connection, backlog: Backlog, path: str,
        comments: Comments | None = None,
    ) -> None:  # fmt: skip
        self._request = request
        self._connection = connection
        self._backlog = backlog
        self._path = path
        self._comments = comments
        self._drainer: asyncio.Task[None] | None = None
        self.started = False

    async def run(
        self, head: Head, extra: Mapping[str, str], done: Callable[[], None] | None = None
    ) -> web.StreamResponse:
        """Hand the reply on to its end; `done` is called once the engine is, which the client may be later.

        When the engine breaks off, a streaming client gets an event that says so, and every client
        gets a connection that ends before the reply does, so that no cut reply looks whole; then
        the engine's error is raised. A client that does not read is closed: SlowClient.
        """
        request, connection = self._request, self._connection
        begun = None if self._comments is None else await self._comments.stop()
        if begun is not None and not _is_stream(head):
            return await self._whole(head, done)
        response = self._response(head, extra) if begun is None else begun
        writer = await response.prepare(request)
        transport = request.transport
        if writer is None or transport is None:
            raise ConnectionResetError("the client has gone")
        self.started = True
        flush = getattr(writer, "send_headers", None)  # before aiohttp 3.12 they have gone already
        if flush is not None:
            flush()

        def wait_for_client() -> None:
            self._drainer = asyncio.get_running_loop().create_task(drained())

        async def drained() -> None:
            await writer.drain()
            connection.resume()

        framed = self._comments is not None and response.chunked
        connection.attach(
            (lambda data: transport.write(chunk(data))) if framed else transport.write,
            transport, wait_for_client, lambda size: self._backlog.keeps(self, size),
        )  # fmt: skip
        try:
            return await self._to_the_end(response, writer, transport, done)
        finally:
            self._backlog.forget(self)

    def _response(self, head: Head, extra: Mapping[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(status=head.status, reason=head.reason or None)
        for name, value in head.headers:
            if returned(name):
                response.headers.add(name, value)
        response.headers.update(extra)
        if head.length is not None:
            response.content_length = head.length
        elif self._request.version >= (1, 1):
            response.enable_chunked_encoding()
        return response

    async def _whole(self, head: Head, done: Callable[[], None] | None) -> web.StreamResponse:
        """Return a reply that is no stream, once it is all here: it has to be said as an event."""
        body = bytearray()
        self._connection.attach(body.extend)
        await self._connection.finished
        if done is not None:
            done()
        return web.Response(body=bytes(body), status=head.status)

    async def _to_the_end(
        self, response: web.StreamResponse, writer: AbstractStreamWriter, transport: asyncio.WriteTransport,
        done: Callable[[], None] | None,
    ) -> web.StreamResponse:  # fmt: skip
        connection = self._connection
        try:
            await connection.finished
            if done is not None:
                done()
        except EngineError as error:
            streaming = "event-stream" in response.headers.get("Content-Type", "")
            if response.chunked and streaming and connection.clean and not transport.is_closing():
                transport.write(cut_event(self._path, f"the engine broke off: {type(error).__name__}"))
            response.force_close()
            transport.close()  # once the client has what came
            asyncio.get_running_loop().call_later(self._backlog.limits.client_time, transport.abort)
            raise
        except CutOff:
            transport.abort()
            raise
        finally:
            if self._drainer is not None:
                self._drainer.cancel()
        if transport.get_write_buffer_size():
            await drain(response, writer, transport, self._backlog.limits.client_time)
        else:  # the client has taken all there is: the end is not waited for
            await response.write_eof()
        return response


def _is_stream(head: Head) -> bool:
    kind = next((value for name, value in head.headers if name.lower() == "content-type"), "")
    return head.status == 200 and "event-stream" in kind


async def drain(
    response: web.StreamResponse, writer: AbstractStreamWriter, transport: asyncio.WriteTransport,
    seconds: float, last: bytes = b"",
) -> None:  # fmt: skip
    """End a reply once its client has taken it; one that has not after `seconds` is closed: SlowClient."""
    try:
        async with asyncio.timeout(seconds):
            if last:
                await response.write(last)
            await response.write_eof()
            await writer.drain()  # which a body of known length does not do at its end
    except TimeoutError as error:
        transport.abort()
        raise SlowClient(f"the client did not take its reply within {seconds:.0f} s") from error


def usage(connection: Connection, asked: Asked, *, ended: bool = True) -> Usage:
    """Return the lengths of a reply, or of what came: the engine's count, else a token for each event."""
    tail = b"".join(connection.pieces)[-_TAIL:]
    output = _OUTPUT.findall(tail)
    prompt = _PROMPT.findall(tail)
    cut = _CUT.search(tail) is not None
    prompt_len = int(prompt[-1]) if prompt else None
    if not asked.endpoint.generates:
        return Usage(prompt_len, 0, prompt_len is not None)
    if output:
        return Usage(prompt_len, int(output[-1]), True, cut)
    around = 2 if ended else 1  # events that open and close a chat's stream
    guess = connection.events - around if asked.stream else connection.size // 4
    return Usage(None, max(0, guess), False, cut)
