"""What a simulated policy is told by a learner that knows only what had finished by then.

The simulator is causal: what is over before a moment does not depend on who comes after it. So the
requests are predicted in blocks; before each, those that came earlier are simulated anew, and the learner
takes in what had finished when the block begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sooner.learning import Learner
from sooner.learning.prequential import Facts
from sooner.metrics import kendall_tau
from sooner.sim.engine import Outcome
from sooner.sim.predictions import SAMPLE, Predictions
from sooner.workloads.columns import Workload

_FIRST, _BLOCKS = 64, 48

Serve = Callable[[Workload, Predictions], Outcome]
"""Simulates some of the requests, told these predictions."""


def learned(workload: Workload, facts: Facts, serve: Serve) -> Predictions:
    """Return predictions for a workload, made block by block from what `serve` says had finished."""
    n = len(workload)
    score, predicted = np.zeros(n), np.ones(n)
    learner, taken = Learner(), np.zeros(n, dtype=bool)
    lengths = workload.output_len.astype(np.float64)
    edges = _edges(n)
    for start, end in itertools.pairwise(edges):
        if start:
            part = np.arange(start)
            outcome = serve(workload.take(part), Predictions(predicted[part], score[part], "learned", np.nan))
            _take_in(learner, workload, outcome, float(workload.arrival_time[start]), taken, lengths)
        for row in range(start, end):
            said = facts.predicted(learner, row)
            score[row], predicted[row] = said.score, said.predicted_len or 1.0
    tau = kendall_tau(score[-SAMPLE:], lengths[-SAMPLE:]) if n > 1 else float("nan")
    return Predictions(predicted, score, "learned", tau)


def _edges(n: int) -> list[int]:
    """Where blocks begin: each twice as far as the last, until they are a share of the whole."""
    edges, at = [0], _FIRST
    while at < n:
        edges.append(at)
        at = min(2 * at, at + max(_FIRST, n // _BLOCKS))
    return [*edges, n]


def _take_in(
    learner: Learner,
    workload: Workload,
    outcome: Outcome,
    now: float,
    taken: NDArray[np.bool_],
    lengths: NDArray[np.float64],
) -> None:
    """Tell the learner, in their order, of the replies that ended since it was last told."""
    order = np.argsort(workload.id, kind="stable")
    ids, ends = np.atleast_1d(outcome.completed.id), np.atleast_1d(outcome.completed.finish_time)
    rows = order[np.searchsorted(workload.id[order], ids)]
    new = (ends <= now) & ~taken[rows]
    rows, ends = rows[new], ends[new]
    for row in rows[np.argsort(ends, kind="stable")].tolist():
        learner.finished(row, float(lengths[row]))
    taken[rows] = True
