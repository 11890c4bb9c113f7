"""Who got what: the measures of each tenant and of each class, and how many deadlines were kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner import metrics
from sooner.core import Completed
from sooner.sim.engine import Outcome
from sooner.workloads.columns import Workload

MOST = 20
"""Groups that are told apart; a trace may have thousands of tenants."""


def by_group(workload: Workload, outcome: Outcome) -> dict[str, Any]:
    """Return `deadlines_met` (a share; None without deadlines), `tenants` and `levels`, by number.

    A workload of one tenant has no `tenants`, of one class no `levels`; of many, the largest are told.
    Requests that were cancelled or refused missed their deadline and count in no mean.
    """
    rows = np.flatnonzero(np.isin(workload.id, np.asarray(outcome.completed.id).astype(np.int64)))
    met = np.zeros(len(workload), dtype=np.bool_)
    met[rows] = np.asarray(outcome.completed.finish_time) <= workload.deadline[rows]
    due = np.isfinite(workload.deadline)
    report: dict[str, Any] = {"deadlines_met": _share(met, due)}
    for name, column in (("tenants", workload.tenant), ("levels", workload.level)):
        groups, sizes = np.unique(column, return_counts=True)
        if len(groups) < 2:
            continue
        largest = np.sort(groups[np.argsort(-sizes, kind="stable")[:MOST]])
        report[name] = {
            str(group): _measures(outcome.completed, column[rows] == group)
            | {"deadlines_met": _share(met, due & (column == group))}
            for group in largest.tolist()
        }
    return report


def _share(met: NDArray[np.bool_], due: NDArray[np.bool_]) -> float | None:
    return float(met[due].mean()) if due.any() else None


def _measures(done: Completed, rows: NDArray[np.bool_]) -> dict[str, Any]:
    if not rows.any():
        return {"n": 0}
    part = Completed(*(np.broadcast_to(column, rows.shape)[rows] for column in done))
    found = metrics.summary(part)
    names = ("n", "mean_e2e_s", "p99_e2e_s", "mean_ttft_s", "p99_ttft_s", "max_wait_s")
    tokens = float(np.sum(part.prompt_len) + 2 * np.sum(part.output_len))
    return {name: found[name] for name in names} | {"work_tokens": tokens}
