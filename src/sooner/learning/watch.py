"""How good is the order now: tau and gain of the last predictions against what came, with their errors.

Both are means over pairs, so their errors follow from the means by request (Hoeffding, 1948).
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WINDOW = 300
_EVERY = 50
_LEAST = 150
_WHOLE = 0.95


class LiveStanding(NamedTuple):
    """Kendall's tau and its standard error, and the gain with its own.

    The gain is the share of the work ahead of a request, in a backlog, that the order removes, beside
    arrival order: the mean of (longer - shorter) over pairs, signed by whether the order is right, over
    twice the mean length. The true order has the lengths' Gini coefficient. The longest 5 % of the replies
    count as the shortest of them, or one reply would decide alone.
    """

    n: int
    tau: float
    tau_error: float
    gain: float
    gain_error: float

    @property
    def told(self) -> str:
        """The same in words."""
        return (
            f"in the last {self.n} replies it has Kendall's tau {self.tau:.2f} (error {self.tau_error:.2f}) "
            f"and takes away {self.gain:.1%} of the wait in a backlog (error {self.gain_error:.1%})"
        )


NOTHING = LiveStanding(0, math.nan, math.inf, math.nan, math.inf)


class ByRequest(NamedTuple):
    """What each of n requests (n,) adds to tau and to the gain, against all others; both are the means."""

    tau: NDArray[np.float64]
    gain: NDArray[np.float64]

    @property
    def standing(self) -> LiveStanding:
        """The means, and the errors that follow."""
        n = self.tau.shape[0]
        error = 2.0 / math.sqrt(n)
        return LiveStanding(
            n,
            float(self.tau.mean()),
            error * float(self.tau.std(ddof=1)),
            float(self.gain.mean()),
            error * float(self.gain.std(ddof=1)),
        )


def by_request(scores: NDArray[np.float64], lengths: NDArray[np.float64]) -> ByRequest:
    """Return what each of n predictions adds, against what came; at least 2, at most 32,767."""
    n = scores.shape[0]
    lengths = np.minimum(lengths, np.quantile(lengths, _WHOLE))
    below, above = _ranks(scores)
    shorter, longer = _ranks(lengths)
    untied = math.sqrt(float((below + above).sum()) * float((shorter + longer).sum()))
    right = np.einsum("ij,ij->i", _signs(below), _signs(shorter)).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(lengths[np.argsort(scores)])])
    saved = lengths * (below - above) - (sums[below] - (sums[n] - sums[n - above]))
    mean = max(float(lengths.mean()), 1e-9)
    return ByRequest(right * (n / untied if untied else 0.0), saved / (2.0 * mean * (n - 1)))


def standing(scores: NDArray[np.float64], lengths: NDArray[np.float64]) -> LiveStanding:
    """Return how n predictions stand against what came; at least 2."""
    return by_request(scores, lengths).standing


def _ranks(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how many (n,) are smaller than each, and how many larger."""
    order = np.sort(values)
    return order.searchsorted(values), values.shape[0] - order.searchsorted(values, "right")


def _signs(ranks: NDArray[np.int64]) -> NDArray[np.int16]:
    """Return the signs (n, n) of all differences, 1 where the row is larger. Small numbers are quick."""
    small = ranks.astype(np.int16)
    return np.asarray(np.sign(small[:, None] - small), dtype=np.int16)


class Watch:
    """The last predictions and their lengths; `now` is brought up to date every 50 of them."""

    def __init__(self, window: int = WINDOW) -> None:
        self._scores: deque[float] = deque(maxlen=window)
        self._lengths: deque[float] = deque(maxlen=window)
        self._new = 0
        self.now = NOTHING

    def add(self, score: float, length: float) -> bool:
        """Take in one finished request; return whether `now` is new."""
        self.note(score, length)
        return self._new >= _EVERY and self.look()

    def note(self, score: float, length: float) -> None:
        """Take in one finished request; `now` stays as it is until `look`."""
        self._scores.append(score)
        self._lengths.append(length)
        self._new += 1

    def look(self) -> bool:
        """Bring `now` up to date; return whether it is new."""
        if not self._new or len(self._scores) < _LEAST:
            return False
        self._new = 0
        self.now = standing(np.array(self._scores), np.array(self._lengths))
        return True

    def rows(self) -> NDArray[np.float64]:
        """Return what is kept (n, 2): predictions and their lengths."""
        return np.array([self._scores, self._lengths]).T

    def load(self, rows: NDArray[np.float64]) -> None:
        """Take over what was kept (n, 2)."""
        self.clear()
        for score, length in rows.tolist():
            self.note(score, length)
        self.look()

    def clear(self) -> None:
        """Forget all: what was predicted before a drift says nothing of what comes."""
        self._scores.clear()
        self._lengths.clear()
        self._new = 0
        self.now = NOTHING
