"""Two replicas of a Ray Serve LLM application behind the gateway, beside two vLLMs without Ray.

    python benchmarks/ray_replicas.py [--requests 120] [--bursts 2] [--homes vllm ray] [--out FILE]

A Llama of two layers with random weights, 4 slots an engine, the plugin in each, the gateway in front.
Bursts of short questions are sent at once, each of a given length. Of each pair of bursts one
tells the order the lengths, the other one and the same length for all, which is the order of arrival; so both
meet the same engines. Latencies are engine steps from a request's arrival at its engine to its end, as the
engines' traces say, which no busy machine changes. Then, on Ray, a replica is killed in the midst of a burst
(SIGKILL): requests of which nothing had been sent must all be answered. Needs `ray[serve]`. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

from gateway_engines import address
from real_engine_load import tiny_model
from sooner.demo import engine
from sooner.demo.run import versions

SLOTS, ENGINES = 4, 2
PLUGIN = {"policy": "ltr", "ranker": "", "state": ""}
LONGEST = 200  # tokens of a reply


def lengths(requests: int, seed: int) -> list[int]:
    """Return reply lengths, log-normal with sigma 1 about 24 tokens."""
    drawn = np.random.default_rng(seed).lognormal(np.log(24), 1.0, requests)
    return np.clip(drawn, 4, LONGEST).astype(int).tolist()


@contextmanager
def gateway(folder: Path, *backends: str) -> Iterator[str]:
    """Run `sooner serve`, which passes all on at once: the order is the engines'."""
    settings, log = folder / "gateway.toml", folder / "gateway.log"
    text = 'port = 0\nranker = ""\nlearn = false\n[queue]\nmax_wait = 3600.0\noverdue = 3600.0\n'
    for backend in backends:
        kind, _, url = backend.partition("=")
        text += f'[[backend]]\nurl = "{url}"\nkind = "{kind}"\nmax_in_flight = 500\n'
    settings.write_text(text, encoding="utf-8")
    with log.open("w", encoding="utf-8") as output:
        command = [sys.executable, "-m", "sooner", "serve", "--config", str(settings)]
        process = subprocess.Popen(command, stderr=output)
    try:
        yield address(process, log)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def vllms(folder: Path, weights: Path, trace: Path) -> Iterator[list[str]]:
    """Run two vLLMs with the plugin; give them as backends."""
    with ExitStack() as stack:
        urls = [
            stack.enter_context(
                engine.serve(
                    weights, name="m", log=folder / f"vllm{n}.log", settings={**PLUGIN, "trace": str(trace)},
                    max_num_seqs=SLOTS,
                )
            )
            for n in range(ENGINES)
        ]  # fmt: skip
        yield [f"vllm={url}" for url in urls]


@contextmanager
def ray_application(folder: Path, weights: Path, trace: Path) -> Iterator[list[str]]:
    """Run a Ray Serve LLM application of two replicas; give it as a backend."""
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    from sooner.ray import llm_config

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=ENGINES * 2 + 2, include_dashboard=False, object_store_memory=200 << 20)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    config = LLMConfig(
        model_loading_config={"model_id": "m", "model_source": str(weights)},
        engine_kwargs={
            "dtype": "float32", "max_model_len": 2048, "max_num_seqs": SLOTS, "enforce_eager": True,
            "enable_prefix_caching": False, "enable_chunked_prefill": False, "max_num_batched_tokens": 2048,
        },
        deployment_config={"num_replicas": ENGINES},
        placement_group_config={"bundle_per_worker": {"CPU": 1, "GPU": 0}},
        log_engine_metrics=False,
    )  # fmt: skip
    try:
        serve.run(
            build_openai_app(
                {"llm_configs": [llm_config(config, scorer_socket="", trace=str(trace), **PLUGIN)]}
            )
        )
        yield [f"ray=http://127.0.0.1:{port}"]
    finally:
        serve.shutdown()
        ray.shutdown()


