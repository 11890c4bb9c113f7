"""From a trace to a workload: which requests, and when they arrive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import ConfigError, DataError
from sooner.workloads.arrivals import arrival_times
from sooner.workloads.columns import Workload
from sooner.workloads.prefix import affinity, cached_tokens
from sooner.workloads.traces import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a trace becomes a workload.

    `requests`: how many, None for all. Without `rate` [req/s] or `burst` the recorded times are
    replayed, stretched by `time_scale`, the first `requests` of them; with one, requests are drawn at
    random and arrive at that mean rate with gaps of coefficient of variation `cv` (1 is Poisson), or
    all at once. `cancel_after` [s] is when clients lose patience, `deadline` [s] what `edf` is told;
    `prefix_cache` [tokens] is the size of a prefix cache. `tenants` are shares of the requests: who
    sends each is drawn. `classes` are (share, deadline after arrival [s]) by level, drawn too.
    """

    requests: int | None = None
    rate: float | None = None
    burst: bool = False
    cv: float = 1.0
    time_scale: float = 1.0
    cancel_after: float | None = None
    deadline: float | None = None
    prefix_cache: int = 0
    tenants: tuple[float, ...] = ()
    classes: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.requests is not None and self.requests < 1:
            raise ConfigError(f"requests={self.requests}, allowed: at least 1")
        if self.burst and self.rate is not None:
            raise ConfigError("a burst has no rate; allowed: one of the two")
        for name in ("cancel_after", "deadline"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}={value}, allowed: seconds >= 0")
        if self.prefix_cache < 0:
            raise ConfigError(f"prefix_cache={self.prefix_cache}, allowed: tokens >= 0")
        for name, shares in (("tenants", self.tenants), ("classes", [share for share, _ in self.classes])):
            if shares and not (min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6):
                raise ConfigError(f"{name} with the shares {list(shares)}, allowed: >= 0, with a sum of 1")
        if any(not after >= 0 for _, after in self.classes) or (self.classes and self.deadline is not None):
            raise ConfigError(
                f"classes={self.classes}, deadline={self.deadline}; allowed: seconds >= 0, one of the two"
            )


class Built(NamedTuple):
    """A workload and, row by row, the rows of the trace it was made of."""

    workload: Workload
    rows: NDArray[np.int64]


def build(trace: Trace, shape: Shape, rng: np.random.Generator) -> Built:
    """Return a workload.

    Raises ConfigError where nobody says when requests arrive, DataError where the trace has fewer
    requests than are to be replayed, or no blocks for the prefix cache.
    """
    available = len(trace)
    n = available if shape.requests is None else shape.requests
    replayed = shape.rate is None and not shape.burst
    if replayed:
        if trace.arrival_time is None:
            raise ConfigError("the workload has no arrival times; allowed: a rate [req/s] or a burst")
        if n > available:
            raise DataError(f"{n} requests to replay, the trace has {available}; allowed: fewer, or a rate")
        rows = np.arange(n)
    elif n <= available:
        rows = rng.permutation(available)[:n]
    else:
        rows = rng.integers(0, available, n)
    kind = "trace" if replayed else "burst" if shape.burst else "gamma"
    arrival = arrival_times(
        kind,
        n,
        rng,
        rate=shape.rate,
        cv=shape.cv,
        recorded=trace.arrival_time[:n].tolist() if replayed and trace.arrival_time is not None else (),
        time_scale=shape.time_scale,
    )
    return Built(_workload(trace, shape, rows, arrival, rng), rows.astype(np.int64))


def _workload(
    trace: Trace,
    shape: Shape,
    rows: NDArray[np.int64],
    arrival: NDArray[np.float64],
    rng: np.random.Generator,
) -> Workload:
    prompt_len = trace.prompt_len[rows].astype(np.int64)
    columns: dict[str, NDArray[np.int64] | NDArray[np.float64]] = {}
    for name in ("tenant", "sender", "level"):
        recorded = getattr(trace, name)
        if recorded is not None:
            columns[name] = recorded[rows].astype(np.int64)
    if trace.blocks is not None:
        columns["prefix"] = affinity(trace.blocks)[rows]
    if shape.prefix_cache:
        if trace.blocks is None:
            raise DataError(
                "the workload says nothing of shared prefixes (hash_ids); allowed: prefix_cache 0"
            )
        blocks = [trace.blocks[row] for row in rows]
        columns["cached_len"] = cached_tokens(blocks, prompt_len, trace.block_size, shape.prefix_cache)
    for name, after in (("deadline", shape.deadline), ("cancel_time", shape.cancel_after)):
        recorded = getattr(trace, name)
        if after is not None:
            columns[name] = arrival + after
        elif recorded is not None and trace.arrival_time is not None:
            columns[name] = arrival + (recorded - trace.arrival_time)[rows]
    if shape.tenants:
        columns["tenant"] = rng.choice(len(shape.tenants), len(rows), p=shape.tenants)
    if shape.classes:
        shares, after_arrival = np.array(shape.classes).T
        columns["level"] = level = rng.choice(len(shares), len(rows), p=shares / shares.sum())
        columns["deadline"] = arrival + after_arrival[level]
    return Workload(
        arrival_time=arrival,
        prompt_len=prompt_len,
        output_len=trace.output_len[rows].astype(np.int64),
        **columns,  # type: ignore[arg-type]  # each name has its kind
    )
