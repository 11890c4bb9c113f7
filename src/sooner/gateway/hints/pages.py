"""The hinter's own two pages: that it lives, and what it has counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sooner.gateway.hints.hinter import COUNTERS, Hinter
from sooner.gateway.hints.request_head import BadHead, read_request_head

HEALTH, METRICS = "/sooner/health", "/sooner/metrics"

_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def page(path: str, hinter: Hinter, closing: bool, under_way: int) -> bytes | None:
    """Return one of the pages as a whole reply; None for any other path."""
    if path == METRICS:
        return _reply(b"text/plain; version=0.0.4; charset=utf-8", _metrics(hinter).encode())
    if path == HEALTH:
        said = {"target": hinter.settings.target, "closing": closing, "under_way": under_way}
        return _reply(b"application/json", json.dumps(said).encode())
    return None


@asynccontextmanager
async def pages_at(host: str, port: int, answer: Callable[[str], bytes | None]) -> AsyncIterator[str]:
    """Serve what `answer` says of a path, at a port that has nothing else; give its address."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            block = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10.0)
            writer.write(answer(read_request_head(block[:-4]).path) or _NOT_FOUND)
            await writer.drain()
        except (BadHead, OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # nobody who asks for a page
        finally:
            writer.close()

    async with await asyncio.start_server(one, host, port) as server:
        at = server.sockets[0].getsockname()
        yield f"http://[{at[0]}]:{at[1]}" if ":" in at[0] else f"http://{at[0]}:{at[1]}"


def _metrics(hinter: Hinter) -> str:
    lines = []
    for name, count in hinter.counters.counts.items():
        full = f"sooner_hint_{name}_total"
        lines += [f"# HELP {full} {COUNTERS[name]}", f"# TYPE {full} counter", f"{full} {count}"]
    return "\n".join(lines) + "\n"


def _reply(kind: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (kind, len(body)) + body
