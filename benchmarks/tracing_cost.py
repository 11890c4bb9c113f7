"""What OpenTelemetry costs the gateway: CPU a request with it off and on, in turns.

    python benchmarks/tracing_cost.py [--requests 600] [--rounds 5]

Client, emulated engine and gateway share one process, so what they cost without spans cancels in the
difference; the exporter's thread is in it. The collector is another process. Times are CPU seconds, which
other load of the machine changes little. Prints JSON, kept in `results/tracing_cost.json`; the aim is at most
0.4 ms a request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp

from sooner.emulator.api import EmulatedEngine
from sooner.emulator.engine import Lengths
from sooner.gateway.app import Gateway
from sooner.gateway.settings import BackendSettings, GatewaySettings
from sooner.sim.cost import Engine

OUT = Path(__file__).parent / "results" / "tracing_cost.json"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
AIM_MS = 0.4
AT_ONCE = 16


class Collector(BaseHTTPRequestHandler):
    """Takes every span and keeps none."""

    def do_POST(self) -> None:
        """Answer that all was taken."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def collect(told: Connection) -> None:
    """Serve a collector and tell its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    told.send(server.server_address[1])
    server.serve_forever()


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=600, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    collector = multiprocessing.Process(target=collect, args=(there,), daemon=True)
    collector.start()
    endpoint = f"http://127.0.0.1:{here.recv()}"
    try:
        found = asyncio.run(measure(endpoint, options.requests, options.rounds))
    finally:
        collector.terminate()
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


async def measure(endpoint: str, requests: int, rounds: int) -> dict[str, Any]:
    """Return CPU milliseconds a request, off and on in turns; the first round of each warms up."""
    took: dict[str, list[float]] = {"off": [], "on": []}
    for _ in range(rounds + 1):
        for how in took:
            os.environ.pop(ENDPOINT, None)
            if how == "on":
                os.environ[ENDPOINT] = endpoint
            took[how].append(await once(requests))
    off, on = took["off"][1:], took["on"][1:]
    added = [b - a for a, b in zip(off, on, strict=True)]
    return {
        "requests": requests,
        "cpu_ms_a_request": {"off": off, "on": on},
        "added_ms": {
            "median": statistics.median(added), "least": min(added), "most": max(added), "aim": AIM_MS,
        },
    }  # fmt: skip


async def once(requests: int) -> float:
    """Return the CPU milliseconds of a request whose reply is streamed, its spans sent."""
    cost = replace(Engine(name="fast"), iteration_s=0.0005, max_num_seqs=64, num_blocks=10_000)
    engine = EmulatedEngine(cost, Lengths("16"), model="m")
    async with engine.serving():
        backend = BackendSettings(url=engine.url, kind="vllm", name="a")
        settings = GatewaySettings(port=0, ranker="", learn=False, state="", backends=(backend,))
        async with Gateway(settings).serving() as gateway, aiohttp.ClientSession(gateway.url) as http:
            await ask(http, 50)
            began = time.process_time()
            await asyncio.gather(*(ask(http, requests // AT_ONCE) for _ in range(AT_ONCE)))
            if gateway.proxy.tracing is not None:
                await asyncio.to_thread(gateway.proxy.tracing.flush)
            return 1e3 * (time.process_time() - began) / (requests // AT_ONCE * AT_ONCE)


async def ask(http: aiohttp.ClientSession, times: int) -> None:
    """Ask so often, one after the other."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    for _ in range(times):
        async with http.post("/v1/chat/completions", json=body) as response:
            await response.read()


if __name__ == "__main__":
    main()
