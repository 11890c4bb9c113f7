"""A backlog that waits at once: Sorted-F beside the orders that a live queue can keep.

    python benchmarks/backlog.py [--json benchmarks/results/backlog.json] [--table docs/results/backlog.md]

The second half of each workload of `traces.py`, all there at time 0, predictions at a Kendall tau of 0.5 as
there. Sorted-F (Wang, Ye and Zhou, arXiv 2508.06133) forms batches, one after the other, that fit the KV
cache: of all that wait, those with the least sum of reply lengths over the square of their number. Batches
are found here as its relaxation suggests: at each price of memory the cheapest requests first, and the best
prefix over all prices. It must know all that will come: it orders a backlog, not a live queue. Ratios of mean
and P99 E2E to arrival order's.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner import metrics, policies
from sooner.sim.cost import Engine
from sooner.sim.engine import simulate
from sooner.workloads.columns import Workload
from traces import CASES, DRAWS, predicted, report

ORDERS = ("ltr", "wspt", "spw", "boost")
PRICES = (0.0, *np.geomspace(1e-5, 1e2, 36))
"""Of a token of KV cache, in reply tokens."""

Tokens = NDArray[np.float64]


def sorted_f(prompt_len: Tokens, reply_len: Tokens, memory: float, slots: int) -> NDArray[np.float64]:
    """Return each request's place (n,) in Sorted-F's order.

    Lengths (n,) in tokens, `memory` in tokens of KV cache, `slots` requests at most in a batch. Inside a
    batch the shortest reply goes first; a request too large for the memory is a batch of its own.
    """
    size = prompt_len + reply_len
    place, left, placed = np.empty(size.size), np.arange(size.size), 0
    while left.size:
        batch, least = left[:1], np.inf
        for price in PRICES:
            order = left[np.argsort(reply_len[left] + price * size[left], kind="stable")]
            fits = max(int(np.searchsorted(np.cumsum(size[order]), memory, side="right")), 1)
            head = order[: min(fits, slots)]
            quality = np.cumsum(reply_len[head]) / np.arange(1, head.size + 1) ** 2
            best = int(np.argmin(quality))
            if quality[best] < least:
                batch, least = head[: best + 1], float(quality[best])
        place[batch[np.argsort(reply_len[batch], kind="stable")]] = placed + np.arange(batch.size)
        placed += batch.size
        left = np.setdiff1d(left, batch, assume_unique=True)
    return place


def rows_of(name: str) -> list[dict[str, Any]]:
    """Return a workload's rows, one an order; told ones once more with the true lengths."""
    case = CASES[name]()
    half = case.prompt_len.size // 2
    workload = Workload(
        arrival_time=np.zeros(half), prompt_len=case.prompt_len[-half:], output_len=case.output_len[-half:]
    )
    reference = measured(workload, case.engine, "fcfs", np.ones(half), np.ones(half))
    found: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    for draw in (*DRAWS, None):
        length = predicted(case.output_len, draw)[1] if draw is not None else case.output_len.astype(float)
        told = length[-half:]
        kind = "predictions" if draw is not None else "true lengths"
        for order in ORDERS:
            found.setdefault((order, kind), []).append(
                measured(workload, case.engine, order, told, told) / reference
            )
        memory = float(case.engine.num_blocks * case.engine.block_size)
        place = sorted_f(workload.prompt_len.astype(float), told, memory, case.engine.max_num_seqs)
        found.setdefault(("Sorted-F", kind), []).append(
            measured(workload, case.engine, "ltr", told, place) / reference
        )
    return [
        {
            "workload": name,
            "requests": half,
            "order": order,
            "told": kind,
            "mean_e2e": float(np.mean([run[0] for run in runs])),
            "p99_e2e": float(np.mean([run[1] for run in runs])),
            "spread": float(np.ptp([run[0] for run in runs])),
        }
        for (order, kind), runs in found.items()
    ]


def measured(
    workload: Workload, engine: Engine, order: str, told: Tokens, score: Tokens
) -> NDArray[np.float64]:
    """Return mean and P99 E2E [s] under an order that is told lengths [tokens] and scores (n,)."""
    done = simulate(workload, engine, policies.get(order), predicted_len=told, score=score).completed
    latency = np.asarray(metrics.e2e(done))
    return np.array([latency.mean(), np.percentile(latency, 99)])


def table(rows: list[dict[str, Any]]) -> str:
    """Return the page of `docs/results`."""
    orders = (*ORDERS, "Sorted-F")
    cells = {(row["workload"], row["told"], row["order"]): row for row in rows}
    lines = [
        "# A backlog that waits at once",
        "",
        "Made by `python benchmarks/backlog.py --json FILE --table docs/results/backlog.md`;",
        "what is simulated is said at the top of that script. Ratios to arrival order,",
        "below 1 is better: **mean E2E** @ P99 E2E.",
        "",
        "| workload, told | " + " | ".join(f"`{name}`" for name in orders) + " |",
        "|---" * (len(orders) + 1) + "|",
    ]
    for workload, told in dict.fromkeys((row["workload"], row["told"]) for row in rows):
        texts = []
        for order in orders:
            row = cells[workload, told, order]
            texts.append(f"**{row['mean_e2e']:.2f}** @ {row['p99_e2e']:.2f}")
        lines.append(f"| {workload}, {told} | " + " | ".join(texts) + " |")
    behind = [
        cells[workload, told, "spw"]["mean_e2e"] / cells[workload, told, "Sorted-F"]["mean_e2e"]
        for workload, told in dict.fromkeys((row["workload"], row["told"]) for row in rows)
    ]
    lines += ["", f"Mean E2E of `spw` over that of Sorted-F: {min(behind):.2f} to {max(behind):.2f}."]
    return "\n".join(lines) + "\n"


def every_row() -> list[dict[str, Any]]:
    """Return the rows of all workloads."""
    rows = []
    for name in CASES:
        rows += rows_of(name)
        print(f"{name}: done", file=sys.stderr)
    return rows


if __name__ == "__main__":
    report(__doc__, every_row, table)
