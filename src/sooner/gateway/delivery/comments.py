"""Comments to a streaming client whose request waits, so that nothing on the way takes the line for dead.

Server-sent events may hold lines that begin with a colon, which readers leave out. The first of them needs
the reply's head before it, which says 200: from then on a refusal is an event of the stream, as the client's
API has it. What is done sooner than the first comment is answered as if there were none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from aiohttp import web

from sooner.gateway.delivery import tongues

COMMENT = b": waiting\n\n"
_HEAD = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache",
         "X-Accel-Buffering": "no"}  # fmt: skip


class Comments:
    """The comments to one client, one every so many seconds until `stop`; `path` is the endpoint's."""

    def __init__(self, request: web.BaseRequest, path: str, every: float, id: str) -> None:
        self._request = request
        self._path = path
        self._id = id
        self._begun: web.StreamResponse | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(every))

    async def _run(self, every: float) -> None:
        while True:
            await asyncio.sleep(every)
            if self._begun is None:
                self._begun = await self._begin()
            self._write(COMMENT)

    async def _begin(self) -> web.StreamResponse:
        response = web.StreamResponse(headers={**_HEAD, "x-sooner-request-id": self._id})
        response.enable_chunked_encoding()
        writer = await response.prepare(self._request)
        flush = getattr(writer, "send_headers", None)  # before aiohttp 3.12 they have gone already
        if flush is not None:
            flush()
        return response

    def _write(self, data: bytes) -> None:
        transport = self._request.transport
        if transport is not None and not transport.is_closing():
            transport.write(chunk(data))

    async def stop(self) -> web.StreamResponse | None:
        """End the comments; return the reply that has begun, None where none has."""
        self._task.cancel()
        await asyncio.wait({self._task})  # which raises nothing of the task's, only that we are cancelled
        if not self._task.cancelled():
            self._task.exception()  # the client has left, as whoever serves it will see
        return self._begun

    async def closing(self, answer: Awaitable[web.StreamResponse]) -> web.StreamResponse:
        """Return the answer to the request; where a stream has begun, any other comes as an event of it."""
        try:
            response = await answer
        finally:
            begun = await self.stop()
        if begun is None or response is begun:
            return response
        if isinstance(response, web.Response) and isinstance(response.body, bytes):
            self._write(tongues.as_event(self._path, response.status, response.body))
        return begun


def chunk(data: bytes) -> bytes:
    """Return data as one chunk of HTTP/1.1."""
    return b"%x\r\n%b\r\n" % (len(data), data)
