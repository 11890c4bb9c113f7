"""A gateway in front of emulated engines, in one event loop, for the tests of the gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp

from sooner.emulator.api import EmulatedEngine
from sooner.emulator.engine import Lengths
from sooner.gateway.app import Gateway
from sooner.gateway.settings import BackendSettings, GatewaySettings
from sooner.sim.cost import Engine

FAST = Engine(name="fast", iteration_s=0.002, max_num_seqs=64, num_blocks=10_000)


def engine(**changes: Any) -> EmulatedEngine:
    """Return an emulated engine that takes 2 ms for a token, unless `changes` to its cost say otherwise."""
    own = {name: changes.pop(name) for name in ("by_priority", "model", "lengths") if name in changes}
    own.setdefault("lengths", Lengths("5"))
    return EmulatedEngine(replace(FAST, **changes), **{"model": "m", **own})


@asynccontextmanager
async def rig(
    engines: Sequence[EmulatedEngine | str], *, backend: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Gateway]:
    """Serve a gateway in front of engines (or of whatever listens at a URL)."""
    async with AsyncExitStack() as stack:
        urls = [
            one if isinstance(one, str) else (await stack.enter_async_context(one.serving())).url
            for one in engines
        ]
        options = {"kind": "vllm", **(backend or {})}
        backends = tuple(BackendSettings(url=url, **options) for url in urls)
        chosen = GatewaySettings(
            **{"port": 0, "ranker": "", "learn": False, "backends": backends, **settings}
        )
        gateway = await stack.enter_async_context(Gateway(chosen).serving())
        yield gateway


@asynccontextmanager
async def raw(
    reply: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """Serve an engine that answers health checks, and each POST with whatever `reply` writes, then closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                size = int(head.lower().split(b"content-length:")[1].split()[0])
                await reply(await reader.readexactly(size), writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def client(gateway: Gateway) -> AsyncIterator[aiohttp.ClientSession]:
    """Return an HTTP client of the gateway."""
    async with aiohttp.ClientSession(gateway.url, connector=aiohttp.TCPConnector(limit=0)) as http:
        yield http


def chat(prompt: str = "hello", **more: Any) -> dict[str, Any]:
    """Return the body of a chat request."""
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], **more}


def run(test: Callable[[], Awaitable[None]], patience: float = 30.0) -> None:
    """Run a test's coroutine, within `patience` [s]."""

    async def bounded() -> None:
        async with asyncio.timeout(patience):
            await test()

    asyncio.run(bounded())


def events(body: bytes) -> list[Any]:
    """Return the data of each server-sent event, JSON read."""
    found = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in found]


async def until(condition: Callable[[], bool], patience: float = 5.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.005)
