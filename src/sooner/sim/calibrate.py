"""Fit an engine's cost coefficients to a real run, and judge a simulated run against a real one.

The four coefficients are those whose simulation comes closest, in the least-squares sense, to the
first- and last-token times of single requests. No iteration is observed, so what a run did not
vary stays undetermined; `Calibration.uncertainty` says how well each coefficient is held.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner import metrics, policies
from sooner.core import Completed, DataError, MissingExtra
from sooner.policies import Policy
from sooner.sim.cost import Engine
from sooner.sim.engine import simulate
from sooner.workloads.columns import Workload
from sooner.workloads.engine_run import EngineRun

Column = NDArray[np.float64]
COEFFICIENTS = ("iteration_s", "prefill_token_s", "decode_seq_s", "context_token_s")


class Calibration(NamedTuple):
    """A fitted engine; `uncertainty` is the relative standard error of each coefficient."""

    engine: Engine
    uncertainty: dict[str, float]
    rms_s: float


def calibrate(
    runs: Sequence[EngineRun],
    limits: Engine,
    *,
    policy: Policy | None = None,
    rows: Sequence[NDArray[np.bool_]] | None = None,
) -> Calibration:
    """Return `limits` with coefficients fitted to pooled runs served in `policy` order (FCFS).

    `rows` restricts, run by run, the requests whose times are looked at; all of them are always
    served. Raises DataError where there are fewer than 8 requests to fit to.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError as error:  # pragma: no cover
        raise MissingExtra("scipy", "train") from error
    chosen = policy or policies.get("fcfs")
    use = rows or [np.ones(len(run.workload), dtype=np.bool_) for run in runs]
    if sum(int(mask.sum()) for mask in use) < 8:
        raise DataError(f"{sum(int(mask.sum()) for mask in use)} requests to fit to, allowed: at least 8")

    def residuals(logs: Column) -> Column:
        engine = limits.with_coefficients(*np.exp(logs))
        parts = []
        for run, mask in zip(runs, use, strict=True):
            done = rerun(run.workload, engine, chosen)
            for name in ("first_token_time", "finish_time"):
                parts.append((getattr(done, name) - getattr(run.completed, name))[mask])
        return np.concatenate(parts)

    best = None
    for scale in _starts(runs, limits):
        start = centre = np.log(np.maximum(np.array(limits.coefficients) * scale, 1e-12))
        for width in (3e-2, 3e-3):
            # Scheduling makes the times jump in the coefficients: a wide step first, then a fine one.
            fit = least_squares(
                residuals, start, diff_step=width, x_scale=0.3, loss="soft_l1", f_scale=1.0, max_nfev=40,
                bounds=(centre - 7.0, centre + 2.5),
            )  # fmt: skip
            start = fit.x
        if best is None or fit.cost < best.cost:
            best = fit
    assert best is not None
    errors = residuals(best.x)
    spread = float(np.sqrt(np.mean(errors**2)))
    covariance = np.linalg.pinv(best.jac.T @ best.jac) * spread**2
    uncertainty = dict(zip(COEFFICIENTS, np.sqrt(np.diag(covariance)).tolist(), strict=True))
    fitted = dataclasses.replace(limits.with_coefficients(*np.exp(best.x).tolist()), approximate=False)
    return Calibration(fitted, uncertainty, spread)


def _starts(runs: Sequence[EngineRun], limits: Engine) -> list[float]:
    """Scale the starting coefficients so that a run takes about as long as the real one."""
    run = runs[0]
    low, high = 0.05, 20.0
    for _ in range(8):
        middle = (low * high) ** 0.5
        engine = limits.with_coefficients(*(value * middle for value in limits.coefficients))
        done = rerun(run.workload, engine, policies.get("fcfs"))
        if np.mean(done.finish_time) < np.mean(run.completed.finish_time):
            low = middle
        else:
            high = middle
    return [high, high / 2]


def rerun(
    workload: Workload, engine: Engine, policy: Policy, predicted_len: Column | None = None
) -> Completed:
    """Return what became of every request, row by row. Raises DataError where one does not fit."""
    outcome = simulate(workload, engine, policy, predicted_len=predicted_len)
    if len(np.atleast_1d(outcome.completed.id)) != len(workload):
        raise DataError(
            f"{outcome.rejected.size} requests are larger than the engine's KV cache; raise num_blocks"
        )
    return outcome.completed


def compare(real: Completed, simulated: Completed) -> dict[str, dict[str, float]]:
    """Return, per metric, the real and the simulated value and the error in percent.

    `each_e2e_s` compares request by request: its error is the mean of |simulated - real| / real.
    """
    table = {}
    for name, measure in (("ttft", metrics.ttft), ("tpot", metrics.tpot), ("e2e", metrics.e2e)):
        ours, theirs = np.asarray(measure(simulated)), np.asarray(measure(real))
        for statistic in ("mean", "p50", "p90", "p99"):
            a, b = (
                float(v.mean() if statistic == "mean" else np.percentile(v, float(statistic[1:])))
                for v in (theirs, ours)
            )
            table[f"{statistic}_{name}_s"] = {"real": a, "simulated": b, "error_pct": 100 * (b - a) / a}
    theirs, ours = np.asarray(metrics.e2e(real)), np.asarray(metrics.e2e(simulated))
    table["each_e2e_s"] = {
        "real": float(theirs.mean()),
        "simulated": float(ours.mean()),
        "error_pct": 100 * float(np.mean(np.abs(ours - theirs) / theirs)),
    }
    return table


def part(done: Completed, rows: NDArray[np.bool_]) -> Completed:
    """Return some rows of a run."""
    return Completed(*(np.broadcast_to(column, rows.shape)[rows] for column in done))
