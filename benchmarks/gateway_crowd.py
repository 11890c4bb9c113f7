"""What a crowd does: 1,000 streams open with 5,000 requests waiting behind them, then 2,000 at one instant.

    python benchmarks/gateway_crowd.py [--quick] [--out FILE]

An emulated engine takes 1,000 requests at a time and makes a token of each every half second, so that
what is counted is the crowd and not the tokens; `sooner serve` stands before it. First 1,000 streams of
90 tokens are opened; while they run, 5,000 requests for 2 tokens come and wait, and all are followed to
their end. Then 2,000 requests come at one instant. An error is a request that is not answered whole.
Memory is resident, of the gateway's process. Prints JSON; `targets` says which bounds hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from gateway_overhead import Arm, Call, call, cpu, gauge, memory, serving

ENGINE = """
name = "bench"
iteration_s = 0.5
prefill_token_s = 0.0
decode_seq_s = 0.0
context_token_s = 0.0
max_num_seqs = {places}
max_num_batched_tokens = 1000000
num_blocks = 10000000
"""
GATEWAY = """
ranker = ""
queue = {{ max_wait = 3600 }}
[[backend]]
url = "{url}"
kind = "vllm"
max_in_flight = {places}
"""


async def whole(arm: Arm, tokens: int, patience: float) -> Call | None:
    """Send a request and follow it to its end; None where it was not answered whole."""
    try:
        async with asyncio.timeout(patience):
            one = await call(arm, max_tokens=tokens)
            good = await one.done
    except (OSError, TimeoutError):
        return None
    if one.transport is not None:
        one.transport.close()
    return one if good and one.tokens >= tokens else None


async def reached(arm: Arm, name: str, n: int) -> None:
    """Wait until a number in `/metrics` is n, for half a minute at most."""
    until = time.monotonic() + 30.0
    while await gauge(arm, name) < n and time.monotonic() < until:
        await asyncio.sleep(0.5)


async def crowd(arm: Arm, streams: int, waiting: int) -> dict[str, Any]:
    """Open streams, let requests wait behind them, and follow all to their end."""
    empty = memory(arm.pid)
    running = [asyncio.create_task(whole(arm, 90, 300.0)) for _ in range(streams)]
    await reached(arm, "sooner_running ", streams)
    with_streams, used = memory(arm.pid), cpu(arm.pid)
    behind = [asyncio.create_task(whole(arm, 2, 300.0)) for _ in range(waiting)]
    await reached(arm, "sooner_waiting ", waiting)
    used = cpu(arm.pid) - used
    with_all = memory(arm.pid)
    early = sum(task.done() for task in (*running, *behind))
    ended = await asyncio.gather(*running, *behind)
    return {
        "streams": streams,
        "waiting": waiting,
        "ended_before_all_were_there": early,
        "errors": sum(one is None for one in ended),
        "memory_mb": {"empty": empty, "with_streams": with_streams, "with_all": with_all},
        "kb_per_stream": round((with_streams - empty) * 1000 / streams, 1),
        "kb_per_waiting_request": round((with_all - with_streams) * 1000 / waiting, 1),
        "cpu_ms_per_waiting_request": round(used * 1000 / waiting, 2),
    }


async def at_once(arm: Arm, n: int) -> dict[str, Any]:
    """Send n requests at one instant; return whether all completed, and when the last did."""
    began = time.monotonic()
    ended = await asyncio.gather(*(whole(arm, 4, 75.0) for _ in range(n)))
    return {
        "requests": n,
        "completed": sum(one is not None for one in ended),
        "all_within_s": round(time.monotonic() - began, 1),
    }


async def measure(arm: Arm, quick: bool) -> dict[str, Any]:
    share = 10 if quick else 1
    together = await crowd(arm, 1000 // share, 5000 // share)
    return {"together": together, "at_once": await at_once(arm, 2000 // share)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of it")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        spec, config = Path(folder, "engine.toml"), Path(folder, "gateway.toml")
        places = 100 if options.quick else 1000
        spec.write_text(ENGINE.format(places=places), encoding="utf-8")
        with serving("--emulate", str(spec), "--bare") as engine:
            url = f"http://{engine.host}:{engine.port}"
            config.write_text(GATEWAY.format(url=url, places=places), encoding="utf-8")
            with serving("--config", str(config)) as ours:
                found = asyncio.run(measure(ours, options.quick))
    together, once = found["together"], found["at_once"]
    result = {
        "what": "gateway crowd",
        "machine": {
            "cpus": os.cpu_count(), "load_before": round(load, 1), "python": platform.python_version()
        },
        **found,
        "targets": {
            "no errors": together["errors"] == 0,
            "all were there at once": together["ended_before_all_were_there"] == 0,
            "memory per waiting request <= 60 KB": together["kb_per_waiting_request"] <= 60,
            "all that came at one instant completed": once["completed"] == once["requests"],
        },
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
