"""Which order pays on a workload of one's own: chosen on its first part, judged on its second.

Candidates are arrival order and `boost`, with its own estimate and with constant gammas around the waits
of arrival order; `aged` and `spw` stand beside them, but are not chosen, for no bound of theirs holds the
tail. Each serves the whole workload once; parts are cut by arrival time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner import metrics
from sooner.core import Completed, ConfigError, DataError
from sooner.policies import REACH
from sooner.sim.study import Prepared, Study, serve

STEPS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Reaches of `boost` that are tried, in multiples of what it would take by itself."""

CHOSEN_FROM = ("fcfs", "boost")
BESIDE = ("aged", "spw")

LEAST_GAIN = 0.01
"""Of the mean: below it no order is worth its risk."""

PARTS = 4
"""Parts in time; each but the first is judged by what was chosen on those before it."""

FEWEST = 100
"""Requests a part needs, for a 99th percentile that means something."""


class Point(NamedTuple):
    """A candidate, measured on a part of the requests as ratios to arrival order (below 1: better).

    `gamma` [1/s] is 0 where it is estimated and None for policies without one.
    """

    policy: str
    gamma: float | None
    mean_ratio: float
    p99_ratio: float
    mean_ttft_ratio: float
    p99_ttft_ratio: float


class Fold(NamedTuple):
    """What was chosen on the requests before `start` [s], and what it gave in the part from there on."""

    start: float
    chosen: Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The answer. `frontier` is every candidate on the second half, lowest mean first."""

    chosen: Point
    frontier: tuple[Point, ...]
    folds: tuple[Fold, ...]
    advice: str
    tail: float
    usual_wait: float  # root mean square under arrival order in the first half [s]
    requests: int

    @property
    def settings(self) -> dict[str, Any]:
        """What the plugin (`--additional-config`) and the gateway's file take."""
        chosen: dict[str, Any] = {"policy": self.chosen.policy}
        if self.chosen.gamma:
            chosen["parameters"] = {"gamma": self.chosen.gamma}
        return {"vllm": {"sooner": chosen}, "gateway": chosen}


