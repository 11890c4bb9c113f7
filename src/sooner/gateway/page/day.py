"""The last day in counts: as many bytes whatever comes, and percentiles within 1 %."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sooner.gateway.page.seen import Spread, TimeSeen

SLOT = 300.0
"""Seconds that are counted together, and leave together when they are a day old."""
SLOTS = 288

_LEAST = 1e-3  # seconds; what is shorter counts as 0
_STEP = math.log(1.02)
_BINS = 800  # up to two hours
_MEASURES = 3  # wait, first token, whole reply
_WHOLE, _IN_TIME, _CUT, _FAILED, _TOKENS = range(5)


class Day:
    """Takes in requests as they end; `tick` says what time it is [s], on a clock that read `began` then."""

    def __init__(self, began: float, refused: Mapping[str, int]) -> None:
        self._began = began
        self._slot = 0
        self._counts = np.zeros((SLOTS, _MEASURES, _BINS), dtype=np.uint32)
        self._sums = np.zeros((SLOTS, 5))
        self._fresh = [[0] * _BINS for _ in range(_MEASURES)]  # of the slot that lasts, where numpy is slow
        self._fresh_sums = [0.0] * 5
        self._refused: deque[dict[str, int]] = deque([dict(refused)], SLOTS)  # when each slot began

    def add(
        self, times: tuple[float, float, float], tokens: int, *, whole: bool, in_time: bool, cut: bool
    ) -> None:
        """Take in how a request ended; NaN is a time that nobody saw."""
        sums = self._fresh_sums
        if not whole:
            sums[_CUT if cut else _FAILED] += 1
            return
        sums[_WHOLE] += 1
        sums[_IN_TIME] += in_time
        sums[_TOKENS] += tokens
        for counts, seconds in zip(self._fresh, times, strict=True):
            if seconds == seconds:
                counts[_bin(seconds)] += 1

    def tick(self, now: float, refused: Mapping[str, int]) -> None:
        """Begin the next slot when it is time, forgetting the one of a day ago."""
        slot = int((now - self._began) // SLOT)
        if slot <= self._slot:
            return
        self._put()
        self._fresh = [[0] * _BINS for _ in range(_MEASURES)]
        self._fresh_sums = [0.0] * 5
        for late in range(max(self._slot + 1, slot - SLOTS + 1), slot + 1):
            self._counts[late % SLOTS] = 0
            self._sums[late % SLOTS] = 0.0
            self._refused.append(dict(refused))
        self._slot = slot

    def _put(self) -> None:
        """Let the arrays hold what was counted in the slot that lasts."""
        self._counts[self._slot % SLOTS] = self._fresh
        self._sums[self._slot % SLOTS] = self._fresh_sums

    def window(self, now: float, refused: Mapping[str, int]) -> TimeSeen:
        """Return the numbers of the last day, or of as long as is known."""
        self._put()
        begins = self._began + SLOT * max(0, self._slot - SLOTS + 1)
        whole, in_time, cut, failed, tokens = self._sums.sum(axis=0).tolist()
        counts = self._counts.sum(axis=0)
        wait, ttft, e2e = (_spread(counts[measure]) for measure in range(_MEASURES))
        then = self._refused[0]
        return TimeSeen(
            max(now - begins, 1.0), int(whole), int(in_time), int(cut), int(failed), wait, ttft, e2e, tokens,
            {name: n - then.get(name, 0) for name, n in refused.items()},
        )  # fmt: skip


def _bin(seconds: float) -> int:
    if seconds < _LEAST:
        return 0
    return min(1 + int(math.log(seconds / _LEAST) / _STEP), _BINS - 1)


def _spread(counts: NDArray[np.uint64]) -> Spread:
    total = int(counts.sum())
    if not total:
        return Spread(None, None, None)
    upto = np.cumsum(counts)
    found = np.searchsorted(upto, [q * total for q in (0.5, 0.9, 0.99)]).tolist()
    return Spread(*(_LEAST * math.exp((at - 0.5) * _STEP) if at else 0.0 for at in found))
