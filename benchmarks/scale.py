"""A large fleet on paper: cores of each piece at 100,000 requests a second, and how fair local queues are.

    python benchmarks/scale.py --json benchmarks/results/scale.json --table docs/results/scale.md

Costs are those that the other benchmarks measured (`gateway_overhead`, `hint_cost`, `plugin_cost`, in
`benchmarks/results/`), multiplied; nothing of this size was run. Fairness is computed: tenants with demands
as 1 / rank (Zipf) ask together for `LOAD` times what the fleet can do, and each gateway shares its part of
the fleet max-min fairly, which is what its counters do in the long run. A tenant's error is how far its
share is from the one that a single queue would give it, in parts of that share. `by tenant`: a tenant's
requests all go to one gateway, chosen by hash; `two choices`: to the less loaded of two; `large spread`:
so, but a tenant that asks for more than a tenth of a gateway is spread over as many as it fills tenths of;
`spread`: each request to any gateway, in the long run to all alike.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE = 100_000.0
REPLICAS = 1_000
REPLY = 200
BUSY = 0.7
"""The share of a core that is planned for; the rest is for bursts."""
SEEDS = 20
WAYS = ("by tenant", "two choices", "large spread", "spread")
LOAD = 1.2
RESULTS = Path(__file__).parent / "results"

Shares = NDArray[np.float64]


def measured(results: Path) -> dict[str, float]:
    """Return what one request costs [CPU ms] of each piece, at replies of `REPLY` streamed tokens."""
    overhead = json.loads((results / "gateway_overhead.json").read_text())["arms"]["sooner"]
    hint = json.loads((results / "hint_cost.json").read_text())["rows"]
    crowd = json.loads((results / "gateway_crowd.json").read_text())["together"]
    plugin = json.loads((results / "plugin_cost.json").read_text())["runs"][0]["cpu_us"]

    def of_hint(ranker: str, stream: bool) -> float:
        return float(
            np.mean([one["cpu_ms"] for one in hint if (one["ranker"], one["stream"]) == (ranker, stream)])
        )

    token_ms = 1000.0 / overhead["streams_1000"]["tokens_per_cpu_s"]
    event_ms = (of_hint("none", True) - of_hint("none", False)) / 32
    return {
        "gateway": overhead["steady"]["cpu_ms_per_request"] + (REPLY - 32) * token_ms,
        "hinter": of_hint("none", False) + REPLY * event_ms,
        "light ranker": of_hint("light", False) - of_hint("none", False),
        "blend ranker": overhead["steady"]["scorer_cpu_ms_per_request"],
        "plugin, to queue": (plugin["add"]["sooner"]["median"] - plugin["add"]["vllm_fcfs"]["median"]) / 1000,
        "kb of a waiting request": crowd["kb_per_waiting_request"],
        "kb of a stream": crowd["kb_per_stream"],
    }


def max_min(demand: Shares, capacity: float) -> Shares:
    """Return the max-min fair shares (n,) of a capacity: nobody gets more than it asks for."""
    rising = np.sort(demand)
    below = np.concatenate([[0.0], np.cumsum(rising)[:-1]])
    levels = (capacity - below) / np.arange(rising.size, 0, -1)  # of those who are not served whole
    cut = np.flatnonzero(levels < rising)
    return np.minimum(demand, levels[cut[0]]) if cut.size else demand


def placed(demand: Shares, gateways: int, how: str, rng: np.random.Generator) -> Shares:
    """Return what each tenant asks of each gateway (tenants, gateways)."""
    there = np.zeros((demand.size, gateways))
    if how == "spread":
        there += demand[:, None] / gateways
        return there
    load = np.zeros(gateways)
    for tenant in rng.permutation(demand.size):
        parts = min(gateways, math.ceil(demand[tenant] * gateways * 10)) if how == "large spread" else 1
        if parts > 1:
            chosen = rng.permutation(gateways)[:parts]
        else:
            choices = rng.integers(0, gateways, 1 if how == "by tenant" else 2)
            chosen = choices[[np.argmin(load[choices])]]
        there[tenant, chosen] = demand[tenant] / len(chosen)
        load[chosen] += demand[tenant] / len(chosen)
    return there


def error(tenants: int, gateways: int, how: str, seed: int) -> tuple[float, float, float]:
    """Return the mean and the 99th percentile of the tenants' errors, and the work that is left undone."""
    rng = np.random.default_rng(seed)
    demand = 1.0 / np.arange(1, tenants + 1)
    demand *= LOAD / demand.sum()
    fair = max_min(demand, 1.0)
    there = placed(demand, gateways, how, rng)
    got = np.zeros(tenants)
    for one in range(gateways):
        asking = np.flatnonzero(there[:, one])
        got[asking] += max_min(there[asking, one], 1.0 / gateways)
    off = np.abs(got - fair) / fair
    return float(off.mean()), float(np.quantile(off, 0.99)), max(0.0, float(1.0 - got.sum() / fair.sum()))


