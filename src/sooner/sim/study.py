"""One simulation as a value: all that decides its outcome, and the report it gives."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner import config, metrics, policies
from sooner.core import ConfigError, DataError
from sooner.learning import prequential
from sooner.learning.prequential import Facts
from sooner.policies import Policy
from sooner.rankers.contract import Ranker
from sooner.sim import groups, predictions
from sooner.sim.cost import TICKS_PER_SECOND, Engine
from sooner.sim.engine import Outcome, simulate
from sooner.sim.learned import learned
from sooner.sim.options import Options
from sooner.sim.ticks import work_ticks
from sooner.workloads import named
from sooner.workloads.build import Shape, build
from sooner.workloads.columns import Workload
from sooner.workloads.traces import Trace

Progress = Callable[[int, int], None]
USUAL_LOAD = 0.8
PROBE = 4_000
"""Requests on which an engine's capacity is measured."""
REPORTED = (
    "n", "makespan_s", "mean_e2e_s", "p50_e2e_s", "p90_e2e_s", "p99_e2e_s", "mean_ttft_s", "p50_ttft_s",
    "p99_ttft_s", "mean_tpot_s", "mean_normalized_latency", "p90_normalized_latency", "max_wait_s",
    "throughput_rps", "throughput_tps", "preemptions",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A workload (a name or a file), a policy, an engine, and what surrounds them.

    `tau` spoils the truth that the policy is told; a ranker's own predictions come in by `prepare`.
    `load` is a rate as a share of what the engines can do, where the shape has neither rate nor burst;
    a workload without arrival times comes at `USUAL_LOAD` where nobody says when.
    """

    workload: str
    policy: str = policies.DEFAULT
    parameters: Mapping[str, float] = field(default_factory=dict)
    engine: Engine
    shape: Shape = field(default_factory=Shape)
    options: Options = field(default_factory=Options)
    instances: int = 1
    router: str = "round-robin"
    load: float | None = None
    tau: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.instances < 1:
            raise ConfigError(f"instances={self.instances}, allowed: at least 1")
        if self.load is not None and not (self.load > 0 and self.shape.rate is None and not self.shape.burst):
            raise ConfigError(f"load={self.load}, allowed: above 0, without a rate or a burst")
        if self.tau is not None:
            _check_told(self.order)

    @property
    def order(self) -> Policy:
        """The policy with its parameters bound."""
        return policies.get(self.policy, **self.parameters)


def _check_told(order: Policy) -> None:
    if order.oracle:
        other = policies.ORACLE_FED[order.name]
        raise ConfigError(
            f"policy {order.name!r} is told the true lengths; allowed with predictions: {other!r}"
        )


class Prepared(NamedTuple):
    """A study's workload, what its policy is told, and its rate [req/s]; None: recorded times or a burst.

    `notes` say what was dropped of the workload's source, and how it was understood.
    """

    workload: Workload
    told: predictions.Predictions
    rate: float | None
    notes: tuple[str, ...] = ()


def prepare(study: Study, ranker: Ranker | None = None, *, learn: bool = False) -> Prepared:
    """Build the workload and the predictions, and compile; with `learn` a learner stands beside the ranker.

    Raises ConfigError for a tau with either.
    """
    if (ranker is not None or learn) and study.tau is not None:
        raise ConfigError("a ranker or a learner, and a tau; allowed: one of the two")
    if ranker is not None or learn:
        _check_told(study.order)
    rng = np.random.default_rng(study.seed)
    trace = named.load(study.workload, study.shape.requests, study.seed, folder=config.data_folder())
    shape = study.shape
    if shape.rate is None and not shape.burst and (study.load is not None or trace.arrival_time is None):
        share = USUAL_LOAD if study.load is None else study.load
        shape = dataclasses.replace(shape, rate=share * capacity(study, trace))
    workload, rows = build(trace, shape, rng)
    if learn:
        told = learned(
            workload, _facts(trace, rows, workload, ranker), lambda part, told: serve(study, part, told)
        )
    elif ranker is not None:
        told = predictions.ranked(ranker, trace, rows, workload)
    elif study.tau is not None:
        told = predictions.spoiled(workload, study.tau, rng)
    else:
        told = predictions.told(trace, rows, workload) or predictions.oracle(workload)
    serve(study, workload.take(np.arange(0)), None)
    return Prepared(workload, told, shape.rate, trace.notes)


def _facts(trace: Trace, rows: NDArray[np.int64], workload: Workload, ranker: Ranker | None) -> Facts:
    """Return what a learner sees of a workload. Raises DataError for a ranker and no prompts."""
    senders = workload.sender.tolist()
    if trace.requests is not None:
        requests = [trace.requests[row] for row in rows]
        return prequential.of_requests(requests, ranker, workload.arrival_time, senders)
    if ranker is not None:
        raise DataError("a ranker reads prompts, the workload has lengths only; allowed: a log with prompts")
    return prequential.of_senders(senders, workload.arrival_time)


def notes_of(study: Study) -> tuple[str, ...]:
    """Return what reading the study's workload has to say."""
    return named.load(study.workload, study.shape.requests, study.seed, folder=config.data_folder()).notes


def capacity(study: Study, trace: Trace) -> float:
    """Return the throughput of the engines while requests of a trace never run out [req/s].

    Measured on some requests at once in FCFS order, without the time the last ones take alone.
    """
    n = min(len(trace), PROBE)
    workload, _ = build(trace, Shape(requests=n, burst=True), np.random.default_rng(study.seed))
    outcome = simulate(workload, study.engine, policies.get("fcfs"))
    ended = np.sort(np.asarray(outcome.completed.finish_time))
    if ended.size == 0:
        raise ConfigError("no request fits into the engine's KV memory; allowed: more num_blocks")
    most = max(ended.size * 3 // 4, 1)
    return study.instances * most / float(ended[most - 1])


def run(study: Study, prepared: Prepared | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Serve the study's workload; return what was run and every measure (see `docs/metrics.md`).

    `requests_per_cpu_second` counts the simulation only, not building the workload and compiling.
    """
    workload, told, rate, _ = prepared or prepare(study)
    start = time.process_time()
    outcome = serve(study, workload, told, progress)
    taken = time.process_time() - start
    return {
        "workload": study.workload,
        "policy": study.policy,
        "engine": study.engine.name,
        "approximate": study.engine.approximate,
        "predictions": told.kind,
        "kendall_tau": None if np.isnan(told.tau) else told.tau,
        "instances": study.instances,
        "rate": rate,
        "seed": study.seed,
        "mean_work_s": mean_work(study.engine, workload, told.predicted_len),
        **measures(outcome),
        **groups.by_group(workload, outcome),
        "cancelled": int(outcome.cancelled.size),
        "rejected": int(outcome.rejected.size),
        "requests_per_cpu_second": len(workload) / max(taken, 1e-9),
    }


def serve(
    study: Study,
    workload: Workload,
    told: predictions.Predictions | None,
    progress: Progress | None = None,
) -> Outcome:
    """Simulate one workload under a study's policy and engines."""
    engines = [dataclasses.replace(study.engine) for _ in range(study.instances)]
    return simulate(
        workload,
        engines,
        study.order,
        predicted_len=None if told is None else told.predicted_len,
        score=None if told is None else told.score,
        options=study.options,
        router=study.router,
        progress=progress,
    )


def mean_work(engine: Engine, workload: Workload, predicted: NDArray[np.float64]) -> float | None:
    """Return the mean expected work of the requests [s]; None where there are none."""
    return float(work_ticks(workload, engine, predicted).mean() / TICKS_PER_SECOND) if len(workload) else None


def measures(outcome: Outcome) -> dict[str, Any]:
    """Return the measures of the finished requests; zeros and None where none finished."""
    if np.size(outcome.completed.id) == 0:
        return {name: 0 if name in ("n", "preemptions") else None for name in REPORTED}
    found = metrics.summary(outcome.completed)
    return {name: found[name] for name in REPORTED}
