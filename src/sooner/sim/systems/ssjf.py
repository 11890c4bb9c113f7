"""SSJF: speculative shortest job first with a proxy model (Qiu et al., arXiv 2404.08509).

The server's service model is a line in the output length (`static.Linear`). Whenever it is free
the queue is sorted by predicted duration and the first B jobs run: alone (`none`), as one batch
that ends with its longest member (`static`), or until the shortest member ends (`continuous`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sooner.core import ConfigError, DataError, UnknownName
from sooner.sim.static import Column, Counts, Linear

MODES = ("none", "static", "continuous")
EARLY_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class SsjfSettings:
    """How the server batches and guards.

    The guard puts the whole queue in order of waiting, longest first, when the longest waiter has
    waited over `guard_wait_s`, or over `guard_ratio` times its own duration: the true one as
    released (an oracle leak), the predicted one with `guard_live`. With `hold_s` > 0 a batch that
    is not full is held that long for more, which the released FCFS does (10 s) and its SSJF never.
    `predict_s` is charged before a job can be ordered. `shrink` reduces the key of a job that was
    put back by what it has run, which the released SSJF never does and its oracle does.
    """

    mode: str = "none"
    batch_size: int = 1
    service: Linear = field(default_factory=Linear)
    guard: bool = True
    guard_wait_s: float = 100.0
    guard_ratio: float = 10.0
    guard_live: bool = False
    predict_s: float = 0.0
    hold_s: float = 0.0
    shrink: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UnknownName("SSJF batching mode", self.mode, MODES)
        if self.batch_size < 1 or (self.mode == "none" and self.batch_size != 1):
            raise ConfigError(f"batch_size={self.batch_size!r}, allowed: 1 for mode 'none', else >= 1")
        if min(self.guard_wait_s, self.guard_ratio, self.predict_s, self.hold_s) < 0:
            raise ConfigError(f"guard, prediction and hold times must be >= 0: {self}")


class SsjfServed(NamedTuple):
    """When each job first ran and when it completed [s], columns (n,)."""

    start: Column
    finish: Column


def serve(
    arrival: Column,
    tokens: Counts,
    key: Column | None,
    settings: SsjfSettings,
    *,
    predicted: Column | None = None,
) -> SsjfServed:
    """Serve jobs in order of `key` (n,), or first come, first served without one.

    `arrival` must not fall. `predicted` [tokens] is what a live guard reads. A key takes part in
    comparisons only, unless `shrink`, which needs it in tokens.
    """
    if np.any(np.diff(arrival) < 0) or arrival.shape != tokens.shape:
        raise DataError("SSJF needs arrivals that never fall, and one length for each")
    return _Server(arrival, tokens, key, settings, predicted).run()


class _Server:
    """`queue` is kept in the order of the last sort; newcomers and jobs put back go to its end."""

    def __init__(
        self,
        arrival: Column,
        tokens: Counts,
        key: Column | None,
        settings: SsjfSettings,
        predicted: Column | None,
    ) -> None:
        self.settings, self.fcfs = settings, key is None
        shift = 0.0 if key is None else settings.predict_s
        self.arrival: list[float] = arrival.tolist()
        self.seen: list[float] = (arrival + shift).tolist()
        self.left: list[float] = np.asarray(
            settings.service.seconds(tokens.astype(np.float64)), dtype=float
        ).tolist()
        believed = predicted if predicted is not None else tokens.astype(np.float64)
        self.believed: list[float] = np.asarray(settings.service.seconds(believed), dtype=float).tolist()
        self.key: list[float] = self.arrival if key is None else key.tolist()
        n = len(self.arrival)
        self.start, self.finish = [-1.0] * n, [0.0] * n
        self.queue: list[int] = []
        self.now, self.next = 0.0, 0

    def run(self) -> SsjfServed:
        done, n = 0, len(self.arrival)
        while done < n:
            if not self.queue:
                self.now = max(self.now, self.seen[self.next])
            self._admit()
            if self.settings.hold_s and len(self.queue) < self.settings.batch_size:
                self._hold()
            self.queue.sort(key=self._order())
            done += self._run_batch()
        return SsjfServed(np.array(self.start), np.array(self.finish))

    def _admit(self) -> None:
        while self.next < len(self.seen) and self.seen[self.next] <= self.now:
            self.queue.append(self.next)
            self.next += 1

    def _hold(self) -> None:
        """Wait for arrivals to fill the batch, at most `hold_s`; the released code waits even for none."""
        last = self.next + self.settings.batch_size - len(self.queue) - 1
        full = self.seen[last] if last < len(self.seen) else math.inf
        self.now = min(self.now + self.settings.hold_s, max(full, self.now))
        self._admit()

    def _order(self) -> Callable[[int], float]:
        s = self.settings
        if self.fcfs or not s.guard:
            return self.key.__getitem__
        oldest = min(self.queue, key=self.arrival.__getitem__)
        waited = self.now - self.arrival[oldest]
        duration = self.believed[oldest] if s.guard_live else self.left[oldest]
        starved = waited > s.guard_wait_s or waited > s.guard_ratio * duration
        return self.arrival.__getitem__ if starved else self.key.__getitem__

    def _run_batch(self) -> int:
        """Run the head of the queue; return how many completed."""
        batch, self.queue = self.queue[: self.settings.batch_size], self.queue[self.settings.batch_size :]
        for job in batch:
            self.start[job] = self.now if self.start[job] < 0 else self.start[job]
        took = (min if self.settings.mode == "continuous" else max)(self.left[job] for job in batch)
        self.now += took
        ended = 0
        for job in batch:
            self.left[job] -= took
            if self.left[job] <= 1e-12:
                self.finish[job] = self.now
                ended += 1
            else:
                if self.settings.shrink:
                    self.key[job] -= took / self.settings.service.token_s
                self.queue.append(job)
        return ended


def measures(arrival: Column, served: SsjfServed) -> dict[str, float]:
    """Return job completion times [s] and two throughputs [jobs/s].

    `early_throughput` is SSJF's own measure, k / t_k at the first quarter of completions. A server
    that never idles has one makespan under every order, so only such a window can differ;
    `throughput` is over the whole run.
    """
    jct, ends = served.finish - arrival, np.sort(served.finish)
    k = max(1, int(EARLY_SHARE * ends.shape[0]))
    return {
        "mean_jct_s": float(jct.mean()),
        "p99_jct_s": float(np.percentile(jct, 99)),
        "mean_wait_s": float((served.start - arrival).mean()),
        "early_throughput": k / float(ends[k - 1]),
        "throughput": ends.shape[0] / float(ends[-1]),
    }


def poisson_counts(n: int, rate: float, rng: np.random.Generator) -> Column:
    """Return arrivals as SSJF's code makes them: a Poisson count in each whole second, all at its start."""
    seconds = 16 + int(2 * n / rate)
    counts = rng.poisson(rate, size=seconds)
    while counts.sum() < n:
        counts = np.append(counts, rng.poisson(rate, size=seconds))
    return np.asarray(np.repeat(np.arange(counts.shape[0]), counts)[:n], dtype=np.float64)


def sorted_gamma(n: int, rate: float, cv: float, rng: np.random.Generator) -> Column:
    """Return gamma arrivals as SSJF's code makes them: the gaps sorted, so they grow through the run."""
    return np.cumsum(np.sort(rng.gamma(1 / cv**2, cv**2 / rate, size=n)))


def trace_window(n: int, gaps_s: Column, scale: float, rng: np.random.Generator) -> Column:
    """Return n arrivals from a random place of a trace, its milliseconds read as seconds over `scale`."""
    begin = int(rng.integers(0, gaps_s.shape[0] - n + 2))
    gaps = gaps_s[begin : begin + n - 1] * (1000.0 / scale)
    return np.cumsum(np.concatenate([np.zeros(1), gaps]))