def fairness() -> list[dict[str, Any]]:
    """Return a row a number of tenants and gateways and a way of placing."""
    rows = []
    for tenants in (100, 10_000):
        for gateways in (4, 64, 256):
            for how in WAYS:
                runs = np.array([error(tenants, gateways, how, seed) for seed in range(SEEDS)])
                mean, tail, idle = runs.mean(axis=0).tolist()
                case = {"tenants": tenants, "gateways": gateways, "placed": how}
                rows.append({**case, "error": mean, "error_p99": tail, "idle": idle})
    return rows


def cores(costs: dict[str, float]) -> list[dict[str, Any]]:
    """Return a row a piece: CPU of a request, requests a second of one busy core, cores for `RATE`."""
    pieces = [name for name in costs if not name.startswith("kb")]
    return [
        {
            "piece": name,
            "cpu_ms": costs[name],
            "a_core": BUSY * 1000 / costs[name],
            "cores": RATE * costs[name] / 1000 / BUSY,
        }
        for name in pieces
    ]


def table(found: dict[str, Any]) -> str:
    """Return the page of `docs/results`."""
    lines = [
        "# A large fleet, on paper",
        "",
        "Made by `python benchmarks/scale.py --json benchmarks/results/scale.json "
        "--table docs/results/scale.md`;",
        "how is said at the top of that script. Nothing of this size was run.",
        "",
        f"## {RATE:,.0f} requests a second, {REPLICAS:,} replicas, replies of {REPLY} streamed tokens",
        "",
        f"| piece | CPU of a request [ms] | requests a second of one core, {BUSY:.0%} busy | cores |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['piece']} | {row['cpu_ms']:.2f} | {row['a_core']:,.0f} | {math.ceil(row['cores']):,} |"
        for row in found["cores"]
    ]
    costs = found["costs"]
    lines += [
        "",
        f"A request that waits in a gateway holds {costs['kb of a waiting request']:.0f} kB, one that is"
        f" streamed {costs['kb of a stream']:.0f} kB.",
        "",
        f"## How far local fairness is off, at {LOAD} times what the fleet can do",
        "",
        f"Means of {SEEDS} draws. Error: of a tenant's share, against one queue for all. Idle: work that the",
        "fleet could do and does not, because a gateway's part of it has nothing to do.",
        "",
        "| tenants, gateways | " + " | ".join(f"{how}: error, P99, idle" for how in WAYS) + " |",
        "|---" * (len(WAYS) + 1) + "|",
    ]
    rows = found["fairness"]
    for case in dict.fromkeys((row["tenants"], row["gateways"]) for row in rows):
        told = [
            f"{row['error']:.1%}, {row['error_p99']:.1%}, {row['idle']:.1%}"
            for row in rows
            if (row["tenants"], row["gateways"]) == case
        ]
        lines.append(f"| {case[0]:,}, {case[1]} | " + " | ".join(told) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Compute, and print the JSON where no file takes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the numbers here; else they are printed")
    parser.add_argument("--table", type=Path, help="write the page here")
    options = parser.parse_args()
    costs = measured(RESULTS)
    found = {"costs": costs, "cores": cores(costs), "fairness": fairness()}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    else:
        print(json.dumps(found))
    if options.table:
        options.table.write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