def tune(
    study: Study,
    prepared: Prepared,
    *,
    tail: float = 1.05,
    progress: Callable[[int, int], None] | None = None,
) -> Tuning:
    """Return the order of the lowest mean latency whose P99 stays within `tail` times arrival order's.

    `study` says the engine and all but the policy. Raises ConfigError for a tail below 1, DataError
    where the workload has fewer than 400 requests.
    """
    if not (np.isfinite(tail) and tail >= 1):
        raise ConfigError(f"tail={tail!r}, allowed: a finite number >= 1, such as 1.05")
    n = len(prepared.workload)
    if n < PARTS * FEWEST:
        raise DataError(f"{n} requests, allowed: at least {PARTS * FEWEST}, of which a quarter has a P99")
    base = _served(study, prepared, "fcfs", None)
    quantiles = np.linspace(0, 1, PARTS + 1)
    cuts = np.quantile(prepared.workload.arrival_time, quantiles).astype(np.float64)
    cuts[-1] = np.inf
    usual = _usual_wait(base, cuts[PARTS // 2])
    candidates = _candidates(usual)
    runs: dict[tuple[str, float | None], Completed] = {("fcfs", None): base}
    for done, (name, gamma) in enumerate(candidates, 1):
        runs[name, gamma] = _served(study, prepared, name, gamma)
        if progress is not None:
            progress(done, len(candidates))
    parts = [_points(runs, cuts, range(part, part + 1)) for part in range(PARTS)]

    def chosen_before(end: int) -> Point:
        return choose([_points(runs, cuts, range(end)), *parts[:end]], tail)

    folds = [Fold(float(cuts[part]), _same(parts[part], chosen_before(part))) for part in range(1, PARTS)]
    judged = _points(runs, cuts, range(PARTS // 2, PARTS))
    chosen = _same(judged, chosen_before(PARTS // 2))
    return Tuning(
        chosen=chosen,
        frontier=tuple(sorted(judged, key=lambda point: point.mean_ratio)),
        folds=tuple(folds),
        advice=advice(chosen, judged, tail),
        tail=tail,
        usual_wait=usual,
        requests=n,
    )


def choose(measured: Sequence[Sequence[Point]], tail: float) -> Point:
    """Return the point of the lowest mean whose P99 stays within `tail`; arrival order where that is no gain.

    `measured` are the same candidates on all that is known and on each part of it. A P99 of one number may
    be luck, so it may not rise in any part by more than twice what is allowed in all.
    """
    whole = measured[0]
    within = [
        point
        for point, *others in zip(*measured, strict=True)
        if point.policy in CHOSEN_FROM
        and point.p99_ratio <= tail
        and all(other.p99_ratio - 1 <= 2 * (tail - 1) for other in others)
    ]
    best = min(within, key=lambda point: point.mean_ratio)
    return best if best.mean_ratio <= 1 - LEAST_GAIN else whole[0]


def advice(chosen: Point, points: Sequence[Point], tail: float) -> str:
    """Return what to do, in words an operator can act on."""
    if min(point.mean_ratio for point in points) > 1 - LEAST_GAIN:
        return "No queue, no gain: leave it off. Hardly any request waits, so no order can help."
    if chosen.policy == "fcfs":
        return (
            f"Leave it off: no order gained {LEAST_GAIN:.0%} of the mean with its P99 within {tail:g} of"
            " arrival order's. Allow more with --tail, or see the frontier."
        )
    said = f"{_named(chosen)}: mean latency {chosen.mean_ratio:.2f} of arrival order's at a P99 of "
    said += f"{chosen.p99_ratio:.2f}, on the second half, by what was chosen on the first."
    if chosen.mean_ratio > 1 - LEAST_GAIN:
        return said + " That is no gain: the two halves differ too much to tell. Leave it off."
    if chosen.p99_ratio > tail:
        return said + f" The P99 is above the {tail:g} asked for: the halves differ; ask for a lower --tail."
    return said


def _named(point: Point) -> str:
    if point.gamma is None:
        return f"Order by {point.policy}"
    return f"Order by {point.policy}, gamma {f'{point.gamma:.3g} per second' if point.gamma else 'estimated'}"


def _candidates(usual_wait: float) -> list[tuple[str, float | None]]:
    gammas = [float(f"{1 / (REACH * usual_wait * step):.3g}") for step in STEPS]
    return [("boost", 0.0), *(("boost", gamma) for gamma in gammas), *((name, None) for name in BESIDE)]


def _usual_wait(base: Completed, until: float) -> float:
    waits = np.asarray(metrics.wait(base))[np.asarray(base.arrival_time) < until]
    return max(float(np.sqrt(np.mean(waits**2))) if waits.size else 0.0, 1e-3)


def _served(study: Study, prepared: Prepared, name: str, gamma: float | None) -> Completed:
    parameters = {"gamma": gamma} if gamma else {}
    order = dataclasses.replace(study, policy=name, parameters=parameters)
    return serve(order, prepared.workload, prepared.told).completed


def _points(
    runs: dict[tuple[str, float | None], Completed], cuts: NDArray[np.float64], parts: range
) -> list[Point]:
    """Return every candidate's measures of the requests that arrived in `parts`."""
    low, high = cuts[parts.start], cuts[parts.stop]
    base = _measures(runs["fcfs", None], low, high)
    return [Point(name, gamma, *(_measures(done, low, high) / base)) for (name, gamma), done in runs.items()]


def _measures(done: Completed, low: float, high: float) -> NDArray[np.float64]:
    arrived = np.asarray(done.arrival_time)
    inside = (arrived >= low) & (arrived < high)
    if not inside.any():
        raise DataError("a quarter of the workload has no finished request; allowed: arrivals spread in time")
    latency, first = np.asarray(metrics.e2e(done))[inside], np.asarray(metrics.ttft(done))[inside]
    return np.array([latency.mean(), np.percentile(latency, 99), first.mean(), np.percentile(first, 99)])


def _same(points: Sequence[Point], chosen: Point) -> Point:
    return next(point for point in points if point[:2] == chosen[:2])
