"""What the gateway costs: CPU, time to the first byte, streamed tokens per CPU second, memory, cancellation.

    python benchmarks/gateway_overhead.py [--quick] [--peer NAME=URL@PID[@RATE] ...] [--out FILE]

An emulated engine streams 32 tokens a request, each an event of its own; requests go to it directly and
through `sooner serve` in turns, 100 a second. CPU is the process's own user and system time, which does
not depend on what else the machine does; times to the first byte do, so look at `load` beside them. The
ranker scores every prompt in its own process, whose CPU is counted apart. Another proxy in front of the
same engine is measured with --peer: start it on the engine's port (--engine-port), give its URL and
process id, whose children count as it does, and a rate for the steady load if it cannot take 100 a
second. `benchmarks/peers.md` says how each was started. How fast a client that leaves frees the engine is
measured twice: while the engine streams as fast as it can (`leaving`), which is mostly the engine's own
backlog, and with its tokens 2 s apart (`leaving_between_tokens`). Prints JSON; `targets` says which
bounds hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

TOKENS = 32
RATE = 100.0
PATIENCE = 30.0  # seconds that streams have to begin, and an engine to become free
PLACES = 64  # at the engine whose waiting room is measured
BODY = {
    "model": "bench",
    "stream": True,
    "max_tokens": TOKENS,
    "ignore_eos": True,
    "messages": [{"role": "user", "content": "Write a short story about a lighthouse keeper. " * 4}],
}
ENGINE = """
name = "bench"
iteration_s = {iteration_s}
prefill_token_s = 0.0
decode_seq_s = 0.0
context_token_s = 0.0
max_num_seqs = 4096
max_num_batched_tokens = 100000
num_blocks = 10000000
"""


class Arm(NamedTuple):
    """A way to the engine, and the process that is paid for it (0: none), a peer's with its children."""

    name: str
    host: str
    port: int
    pid: int
    rate: float = RATE
    peer: bool = False

    @property
    def processes(self) -> list[int]:
        return [self.pid, *(descendants(self.pid) if self.peer else [])] if self.pid else []

    def cpu(self) -> float:
        """Return the CPU seconds it has used."""
        return sum(map(cpu, self.processes))

    def memory(self) -> float:
        """Return its resident memory [MB]."""
        return sum(map(memory, self.processes))


class Call(asyncio.Protocol):
    """One connection that sends one request and watches its reply."""

    refusals: ClassVar[set[str]] = set()  # what was told in place of replies, to say it once

    def __init__(self, request: bytes) -> None:
        self._request = request
        loop = asyncio.get_running_loop()
        self.first = 0.0
        self.sent = 0.0
        self.tokens = 0
        self.began: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[bool] = loop.create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # TCP gives a transport both ways
        self.sent = time.perf_counter()
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
            told = data.rpartition(b"\r\n")[2].decode(errors="replace")
            if told not in Call.refusals:
                Call.refusals.add(told)
                say(f"refused: {told}")
            self.transport.abort()  # type: ignore[union-attr]  # it is what the data came by
            return
        if not self.first and b"data: " in data:
            self.first = time.perf_counter()
            self.began.set_result(None)
        self.tokens += data.count(b'"content":"')
        if b"data: [DONE]" in data and not self.done.done():
            self.done.set_result(True)

    def connection_lost(self, exc: Exception | None) -> None:
        for future in (self.began, self.done):
            if not future.done():
                future.cancel() if future is self.began else future.set_result(False)


