"""Judge a simulated run against the real one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner import metrics
from sooner.core import Completed, DataError
from sooner.policies import Policy
from sooner.sim.calibrate import rerun
from sooner.sim.cost import Engine
from sooner.workloads.traces.engine_run import EngineRun


class Comparison(NamedTuple):
    """A measure of the real and the simulated run, and the error in percent of the real one."""

    real: float
    simulated: float
    error_pct: float


def validate(
    run: EngineRun,
    engine: Engine,
    policy: Policy,
    rows: NDArray[np.bool_] | None = None,
    *,
    instances: int = 1,
) -> dict[str, Comparison]:
    """Serve a run's workload on a simulated engine and compare; `rows` (n,) are those to judge.

    `each_e2e_s` compares request by request: its error is the mean of |simulated - real| / real.
    Raises DataError where no request to judge has times.
    """
    mask = run.observed if rows is None else run.observed & rows
    if not mask.any():
        raise DataError("no request with times to judge; allowed: at least 1")
    return compare(part(run.completed, mask), part(rerun(run, engine, policy, instances), mask))


def part(done: Completed, rows: NDArray[np.bool_]) -> Completed:
    """Return some rows of a run."""
    return Completed(*(np.broadcast_to(column, rows.shape)[rows] for column in done))


def compare(real: Completed, simulated: Completed) -> dict[str, Comparison]:
    """Return, per measure, the real value, the simulated one and the error."""
    table = {}
    for name, measure in (("ttft", metrics.ttft), ("tpot", metrics.tpot), ("e2e", metrics.e2e)):
        theirs, ours = np.asarray(measure(real)), np.asarray(measure(simulated))
        table[f"mean_{name}_s"] = _against(theirs.mean(), ours.mean())
        for q in (50, 90, 99):
            table[f"p{q}_{name}_s"] = _against(np.percentile(theirs, q), np.percentile(ours, q))
    theirs, ours = np.asarray(metrics.e2e(real)), np.asarray(metrics.e2e(simulated))
    each = 100 * float(np.mean(np.abs(ours - theirs) / theirs))
    table["each_e2e_s"] = Comparison(float(theirs.mean()), float(ours.mean()), each)
    return table


def _against(real: float, simulated: float) -> Comparison:
    return Comparison(float(real), float(simulated), 100 * float((simulated - real) / real) if real else 0.0)
