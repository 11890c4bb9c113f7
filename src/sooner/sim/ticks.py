"""A run in whole picoseconds: what an engine's coefficients, arrivals and expected work are there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sooner.sim.cost import TICKS_PER_SECOND, Engine, ticks
from sooner.sim.options import Options
from sooner.work import work
from sooner.workloads.columns import Workload

LONGEST_RUN_S = 2e6
"""Picoseconds must fit 62 bits: about 23 days of simulated time."""


def ready_ticks(workload: Workload, options: Options) -> NDArray[np.int64]:
    """When each request is seen by the scheduler [ps]."""
    shift = 0.0 if options.predict_blocks else options.predict_s
    return np.rint((workload.arrival_time + shift) * TICKS_PER_SECOND).astype(np.int64)


def coefficient_ticks(engine: Engine) -> tuple[int, int, int, int]:
    """The cost coefficients in whole picoseconds; the first is at least 1."""
    a, b, c, d = (ticks(value) for value in engine.coefficients)
    return max(a, 1), b, c, d


def token_ticks(engine: Engine) -> int:
    """Picoseconds that a token takes in a full batch without context: what unlike engines differ in."""
    a, _, c, _ = coefficient_ticks(engine)
    return a // engine.max_num_seqs + c


def work_ticks(workload: Workload, engine: Engine, predicted: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the expected work (n,) of requests on an engine [ps].

    The usual batch is what its slots or its KV memory hold of the mean of the requests so far.
    """
    held = workload.prompt_len + 0.5 * predicted
    mean = np.cumsum(held) / np.arange(1, len(workload) + 1)
    batch = np.clip(engine.num_blocks * engine.block_size / mean, 1.0, engine.max_num_seqs)
    cached = workload.cached_len.astype(np.float64)
    seconds = work(engine.pace, workload.prompt_len.astype(np.float64), cached, predicted, batch)
    whole: NDArray[np.int64] = np.rint(np.asarray(seconds) * TICKS_PER_SECOND).astype(np.int64)
    return whole


def kinds(engines: Sequence[Engine]) -> tuple[list[Engine], list[int]]:
    """Return the unlike engines of a cluster, and which of them each instance is."""
    unlike = list(dict.fromkeys(engines))
    return unlike, [unlike.index(engine) for engine in engines]
