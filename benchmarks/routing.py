"""Does routing by work pay? Mean and P99 latency by router, number of replicas, load and kind of fleet.

    python benchmarks/routing.py --json benchmarks/results/routing.json --table docs/results/routing.md
    python benchmarks/routing.py --from benchmarks/results/routing.json --table docs/results/routing.md

Each replica has a queue of its own in the order `boost`, told predictions of Kendall tau 0.5; the router
sends a request on as it comes and tells by the same predictions. Chat: lognormal lengths, 32 slots a replica,
arrivals in bursts (CV 3) at a share of what the fleet can do, 600 requests a replica. Fleets: `alike` are
A100s, `unlike` half A100 and half H100 (1.6 times as fast), `very unlike` one in two four times as slow.
Ratios are to least requests, which needs no prediction. Conversations: Mooncake's trace with its own shared
prefixes, every replica with a prefix cache of its own. There a router says the places, the cache of each
replica is worked out from what it was sent, and the trace is served again at the same places.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sooner
from sooner import metrics, policies
from sooner.core import Completed
from sooner.sim.cost import PRESETS, Engine
from sooner.sim.engine import Outcome, simulate
from sooner.sim.predictions import Predictions, spoiled
from sooner.workloads import named
from sooner.workloads.arrivals import arrival_times
from sooner.workloads.columns import Workload
from sooner.workloads.prefix import affinity, cached_tokens

SLOTS = 32
A100 = dataclasses.replace(PRESETS["llama3-8b-a100"], max_num_seqs=SLOTS)
H100 = dataclasses.replace(PRESETS["llama3-8b-h100"], max_num_seqs=SLOTS)
SLOW = A100.with_coefficients(*(4 * value for value in A100.coefficients))
FLEETS = {"alike": (A100, A100), "unlike": (A100, H100), "very unlike": (A100, SLOW)}
REPLICAS = (2, 4, 16, 64)
LOADS = (0.7, 0.9, 1.1)
SEEDS = (1, 2, 3, 4, 5)
EACH = 600
TAU = 0.5
AGAINST = "least-requests"
ROUTERS = ("round-robin", "least-requests", "least-tokens", "max-min", "least-work", "free-first")
PLACED = ("round-robin", "least-requests", "least-work", "prefix-affinity")
CONVERSATIONS = 6_000
CACHES = {"cache on the GPU": 480_000, "cache beside it": 8_000_000}
"""Tokens that a replica's prefix cache holds: half of its KV memory, or host memory behind it."""
MEASURES = ("mean_e2e", "p99_e2e", "mean_ttft")

Draws = dict[str, list[NDArray[np.float64]]]


