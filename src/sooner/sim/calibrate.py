"""Fit an engine's cost coefficients to real runs.

The four coefficients are those whose simulation comes closest, in the least-squares sense, to the
first- and last-token times of single requests. No iteration is observed, so what a run did not vary
stays undetermined; `Calibration.uncertainty` says how well each coefficient is held.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner import policies
from sooner.core import Completed, DataError, MissingExtra
from sooner.policies import Policy
from sooner.sim.cost import Engine
from sooner.sim.engine import simulate
from sooner.workloads.engine_run import EngineRun

Column = NDArray[np.float64]
COEFFICIENTS = ("iteration_s", "prefill_token_s", "decode_seq_s", "context_token_s")
LEAST = 8
"""Requests with times that a fit of four coefficients needs."""


class Calibration(NamedTuple):
    """A fitted engine.

    `uncertainty` is the relative standard error of each coefficient: 0.01 is well held, 1 and more
    means that the runs say nothing of it. `rms_s` is the typical error of a single time [s].
    """

    engine: Engine
    uncertainty: dict[str, float]
    rms_s: float


def rerun(run: EngineRun, engine: Engine, policy: Policy) -> Completed:
    """Return what becomes of every request of a run on a simulated engine, row by row.

    Raises DataError where a request does not fit, or where the policy wants a prediction that the
    run did not keep.
    """
    outcome = simulate(
        run.workload,
        engine,
        policy,
        predicted_len=_told(run.predicted_len),
        score=_told(run.score),
    )
    if len(np.atleast_1d(outcome.completed.id)) != len(run.workload):
        raise DataError(
            f"{outcome.rejected.size} requests are larger than the engine's KV cache; raise num_blocks"
        )
    return outcome.completed


def _told(column: Column) -> Column | None:
    return column if np.isfinite(column).all() else None


def calibrate(
    runs: Sequence[EngineRun],
    limits: Engine,
    *,
    policy: Policy | None = None,
    rows: Sequence[NDArray[np.bool_]] | None = None,
    find_memory: bool = False,
) -> Calibration:
    """Return `limits` with coefficients fitted to pooled runs served in `policy` order (FCFS).

    `rows` restricts, run by run, the requests whose times are looked at; all of them are always
    served. `find_memory` takes `num_blocks` for unknown and fits it too. Raises DataError where
    there are fewer than 8 requests to fit to.
    """
    chosen = policy or policies.get("fcfs")
    use = [run.observed for run in runs] if rows is None else list(rows)
    use = [run.observed & mask for run, mask in zip(runs, use, strict=True)]
    count = sum(int(mask.sum()) for mask in use)
    if count < LEAST:
        raise DataError(f"{count} requests with times to fit to, allowed: at least {LEAST}")
    return min(
        (
            _fit(runs, candidate, chosen, use)
            for candidate in (_memories(runs, limits) if find_memory else [limits])
        ),
        key=lambda calibration: calibration.rms_s,
    )


def _fit(
    runs: Sequence[EngineRun], limits: Engine, policy: Policy, use: Sequence[NDArray[np.bool_]]
) -> Calibration:
    try:
        from scipy.optimize import least_squares
    except ImportError as error:  # pragma: no cover
        raise MissingExtra("scipy", "sim") from error

    def residuals(logs: Column) -> Column:
        engine = limits.with_coefficients(*np.exp(logs).tolist())
        parts = []
        for run, mask in zip(runs, use, strict=True):
            done = rerun(run, engine, policy)
            parts.append(np.asarray(done.first_token_time - run.completed.first_token_time)[mask])
            parts.append(np.asarray(done.finish_time - run.completed.finish_time)[mask])
        return np.concatenate(parts)

    best: Any = None
    for scale in _scales(runs[0], limits, policy):
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
    spread = float(np.sqrt(np.mean(residuals(best.x) ** 2)))
    covariance = np.linalg.pinv(best.jac.T @ best.jac) * spread**2
    spreads = np.sqrt(np.diag(covariance)).tolist()
    fitted = limits.with_coefficients(*np.exp(best.x).tolist())
    return Calibration(
        dataclasses.replace(fitted, approximate=False), dict(zip(COEFFICIENTS, spreads, strict=True)), spread
    )


def _scales(run: EngineRun, limits: Engine, policy: Policy) -> tuple[float, float]:
    """Return scales of the starting coefficients, the first of which makes the run take its real time."""
    low, high = 0.05, 20.0
    last = np.nanmean(run.completed.finish_time)
    for _ in range(8):
        middle = (low * high) ** 0.5
        engine = limits.with_coefficients(*(value * middle for value in limits.coefficients))
        if np.mean(np.asarray(rerun(run, engine, policy).finish_time)[run.observed]) < last:
            low = middle
        else:
            high = middle
    return high, high / 2


def _memories(runs: Sequence[EngineRun], limits: Engine) -> list[Engine]:
    """Return engines with the KV memories to try: ample, and, where requests waited with slots free,
    a few around the most that was in use."""
    needed = max(int((run.workload.prompt_len + run.workload.output_len).sum()) for run in runs)
    ample = dataclasses.replace(limits, num_blocks=needed // limits.block_size + len(runs[0].workload) + 1)
    running, held = max(most_in_use(run, limits.block_size) for run in runs)
    if running >= 0.9 * limits.max_num_seqs or not any(_queued(run) for run in runs):
        return [ample]
    tight = [dataclasses.replace(limits, num_blocks=int(held * factor)) for factor in (0.97, 1.0, 1.03, 1.06)]
    return [ample, *tight]


def _queued(run: EngineRun) -> bool:
    """Whether requests waited much longer than an iteration takes before they first ran."""
    wait = np.asarray(run.completed.start_time - run.completed.arrival_time)
    return bool(np.isfinite(wait).any() and np.nanmean(wait) > 0.5)


def most_in_use(run: EngineRun, block_size: int) -> tuple[int, int]:
    """Return the most requests that ran at once and the most KV blocks they held, from a run's times."""
    done, rows = run.completed, np.flatnonzero(run.observed & np.isfinite(run.completed.start_time))
    start, first, last = (
        np.asarray(column)[rows] for column in (done.start_time, done.first_token_time, done.finish_time)
    )
    running = blocks = 0
    for now in last - 1e-6:
        there = (start <= now) & (last > now)
        made = (
            np.clip((now - first) / np.maximum(last - first, 1e-9), 0.0, 1.0) * run.workload.output_len[rows]
        )
        held = np.ceil((run.workload.prompt_len[rows] + made) / block_size)
        running, blocks = max(running, int(there.sum())), max(blocks, int(held[there].sum()))
    return running, blocks
