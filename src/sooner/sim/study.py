"""One simulation as a value: all that decides its outcome, and the report it gives."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sooner import config, metrics, policies
from sooner.core import ConfigError
from sooner.policies import Policy
from sooner.rankers.contract import Ranker
from sooner.sim import predictions
from sooner.sim.cost import Engine
from sooner.sim.engine import Options, Outcome, simulate
from sooner.workloads import named
from sooner.workloads.build import Shape, build
from sooner.workloads.columns import Workload

Progress = Callable[[int, int], None]
REPORTED = (
    "n", "makespan_s", "mean_e2e_s", "p50_e2e_s", "p90_e2e_s", "p99_e2e_s", "mean_ttft_s", "p50_ttft_s",
    "p99_ttft_s", "mean_tpot_s", "mean_normalized_latency", "p90_normalized_latency", "max_wait_s",
    "throughput_rps", "throughput_tps", "preemptions",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A workload (a name or a file), a policy, an engine, and what surrounds them.

    `tau` spoils the truth that the policy is told; a ranker's own predictions come in by `run`.
    """

    workload: str
    policy: str = "fcfs"
    parameters: Mapping[str, float] = field(default_factory=dict)
    engine: Engine
    shape: Shape = field(default_factory=Shape)
    options: Options = field(default_factory=Options)
    instances: int = 1
    router: str = "round-robin"
    tau: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.instances < 1:
            raise ConfigError(f"instances={self.instances}, allowed: at least 1")
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
    """A study's workload and what its policy is told."""

    workload: Workload
    told: predictions.Predictions


def prepare(study: Study, ranker: Ranker | None = None) -> Prepared:
    """Build the workload and the predictions, and compile. Raises ConfigError for both tau and ranker."""
    if ranker is not None and study.tau is not None:
        raise ConfigError("a ranker and a tau; allowed: one of the two")
    if ranker is not None:
        _check_told(study.order)
    rng = np.random.default_rng(study.seed)
    trace = named.load(study.workload, study.shape.requests, study.seed, folder=config.data_folder())
    workload, rows = build(trace, study.shape, rng)
    if ranker is not None:
        told = predictions.ranked(ranker, trace, rows, workload)
    elif study.tau is not None:
        told = predictions.spoiled(workload, study.tau, rng)
    else:
        told = predictions.told(trace, rows, workload) or predictions.oracle(workload)
    serve(study, workload.take(np.arange(0)), None)
    return Prepared(workload, told)


def run(study: Study, prepared: Prepared | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Serve the study's workload; return what was run and every measure (see `docs/metrics.md`).

    `requests_per_cpu_second` counts the simulation only, not building the workload and compiling.
    """
    workload, told = prepared or prepare(study)
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
        "seed": study.seed,
        **measures(outcome),
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


def measures(outcome: Outcome) -> dict[str, Any]:
    """Return the measures of the finished requests; zeros and None where none finished."""
    if np.size(outcome.completed.id) == 0:
        return {name: 0 if name in ("n", "preemptions") else None for name in REPORTED}
    found = metrics.summary(outcome.completed)
    return {name: found[name] for name in REPORTED}
