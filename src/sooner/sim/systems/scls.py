"""SCLS: slice-level scheduling (arXiv 2406.13511). No lengths are predicted: a slice makes at most S tokens.

A tick takes every waiting request, sorts them by input length, splits them into batches of least
total estimated time under the memory limit, and gives the longest batch to the least loaded worker.
A worker runs a batch for one slice, statically; who has not ended goes back to the pool with its KV
dropped. Each rung of the ablation ladder is a `SclsVariant`; SLS, the first, is batch-at-a-time FCFS.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sooner.core import ConfigError, DataError
from sooner.sim.static import Bilinear, Column, Counts, run_batch
from sooner.sim.systems.scls_batching import Memory, split
from sooner.workloads.columns import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class SclsSettings:
    """SCLS's constants; see `UNCONFIRMED` for those that no source confirms. Lengths in tokens."""

    workers: int = 8
    slice_len: int = 128
    limit: int = 1024
    fixed_rows: int = 12
    interval_floor_s: float = 3.0
    interval_share: float = 0.5
    noise: float = 0.03

    def __post_init__(self) -> None:
        if min(self.workers, self.slice_len, self.limit, self.fixed_rows) < 1:
            raise ConfigError(f"workers, slice_len, limit and fixed_rows must be >= 1: {self}")
        if self.interval_floor_s <= 0 or not 0 <= self.interval_share < 1 or self.noise < 0:
            raise ConfigError(
                f"interval_floor_s={self.interval_floor_s!r}, interval_share={self.interval_share!r},"
                f" noise={self.noise!r}; allowed: > 0 [s], in [0, 1), >= 0"
            )


UNCONFIRMED = {
    "slice_len": "recalled, medium confidence",
    "limit": "recalled, medium confidence",
    "workers": "recalled, medium confidence",
    "fixed_rows": "assumed: SLS's small fixed batch against running out of memory",
    "interval_floor_s": "recalled, low confidence: 'a few seconds'",
    "interval_share": "recalled, low confidence (lambda)",
    "memory_share": "recalled, low confidence (zeta)",
    "noise": "assumed",
    "truth": "assumed: LLaMA2-13B on one A100-80G by its FLOPs and bandwidth",
}
"""Which constants no source confirms, and where each comes from."""


class SclsVariant(NamedTuple):
    """A rung of the ladder: what is switched on."""

    sliced: bool = True
    pooled: bool = True  # ticks and DP batches; else fixed-size FCFS batches
    capped: bool = False  # DP batches no larger than the fixed size
    balanced: bool = True  # max-min offload; else round robin
    adaptive: bool = True  # the interval follows the load


LADDER = {
    "SLS": SclsVariant(sliced=False, pooled=False, balanced=False, adaptive=False),
    "SO": SclsVariant(pooled=False, balanced=False, adaptive=False),
    "PM": SclsVariant(capped=True, balanced=False, adaptive=False),
    "AB": SclsVariant(balanced=False, adaptive=False),
    "LB": SclsVariant(adaptive=False),
    "SCLS": SclsVariant(),
}
"""The six-step ablation: slices only, padding mitigation, adaptive batch, load balancing, all of it."""


class SclsBatch(NamedTuple):
    """Requests that run together, and how long the estimator thinks they will [s]."""

    rows: Counts
    estimate_s: float


class SclsOutcome(NamedTuple):
    """Who finished when [s] and in how many slices (n,), what batches did, and when workers ended (w,).

    `worker_end` is the end of a worker's last batch, `dry` when it first had nothing to do after the
    last arrival: the end of its share of the backlog, without the few long replies that come last.
    """

    arrival: Column
    finish: Column
    slices: Counts
    pad: int
    invalid: int
    batches: int
    early: int
    worker_end: Column
    dry: Column


def serve(
    workload: Workload,
    variant: SclsVariant,
    settings: SclsSettings,
    truth: Bilinear,
    estimator: Bilinear,
    memory: Memory,
    rng: np.random.Generator,
) -> SclsOutcome:
    """Serve a workload until every request has ended.

    `truth` is what batches take, times noise; `estimator` is all the scheduler knows of it. Raises
    DataError for replies over the limit.
    """
    if len(workload) and int(workload.output_len.max()) > settings.limit:
        raise DataError(f"replies of up to {workload.output_len.max()} tokens, allowed: {settings.limit}")
    return _Cluster(workload, variant, settings, truth, estimator, memory, rng).run()


