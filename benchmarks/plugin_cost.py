"""What the plugin costs at 10,000 waiting requests, against vLLM's own queues in the same process.

    python benchmarks/plugin_cost.py [--waiting N] [--rounds N] [--out FILE]

The real schedulers run with a fake model: 64 requests decode, N wait, no KV cache sharing. Times are
CPU times of the one thread that schedules, and the arms take turns, 8 operations each, so what else
the machine does meets all of them alike and is not counted. Requests outlive the run, so that every arm
admits as often. Prints JSON; `targets` says whether schedule() is within 1.05 x of the FCFS queue, and
add and abort within 20 us each.
Needs vLLM and the repository's tests folder; takes about a minute.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "integration"))

import vllm_harness as harness

from sooner.vllm import Scheduler

RUNNING = 64
BLOCK = 8  # operations in a row on one arm: an engine's process does nothing else in between
CONTROL, RIVAL, OURS = "vllm_fcfs", "vllm_priority", "sooner"


def make(arm: str, model: Path, waiting: int, policy: str) -> harness.Runner:
    """Return a scheduler of one arm with every slot taken and `waiting` requests behind them."""
    config = harness.vllm_config(
        model,
        {"policy": policy},
        slots=RUNNING,
        blocks=40_000,
        policy="priority" if arm == RIVAL else "fcfs",
    )
    runner = harness.Runner(harness.scheduler(Scheduler, config) if arm == OURS else harness.builtin(config))
    runner.add(item(-1 - i, 1500) for i in range(RUNNING))
    runner.run(3)
    runner.add(item(i, length(i)) for i in range(waiting))
    return runner


def length(i: int) -> int:
    """Return the length [tokens] of request i: spread out, and longer than the run has steps."""
    return 1000 + i * 7919 % 900


def item(id: int, length: int) -> Any:
    """Return one request, with the same order under priority and under a policy."""
    return harness.request(
        id,
        length,
        arrival_time=float(max(id, 0)) * 1e-3,
        prompt_len=32,
        priority=length,
        xargs={"sooner_predicted_len": length},
    )


def timed(action: Callable[[Any], Any], things: list[Any]) -> float:
    """Return the mean CPU time of an action over things [us]: other processes do not count."""
    start = time.thread_time_ns()
    for thing in things:
        action(thing)
    return (time.thread_time_ns() - start) / 1000.0 / len(things)


def spread(values: list[float]) -> dict[str, float]:
    """Return median and quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {"median": round(middle, 2), "p25": round(low, 2), "p75": round(high, 2)}


def measure(model: Path, waiting: int, rounds: int, policy: str) -> dict[str, Any]:
    """Return the cost of each operation [us] in each arm, and ratios of interleaved pairs."""
    arms = {arm: make(arm, model, waiting, policy) for arm in (CONTROL, RIVAL, OURS)}
    names = ("schedule", "schedule_admitting", "add", "abort")
    found: dict[str, dict[str, list[float]]] = {name: {arm: [] for arm in arms} for name in names}
    gc.collect()
    gc.freeze()
    gc.disable()
    order = list(arms)
    for n in range(rounds):
        order = order[1:] + order[:1]
        numbers = range(n * BLOCK, (n + 1) * BLOCK)
        for arm in order:
            runner = arms[arm]
            new = [item(waiting + i, length(waiting + i)) for i in numbers]
            old = [str(i * 7919 % waiting) for i in numbers]
            found["add"][arm].append(timed(runner.scheduler.add_request, new))
            found["abort"][arm].append(timed(lambda id, s=runner.scheduler: harness.abort(s, id), old))
            found["schedule"][arm].append(float(np.mean([runner.timed_step() for _ in range(BLOCK)])))
            harness.abort(runner.scheduler, runner.scheduler.running[0].request_id)
            found["schedule_admitting"][arm].append(runner.timed_step())
        if n % 10 == 0:
            gc.collect()
    gc.enable()
    for runner in arms.values():
        runner.scheduler.shutdown()
    ratios = {
        rival: spread([a / b for a, b in zip(found["schedule"][OURS], found["schedule"][rival], strict=True)])
        for rival in (CONTROL, RIVAL)
    }
    return {
        "policy": policy,
        "cpu_us": {
            name: {arm: spread(values) for arm, values in by_arm.items()} for name, by_arm in found.items()
        },
        "schedule_ratio": ratios,
    }


def main() -> None:
    """Measure, print, and keep the result where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        model = harness.tiny_model(Path(folder))
        runs = [measure(model, options.waiting, options.rounds, policy) for policy in ("boost", "ltr")]
    result = {
        "waiting": options.waiting,
        "running": RUNNING,
        "rounds": options.rounds,
        "runs": runs,
        "targets": {
            "schedule_ratio_at_most_1.05": all(r["schedule_ratio"][CONTROL]["median"] <= 1.05 for r in runs),
            "add_at_most_20_us": all(r["cpu_us"]["add"][OURS]["median"] <= 20 for r in runs),
            "abort_at_most_20_us": all(r["cpu_us"]["abort"][OURS]["median"] <= 20 for r in runs),
        },
        "machine": {"cpus": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()[0]},
        "versions": {
            "python": platform.python_version(),
            "vllm": importlib.metadata.version("vllm"),
            "numpy": np.__version__,
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