def request(arm: Arm, **changes: Any) -> bytes:
    body = json.dumps({**BODY, **changes}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {arm.host}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def call(arm: Arm, **changes: Any) -> Call:
    _, made = await asyncio.get_running_loop().create_connection(
        lambda: Call(request(arm, **changes)), arm.host, arm.port
    )
    return made


async def finished(arm: Arm, **changes: Any) -> Call | None:
    """Send one request and follow it to its end; None where it failed."""
    try:
        one = await call(arm, **changes)
    except OSError:
        return None
    good = await one.done
    if one.transport is not None:
        one.transport.close()
    return one if good else None


def cpu(pid: int) -> float:
    """Return the CPU seconds a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Return the resident memory of a process [MB]."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def descendants(pid: int) -> list[int]:
    paths = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(child) for path in paths for child in path.read_text(encoding="ascii").split()]
    return [one for child in found for one in (child, *descendants(child))]


async def steady(arm: Arm, seconds: float) -> dict[str, Any]:
    """Send the arm's rate of requests; return CPU and times to the first byte.

    Each comes at random within its turn: the engine's steps take as long as a turn, and evenly spaced
    requests would meet all of them at one point of a step, another for each arm.
    """
    phase = random.Random(0)
    count = int(seconds * arm.rate)
    others = [] if arm.peer or not arm.pid else descendants(arm.pid)
    before, before_others = arm.cpu(), sum(map(cpu, others))
    start = time.perf_counter()
    tasks = []
    for n in range(count):
        await asyncio.sleep(max(0.0, start + (n + phase.random()) / arm.rate - time.perf_counter()))
        tasks.append(asyncio.create_task(finished(arm)))
    calls = await asyncio.gather(*tasks)
    good = [one for one in calls if one is not None]
    waits = sorted((one.first - one.sent) * 1000 for one in good) or [math.nan]
    return {
        "rate": arm.rate,
        "requests": count,
        "errors": count - len(good),
        "cpu_ms_per_request": round((arm.cpu() - before) * 1000 / count, 3),
        "scorer_cpu_ms_per_request": round((sum(map(cpu, others)) - before_others) * 1000 / count, 3),
        "first_byte_ms_p50": round(statistics.median(waits), 3),
        "first_byte_ms_p99": round(waits[int(0.99 * (len(waits) - 1))], 3),
    }


async def streams(arm: Arm, n: int, tokens: int) -> dict[str, Any]:
    """Hold n streams open at once; return tokens per CPU second while they run, and the memory."""
    calls = await asyncio.gather(*(call(arm, max_tokens=tokens) for _ in range(n)))
    await asyncio.wait([one.began for one in calls], timeout=PATIENCE)
    began = sum(bool(one.first) for one in calls)
    before, seen, start = arm.cpu(), sum(one.tokens for one in calls), time.perf_counter()
    await asyncio.sleep(6.0)
    used, passed = arm.cpu() - before, sum(one.tokens for one in calls) - seen
    took = time.perf_counter() - start
    held = arm.memory()
    await asyncio.wait([one.done for one in calls], timeout=2 * PATIENCE)
    good = [one.done.done() and one.done.result() for one in calls]
    for one in calls:
        if one.transport is not None:
            one.transport.abort()
    return {
        "streams": n,
        "open_at_once": began,
        "errors": sum(not done for done in good),
        "tokens_per_s": round(passed / took),
        "tokens_per_cpu_s": round(passed / used) if used else None,
        "memory_mb": round(held, 1),
    }


async def leaving(arm: Arm, engine: Arm, n: int) -> dict[str, Any]:
    """Let n clients leave at once in the middle of their streams; return when the engine had none left."""
    calls = await asyncio.gather(*(call(arm, max_tokens=5000) for _ in range(n)))
    await asyncio.wait([one.began for one in calls], timeout=PATIENCE)
    left = time.perf_counter()
    for one in calls:
        if one.transport is not None:
            one.transport.abort()
    while await running(engine) and time.perf_counter() - left < PATIENCE:
        await asyncio.sleep(0.005)
    return {"clients": n, "engine_free_after_ms": round((time.perf_counter() - left) * 1000, 1)}


async def running(engine: Arm) -> int:
    return await gauge(engine, "vllm:num_requests_running")


async def gauge(arm: Arm, name: str) -> int:
    """Return one of the numbers in an arm's `/metrics`."""
    reader, writer = await asyncio.open_connection(arm.host, arm.port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    line = next(line for line in text.splitlines() if line.startswith(name))
    return int(float(line.rsplit(" ", 1)[1]))


async def waiting_room(n: int, narrow: Arm) -> dict[str, Any]:
    """Let n requests wait behind an engine whose places are all taken; return the memory of each."""
    blocking = await asyncio.gather(*(call(narrow, max_tokens=1_000_000) for _ in range(PLACES)))
    await asyncio.gather(*(one.began for one in blocking))
    before = memory(narrow.pid)
    tasks = [asyncio.create_task(finished(narrow, max_tokens=1)) for _ in range(n)]
    until = time.monotonic() + 2 * PATIENCE
    while await gauge(narrow, "sooner_waiting ") < n and time.monotonic() < until:
        await asyncio.sleep(0.5)
    held = memory(narrow.pid) - before
    early = sum(task.done() for task in tasks)
    for one in blocking:
        if one.transport is not None:
            one.transport.abort()
    good = sum(one is not None for one in await asyncio.gather(*tasks))
    return {
        "requests": n,
        "errors": n - good + early,
        "kb_per_waiting_request": round(held * 1000 / n, 1),
    }


@contextmanager
def serving(*options: str) -> Iterator[Arm]:
    """Run `sooner serve` and give it as an arm."""
    command = [sys.executable, "-m", "sooner", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith(b"serving "):
                parts = urlsplit(line.split()[-1].decode())
                yield Arm("sooner", str(parts.hostname), int(parts.port or 0), process.pid)
                return
        raise RuntimeError("sooner serve did not start")
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=5)
        process.kill()


def peer(text: str) -> Arm:
    name, _, rest = text.partition("=")
    url, pid, *rate = rest.split("@")
    parts = urlsplit(url)
    host, port = str(parts.hostname), int(parts.port or 80)
    return Arm(name, host, port, int(pid), float(rate[0]) if rate else RATE, peer=True)


async def measure(arms: list[Arm], narrow: Arm, slow: tuple[Arm, Arm], quick: bool) -> dict[str, Any]:
    engine = arms[0]
    found: dict[str, Any] = {arm.name: {} for arm in arms}
    for arm in arms:
        await steady(arm, 1.0)  # warm: connections, code, the scorer's ranker
    rounds = []
    for n in range(3):
        say(f"steady load, round {n + 1} of 3")
        rounds.append({arm.name: await steady(arm, 3.0 if quick else 10.0) for arm in arms})
    for arm in arms:
        runs = [one[arm.name] for one in rounds]
        found[arm.name]["steady"] = {
            key: sum(run[key] for run in runs) if key in ("requests", "errors")
            else round(statistics.median(run[key] for run in runs), 3)
            for key in runs[0]
        }  # fmt: skip
    for arm in arms[1:]:
        say(f"{arm.name}: streams")
        found[arm.name]["streams_200"] = await streams(arm, 200, 1200)
        found[arm.name]["streams_1000"] = await streams(arm, 300 if quick else 1000, 1200)
        say(f"{arm.name}: clients that leave")
        found[arm.name]["leaving_1"] = await leaving(arm, engine, 1)
        found[arm.name]["leaving_1000"] = await leaving(arm, engine, 100 if quick else 1000)
    say("sooner: clients that leave between two tokens, which are 2 s apart")
    for n in (1, 100 if quick else 1000):
        found["sooner"][f"leaving_between_tokens_{n}"] = await leaving(slow[1], slow[0], n)
    say("a full waiting room")
    found["sooner"]["waiting"] = await waiting_room(500 if quick else 5000, narrow)
    return found


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def targets(found: dict[str, Any]) -> dict[str, bool]:
    ours, direct = found["sooner"], found["direct"]
    added = {
        p: ours["steady"][f"first_byte_ms_{p}"] - direct["steady"][f"first_byte_ms_{p}"]
        for p in ("p50", "p99")
    }
    ours["added_first_byte_ms"] = {p: round(value, 3) for p, value in added.items()}
    return {
        "cpu_ms_per_request <= 6": ours["steady"]["cpu_ms_per_request"] <= 6,
        "added p50 <= 1.5 ms": added["p50"] <= 1.5,
        "added p99 <= 6 ms": added["p99"] <= 6,
        "tokens per CPU second >= 20000": ours["streams_200"]["tokens_per_cpu_s"] >= 20_000,
        "memory with 1000 streams <= 200 MB": ours["streams_1000"]["memory_mb"] <= 200,
        "memory per waiting request <= 60 KB": ours["waiting"]["kb_per_waiting_request"] <= 60,
        "engine free within 100 ms": ours["leaving_1"]["engine_free_after_ms"] <= 100,
        "engine free within 100 ms, tokens 2 s apart, 1 and 1000 leaving": all(
            part["engine_free_after_ms"] <= 100
            for name, part in ours.items()
            if name.startswith("leaving_between_tokens")
        ),
        "engine free within 100 ms, 1000 leaving in mid-stream": ours["leaving_1000"]["engine_free_after_ms"]
        <= 100,
        "no errors": all(part.get("errors", 0) == 0 for part in ours.values() if isinstance(part, dict)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests, for a busy machine")
    parser.add_argument("--engine-port", type=int, default=0, help="port of the emulated engine, for peers")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL@PID[@RATE]")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        spec, config = Path(folder, "engine.toml"), Path(folder, "narrow.toml")
        spec.write_text(ENGINE.format(iteration_s=0.01), encoding="utf-8")
        slowly = Path(folder, "slow.toml")
        slowly.write_text(ENGINE.format(iteration_s=2.0), encoding="utf-8")
        bare = ("--emulate", str(spec), "--bare", "--lengths", "32", "--port", str(options.engine_port))
        with serving(*bare) as engine, serving("--emulate", str(slowly), "--bare") as slow:
            url = f"http://{engine.host}:{engine.port}"
            config.write_text(
                f'ranker = ""\nqueue = {{ max_wait = 3600 }}\n'
                f'[[backend]]\nurl = "{url}"\nmax_in_flight = {PLACES}\n',
                encoding="utf-8",
            )
            with (
                serving("--backend", f"vllm={url}") as ours,
                serving("--config", str(config)) as narrow,
                serving("--backend", f"vllm=http://{slow.host}:{slow.port}", "--ranker", "") as patient,
            ):
                arms = [engine._replace(name="direct", pid=0), ours, *map(peer, options.peer)]
                found = asyncio.run(measure(arms, narrow, (slow, patient), options.quick))
    result = {
        "what": "gateway overhead",
        "machine": {
            "cpus": os.cpu_count(),
            "load_before": round(load, 1),
            "python": platform.python_version(),
        },
        "arms": found,
        "targets": targets(found),
        "peers_absent": "none given; see --peer" if not options.peer else None,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
