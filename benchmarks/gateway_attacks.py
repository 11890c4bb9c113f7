"""What unfriendly clients can do to the gateway: each attack's outcome, `/health` and memory during it.

    python benchmarks/gateway_attacks.py [--quick] [--only NAME ...] [--out FILE]

`sooner serve` with keys stands before a small engine of this process that keeps what it was sent. Every
attack is bounded in number and in time, and goes to the loopback address only. While it runs, a process
of its own asks for `/health` every 20 ms on a connection of its own, and the gateway's resident memory is
read as often; `above_idle_mb` is its peak over what the idle gateway took before. An attack holds where
its `outcome` says so, `/health` answers within 100 ms at the 99th percentile and memory stays within
256 MB. The table goes to stderr. Prints JSON; `targets` says which bounds hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import http.client
import json
import multiprocessing
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, NamedTuple

from gateway_overhead import memory, serving
from sooner.gateway.admission.keys import KeyBook
from sooner.gateway.database import Database

CHAT = "/v1/chat/completions"
PATIENCE = 20.0  # seconds that one answer may take
MB = 1_000_000
GATEWAY = """
ranker = ""
keys = "{keys}"
[limits]
body_time = 10
[queue]
max_wait = 60
[[backend]]
url = "{url}"
kind = "vllm"
max_in_flight = 8
[[tenant]]
name = "few"
requests_per_minute = 6
"""


class Site(NamedTuple):
    """Where the gateway is, the keys of two tenants, and what its engine has been sent."""

    host: str
    port: int
    pid: int
    key: str
    few: str
    seen: list[tuple[str, bytes]]
    share: int  # of each attack's full size: 1 for all of it


class Outcome(NamedTuple):
    """What became of an attack."""

    holds: bool
    told: str


class Attack(NamedTuple):
    """A name for the table, and what is done."""

    name: str
    run: Callable[[Site], Awaitable[Outcome]]


class Engine:
    """An engine that answers at once, or after a second where it is asked to, and keeps what heads it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = (OSError, asyncio.IncompleteReadError, asyncio.CancelledError)
        with contextlib.suppress(*gone):  # cancelled: the end of the benchmark
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line = head.split(b"\r\n", 1)[0].decode("latin-1")
                low = head.lower()
                size = int(low.split(b"content-length:")[1].split()[0]) if b"content-length:" in low else 0
                body = b""
                while size:
                    data = await reader.read(min(size, 1 << 20))
                    if not data:
                        return
                    size -= len(data)
                    body = (body + data)[-4096:]
                if not line.startswith("GET "):
                    self.seen.append((line, head))
                    if b"wait a little" in body:
                        await asyncio.sleep(1.0)
                if line.startswith("GET /v1/models"):
                    reply = {"data": [{"id": "m"}]}
                else:
                    usage = {"prompt_tokens": 1, "completion_tokens": 1}
                    reply = {"choices": [{"message": {"content": "x"}}], "usage": usage}
                text = json.dumps(reply).encode()
                told = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                writer.write(told % (len(text), text))
                await writer.drain()
        writer.close()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Engine]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self


def head(path: str, key: str, size: int, *lines: str, method: str = "POST") -> bytes:
    """Return the head of a request."""
    own = ("Host: localhost", f"Authorization: Bearer {key}", f"Content-Length: {size}", "Connection: close")
    return "\r\n".join((f"{method} {path} HTTP/1.1", *own, *lines, "", "")).encode("utf-8", "surrogateescape")


async def ask(site: Site, request: bytes, *more: bytes) -> tuple[int, bytes]:
    """Send a request; return the answer's status (0: closed without one, -1: none in time) and bytes."""
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(site.host, site.port)
            try:
                with contextlib.suppress(ConnectionError):  # it may be answered before all was sent
                    for piece in (request, *more):
                        writer.write(piece)
                        await writer.drain()
                reply = b""
                with contextlib.suppress(ConnectionError):
                    reply = await reader.read(1 << 16)
                return int(reply[9:12] or 0), reply
            finally:
                writer.close()
    except TimeoutError:
        return -1, b""


