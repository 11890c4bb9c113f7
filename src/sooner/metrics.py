"""Every measure, one formula each, over `Completed` records (one, or n as columns). See `docs/metrics.md`."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sooner.core import Completed, DataError, Number


def e2e(done: Completed) -> Number:
    """End-to-end latency [s]: arrival to the last token."""
    return done.finish_time - done.arrival_time


def ttft(done: Completed) -> Number:
    """Time to first token [s]."""
    return done.first_token_time - done.arrival_time


def tpot(done: Completed) -> Number:
    """Time per output token after the first [s]; 0 for a reply of one token."""
    return (done.finish_time - done.first_token_time) / np.maximum(done.output_len - 1, 1)


def normalized_latency(done: Completed) -> Number:
    """E2E over output tokens [s/token], as in Orca, vLLM and vllm-ltr."""
    return e2e(done) / np.maximum(done.output_len, 1)


def wait(done: Completed) -> Number:
    """Arrival to the first time the engine ran the request [s]."""
    return done.start_time - done.arrival_time


def e2e_steps(done: Completed) -> Number:
    """Engine steps between arrival and the last token: a latency that machine load cannot change."""
    return done.finish_step - done.arrival_step


def normalized_steps(done: Completed) -> Number:
    """E2E in engine steps over output tokens."""
    return e2e_steps(done) / np.maximum(done.output_len, 1)


def summary(done: Completed) -> dict[str, float]:
    """Return the measures of one run from columns of shape (n,); percentiles interpolate linearly.

    Raises DataError when there is no request.
    """
    finish = np.atleast_1d(done.finish_time)
    n = finish.shape[0]
    if n == 0:
        raise DataError("no finished request to measure; allowed: at least 1")
    latency, first, normalized = (np.atleast_1d(f(done)) for f in (e2e, ttft, normalized_latency))
    queued = np.atleast_1d(wait(done))
    makespan = float(finish.max() - np.min(done.arrival_time))
    return {
        "n": n,
        "makespan_s": makespan,
        "mean_e2e_s": float(latency.mean()),
        "p50_e2e_s": _percentile(latency, 50),
        "p90_e2e_s": _percentile(latency, 90),
        "p99_e2e_s": _percentile(latency, 99),
        "mean_ttft_s": float(first.mean()),
        "p50_ttft_s": _percentile(first, 50),
        "p99_ttft_s": _percentile(first, 99),
        "mean_tpot_s": float(np.mean(tpot(done))),
        "mean_normalized_latency": float(normalized.mean()),
        "p90_normalized_latency": _percentile(normalized, 90),
        "max_wait_s": float(queued.max()),
        "throughput_rps": n / makespan if makespan > 0 else math.nan,
        "throughput_tps": float(np.sum(done.output_len)) / makespan if makespan > 0 else math.nan,
        "output_tokens": int(np.sum(done.output_len)),
        "preemptions": int(np.sum(done.preemptions)),
    }


def _percentile(values: NDArray[np.float64], q: float) -> float:
    return float(np.percentile(values, q))


def kendall_tau(score: ArrayLike, length: ArrayLike) -> float:
    """Kendall's tau-b between two columns of shape (n,), in O(n log n); 0 where either is constant.

    Raises DataError for unlike shapes, fewer than two values or a value that is not finite.
    """
    pairs = _pairs(score, length)
    untied = math.sqrt(float(pairs.total - pairs.tied_x)) * math.sqrt(float(pairs.total - pairs.tied_y))
    return (pairs.concordant - pairs.discordant) / untied if untied else 0.0


def pairwise_accuracy(score: ArrayLike, length: ArrayLike) -> float:
    """Share of pairs with unlike lengths that the score orders rightly; a tied score counts one half."""
    pairs = _pairs(score, length)
    comparable = pairs.total - pairs.tied_y
    tied_score_only = comparable - pairs.concordant - pairs.discordant
    return (pairs.concordant + 0.5 * tied_score_only) / comparable if comparable else 0.5


def spearman(score: ArrayLike, length: ArrayLike) -> float:
    """Spearman's rank correlation, ties given their mean rank; 0 where either column is constant."""
    x, y = _columns(score, length)
    rx, ry = _mean_rank(x), _mean_rank(y)
    spread = float(rx.std() * ry.std())
    return float(np.mean((rx - rx.mean()) * (ry - ry.mean()))) / spread if spread else 0.0


class _Pairs:
    def __init__(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        n = x.shape[0]
        order = np.lexsort((y, x))
        x, y = x[order], y[order]
        self.total = n * (n - 1) // 2
        self.tied_x = _tied(x)
        self.tied_y = _tied(np.sort(y))
        new = np.r_[True, (x[1:] != x[:-1]) | (y[1:] != y[:-1])]
        tied_both = _tied(np.cumsum(new).astype(np.float64))
        self.discordant = _inversions(np.unique(y, return_inverse=True)[1])
        self.concordant = self.total - self.tied_x - self.tied_y + tied_both - self.discordant


def _pairs(score: ArrayLike, length: ArrayLike) -> _Pairs:
    return _Pairs(*_columns(score, length))


def _columns(score: ArrayLike, length: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(score, dtype=np.float64), np.asarray(length, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or x.shape[0] < 2:
        shapes = f"scores {x.shape} and lengths {y.shape}"
        raise DataError(f"{shapes}; allowed: two columns of one shape (n,), n >= 2")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("scores or lengths hold NaN or infinity; allowed: finite numbers")
    return x, y


def _tied(ordered: NDArray[np.float64]) -> int:
    edges = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1], True])
    size = np.diff(edges)
    return int(np.sum(size * (size - 1) // 2))


def _inversions(rank: NDArray[np.int64]) -> int:
    """Count pairs i < j with rank[i] > rank[j], one bit of the rank at a time."""
    total = 0
    for bit in range(int(rank.max()).bit_length()):
        by_group = rank[np.argsort(rank >> (bit + 1), kind="stable")]
        group, one = by_group >> (bit + 1), (by_group >> bit) & 1
        ones = np.cumsum(one)
        start = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        before = np.repeat(np.r_[0, ones][start], np.diff(np.r_[start, group.shape[0]]))
        total += int(np.sum((ones - before)[one == 0]))
    return total


def _mean_rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    return np.asarray((last - (size - 1) / 2.0)[group], dtype=np.float64)
