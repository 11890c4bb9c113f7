"""Fit an engine's cost coefficients to real runs.

The four coefficients are those whose simulation comes closest, in the least-squares sense, to the
first- and last-token times of single requests; where a client took the times, a fifth is what each
request spends outside the engine. No iteration is observed, so what a run did not vary
stays undetermined; `EngineFit.uncertainty` says how well each coefficient is held.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner import policies
from sooner.core import Completed, DataError, MissingExtra
from sooner.policies import Policy
from sooner.sim.cost import Engine
from sooner.sim.engine import simulate
from sooner.workloads.traces.engine_run import EngineRun

Column = NDArray[np.float64]
COEFFICIENTS = ("iteration_s", "prefill_token_s", "decode_seq_s", "context_token_s")
OVERHEAD_S = 5e-3
"""Where the search for a client's overhead sets out: HTTP, tokenising and a hop between processes."""
STARTS = (Engine().coefficients, (9e-3, 2e-4, 4e-4, 2e-6))
"""Where the search sets out, a GPU and a CPU, but for one factor that makes the run take its real time."""
CLOCK_S = 1e-3
"""No run's times are truer than this."""
RESTARTS = 6
ASIDE = np.array([0.02, 0.02, 0.5, 0.15, 0.3])
SLOPE, WORSE = 0.2, 0.05
HOLDS = 0.1
"""A fit holds whose error of a single time is at most this share of the mean latency."""
LEAST = 8
"""Requests with times that a fit of four coefficients needs."""


class EngineFit(NamedTuple):
    """A fitted engine.

    `uncertainty` says how far each coefficient can move, as a share of itself and with the others
    following, before the fit gets 5 % worse: 0.02 is well held, 1 and more is not determined. `rms_s`
    is the typical error of a single time [s]; where it is a tenth of the mean latency or more, the engine
    is marked `approximate`: it does what this model cannot, or its limits are not those that were told.
    """

    engine: Engine
    uncertainty: dict[str, float]
    rms_s: float


def rerun(run: EngineRun, engine: Engine, policy: Policy, instances: int = 1) -> Completed:
    """Return what becomes of every request of a run on a simulated engine, row by row.

    Several `instances` are vLLM's data-parallel replicas, balanced as it does.

    Raises DataError where a request does not fit, or where the policy wants a prediction that the
    run did not keep.
    """
    outcome = simulate(
        run.workload,
        [engine] * instances,
        policy,
        router="vllm-dp",
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
    find_overhead: bool = False,
    instances: int = 1,
) -> EngineFit:
    """Return `limits` with coefficients fitted to pooled runs served in `policy` order (FCFS).

    `rows` restricts, run by run, the requests whose times are looked at; all of them are always
    served. `find_memory` takes `num_blocks` for unknown and fits it too, `find_overhead` does so with
    `overhead_s`. `instances` are data-parallel replicas. Raises DataError where there are fewer than 8
    requests to fit to.
    """
    chosen = policy or policies.get("fcfs")
    use = [run.observed for run in runs] if rows is None else list(rows)
    use = [run.observed & mask for run, mask in zip(runs, use, strict=True)]
    count = sum(int(mask.sum()) for mask in use)
    if count < LEAST:
        raise DataError(f"{count} requests with times to fit to, allowed: at least {LEAST}")
    return min(
        (
            _fit(runs, candidate, chosen, use, find_overhead, instances)
            for candidate in (_memories(runs, limits, instances) if find_memory else [limits])
        ),
        key=lambda calibration: calibration.rms_s,
    )