async def ask(http: aiohttp.ClientSession, tag: str, length: int, told: int, stream: bool) -> tuple[int, int]:
    """Send one request; return its status (0: none came) and the bytes of its reply."""
    body = {
        "model": "m", "prompt": "the a of to and in is it you that", "max_tokens": length, "ignore_eos": True,
        "stream": stream, "vllm_xargs": {"sooner_predicted_len": told, "sooner_tag": tag},
    }  # fmt: skip
    got = 0
    try:
        async with http.post("/v1/completions", json=body) as response:
            status = response.status
            async for part in response.content.iter_any():
                got += len(part)
        return status, got
    except aiohttp.ClientError:
        return 0, got


async def burst(url: str, name: str, sizes: list[int], told: list[int], stream: bool = False) -> list[Any]:
    """Send all at once; return what came of each."""
    connector, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(url, connector=connector, timeout=patience) as http:
        asked = (
            ask(http, f"{name}-{n}", size, says, stream)
            for n, (size, says) in enumerate(zip(sizes, told, strict=True))
        )
        return list(await asyncio.gather(*asked))


def steps_of(trace: Path, name: str, requests: int) -> list[int]:
    """Return each request's engine steps from its arrival to its end."""
    lines = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    found = [one["finish_step"] - one["arrival_step"] for one in lines if one["tag"].startswith(f"{name}-")]
    assert len(found) == requests, f"{len(found)} of {requests} requests of {name} are in the trace"
    return found


def gains(url: str, trace: Path, requests: int, bursts: int) -> dict[str, Any]:
    """Return mean latencies by arrival and in our order, and what the order gained."""
    asyncio.run(burst(url, "warm", [4] * 16, [4] * 16))
    means: dict[str, list[float]] = {"fcfs": [], "ltr": []}
    for seed in range(bursts):
        sizes = lengths(requests, seed)
        for order, told in (("fcfs", [1] * requests), ("ltr", sizes)):
            name = f"{order}{seed}"
            came = asyncio.run(burst(url, name, sizes, told))
            assert all(status == 200 for status, _ in came), came
            means[order].append(float(np.mean(steps_of(trace, name, requests))))
    return {
        **{f"mean_steps_{order}": np.mean(of).item() for order, of in means.items()},
        "gain": float(np.mean(means["fcfs"]) / np.mean(means["ltr"])),
    }


def kill_in_a_burst(url: str, trace: Path, requests: int) -> dict[str, Any]:
    """Kill a replica once a quarter of a burst has ended; return what came of its requests."""
    sizes = lengths(requests, 99)
    victim = next(one for one in psutil.process_iter() if "ServeReplica" in one.name() + _words(one)
                  and "LLMServer" in _words(one))  # fmt: skip
    before = len(trace.read_text(encoding="utf-8").splitlines())

    async def whole() -> list[Any]:
        sent = asyncio.create_task(burst(url, "killed", sizes, sizes))
        while len(trace.read_text(encoding="utf-8").splitlines()) < before + requests // 4:
            await asyncio.sleep(0.02)
        os.kill(victim.pid, signal.SIGKILL)
        return await sent

    came = asyncio.run(whole())
    statuses = [status for status, _ in came]
    return {
        "killed": _words(victim)[:80] if victim.is_running() else "replica",
        "answered": statuses.count(200),
        "others": sorted({status for status in statuses if status != 200}),
        "requests": requests,
    }


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--bursts", type=int, default=2)
    parser.add_argument("--homes", nargs="+", choices=("vllm", "ray"), default=["vllm", "ray"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ray_replicas.json"))
    asked = parser.parse_args()
    result: dict[str, Any] = {"requests": asked.requests, "bursts": asked.bursts, "slots": SLOTS}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        weights = tiny_model(folder / "model")
        for home in asked.homes:
            trace = folder / f"{home}.trace.jsonl"
            serving = vllms if home == "vllm" else ray_application
            with serving(folder, weights, trace) as backends, gateway(folder, *backends) as url:
                result[home] = gains(url, trace, asked.requests, asked.bursts)
                print(home, result[home], file=sys.stderr, flush=True)
                if home == "ray":
                    result["replica_killed"] = kill_in_a_burst(url, trace, asked.requests)
                    print(result["replica_killed"], file=sys.stderr, flush=True)
    if {"vllm", "ray"} <= result.keys():
        result["gain_beside_plain_vllms"] = result["ray"]["gain"] / result["vllm"]["gain"]
    result |= {"seconds": round(time.monotonic() - began), "versions": versions()}
    text = json.dumps(result, indent=2)
    asked.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
