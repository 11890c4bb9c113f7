"""What a client and an engine see of each other through a gateway when one of them goes away.

    python benchmarks/gateway_failures.py [--engine-port PORT] [--peer NAME=URL@PID ...] [--out FILE]

An emulated engine takes three seconds for a token, the first included. A client leaves before its first
token, and one between two tokens: how long until the engine runs nothing? Then a stream is open through
every gateway and the engine is killed: what does each client see, an error or a normal end? Prints JSON;
`benchmarks/peers.md` says how other gateways are started.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from gateway_overhead import Arm, Call, call, peer, request, running, say, serving

TOKEN_S = 3.0
ENGINE = f"""
name = "bench"
iteration_s = {TOKEN_S}
prefill_token_s = 0.0
decode_seq_s = 0.0
context_token_s = 0.0
max_num_seqs = 64
max_num_batched_tokens = 100000
num_blocks = 100000
"""


class Watched(Call):
    """A call that keeps what came, and knows how its connection ended."""

    def __init__(self, request: bytes) -> None:
        super().__init__(request)
        self.came = b""
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.came += data
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.ended.done():
            self.ended.set_result(exc)


async def until_free(engine: Arm, one: Call, patience: float = 2.5 * TOKEN_S) -> float | None:
    """Let a client leave; return how long until the engine ran nothing [ms], None if too long."""
    left = time.perf_counter()
    if one.transport is not None:
        one.transport.abort()
    while time.perf_counter() - left < patience:
        if not await running(engine):
            return round((time.perf_counter() - left) * 1000, 1)
        await asyncio.sleep(0.002)
    return None


async def leaving(engine: Arm, arm: Arm) -> dict[str, Any]:
    """Leave before the first token, and between two."""
    found: dict[str, Any] = {}
    for name in ("before_first_token", "between_tokens"):
        one = await call(arm, max_tokens=6)
        async with asyncio.timeout(20 * TOKEN_S):
            while not await running(engine):
                await asyncio.sleep(0.01)
            if name == "between_tokens":
                await one.began
            await asyncio.sleep(0.3)
        found[f"left_{name}_ms"] = await until_free(engine, one)
        while await running(engine):  # one that did not notice goes on until the engine has finished
            await asyncio.sleep(0.1)
    return found


async def dying(engine: Arm, arms: list[Arm]) -> dict[str, dict[str, Any]]:
    """Kill the engine while a stream is open through each gateway; return what each client saw of it."""
    loop = asyncio.get_running_loop()
    calls: list[Watched] = []
    for arm in arms:
        body = request(arm, max_tokens=50)
        _, made = await loop.create_connection(lambda body=body: Watched(body), arm.host, arm.port)
        calls.append(made)
    await asyncio.wait([one.began for one in calls], timeout=20 * TOKEN_S)
    os.kill(engine.pid, signal.SIGKILL)
    start = time.perf_counter()
    found = {}
    for arm, one in zip(arms, calls, strict=True):
        await asyncio.wait([one.ended, one.done], timeout=15.0, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([one.ended], timeout=1.0)
        closed = one.ended.done()
        found[arm.name] = {
            "began": bool(one.first),
            "said_done": b"[DONE]" in one.came,
            "finish_reason": b'"finish_reason":"' in one.came,
            "error_event": b'"error"' in one.came,
            "ended_as_whole": one.came.endswith(b"0\r\n\r\n"),
            "closed": closed,
            "looks_whole": b"[DONE]" in one.came and b'"error"' not in one.came,
            "after_ms": round((time.perf_counter() - start) * 1000, 1),
        }
        if one.transport is not None:
            one.transport.abort()
    return found


async def measure(engine: Arm, arms: list[Arm]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for arm in arms:
        say(f"{arm.name}: clients that leave")
        try:
            found[arm.name] = await leaving(engine, arm)
        except (OSError, TimeoutError) as error:
            found[arm.name] = {"failed": repr(error)}
    say("the engine dies")
    for name, seen in (await dying(engine, arms)).items():
        found[name]["engine_died"] = seen
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--engine-port", type=int, default=0, help="port of the emulated engine, for peers")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL@PID")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "engine.toml")
        spec.write_text(ENGINE, encoding="utf-8")
        bare = ("--emulate", str(spec), "--bare", "--lengths", "50", "--port", str(options.engine_port))
        with serving(*bare) as engine:
            url = f"http://{engine.host}:{engine.port}"
            with serving("--backend", f"vllm={url}", "--ranker", "") as ours:
                arms = [engine._replace(name="direct"), ours, *map(peer, options.peer)]
                found = asyncio.run(measure(engine, arms))
    text = json.dumps({"what": "gateway failures", "seconds_per_token": TOKEN_S, "arms": found}, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
