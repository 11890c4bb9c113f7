"""An engine of slots, a token a step each, on which a course is played without any engine."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from sooner.generate.course import Course


def job(
    n: int, samples: int = 1, seed: int = 0, told_sd: float = 0.7, own_sd: float = 0.5
) -> tuple[Any, Any]:
    """Return what is told of n prompts [tokens], and how long their samples are."""
    rng = np.random.default_rng(seed)
    told = rng.normal(5.0, told_sd, n)
    own = told + rng.normal(0.0, own_sd, n)
    each = own[:, None] + (rng.normal(0.0, 0.3, (n, samples)) if samples > 1 else 0.0)
    return np.exp(told), np.maximum(1, np.exp(each)).astype(int).reshape(-1)


def play(chosen: Course, true: Any, slots: int = 16, budget: float = np.inf) -> tuple[float, list[int]]:
    """Serve on `slots` places, a token a step; return when the goal was met and the order of beginning.

    A sample that makes room goes on later from where it was.
    """
    now, begun, met = 0.0, [], None
    ends: list[tuple[float, int]] = []
    since: dict[int, float] = {}  # when a sample would have begun, had it not been interrupted
    while True:
        if now >= budget:
            chosen.expire()
        for sample in chosen.doomed():
            chosen.aborted(sample, int(now - since[sample]))
        while len(chosen.running) < slots and (sample := chosen.next()) is not None:
            had = chosen.running[sample]
            if not had:
                begun.append(sample)
            since[sample] = now - had
            heapq.heappush(ends, (since[sample] + true[sample], sample))
        if met is None and chosen.met:
            met = now
        while ends and ends[0] != (since[ends[0][1]] + true[ends[0][1]], ends[0][1]):
            heapq.heappop(ends)
        while ends and ends[0][1] not in chosen.running:
            heapq.heappop(ends)
        if not ends:
            return now if met is None else met, begun
        if now < budget < ends[0][0]:
            now = budget
            continue
        now, sample = heapq.heappop(ends)
        for other in list(chosen.running):
            chosen.progress(other, now - since[other])
        chosen.finished(sample, int(true[sample]))
        for other in list(chosen.running):
            if now < since[other] + true[other] and chosen.due(other):
                chosen.made_room(other, int(now - since[other]))
