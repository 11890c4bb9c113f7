"""What the simulated policy is told of each request: the truth, the truth spoiled, or a ranker's word."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import ConfigError, DataError
from sooner.metrics import kendall_tau
from sooner.rankers.contract import Ranker
from sooner.rankers.oracle import degrade
from sooner.rankers.scaling import normal_quantiles
from sooner.workloads.columns import Workload
from sooner.workloads.traces import Trace

Column = NDArray[np.float64]
SAMPLE = 20_000
"""Rows on which a Kendall tau is measured and aimed at."""


class Predictions(NamedTuple):
    """Columns (n,), what they are called in reports, and their Kendall tau with the truth."""

    predicted_len: Column
    score: Column
    kind: str
    tau: float


def oracle(workload: Workload) -> Predictions:
    """Return the true lengths."""
    truth = workload.output_len.astype(np.float64)
    return Predictions(truth, truth, "oracle", 1.0)


def spoiled(workload: Workload, tau: float, rng: np.random.Generator) -> Predictions:
    """Return predictions whose Kendall tau with the true lengths is `tau`, in [-1, 1].

    `predicted_len` has the very distribution of the true lengths: the request that scores k-th is
    given the k-th smallest length.
    """
    truth = workload.output_len.astype(np.float64)
    if tau == 1.0:
        return oracle(workload)
    score = _spoil(truth, tau, rng)
    predicted = np.empty_like(truth)
    predicted[np.argsort(score, kind="stable")] = np.sort(truth)
    return Predictions(predicted, score, f"tau {tau:g}", _tau(score, truth))


def _spoil(truth: Column, tau: float, rng: np.random.Generator) -> Column:
    """Return scores of Kendall tau `tau`; the size of the noise is found on a sample."""
    n = truth.shape[0]
    if n <= SAMPLE:
        return degrade(truth, tau, rng)
    if not -1 <= tau <= 1:
        raise ConfigError(f"tau={tau!r}, allowed: -1 to 1")
    normal = np.empty(n)
    normal[np.lexsort(np.stack([rng.random(n), truth]))] = normal_quantiles((np.arange(n) + 0.5) / n)
    noise, rows = rng.standard_normal((n,)), rng.permutation(n)[:SAMPLE]
    low, high = 0.0, math.pi  # of the angle from the truth, by way of the noise, to its reverse
    for _ in range(20):
        angle = (low + high) / 2
        reached = kendall_tau(math.cos(angle) * normal[rows] + math.sin(angle) * noise[rows], truth[rows])
        low, high = (angle, high) if reached > tau else (low, angle)
    return np.asarray(math.cos(low) * normal + math.sin(low) * noise)


def told(trace: Trace, rows: NDArray[np.int64], workload: Workload) -> Predictions | None:
    """Return the predictions that the trace itself holds, or None."""
    columns = [None if column is None else column[rows] for column in (trace.predicted_len, trace.score)]
    predicted, score = columns
    if score is None:
        score = predicted
    if score is None or not np.isfinite(score).all():
        return None
    if predicted is None or not np.isfinite(predicted).all():
        predicted = np.zeros_like(score)
    return Predictions(
        predicted, score, "from the workload", _tau(score, workload.output_len.astype(np.float64))
    )


def ranked(ranker: Ranker, trace: Trace, rows: NDArray[np.int64], workload: Workload) -> Predictions:
    """Return a ranker's predictions of the trace's prompts. Raises DataError where it has none."""
    if trace.requests is None:
        raise DataError("a ranker reads prompts, the workload has lengths only; allowed: a log with prompts")
    seen = [trace.requests[row].conversation() for row in rows]
    made = ranker.predictions([talk.prompt for talk in seen], context=[talk.context for talk in seen])
    score = np.array([prediction.score for prediction in made], dtype=np.float64)
    predicted = np.array([prediction.predicted_len or 0.0 for prediction in made], dtype=np.float64)
    tau = _tau(score, workload.output_len.astype(np.float64))
    return Predictions(predicted, score, f"ranker {ranker.name}", tau)


def _tau(score: Column, truth: Column) -> float:
    return float("nan") if truth.shape[0] < 2 else kendall_tau(score[:SAMPLE], truth[:SAMPLE])
