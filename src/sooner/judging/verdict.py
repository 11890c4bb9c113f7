"""Is a ranker good enough to switch on? A small queue computed with its own scores and the true lengths.

Requests arrive at random (Poisson) at a server that runs some at a time, each for as many steps as its
reply has tokens; whoever scores lowest goes next. It leaves out prefill and memory, so it judges the
order and is no forecast of a given machine: `sooner.sim` is.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sooner.judging.certainty import LEAST, Certainty

LOAD = 0.9
SLOTS = 16
REQUESTS = 6000
WORTHWHILE = 0.05
"""The smallest cut of the mean wait worth a switch."""
OWN_ROWS = 0.1
"""Share of rows it was trained on, from which a ranker is not judged: common prompts repeat by chance."""


class Verdict(NamedTuple):
    """Whether to switch the ranker on, why, and the mean waits [steps] behind it."""

    switch_on: bool
    reason: str
    load: float
    mean_wait_fcfs: float
    mean_wait_ranker: float
    mean_wait_oracle: float

    @property
    def cut(self) -> float:
        """Share of the mean wait under FCFS that the ranker's order saves."""
        return 1 - self.mean_wait_ranker / self.mean_wait_fcfs if self.mean_wait_fcfs > 0 else 0.0


def judge(
    scores: ArrayLike, lengths: ArrayLike, sure: Certainty, trained_on: float = 0.0, *, seed: int = 0
) -> Verdict:
    """Return the verdict on scores (n,) of requests with true lengths (n,) [tokens] that it never saw.

    `trained_on` is the share of them that it did see, as far as that is known.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.maximum(np.asarray(lengths, dtype=np.float64), 1.0)
    rng = np.random.default_rng(seed)
    pick = rng.integers(0, y.shape[0], REQUESTS)
    arrival = np.cumsum(rng.exponential(float(y.mean()) / (LOAD * SLOTS), REQUESTS))
    waits = [_mean_wait(arrival, key, y[pick]) for key in (arrival, x[pick], y[pick])]
    verdict = Verdict(False, "", LOAD, *waits)
    tau = f"tau {sure.tau:.3f} (95 %: {sure.low:.3f} to {sure.high:.3f})"
    words = (
        f"expected to cut the mean wait by {100 * verdict.cut:.0f} % at load {LOAD} "
        f"(a perfect order: {100 * (1 - waits[2] / waits[0]) if waits[0] else 0:.0f} %)"
    )
    if sure.conversations == 1:
        reason = "one conversation says nothing of how sure the tau is: collect more, or keep arrival order"
    elif trained_on >= OWN_ROWS:
        reason = f"it was trained on {trained_on:.0%} of these requests: judge it on others"
    elif not sure.above_zero:
        reason = f"{tau} is not clearly above 0: collect more rows, or keep arrival order"
    elif not sure.enough:
        seen = f"{sure.conversations} conversations"
        reason = f"{tau} rests on {seen}: collect at least {LEAST}, or keep arrival order"
    elif verdict.cut < WORTHWHILE:
        reason = f"{words}, which is less than {100 * WORTHWHILE:.0f} %: not worth a switch"
    else:
        return verdict._replace(switch_on=True, reason=f"{words}, {tau}")
    return verdict._replace(reason=reason)


def _mean_wait(arrival: NDArray[np.float64], key: NDArray[np.float64], work: NDArray[np.float64]) -> float:
    """Mean wait [steps] where `SLOTS` requests run at a time and the smallest key goes next."""
    free_at = [0.0] * SLOTS
    waiting: list[tuple[float, int]] = []
    arrives: list[float] = arrival.tolist()
    keys: list[float] = key.tolist()
    runs: list[float] = work.tolist()
    coming, n, total, now = 0, len(arrives), 0.0, 0.0
    for _ in range(n):
        now = max(now, free_at[0])
        if not waiting and coming < n:
            now = max(now, arrives[coming])
        while coming < n and arrives[coming] <= now:
            heapq.heappush(waiting, (keys[coming], coming))
            coming += 1
        _, chosen = heapq.heappop(waiting)
        total += now - arrives[chosen]
        heapq.heapreplace(free_at, now + runs[chosen])
    return total / n
