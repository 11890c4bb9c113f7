"""A target that says what it was sent, hinters in front of it, and a client that tries another address."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
from aiohttp import web

from sooner.gateway.hints.server import HintServer
from sooner.gateway.hints.settings import HintSettings


class Target:
    """An engine that keeps the headers and the body it got; a streamed reply is five events."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.hold: asyncio.Event | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append(({name.lower(): value for name, value in request.headers.items()}, body))
        if self.hold is not None:
            await self.hold.wait()
        if b'"stream":true' in body.replace(b" ", b""):
            reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await reply.prepare(request)
            for n in range(5):
                await reply.write(b"data: %d\n\n" % n)
            await reply.write_eof()
            return reply
        return web.json_response({"path": request.path, "seen": len(self.seen)})

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Target]:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{rest:.*}", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()


@asynccontextmanager
async def hinter(name: str, *backends: str, **settings: Any) -> AsyncIterator[HintServer]:
    """Serve a hinter in this loop."""
    chosen = HintSettings(target=name, backends=backends, **{"port": 0, "ranker": "light", **settings})
    async with HintServer(chosen).serving() as server:
        yield server


@contextmanager
def process(*options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `sooner hint` in a process of its own; give it and its URL."""
    command = [sys.executable, "-m", "sooner", "hint", "--port", "0", "--ranker", "light", *options]
    started = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        assert started.stderr is not None
        line = next(line for line in started.stderr if line.startswith(b"hinting "))
        yield started, line.split()[-1].decode().removesuffix("/v1")
    finally:
        started.kill()
        started.communicate()


async def ask_any(http: aiohttp.ClientSession, urls: list[str], number: int, body: dict[str, Any]) -> bytes:
    """Ask one of the addresses, and the next one where it fails, as a proxy before several instances does."""
    for attempt in range(2 * len(urls)):
        url = urls[(number + attempt) % len(urls)]
        try:
            async with http.post(f"{url}/v1/chat/completions", data=json.dumps(body)) as response:
                whole = await response.read()
                if response.status == 200:
                    return whole
        except aiohttp.ClientError:
            continue
    raise AssertionError(f"request {number} was answered nowhere")