class _Cluster:
    def __init__(
        self,
        workload: Workload,
        variant: SclsVariant,
        settings: SclsSettings,
        truth: Bilinear,
        estimator: Bilinear,
        memory: Memory,
        rng: np.random.Generator,
    ) -> None:
        n, self.settings, self.variant = len(workload), settings, variant
        self.workload, self.truth, self.estimator, self.memory, self.rng = (
            workload,
            truth,
            estimator,
            memory,
            rng,
        )
        self.generated: Counts = np.zeros(n, dtype=np.int64)
        self.slices: Counts = np.zeros(n, dtype=np.int64)
        self.finish: Column = np.full(n, np.nan)
        self.pool: list[int] = []
        self.queues: list[deque[SclsBatch]] = [deque() for _ in range(settings.workers)]
        self.singles: list[deque[int]] = [deque() for _ in range(settings.workers)]
        self.running: list[SclsBatch | None] = [None] * settings.workers
        self.load = np.zeros(settings.workers)
        self.worker_end = np.zeros(settings.workers)
        self.dry = np.full(settings.workers, np.nan)
        self.events: list[tuple[float, int, int]] = []  # time, order of entry, worker or -1 for a tick
        self.entered, self.next, self.turn, self.left = 0, 0, 0, n
        self.pad = self.invalid = self.batches = self.early = 0

    def run(self) -> SclsOutcome:
        arrival = self.workload.arrival_time
        if self.variant.pooled and self.left:
            self._at(float(arrival[0]), -1)
        while self.left:
            due = self.events[0][0] if self.events else np.inf
            if self.next < len(arrival) and arrival[self.next] <= due:
                now = float(arrival[self.next])
                self._enter(self.next)
                self.next += 1
                if not self.variant.pooled:
                    self._start_idle(now)
                continue
            now, _, worker = heapq.heappop(self.events)
            if worker >= 0:
                self._end(worker, now)
            else:
                self._tick(now)
            self._start_idle(now)
        return SclsOutcome(
            arrival,
            self.finish,
            self.slices,
            self.pad,
            self.invalid,
            self.batches,
            self.early,
            self.worker_end,
            self.dry,
        )

    def _at(self, time: float, worker: int) -> None:
        self.entered += 1
        heapq.heappush(self.events, (time, self.entered, worker))

    def _enter(self, request: int) -> None:
        if self.variant.pooled:
            self.pool.append(request)
        else:
            self.singles[self._round_robin()].append(request)

    def _round_robin(self) -> int:
        self.turn = (self.turn + 1) % self.settings.workers
        return self.turn

    def _least_loaded(self) -> int:
        """The worker of least estimated load; of several, the one that ended its last batch first."""
        return min(range(self.settings.workers), key=lambda w: (self.load[w], self.worker_end[w], w))

    def _tick(self, now: float) -> None:
        """Take everything in the pool, batch it, hand it out, and say when to look again."""
        batches = self._batches()
        if self.variant.balanced:
            batches.sort(key=lambda batch: -batch.estimate_s)
        for batch in batches:
            worker = self._least_loaded() if self.variant.balanced else self._round_robin()
            self.queues[worker].append(batch)
            self.load[worker] += batch.estimate_s
        share = self.settings.interval_share if self.variant.adaptive else 0.0
        self._at(now + max(share * float(self.load.min()), self.settings.interval_floor_s), -1)

    def _batches(self) -> list[SclsBatch]:
        rows = np.array(self.pool, dtype=np.int64)
        self.pool = []
        if not rows.size:
            return []
        inputs = self._inputs(rows)
        order = np.argsort(inputs, kind="stable")
        cap = self.settings.fixed_rows if self.variant.capped else None
        groups = split(inputs[order], self.settings.slice_len, self.estimator, self.memory, cap)
        return [SclsBatch(rows[order[begin:end]], estimate) for begin, end, estimate in groups]

    def _inputs(self, rows: Counts) -> Counts:
        return np.asarray(self.workload.prompt_len[rows] + self.generated[rows], dtype=np.int64)

    def _start_idle(self, now: float) -> None:
        for worker in range(self.settings.workers):
            if self.running[worker] is not None:
                continue
            if self.singles[worker]:
                waiting = self.singles[worker]
                size = min(self.settings.fixed_rows, len(waiting))
                self._start(worker, SclsBatch(np.array([waiting.popleft() for _ in range(size)]), 0.0), now)
            elif self.queues[worker]:
                self._start(worker, self.queues[worker].popleft(), now)
            elif self.next == len(self.workload) and np.isnan(self.dry[worker]):
                self.dry[worker] = now

    def _start(self, worker: int, batch: SclsBatch, now: float) -> None:
        rows, s = batch.rows, self.settings
        left_to_limit = int((s.limit - self.generated[rows]).max())
        limit = min(s.slice_len, left_to_limit) if self.variant.sliced else left_to_limit
        slowdown = float(np.exp(s.noise * self.rng.standard_normal() - s.noise**2 / 2))
        remaining = self.workload.output_len[rows] - self.generated[rows]
        ran = run_batch(self.truth, self._inputs(rows), remaining, limit, slowdown)
        self.generated[rows] += np.minimum(remaining, ran.steps)
        self.slices[rows] += 1
        self.pad += ran.pad
        self.invalid += ran.invalid
        self.batches += 1
        self.early += ran.steps < limit
        self.running[worker] = batch
        self._at(now + ran.seconds, worker)

    def _end(self, worker: int, now: float) -> None:
        batch = self.running[worker]
        if batch is None:
            return
        self.running[worker] = None
        self.worker_end[worker] = now
        self.load[worker] = max(0.0, self.load[worker] - batch.estimate_s)
        for request in batch.rows.tolist():
            if self.generated[request] >= self.workload.output_len[request]:
                self.finish[request] = now
                self.left -= 1
            else:
                self._enter(request)


def measures(done: SclsOutcome) -> dict[str, float]:
    """Return SCLS's measures: requests/s, response times [s], tokens wasted a request, balance [s]."""
    response, n = done.finish - done.arrival, done.finish.shape[0]
    return {
        "throughput_rps": n / float(done.finish.max() - done.arrival[0]),
        "mean_response_s": float(response.mean()),
        "p95_response_s": float(np.percentile(response, 95)),
        "mean_batch": float(done.slices.sum()) / done.batches,
        "pad_per_request": done.pad / n,
        "invalid_per_request": done.invalid / n,
        "slices_per_request": float(done.slices.mean()),
        "within_3_slices": float(np.mean(done.slices <= 3)),
        "early_return_share": done.early / done.batches,
        "worker_end_std_s": float(done.worker_end.std()),
        "worker_dry_std_s": float(np.nanstd(done.dry)),
    }