async def many(calls: list[Callable[[], Awaitable[tuple[int, bytes]]]], at_once: int) -> Counter[int]:
    """Make calls, so many at once; return how often each status came."""
    gate = asyncio.Semaphore(at_once)

    async def one(call: Callable[[], Awaitable[tuple[int, bytes]]]) -> int:
        async with gate:
            return (await call())[0]

    return Counter(await asyncio.gather(*(one(call) for call in calls)))


def told(statuses: Counter[int], more: str = "") -> str:
    return ", ".join(f"{n} x {status}" for status, n in sorted(statuses.items())) + more


def body(text: str = "hello", **more: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more}).encode()


async def spellings(site: Site) -> Outcome:
    """Closed paths and queued ones, in thousands of spellings; only the listed one may reach the engine."""
    draw = random.Random(1)
    wanted = (
        "/v1/load_lora_adapter",
        CHAT,
        "/v1/files",
        "/v1/responses/resp_1",
        "/sleep",
        "/v1/organization",
    )
    odd = ("%2F", "//", "/./", "/../", "%00", "%25", "%2e", ";", "%0a", "/", "%5c")

    def spelled() -> str:
        path = "".join(f"%{ord(one):02X}" if draw.random() < 0.1 else one for one in draw.choice(wanted))
        at = draw.randrange(1, len(path) + 1)
        return path[:at] + draw.choice((*odd, "", "")) + path[at:]

    data = body()
    drawn = [spelled() for _ in range(2000 // site.share)]
    calls = [(lambda path=path: ask(site, head(path, site.key, len(data)), data)) for path in drawn]
    statuses = await many(calls, 16)
    lines = {line for line, _ in site.seen}
    return Outcome(lines <= {f"POST {CHAT} HTTP/1.1"}, told(statuses, f"; the engine saw {len(lines)} path"))


async def names(site: Site) -> Outcome:
    """Headers that choose a replica, a session or a place."""
    lines = ("X-Data-Parallel-Rank: 3", "X-Session-ID: s", "x-smg-target: y", "X-Vllm-Priority: -9",
             "x-gateway-destination-endpoint: z", "X-Request-Priority: 1")  # fmt: skip
    data = body()
    statuses = await many([lambda: ask(site, head(CHAT, site.key, len(data), *lines), data)] * 50, 8)
    passed = [line for line in lines if any(line.split(":")[0].lower().encode() in one.lower()
                                            for _, one in site.seen)]  # fmt: skip
    return Outcome(not passed and statuses[200] == 50, told(statuses, f"; passed: {passed or 'none'}"))


async def everywhere(site: Site) -> Outcome:
    """A tenant of 6 requests a minute asks at every other path."""
    paths = (
        "/v1/messages",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/chat/completions/batch",
        "/score",
        "/pooling",
    )
    data = body(input="x", max_tokens=1)
    calls = [(lambda path=path: ask(site, head(path, site.few, len(data)), data)) for path in paths * 10]
    statuses = await many(calls, 4)
    return Outcome(len(site.seen) <= 6, told(statuses, f"; the engine saw {len(site.seen)}"))


def bombs(key: Callable[[Site], str], n: int) -> Callable[[Site], Awaitable[Outcome]]:
    async def run(site: Site) -> Outcome:
        bomb = gzip.compress(bytes(1000 * MB // site.share), compresslevel=6)
        request = head(CHAT, key(site), len(bomb), "Content-Encoding: gzip")
        statuses = await many([lambda: ask(site, request, bomb)] * n, 8)
        return Outcome(not site.seen and not statuses[200], told(statuses, f"; {len(bomb)} bytes each"))

    return run


def large(make: Callable[[int], bytes], n: int, at_once: int) -> Callable[[Site], Awaitable[Outcome]]:
    async def run(site: Site) -> Outcome:
        data = make(30 * MB // site.share)
        statuses = await many([lambda: ask(site, head(CHAT, site.key, len(data)), data)] * n, at_once)
        return Outcome(not statuses[-1] and not statuses[500], told(statuses, f"; {len(data)} bytes each"))

    return run


def of(part: bytes) -> Callable[[int], bytes]:
    return lambda size: b'{"model":"m","messages":[' + part * (size // len(part)) + b"0]}"


def long_model(size: int) -> bytes:
    return body(model="x" * size)


async def echo(site: Site) -> Outcome:
    """A model's name of 31 MB is not told back."""
    data = long_model(31 * MB // site.share)
    status, reply = await ask(site, head(CHAT, site.key, len(data)), data)
    return Outcome(status in (400, 404, 413) and len(reply) < 2000, f"{status}, {len(reply)} bytes back")


async def idle(site: Site) -> Outcome:
    """Connections that say nothing; then one that asks."""
    opened = []
    with contextlib.suppress(OSError):
        for _ in range(6000 // site.share):  # what was opened before an error is kept
            opened.append(await asyncio.open_connection(site.host, site.port))  # noqa: PERF401
    data = body()
    status, _ = await ask(site, head(CHAT, site.key, len(data)), data)
    for _, writer in opened:
        writer.transport.abort()
    return Outcome(status == 200, f"{len(opened)} opened; a request among them: {status}")


async def slow(site: Site) -> Outcome:
    """Bodies that never come whole, with and without a key."""
    opened = []
    for n in range(400 // site.share):
        _, writer = await asyncio.open_connection(site.host, site.port)
        writer.write(head(CHAT, site.key if n % 2 else "none", 30 * MB) + b'{"model":"m",' + b" " * 60_000)
        opened.append(writer)
    await asyncio.sleep(1.0)
    data = body()
    status, _ = await ask(site, head(CHAT, site.few, len(data)), data)
    for writer in opened:
        writer.transport.abort()
    return Outcome(status in (200, 429), f"{len(opened)} opened; a request among them: {status}")


async def malformed(site: Site) -> Outcome:
    """What is no HTTP."""
    bad = (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1 HTTP/1.1\r\nA\x00: b\r\n\r\n",
           b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n", b"\r\n" * 50 + b"nonsense\r\n\r\n")  # fmt: skip
    calls = [(lambda data=data: ask(site, data)) for data in bad * (400 // site.share)]
    statuses = await many(calls, 16)
    return Outcome(not statuses[200] and not statuses[500], told(statuses))


async def waiting(site: Site) -> Outcome:
    """More bodies than may be held, while the engine is slow: the last are shed."""
    data = body("wait a little " + "x" * 8 * MB, tail="wait a little")
    statuses = await many([lambda: ask(site, head(CHAT, site.key, len(data)), data)] * 40, 40)
    return Outcome(statuses[200] > 0 and statuses[503] > 0 and not statuses[-1], told(statuses))


ATTACKS = (
    Attack("paths in 2,000 spellings", spellings),
    Attack("headers that choose a place", names),
    Attack("a limited tenant at other paths", everywhere),
    Attack("gzip bombs, wrong key", bombs(lambda site: "none", 40)),
    Attack("gzip bombs, good key", bombs(lambda site: site.key, 20)),
    Attack("30 MB of text", large(lambda size: body("x" * size), 12, 6)),
    Attack("30 MB of letters beyond Latin", large(lambda size: body("é" * (size // 6) + "😀"), 12, 6)),
    Attack("30 MB of empty lists", large(of(b"[],"), 12, 6)),
    Attack("30 MB of small objects", large(of(b'{"":0},'), 12, 6)),
    Attack("30 MB of short strings", large(of(b'"",'), 12, 6)),
    Attack("30 MB of escaped quotes", large(lambda size: body('"' * (size // 2)), 6, 3)),
    Attack("30 MB of backslashes", large(lambda size: body("\\" * (size // 2)), 6, 3)),
    Attack(
        "30 MB of texts of 60 KB", large(of(b'{"role":"user","content":"' + b"x" * 60_000 + b'"},'), 12, 6)
    ),
    Attack("30 MB of brackets", large(lambda size: b"[" * size, 12, 6)),
    Attack("a model's name of 31 MB", echo),
    Attack("40 bodies of 8 MB that wait", waiting),
    Attack("6,000 idle connections", idle),
    Attack("400 bodies that do not come", slow),
    Attack("2,000 malformed requests", malformed),
)


def probe(host: str, port: int, pid: int, pipe: Pipe) -> None:
    """Ask for `/health` and read the gateway's memory until told to stop; send both back."""
    latencies, most = [], 0.0
    connection = http.client.HTTPConnection(host, port, timeout=30)
    pipe.send("ready")
    while not pipe.poll(0.02):
        began = time.monotonic()
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):  # a stranger's connection that had to make room
            connection.close()
            connection = http.client.HTTPConnection(host, port, timeout=30)
            continue
        latencies.append((time.monotonic() - began) * 1000)
        most = max(most, memory(pid))
    pipe.send((latencies, most))


async def measured(site: Site, attack: Attack, idle_mb: float) -> dict[str, Any]:
    """Run one attack beside the probe."""
    site.seen.clear()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=probe, args=(site.host, site.port, site.pid, theirs)
    )
    process.start()
    await asyncio.to_thread(ours.recv)
    await asyncio.sleep(0.3)
    began = time.monotonic()
    outcome = await attack.run(site)
    seconds = time.monotonic() - began
    await asyncio.sleep(0.3)
    ours.send("stop")
    latencies, most = await asyncio.to_thread(ours.recv)
    process.join()
    latencies.sort()
    p99 = latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))] if latencies else float("inf")
    return {
        "attack": attack.name,
        "holds": outcome.holds,
        "outcome": outcome.told,
        "seconds": round(seconds, 1),
        "health_p99_ms": round(p99, 1),
        "health_max_ms": round(latencies[-1], 1) if latencies else None,
        "above_idle_mb": round(max(0.0, most - idle_mb), 1),
    }


async def run(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    book = KeyBook(Database(f"sqlite:///{folder}/keys.db"))
    keys = book.add("rogue"), book.add("few")
    book.close()
    config = folder / "gateway.toml"
    rows = []
    async with Engine().serving() as engine:
        config.write_text(
            GATEWAY.format(keys=f"sqlite:///{folder}/keys.db", url=engine.url), encoding="utf-8"
        )
        with contextlib.ExitStack() as stack:
            arm = await asyncio.to_thread(stack.enter_context, serving("--config", str(config)))
            site = Site(arm.host, arm.port, arm.pid, *keys, engine.seen, 10 if options.quick else 1)
            await asyncio.sleep(1.0)
            idle_mb = memory(site.pid)
            for attack in ATTACKS:
                if options.only and not any(part in attack.name for part in options.only):
                    continue
                rows.append(await measured(site, attack, idle_mb))
                row = rows[-1]
                print(
                    f"{row['attack']:34} {'held' if row['holds'] else 'FAILED'} {row['health_p99_ms']:7} ms "
                    f"{row['above_idle_mb']:7} MB  {row['outcome']}",
                    file=sys.stderr,
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of each")
    parser.add_argument("--only", nargs="*", default=[], help="attacks whose name holds one of these")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(run(options, Path(folder)))
    result = {
        "what": "gateway attacks",
        "machine": {
            "cpus": os.cpu_count(), "load_before": round(load, 1), "python": platform.python_version()
        },
        "quick": options.quick,
        "attacks": rows,
        "targets": {
            "every attack was held": all(row["holds"] for row in rows),
            "health p99 <= 100 ms in each": all(row["health_p99_ms"] <= 100 for row in rows),
            "memory <= 256 MB above idle in each": all(row["above_idle_mb"] <= 256 for row in rows),
        },
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