def _fit(
    runs: Sequence[EngineRun],
    limits: Engine,
    policy: Policy,
    use: Sequence[NDArray[np.bool_]],
    find_overhead: bool,
    instances: int,
) -> EngineFit:
    try:
        from scipy.optimize import least_squares
    except ImportError as missing:
        raise MissingExtra("scipy", "sim") from missing

    names = (*COEFFICIENTS, "overhead_s") if find_overhead else COEFFICIENTS

    def engine_of(logs: Column) -> Engine:
        return dataclasses.replace(limits, **dict(zip(names, np.exp(logs).tolist(), strict=True)))

    def residuals(logs: Column) -> Column:
        engine = engine_of(logs)
        parts = []
        for run, mask in zip(runs, use, strict=True):
            done = rerun(run, engine, policy, instances)
            parts.append(np.asarray(done.first_token_time - run.completed.first_token_time)[mask])
            parts.append(np.asarray(done.finish_time - run.completed.finish_time)[mask])
        return np.concatenate(parts)

    def judged(logs: Column, centre: Column, noise_s: float) -> Column:
        # What the runs do not determine stays near where it set out, as if that were known to a factor of e.
        return np.concatenate([residuals(logs), noise_s * (logs - centre)])

    def descend(
        logs: Column, centre: Column, widths: Sequence[float], noise_s: float, tolerance_s: float
    ) -> Column:
        # Scheduling makes the times jump in the coefficients: a wide step first, then a fine one.
        for width in widths:
            logs = least_squares(
                judged, logs, args=(centre, noise_s), diff_step=width, x_scale=0.3, loss="soft_l1",
                f_scale=tolerance_s, max_nfev=40, bounds=(centre - 8.0, centre + 2.5),
            ).x  # fmt: skip
        return logs

    def error(logs: Column) -> float:
        return float(np.sqrt(np.mean(residuals(logs) ** 2)))

    tried = []
    for start in STARTS:
        scaled = np.array(start) * _scale(start, runs[0], limits, policy, instances)
        centre = np.log(np.append(scaled, OVERHEAD_S)[: len(names)])
        tried += [
            (descend(centre - lower, centre, (3e-2, 3e-3), 0.1, 1.0), centre) for lower in (0.0, math.log(2))
        ]
    best, centre = min(tried, key=lambda attempt: error(attempt[0]))
    rng = np.random.default_rng(0)
    for _ in range(RESTARTS):  # small hollows are many: step aside, mostly along what is held least
        noise = max(error(best), CLOCK_S)
        aside = np.clip(
            best + rng.standard_normal(best.size) * ASIDE[: best.size], centre - 7.9, centre + 2.4
        )
        other = descend(aside, centre, (1e-2, 1e-3), noise, noise)
        if np.sum(judged(other, centre, noise) ** 2) < np.sum(judged(best, centre, noise) ** 2):
            best = other
    spread = error(best)
    reach = _reach(residuals, best, spread)
    latency = np.concatenate(
        [
            np.asarray(run.completed.finish_time - run.completed.arrival_time)[mask]
            for run, mask in zip(runs, use, strict=True)
        ]
    )
    good = spread <= HOLDS * float(latency.mean())
    fitted = dataclasses.replace(engine_of(best), approximate=not good)
    return EngineFit(fitted, dict(zip(names, reach, strict=True)), spread)


def _reach(residuals: Callable[[Column], Column], best: Column, spread: float) -> list[float]:
    """Return how far each coefficient can move, relative to itself, before the fit is `WORSE` by that share.

    Scheduling makes times jump in the coefficients, so slopes are taken over a wide step: over a
    narrow one the jumps would pass for knowledge.
    """
    steps = SLOPE * np.eye(best.size)
    slopes = np.stack(
        [(residuals(best + step) - residuals(best - step)) / (2 * SLOPE) for step in steps], axis=1
    )
    curvature = slopes.T @ slopes
    floor = 1e-12 * np.trace(curvature) * np.eye(best.size)  # what is not determined at all
    allowed = ((1 + WORSE) ** 2 - 1) * slopes.shape[0] * max(spread, CLOCK_S) ** 2
    return [float(value) for value in np.sqrt(allowed * np.diag(np.linalg.inv(curvature + floor)))]


def _scale(start: Sequence[float], run: EngineRun, limits: Engine, policy: Policy, instances: int) -> float:
    """Return the factor on the starting coefficients that makes the run take its real time."""
    low, high = 0.05, 20.0
    last = np.nanmean(run.completed.finish_time)
    for _ in range(8):
        middle = (low * high) ** 0.5
        engine = limits.with_coefficients(*(value * middle for value in start))
        done = rerun(run, engine, policy, instances)
        if np.mean(np.asarray(done.finish_time)[run.observed]) < last:
            low = middle
        else:
            high = middle
    return high


def _memories(runs: Sequence[EngineRun], limits: Engine, instances: int) -> list[Engine]:
    """Return engines with the KV memories to try: ample, and, where requests waited with slots free,
    a few around the most that was in use."""
    needed = max(int((run.workload.prompt_len + run.workload.output_len).sum()) for run in runs)
    ample = dataclasses.replace(limits, num_blocks=needed // limits.block_size + len(runs[0].workload) + 1)
    running, held = max(most_in_use(run, limits.block_size) for run in runs)
    if running >= 0.9 * limits.max_num_seqs * instances or not any(_queued(run) for run in runs):
        return [ample]
    tight = [
        dataclasses.replace(limits, num_blocks=int(held * factor / instances))
        for factor in (0.97, 1.0, 1.03, 1.06)
    ]
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