def chat(n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return prompt and reply lengths (n,) [tokens]."""
    prompt = np.clip(np.round(np.exp(rng.normal(5, 1, n))), 4, 2048).astype(np.int64)
    return prompt, np.clip(np.round(np.exp(rng.normal(5.3, 1, n))), 1, 2048).astype(np.int64)


def capacity(engine: Engine) -> float:
    """Return what one replica can do of this chat [req/s]: three quarters of a burst of 4,000."""
    n = 4_000
    prompt, output = chat(n, np.random.default_rng(0))
    burst = Workload(arrival_time=np.zeros(n), prompt_len=prompt, output_len=output)
    ended = np.sort(np.asarray(simulate(burst, engine, policies.get("fcfs")).completed.finish_time))
    return n * 3 // 4 / float(ended[n * 3 // 4 - 1])


def measured(done: Completed) -> NDArray[np.float64]:
    """Return the measures [s] of the requests after the first quarter, in which the queues fill."""
    arrived = np.asarray(done.arrival_time)
    late = arrived >= np.quantile(arrived, 0.25)
    latency, first = np.asarray(metrics.e2e(done))[late], np.asarray(metrics.ttft(done))[late]
    return np.array([latency.mean(), np.percentile(latency, 99), first.mean()])


def served(workload: Workload, fleet: list[Engine], router: str, told: Predictions) -> Outcome:
    """Serve with the same predictions for every router."""
    return simulate(
        workload,
        fleet,
        policies.get("boost"),
        predicted_len=told.predicted_len,
        score=told.score,
        router=router,
    )


def fleets(replicas: tuple[int, ...], loads: tuple[float, ...]) -> Iterator[dict[str, Any]]:
    """Yield a row for each fleet, size, load and router."""
    able = {engine: capacity(engine) for engine in (A100, H100, SLOW)}
    for name, kinds in FLEETS.items():
        for count in replicas:
            fleet = [kinds[index % 2] for index in range(count)]
            for load in loads:
                draws: Draws = {router: [] for router in ROUTERS}
                for seed in SEEDS:
                    rng = np.random.default_rng(seed)
                    n, rate = EACH * count, load * sum(able[engine] for engine in fleet)
                    prompt, output = chat(n, rng)
                    times = arrival_times("gamma", n, rng, rate=rate, cv=3.0)
                    workload = Workload(arrival_time=times, prompt_len=prompt, output_len=output)
                    told = spoiled(workload, TAU, rng)
                    for router in ROUTERS:
                        draws[router].append(measured(served(workload, fleet, router, told).completed))
                yield from rows({"fleet": name, "replicas": count, "load": load}, draws)


def conversations(
    name: str, room: int, replicas: tuple[int, ...], loads: tuple[float, ...]
) -> Iterator[dict[str, Any]]:
    """Yield rows of Mooncake's conversations, each replica with its own prefix cache of `room` tokens."""
    engine = dataclasses.replace(PRESETS["llama3-8b-a100"], num_blocks=60_000)
    trace = named.load("mooncake")
    assert trace.arrival_time is not None
    assert trace.blocks is not None
    for count in replicas:
        for load in loads:
            draws: Draws = {router: [] for router in PLACED}
            found: dict[str, list[float]] = {router: [] for router in PLACED}
            for seed in SEEDS:
                rng = np.random.default_rng(seed)
                times = trace.arrival_time + rng.uniform(0, 3, len(trace))  # its clock ticks every 3 s
                order = np.argsort(times, kind="stable")[:CONVERSATIONS]
                blocks = [trace.blocks[row] for row in order]
                base = Workload(
                    arrival_time=times[order] - times.min(),
                    prompt_len=trace.prompt_len[order].astype(np.int64),
                    output_len=trace.output_len[order].astype(np.int64),
                    prefix=affinity(trace.blocks)[order],
                )
                alone = at_places(
                    base.at(np.zeros(len(base))), np.arange(len(base)) % count, blocks, room, count
                )
                done = simulate(
                    alone, [engine] * count, policies.get("fcfs"), router="prefix-affinity"
                ).completed
                ended = np.sort(np.asarray(done.finish_time))
                most = len(base) * 3 // 4
                rate = load * most / float(ended[most - 1])
                timed = base.at(base.arrival_time * len(base) / float(base.arrival_time[-1]) / rate)
                told = spoiled(timed, TAU, rng)
                for router in PLACED:
                    there = np.empty(len(base), dtype=np.int64)
                    outcome = served(timed, [engine] * count, router, told)
                    there[np.asarray(outcome.completed.id, dtype=np.int64)] = outcome.instance
                    placed = at_places(timed, there, blocks, room, count)
                    again = served(placed, [engine] * count, "prefix-affinity", told)
                    draws[router].append(measured(again.completed))
                    found[router].append(float(placed.cached_len.sum() / placed.prompt_len.sum()))
            for row in rows({"fleet": name, "replicas": count, "load": load}, draws):
                yield {**row, "cached": float(np.mean(found[row["router"]]))}


def at_places(
    workload: Workload, place: NDArray[np.int64], blocks: list[NDArray[np.int64]], room: int, count: int
) -> Workload:
    """Return the workload with its places (n,) fixed and with what each place's own cache [tokens] holds."""
    cached = np.zeros(len(workload), dtype=np.int64)
    for m in range(count):
        mine = np.flatnonzero(place == m)
        prompts = workload.prompt_len[mine]
        if mine.size:
            cached[mine] = cached_tokens([blocks[row] for row in mine], prompts, 512, room)
    return dataclasses.replace(workload, prefix=place, cached_len=cached)


def rows(case: dict[str, Any], draws: Draws) -> Iterator[dict[str, Any]]:
    """Yield one row a router: ratios to `AGAINST`, draw by draw, their mean and the furthest draw from it."""
    for router, runs in draws.items():
        ratios = np.array(runs) / np.array(draws[AGAINST])
        mean = ratios.mean(axis=0)
        spread = np.abs(ratios - mean).max(axis=0)
        told = {name: float(value) for name, value in zip(MEASURES, mean, strict=True)}
        beside = {f"{name}_spread": float(value) for name, value in zip(MEASURES, spread, strict=True)}
        seconds = dict(zip(MEASURES, np.array(runs).mean(axis=0).tolist(), strict=True))
        yield {**case, "router": router, **told, **beside, "seconds": seconds}


def short(found: dict[str, Any]) -> list[str]:
    """Return the lines of the short table: the range of each router over sizes and loads."""
    lines = ["## In short", "", "Least to most over all sizes and loads of a fleet, mean E2E (P99 E2E):", ""]
    routers = [name for name in (*ROUTERS, "prefix-affinity") if name != AGAINST]
    lines += ["| fleet | " + " | ".join(f"`{name}`" for name in routers) + " |"]
    lines += ["|---" * (len(routers) + 1) + "|"]
    for fleet in dict.fromkeys(one["fleet"] for one in found["rows"]):
        told = []
        for router in routers:
            mine = [one for one in found["rows"] if (one["fleet"], one["router"]) == (fleet, router)]
            told.append(f"{_span(mine, 'mean_e2e')} ({_span(mine, 'p99_e2e')})" if mine else "")
        lines.append(f"| {fleet} | " + " | ".join(told) + " |")
    return [*lines, ""]


def _span(rows: list[dict[str, Any]], name: str) -> str:
    values = [one[name] for one in rows]
    return f"{min(values):.2f} to {max(values):.2f}"


def table(found: dict[str, Any]) -> str:
    """Return the page of `docs/results`."""
    lines = [
        "# Routing between replicas",
        "",
        "Made by",
        "`python benchmarks/routing.py --json benchmarks/results/routing.json "
        "--table docs/results/routing.md`;",
        "what is simulated is said at the top of that script. Every replica orders its own queue by `boost`.",
        f"**Mean E2E @ P99 E2E** as ratios to `{AGAINST}`, below 1 is better; ± is the furthest of"
        f" {len(SEEDS)} draws",
        'from the mean ratio of mean E2E. "Cached": the share of prompt tokens found in a replica\'s cache.',
        "",
        *short(found),
    ]
    for title, names in (("Chat", list(FLEETS)), ("Conversations with shared prefixes", list(CACHES))):
        mine = [one for one in found["rows"] if one["fleet"] in names]
        shown = [router for router in dict.fromkeys(one["router"] for one in mine) if router != AGAINST]
        lines += [f"## {title}", ""]
        lines += ["| fleet, replicas, load | " + " | ".join(f"`{name}`" for name in shown) + " |"]
        lines += ["|---" * (len(shown) + 1) + "|"]
        cells = {(one["fleet"], one["replicas"], one["load"], one["router"]): one for one in mine}
        for case in dict.fromkeys(key[:3] for key in cells):
            told = []
            for router in shown:
                one = cells[*case, router]
                text = f"{one['mean_e2e']:.2f} @ {one['p99_e2e']:.2f} ± {one['mean_e2e_spread']:.2f}"
                told.append(text + (f", {one['cached']:.0%} cached" if "cached" in one else ""))
            lines.append(f"| {case[0]}, {case[1]}, {case[2]} | " + " | ".join(told) + " |")
        lines.append("")
    versions = found["versions"]
    lines += [
        f"Made with sooner {versions['sooner']} and NumPy {versions['numpy']}. Time is simulated, so any",
        "machine gives the same.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run what is asked for; print the JSON where no file takes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows here; else they are printed")
    parser.add_argument("--table", type=Path, help="write the page here")
    parser.add_argument("--from", dest="found", type=Path, help="take the rows of an earlier run")
    parser.add_argument("--replicas", nargs="+", type=int, default=list(REPLICAS))
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
    options = parser.parse_args()
    if options.found:
        found = json.loads(options.found.read_text(encoding="utf-8"))
    else:
        replicas, loads = tuple(options.replicas), tuple(options.loads)
        made: list[dict[str, Any]] = []
        few = tuple(count for count in replicas if count <= 16)
        talks = [conversations(name, room, few, loads) for name, room in CACHES.items()]
        for rows_of in (fleets(replicas, loads), *talks):
            for row in rows_of:
                made.append(row)
                case = f"{row['fleet']} {row['replicas']} {row['load']} {row['router']}"
                print(f"{case}: {row['mean_e2e']:.3f} {row['p99_e2e']:.3f}", file=sys.stderr)
        versions = {
            "sooner": sooner.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        found = {"rows": made, "seeds": list(SEEDS), "tau": TAU, "versions": versions}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    elif not options.found:
        print(json.dumps(found))
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
