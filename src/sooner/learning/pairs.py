"""Two policies held against each other on requests that really waited together.

A policy's keys hang on when requests came and what else waited, so they say nothing of two requests that
never met. Of two that met, the one that goes second waits for the other's work: the sum over such pairs is
what an order costs, and arrival order's is what it is measured by. Who met is decided by the order that acts;
`sooner whatif` replays what would have come of another.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.learning.shadow import Rivalry
from sooner.learning.watch import LiveStanding

WINDOW = 1000
_EVERY = 50
_LEAST = 200
_BLOCKS = 20
_WHOLE = 0.95
_MOST_PENDING = 100_000


class Met(NamedTuple):
    """Two requests that waited together, the one that came first being `first`.

    `weight` is how many pairs it stands for; `acting` and `shadow` say whether they let the second go first.
    """

    first: str
    second: str
    weight: float
    acting: bool
    shadow: bool


class _Row(NamedTuple):
    weight: float
    first: float
    second: float
    acting: bool
    shadow: bool


class PairWatch:
    """The last pairs of which both replies are over; `now` is brought up to date every 50."""

    def __init__(self) -> None:
        self._pending: dict[str, list[Met]] = {}
        self._work: dict[str, float] = {}  # of those that are over, while another of a pair is not
        self._open = 0
        self._rows: deque[_Row] = deque(maxlen=WINDOW)
        self._new = 0
        self.seen = 0
        self.now = Rivalry()

    def met(self, pair: Met) -> None:
        """Take in a pair. Where too many are open no more are taken."""
        if self._open < _MOST_PENDING:
            self._open += 1
            for id in (pair.first, pair.second):
                self._pending.setdefault(id, []).append(pair)

    def finished(self, id: str, work: float) -> None:
        """Take in how much work a request was [s]."""
        if id not in self._pending:
            return
        self._work[id] = work
        for pair in list(self._pending[id]):
            if pair.first in self._work and pair.second in self._work:
                works = self._work[pair.first], self._work[pair.second]
                self._rows.append(_Row(pair.weight, *works, pair.acting, pair.shadow))
                self._close(pair)
                self.seen += 1
                self._new += 1
        if self._new >= _EVERY and len(self._rows) >= _LEAST:
            self._new = 0
            self.now = rivalry(np.array(self._rows, dtype=np.float64))

    def dropped(self, id: str) -> None:
        """Forget the pairs of a request whose reply was cut, or never came; none of one that finished."""
        if id not in self._work:
            for pair in list(self._pending.get(id, ())):
                self._close(pair)

    def change_places(self) -> None:
        """Say that the shadow acts from now on, and that the other is its shadow."""
        self._rows = deque((row._replace(acting=row.shadow, shadow=row.acting) for row in self._rows), WINDOW)
        turned = {pair: pair._replace(acting=pair.shadow, shadow=pair.acting)
                  for pairs in self._pending.values() for pair in pairs}  # fmt: skip
        self._pending = {id: [turned[pair] for pair in pairs] for id, pairs in self._pending.items()}
        acting, shadow, better = self.now
        self.now = Rivalry(shadow, acting, better._replace(tau=-better.tau, gain=-better.gain))

    def _close(self, pair: Met) -> None:
        self._open -= 1
        for id in (pair.first, pair.second):
            pairs = self._pending[id]
            pairs.remove(pair)
            if not pairs:
                del self._pending[id]
                self._work.pop(id, None)


def rivalry(rows: NDArray[np.float64]) -> Rivalry:
    """Return how two orders stand on pairs (n, 5): weight, works of first and second, who swaps them.

    A gain is the share of arrival order's cost that an order saves, and tau the share of pairs in the right
    order less that of the others. The largest 5 % of the works count as the smallest of them. The errors are
    of a jackknife over blocks of time, for pairs share requests.
    """
    weight, first, second, *swaps = rows.T
    most = np.quantile(np.concatenate([first, second]), _WHOLE)
    first, second = np.minimum(first, most), np.minimum(second, most)
    block = np.arange(len(rows)) * _BLOCKS // len(rows)

    def without(values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum of all (the first), and those without each block."""
        sums = np.bincount(block, values, _BLOCKS)
        return np.concatenate([[sums.sum()], sums.sum() - sums])

    untied, cost = without(weight * (first != second)), without(weight * first)
    found = []
    for swap in swaps:
        right = np.sign(first - second) * np.where(swap > 0, 1.0, -1.0)
        saved = np.where(swap > 0, first - second, 0.0)
        found.append((_share(without(weight * right), untied), _share(without(weight * saved), cost)))
    (tau, gain), (other_tau, other_gain) = found
    return Rivalry(
        _standing(len(rows), tau, gain),
        _standing(len(rows), other_tau, other_gain),
        _standing(len(rows), other_tau - tau, other_gain - gain),
    )


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0.0)


def _standing(n: int, tau: NDArray[np.float64], gain: NDArray[np.float64]) -> LiveStanding:
    return LiveStanding(n, float(tau[0]), _error(tau[1:]), float(gain[0]), _error(gain[1:]))


def _error(left_out: NDArray[np.float64]) -> float:
    return float(np.sqrt((_BLOCKS - 1) * np.var(left_out)))
