"""Two orders held against each other on the same replies: the one that acts, and its shadow."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.learning.watch import NOTHING, WINDOW, ByRequest, LiveStanding, by_request

_EVERY = 50
_LEAST = 100
_MOST_PENDING = 100_000

_SURE = 2.0
"""Standard errors by which the shadow's gain must be the larger one to be called better."""


class Rivalry(NamedTuple):
    """How both orders stand on the same replies, and by how much the shadow's is better.

    `better` has the differences and their own errors: what both meet alike cancels out.
    """

    acting: LiveStanding = NOTHING
    shadow: LiveStanding = NOTHING
    better: LiveStanding = NOTHING


def rivalry(
    acting: NDArray[np.float64],
    shadow: NDArray[np.float64],
    lengths: NDArray[np.float64],
) -> Rivalry:
    """Return how two orders (n,) of the same n requests stand; at least 2."""
    first, second = by_request(acting, lengths), by_request(shadow, lengths)
    better = ByRequest(second.tau - first.tau, second.gain - first.gain)
    return Rivalry(first.standing, second.standing, better.standing)


def is_better(now: Rivalry) -> bool:
    """Return whether the shadow's order is worth more than the one that acts, beyond chance."""
    return now.better.n > 0 and now.better.gain - _SURE * now.better.gain_error > 0.0


class ShadowWatch:
    """The scores of both for the last replies that came whole; `now` is brought up to date every 50."""

    def __init__(self) -> None:
        self._pending: OrderedDict[object, tuple[float, float]] = OrderedDict()
        self._ended: deque[tuple[float, float, float]] = deque(maxlen=WINDOW)
        self._new = 0
        self.seen = 0
        self.now = Rivalry()

    def placed(self, key: object, acting: float, shadow: float) -> None:
        """Take in what both said of a request."""
        self._pending[key] = acting, shadow
        if len(self._pending) > _MOST_PENDING:
            self._pending.popitem(last=False)

    def dropped(self, key: object) -> None:
        """Forget a request whose reply says too little: it was cut, or never began."""
        self._pending.pop(key, None)

    def left(self, who: object) -> None:
        """Forget the requests of one who is gone, whose keys begin with `who`."""
        for key in [key for key in self._pending if isinstance(key, tuple) and key[0] == who]:
            del self._pending[key]

    def finished(self, key: object, length: float) -> None:
        """Take in how long a reply was."""
        scores = self._pending.pop(key, None)
        if scores is None:
            return
        self._ended.append((*scores, length))
        self.seen += 1
        self._new += 1
        if self._new >= _EVERY and len(self._ended) >= _LEAST:
            self._new = 0
            self.now = rivalry(*np.array(self._ended).T)

    def change_places(self) -> None:
        """Say that the shadow acts from now on, and that the other is its shadow."""
        self._pending = OrderedDict((key, (second, first)) for key, (first, second) in self._pending.items())
        self._ended = deque(((second, first, length) for first, second, length in self._ended), maxlen=WINDOW)
        acting, shadow, better = self.now
        turned = better._replace(tau=-better.tau, gain=-better.gain)
        self.now = Rivalry(shadow, acting, turned)
