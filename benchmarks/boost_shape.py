"""Other shapes of `boost`: does another pair of reaches keep every cell of the traces better?

    python benchmarks/boost_shape.py [--json FILE] [--table docs/results/boost_shape.md]

`boost` fades at the usual work over one reach, and grows with the usual wait times another; both are 2.5.
Here they differ, on the traces of `traces.py`, judged as there: second half, live estimates, predictions at
a Kendall tau of 0.5, means of three draws, ratios to arrival order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from sooner import policies
from sooner.core import Number, View
from sooner.sim.engine import simulate
from sooner.workloads.columns import Workload, by_arrival
from traces import CASES, DRAWS, MEASURES, measured, predicted, report, served

REACHES = ((2.5, 2.5), (1.5, 2.5), (2.0, 2.5), (3.0, 2.5), (2.5, 1.5), (4.0, 4.0), (5.0, 4.0), (8.0, 6.0))
"""Of the usual wait and of the usual work; the first is the policy as it is."""

CELLS = {
    "azure-code": (0.5, 0.7, 0.9, 1.1),
    "azure-conv": (0.5, 0.7, 0.9, 1.1),
    "mooncake": (0.9, 1.1),
    "chat, 16 slots": (0.5, 0.9, 1.1),
}


def shaped(q: View, now: float, *, of_wait: float = 2.5, of_work: float = 2.5) -> Number:
    """`boost` with two reaches."""
    share = np.maximum(of_work * q.work / q.usual_work, 1e-6)
    late: Number = np.log(-np.expm1(-share)) * of_wait * q.usual_wait
    return q.arrival_time + late


def rows_of(name: str) -> Iterator[dict[str, Any]]:
    """Yield one row a load and pair of reaches."""
    case = CASES[name]()
    n = case.prompt_len.size
    burst = by_arrival(np.zeros(n), case.prompt_len, case.output_len)
    fcfs = policies.get("fcfs")
    capacity = n / float(np.max(simulate(burst, case.engine, fcfs).completed.finish_time))
    told = [predicted(case.output_len, seed) for seed in DRAWS]
    for load in CELLS[name]:
        times = case.arrival_time * (n / float(case.arrival_time.max())) / (capacity * load)
        workload = Workload(arrival_time=times, prompt_len=case.prompt_len, output_len=case.output_len)
        half = float(times[n // 2])
        reference = measured(simulate(workload, case.engine, fcfs).completed, half)
        for of_wait, of_work in REACHES:
            runs = [
                measured(
                    served(
                        workload, case.engine, length, score,
                        "boost_shape:shaped", of_wait=of_wait, of_work=of_work,
                    ),
                    half,
                )
                for score, length in told
            ]  # fmt: skip
            ratios = (np.array(runs) / reference).mean(axis=0)
            measures = dict(zip(MEASURES, ratios.tolist(), strict=True))
            yield {"workload": name, "load": load, "of_wait": of_wait, "of_work": of_work, **measures}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the page of `docs/results`."""
    cells = {(one["workload"], one["load"], one["of_wait"], one["of_work"]): one for one in rows}
    heads = [f"{of_wait:g}, {of_work:g}" for of_wait, of_work in REACHES]
    lines = [
        "# Other shapes of `boost`",
        "",
        "Made by `python benchmarks/boost_shape.py --json FILE --table docs/results/boost_shape.md`; how it",
        "is judged is said at the top of that script. Columns are the reach in usual waits, in usual work;",
        "the policy has 2.5 of both. Ratios to arrival order: mean E2E @ P99 E2E (mean TTFT @ P99 TTFT).",
        "",
        "| workload, load | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for workload, load in dict.fromkeys((one["workload"], one["load"]) for one in rows):
        texts = []
        for reach in REACHES:
            one = cells[(workload, load, *reach)]
            latency = f"{one['mean_e2e']:.2f} @ {one['p99_e2e']:.2f}"
            texts.append(f"{latency} ({one['mean_ttft']:.2f} @ {one['p99_ttft']:.2f})")
        lines.append(f"| {workload}, {load} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def every_row() -> list[dict[str, Any]]:
    """Return the rows of all workloads."""
    rows = []
    for name in CELLS:
        for one in rows_of(name):
            rows.append(one)
            print(one, file=sys.stderr)
    return rows


if __name__ == "__main__":
    report(__doc__, every_row, table)
