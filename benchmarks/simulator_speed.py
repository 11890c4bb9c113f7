"""How fast the simulator is, and how that grows: prints JSON; every number is CPU time of one thread.

    python benchmarks/simulator_speed.py > benchmarks/results/simulator_speed.json
    python benchmarks/simulator_speed.py --table benchmarks/results/simulator_speed.json  # the docs

Lengths are lognormal (prompt 207, reply 203 tokens in the mean), as in the published measurement of
vidur, 540 requests per CPU second on the same lengths. Compilation is left out: every case runs once
on two requests first. Memory is the peak over the run less what was there before, inputs included in
neither, measured in a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numba
import numpy as np

import sooner
from sooner import policies
from sooner.sim.cost import PRESETS, Engine
from sooner.sim.engine import Options, simulate
from sooner.workloads.arrivals import burst, poisson
from sooner.workloads.columns import Workload

ENGINE = dataclasses.replace(PRESETS["llama3-8b-a100"], max_num_batched_tokens=512)
TIGHT = dataclasses.replace(ENGINE, num_blocks=3_000, max_num_seqs=256)
LOAD = 0.8
MILLION = 1_000_000


def lengths(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return prompt and reply lengths (n,)."""
    rng = np.random.default_rng(0)
    prompt = np.clip(np.round(np.exp(rng.normal(4.6, 1.25, n))), 4, 2048)
    output = np.clip(np.round(np.exp(rng.normal(4.9, 0.95, n))), 1, 1024)
    return prompt.astype(np.int64), output.astype(np.int64)


def workload(n: int, rate: float | None) -> Workload:
    """Return n requests at a Poisson rate [req/s], or all at once."""
    prompt, output = lengths(n)
    times = burst(n) if rate is None else poisson(n, rate, np.random.default_rng(1))
    return Workload(arrival_time=times, prompt_len=prompt, output_len=output)


def capacity(engine: Engine) -> float:
    """Return the throughput of an engine that never runs dry [req/s]."""
    done = simulate(workload(20_000, None), engine, policies.get("fcfs")).completed
    return 20_000 / float(np.max(done.finish_time))


def run(
    n: int,
    policy: str,
    rate: float | None,
    engine: Engine | list[Engine] = ENGINE,
    options: Options | None = None,
    router: str = "round-robin",
    repeat: int = 3,
) -> dict[str, Any]:
    """Return the best of some runs of one case."""
    load = workload(n, rate)
    noise = np.random.default_rng(2).normal(0.0, 0.5, n)
    told = load.output_len * np.exp(noise)
    kind = policies.get(policy)

    def once(requests: Workload) -> Any:
        k = len(requests)
        return simulate(
            requests, engine, kind, predicted_len=told[:k], score=told[:k], options=options, router=router
        )

    once(load.take(np.arange(2)))
    taken = []
    for _ in range(repeat):
        start = time.process_time()
        outcome = once(load)
        taken.append(time.process_time() - start)
    done = outcome.completed
    return {
        "policy": policy,
        "requests": n,
        "rate": rate,
        "cpu_s": round(min(taken), 4),
        "requests_per_cpu_second": round(n / min(taken)),
        "mean_e2e_s": round(float(np.mean(done.finish_time - done.arrival_time)), 3),
        "mean_wait_s": round(float(np.mean(done.start_time - done.arrival_time)), 3),
        "preemptions": int(np.sum(done.preemptions)),
    }


def memory(n: int) -> float:
    """Return the peak bytes a request, beyond the inputs, in this process."""
    load, kind = workload(n, 20.0), policies.get("ltr")
    told = load.output_len.astype(np.float64)
    simulate(load.take(np.arange(2)), ENGINE, kind, score=told[:2])
    before = resident()
    outcome = simulate(load, ENGINE, kind, score=told)
    most = peak()
    return (most - before) / n if len(np.atleast_1d(outcome.completed.id)) == n else float("nan")


def resident() -> int:
    """Return this process's memory [B], after its peak was set back to it where Linux lets one."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak() -> int:
    """Return the most memory this process had since `resident` [B]."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def fresh(n: int) -> float:
    """Return `memory(n)` of a process of its own."""
    out = subprocess.run(
        [sys.executable, __file__, "--memory", str(n)], check=True, capture_output=True, text=True
    )
    return round(float(out.stdout), 1)


def main() -> None:
    """Print every case."""
    most = {"plain": capacity(ENGINE), "kv_pressure": capacity(TIGHT)}
    rate, tight = LOAD * most["plain"], LOAD * most["kv_pressure"]
    hundred = 100_000
    report = {
        "machine": {"cpu": _cpu(), "python": platform.python_version(), "numba": numba.__version__},
        "sooner": sooner.__version__,
        "engine": dataclasses.asdict(ENGINE),
        "capacity_rps": most,
        "load": LOAD,
        "plain": [run(MILLION, policy, rate) for policy in ("fcfs", "ltr", "aged")],
        "kv_pressure": [
            run(MILLION, policy, share * most["kv_pressure"], TIGHT)
            for policy in ("fcfs", "ltr")
            for share in (LOAD, 1.0)
        ],
        "time_dependent": [
            run(hundred, "hrrn", rate),
            run(hundred, "ltr", rate, options=Options(guard=200)),
            run(hundred, "hrrn", 1.2 * rate),
        ],
        "iteration_level": [
            run(hundred, "srpt", rate),
            run(hundred, "ltr", rate, options=Options(iteration_level=True)),
            run(hundred, "ltr", tight, TIGHT, Options(iteration_level=True, swap=True)),
        ],
        "growth_with_requests": [run(n, "ltr", rate) for n in (10_000, hundred, MILLION, 4 * MILLION)],
        "growth_with_depth": [run(n, p, None) for p in ("fcfs", "ltr") for n in (10_000, hundred, MILLION)]
        + [run(n, "hrrn", None, repeat=1) for n in (1_000, 10_000)],
        "growth_with_instances": [
            {"instances": m, "router": router}
            | run(hundred, "ltr", m * rate, [ENGINE] * m, router=router, repeat=1)
            for router in ("round-robin", "least-work")
            for m in (1, 10, 100, 1000)
        ],
        "memory_bytes_a_request": {str(n): fresh(n) for n in (MILLION, 4 * MILLION)},
    }
    print(json.dumps(report, indent=1))


def table(report: dict[str, Any]) -> str:
    """Return what the documentation shows of a report."""
    names = {
        "plain": "KV memory to spare",
        "kv_pressure": "chunked prefill, KV block by block, recompute",
        "time_dependent": "time-dependent key (hrrn), guard of 200 steps (ltr)",
        "iteration_level": "reordered at every iteration",
        "growth_with_requests": "growth with the number of requests",
        "growth_with_depth": "growth with the queue: everything at once",
        "growth_with_instances": "growth with instances",
    }
    lines = [
        "| case | policy | requests | rate [req/s] | evictions | requests per CPU second |",
        "|---|---|---|---|---|---|",
    ]
    for group, name in names.items():
        for row in report[group]:
            where = f"{name}, {row['instances']} {row['router']}" if "instances" in row else name
            rate = "burst" if row["rate"] is None else f"{row['rate']:.1f}"
            lines.append(
                f"| {where} | {row['policy']} | {row['requests']:,} | {rate} | {row['preemptions']:,} "
                f"| {row['requests_per_cpu_second']:,} |"
            )
    return "\n".join(lines)


def _cpu() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print(memory(int(sys.argv[2])))
    elif sys.argv[1:2] == ["--table"]:
        print(table(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))))
    else:
        main()
