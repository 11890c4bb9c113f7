"""Traffic that was served: what came, what became of it, what the order was told, and on what engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import Completed, DataError
from sooner.policies import DEFAULT, Policy, get
from sooner.sim.cost import Engine
from sooner.workloads.columns import Workload

Column = NDArray[np.float64]


class ServedTraffic(NamedTuple):
    """Requests row by row in order of arrival, times from the first arrival [s].

    `score` and `predicted_len` (n,) are what the order was told; who was told nothing has the mean of
    the others, as a live host gives it. `predicts` says whether anybody was told anything. `tenants` are
    names by `workload.tenant`. `engine` has the limits that are known or were seen; `paced` says whether
    its coefficients are this engine's own. `clock` is "work" (seconds of engine work, which no other load
    of the machine changes) or "wall", and `began` the first arrival on it: Unix time on the wall's.
    """

    workload: Workload
    completed: Completed
    score: Column
    predicted_len: Column
    predicts: bool
    tenants: tuple[str, ...]
    began: float
    engine: Engine
    paced: bool
    clock: str
    policy: Policy


class ServedRow(NamedTuple):
    """One request as a record holds it; times [s] on one clock, NaN where nobody saw."""

    arrival: float
    start: float
    first: float
    finish: float
    prompt_len: int
    cached_len: int
    output_len: int
    score: float
    predicted_len: float
    tenant: str


class Columns(NamedTuple):
    """Rows as columns; what `ServedTraffic` is made of besides the engine."""

    workload: Workload
    completed: Completed
    score: Column
    predicted_len: Column
    predicts: bool
    tenants: tuple[str, ...]
    began: float


def columns(rows: Sequence[ServedRow], source: str) -> Columns:
    """Return rows as columns, sorted by arrival. Raises DataError where there are none."""
    if not rows:
        raise DataError(
            f"{source!r} holds no finished request; allowed: a gateway's journal or a plugin's trace"
        )
    rows = sorted(rows, key=lambda row: row.arrival)
    zero = rows[0].arrival
    names = tuple(dict.fromkeys(row.tenant for row in rows))
    numbers = {name: number for number, name in enumerate(names)}
    prompt = np.maximum([row.prompt_len for row in rows], 1).astype(np.int64)
    workload = Workload(
        arrival_time=np.array([row.arrival - zero for row in rows]),
        prompt_len=prompt,
        output_len=np.maximum([row.output_len for row in rows], 1).astype(np.int64),
        cached_len=np.clip([row.cached_len for row in rows], 0, prompt - 1).astype(np.int64),
        tenant=np.array([numbers[row.tenant] for row in rows], dtype=np.int64),
    )
    completed = Completed(
        id=workload.id.astype(np.float64),
        arrival_time=workload.arrival_time,
        first_token_time=np.array([row.first - zero for row in rows]),
        finish_time=np.array([row.finish - zero for row in rows]),
        prompt_len=workload.prompt_len.astype(np.float64),
        output_len=workload.output_len.astype(np.float64),
        start_time=np.array([row.start - zero for row in rows]),
    )
    score = np.array([row.score for row in rows])
    length = np.array([row.predicted_len for row in rows])
    told = bool(np.isfinite(score).any() or np.isfinite(length).any())
    return Columns(workload, completed, _neutral(score), _neutral(length), told, names, zero)


def _neutral(column: Column) -> Column:
    """Return a column with the mean of what is known where nothing is; zeros where nothing is known."""
    known = np.isfinite(column)
    return np.where(known, column, column[known].mean() if known.any() else 0.0)


def ample_blocks(workload: Workload, block_size: int) -> int:
    """Return KV blocks that never run out."""
    return int((workload.prompt_len + workload.output_len).sum()) // block_size + len(workload) + 1


def order_of(name: str | None, parameters: dict[str, float] | None = None) -> Policy:
    """Return the policy that served; without a name, the one that hosts take by default."""
    return get(name or DEFAULT, **(parameters or {}))
