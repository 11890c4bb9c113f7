"""An arm of a comparison, and the measures that tables, plots and JSON show of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner import metrics
from sooner.core import Completed, DataError

Column = NDArray[np.float64]


class Timeline(NamedTuple):
    """How many requests ran and waited at each time [s]; columns of shape (n,)."""

    time: Column
    running: Column
    waiting: Column


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm, such as a policy: one or more runs of the same workload, each as columns.

    Without a `timeline`, one is made of the first run: a request waits until it starts, or, where
    nobody saw that, until its first token. `failed` requests are in no run.
    """

    runs: Sequence[Completed]
    timeline: Timeline | None = None
    failed: int = 0

    @property
    def pooled(self) -> Completed:
        """All runs as one set of columns."""
        fields = zip(*self.runs, strict=True)
        return Completed(*(np.concatenate([np.atleast_1d(part) for part in field]) for field in fields))


class Measure(NamedTuple):
    """One column of the table: `scale` turns the measure into what is shown in `unit`."""

    key: str
    label: str
    unit: str
    scale: float = 1.0
    compared: bool = True


MEASURES = (
    Measure("n", "Requests", "", compared=False),
    Measure("mean_e2e_s", "Mean E2E", "s"),
    Measure("p50_e2e_s", "P50 E2E", "s"),
    Measure("p99_e2e_s", "P99 E2E", "s"),
    Measure("mean_ttft_s", "Mean TTFT", "s"),
    Measure("p99_ttft_s", "P99 TTFT", "s"),
    Measure("mean_normalized_latency", "Mean normalized", "ms/token", 1000.0),
    Measure("mean_tpot_s", "Mean TPOT", "ms", 1000.0),
    Measure("mean_e2e_steps", "Mean E2E", "steps"),
    Measure("p99_e2e_steps", "P99 E2E", "steps"),
    Measure("throughput_tps", "Throughput", "token/s", compared=False),
    Measure("preemptions", "Preemptions", "", compared=False),
    Measure("capped_share", "Capped", "%", 100.0, compared=False),
)


class Value(NamedTuple):
    """A measure over an arm's runs: mean, standard deviation (None for one run), first arm / this arm."""

    mean: float
    spread: float | None
    gain: float | None


def gather(runs: Iterable[tuple[str, Completed, int]]) -> dict[str, Arm]:
    """Return the arms of (name, finished requests, how many failed): runs of one name are one arm."""
    found: dict[str, list[tuple[Completed, int]]] = {}
    for name, done, failed in runs:
        found.setdefault(name, []).append((done, failed))
    return {
        name: Arm(runs=[done for done, _ in parts], failed=sum(failed for _, failed in parts))
        for name, parts in found.items()
    }


def split_meta(metas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what all runs' settings share, and under `runs` what each says differently."""
    first = next(iter(metas.values()), {})
    shared = {
        key: value
        for key, value in first.items()
        if all(key in meta and meta[key] == value for meta in metas.values())
    }
    own = {name: {k: v for k, v in meta.items() if k not in shared} for name, meta in metas.items()}
    return {**shared, "runs": own} if any(own.values()) else dict(shared)


def measure(arms: Mapping[str, Arm]) -> dict[str, dict[str, Value]]:
    """Return {arm: {measure: value}}; a measure that some arm lacks is left out everywhere.

    Raises DataError where there is no arm or one without a finished request.
    """
    if not arms or any(not arm.runs for arm in arms.values()):
        raise DataError("nothing to compare; allowed: at least 1 arm, each with at least 1 run")
    found = {name: [_run_measures(run) for run in arm.runs] for name, arm in arms.items()}
    rows = [row for runs in found.values() for row in runs]
    keys = [
        gauge.key for gauge in MEASURES if all(math.isfinite(row.get(gauge.key, math.nan)) for row in rows)
    ]
    first = next(iter(found))
    table: dict[str, dict[str, Value]] = {}
    for name, runs in found.items():
        table[name] = {}
        for gauge in MEASURES:
            if gauge.key not in keys:
                continue
            values = np.array([row[gauge.key] for row in runs])
            mean = float(values.mean())
            spread = float(values.std(ddof=1)) if len(values) > 1 else None
            base = table[first][gauge.key].mean if name != first else mean
            gain = base / mean if gauge.compared and mean > 0 else None
            table[name][gauge.key] = Value(mean, spread, gain)
    return table


def as_json(arms: Mapping[str, Arm], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the comparison as plain data: `arms` (means over runs, `spread`, `gain_vs_first`) and `meta`."""
    rows = []
    for name, values in measure(arms).items():
        rows.append(
            {
                "policy": name,
                "runs": len(arms[name].runs),
                "failed": arms[name].failed,
                **{key: value.mean for key, value in values.items()},
                "spread": {key: value.spread for key, value in values.items() if value.spread is not None},
                "gain_vs_first": {key: value.gain for key, value in values.items() if value.gain is not None},
            }
        )
    return {"arms": rows, "meta": dict(meta)}


def has_steps(arms: Mapping[str, Arm]) -> bool:
    """Whether every request of every arm carries engine steps."""
    return all(_stepped(run) for arm in arms.values() for run in arm.runs)


def timeline(arm: Arm, points: int = 300) -> Timeline:
    """Return the arm's timeline: its own, or one of `points` times made of its first run."""
    if arm.timeline is not None:
        return arm.timeline
    run = Completed(*(np.atleast_1d(field) for field in arm.runs[0]))
    arrived = np.sort(run.arrival_time)
    began = np.sort(np.where(np.isfinite(run.start_time), run.start_time, run.first_token_time))
    ended = np.sort(run.finish_time)
    time = np.linspace(min(0.0, float(arrived[0])), float(ended[-1]), points)
    counts = [np.searchsorted(column, time, side="right") for column in (arrived, began, ended)]
    return Timeline(time, (counts[1] - counts[2]).astype(float), (counts[0] - counts[1]).astype(float))


def by_length(done: Completed, edges: Column, latency: Column) -> Column:
    """Return the mean latency in each group of output lengths between `edges`; NaN for an empty one."""
    group = np.clip(np.searchsorted(edges, done.output_len, side="left") - 1, 0, len(edges) - 2)
    total = np.bincount(group, weights=latency, minlength=len(edges) - 1)
    size = np.bincount(group, minlength=len(edges) - 1)
    return np.where(size > 0, total / np.maximum(size, 1), np.nan)


def length_deciles(arms: Mapping[str, Arm]) -> Column:
    """Return the edges of ten groups of output lengths of about one size; fewer where lengths repeat."""
    lengths = np.concatenate([np.atleast_1d(arm.pooled.output_len) for arm in arms.values()])
    edges = np.unique(np.quantile(lengths, np.arange(11) / 10, method="inverted_cdf"))
    return edges if edges.size > 1 else np.array([edges[0] - 1, edges[0]])


def _run_measures(run: Completed) -> dict[str, float]:
    measures = metrics.summary(run)
    measures["capped_share"] = float(np.mean(run.truncated))
    if _stepped(run):
        steps = np.atleast_1d(metrics.e2e_steps(run))
        measures["mean_e2e_steps"] = float(steps.mean())
        measures["p99_e2e_steps"] = float(np.percentile(steps, 99))
    return measures


def _stepped(run: Completed) -> bool:
    return bool((np.asarray(run.finish_step) >= 0).all() and (np.asarray(run.arrival_step) >= 0).all())
