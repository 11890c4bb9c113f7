"""A workload as the columns and records that a kernel reads, whichever of the two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner import policies
from sooner.core import View
from sooner.policies import Policy
from sooner.sim.compiled import shares
from sooner.sim.cost import TICKS_PER_SECOND, Engine
from sooner.sim.options import Options
from sooner.sim.ticks import LONGEST_RUN_S, kinds, work_ticks
from sooner.workloads.columns import Workload

HOST_STATE = {"pressure", "usual_wait", "usual_work", "counter"}
"""Fields of `View` that hang on what the host did so far."""
IDLE = policies.get("fcfs")
"""What the kernel is given where keys are known beforehand; it is not called."""

USUAL = {"usual_wait", "usual_work"}
WORK = USUAL | {"work"}
"""Fields of `View` for which work is counted."""


def leavers(workload: Workload, ready: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows whose clients go away and when [ps], by time."""
    rows = np.flatnonzero(np.isfinite(workload.cancel_time))
    latest = np.minimum(workload.cancel_time[rows], LONGEST_RUN_S)
    times = np.maximum(np.rint(latest * TICKS_PER_SECOND).astype(np.int64), ready[rows])
    order = np.argsort(times, kind="stable")
    return rows[order].astype(np.int64), times[order]


def records(dtype: np.dtype[Any], /, **columns: Any) -> Any:
    """Return a record array of the given columns (n,) or scalars; the others are 0."""
    size = max((np.shape(column)[0] for column in columns.values() if np.ndim(column)), default=1)
    table = np.zeros(size, dtype=dtype).view(np.recarray)
    for name, column in columns.items():
        table[name] = column
    return table


def column(values: NDArray[Any], kind: Any) -> NDArray[Any]:
    """Return a column as the kernel was compiled for: contiguous and writable."""
    return np.require(values, kind, ["C", "W"])


def weights(
    workload: Workload, engines: Sequence[Engine], predicted: NDArray[np.float64], wanted: bool
) -> NDArray[np.int64]:
    """Return the expected work [ps] of each kind of engine and request; (kinds, 0) where nobody asks."""
    unlike, _ = kinds(engines)
    if not wanted:
        return np.zeros((len(unlike), 0), dtype=np.int64)
    return np.stack([work_ticks(workload, engine, predicted) for engine in unlike])


def tenants(workload: Workload, options: Options, count: int, wanted: bool) -> dict[str, Any]:
    """Return the columns of the tenants' counters, for `count` instances; empty where no key asks."""
    named, rows = np.unique(workload.tenant if wanted else workload.tenant[:0], return_inverse=True)
    weights = [options.weights.get(int(name), 1) for name in named]
    multiple = math.lcm(*weights)
    units = np.array([multiple // weight for weight in weights], dtype=np.int64)
    tally = np.zeros((count, len(units)), dtype=shares.TALLY).view(np.recarray)
    tally.unit[:] = units
    return {
        "tenant": column(rows, np.int64),
        "tally": tally,
        "multiple": np.array([multiple], dtype=np.int64),
    }


def static_keys(
    policy: Policy,
    workload: Workload,
    predicted: NDArray[np.float64],
    score: NDArray[np.float64],
    work: NDArray[np.int64],
) -> NDArray[np.float64] | None:
    """Return the keys (n,) of a static policy, or None where they hang on the state of the host.

    `work` (kinds, n) [ps] is of each kind of engine.
    """
    if not policy.static or policy.reads & HOST_STATE or (work.shape[0] > 1 and "work" in policy.reads):
        return None
    view = View(
        workload.arrival_time,
        prompt_len=workload.prompt_len.astype(np.float64),
        predicted_len=predicted,
        score=score,
        cached_len=workload.cached_len.astype(np.float64),
        deadline=workload.deadline,
        level=workload.level.astype(np.float64),
        work=work[0] * 1e-12 if work.shape[1] else 0.0,
    )
    return np.array(np.broadcast_to(policy.key(view, 0.0), len(workload)), dtype=np.float64)
