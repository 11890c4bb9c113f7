"""Recency-weighted means of log lengths, each drawn to its parent: template in sender in model in all.

A new group starts from its parent, a large one stands on its own. Memory is bounded: the group that was
asked for longest ago goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MEMORY = 500.0
"""Requests that a group remembers: each newer one makes the older ones count 1/500 less."""

DRAWN = 4.0
"""Requests' worth of belief that a group is as its parent."""

MOST_GROUPS = 50_000
_FADE = 1.0 - 1.0 / MEMORY
_LONG_FADE = 1.0 - 1.0 / (20.0 * MEMORY)
_SAVED = attrgetter("weight", "total", "count", "epoch")


class Group:
    """A weighted sum of log lengths and how much weight is in it; `epoch` is the drift it has seen."""

    __slots__ = ("count", "epoch", "fade", "total", "weight")

    def __init__(self, epoch: int = 0, *, long: bool = False) -> None:
        self.fade = _LONG_FADE if long else _FADE
        self.weight = 0.0
        self.total = 0.0
        self.count = 0
        self.epoch = epoch

    def mean(self, parent: float) -> float:
        """Return the mean, drawn to the parent's."""
        return (self.total + DRAWN * parent) / (self.weight + DRAWN)

    def add(self, value: float) -> None:
        """Take in one more request."""
        self.weight = self.weight * self.fade + 1.0
        self.total = self.total * self.fade + value
        self.count += 1

    def correct(self, change: float, count: int) -> None:
        """Change what the `count`-th request was taken in with."""
        self.total += change * self.fade ** (self.count - count)

    def forget(self, epoch: int, share: float) -> None:
        """Keep only a share of the weight: what was learned before a drift."""
        if self.epoch != epoch:
            share **= epoch - self.epoch
            self.weight *= share
            self.total *= share
            self.epoch = epoch


class GroupSays(NamedTuple):
    """What a group says of a request: its replies so far, their usual length [tokens], what it adds.

    `amount` is in log lengths: what it makes the expected reply longer by beside the group around it.
    """

    of: str
    replies: int
    usual_tokens: float
    amount: float


class Groups:
    """Groups by hash, at most `most` of them."""

    def __init__(self, most: int = MOST_GROUPS) -> None:
        self._most = most
        self._known: OrderedDict[int, Group] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: int, epoch: int, keep: float) -> Group | None:
        """Return a group if it is known, its memory of earlier epochs cut to `keep`."""
        group = self._known.get(key)
        if group is not None and group.epoch != epoch:
            group.forget(epoch, keep)
        return group

    def made(self, key: int, epoch: int, keep: float) -> Group:
        """Return a group, made where it is not known, as the one asked for last."""
        group = self._known.get(key)
        if group is None:
            group = self._known[key] = Group(epoch)
            if len(self._known) > self._most:
                self._known.popitem(last=False)
            return group
        self._known.move_to_end(key)
        if group.epoch != epoch:
            group.forget(epoch, keep)
        return group

    def arrays(self) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        """Return what is saved: keys (n,) and weight, total, count, epoch (n, 4); who is next to go first.

        Quick, for it holds answers up: 20 ms for 50,000 groups.
        """
        n = len(self._known)
        values = chain.from_iterable(map(_SAVED, self._known.values()))
        return np.fromiter(self._known, np.uint64, n), np.fromiter(values, np.float64, 4 * n).reshape(n, 4)

    def load(self, keys: NDArray[np.uint64], values: NDArray[np.float64]) -> None:
        """Take over what `arrays` gave."""
        rows = zip(keys.tolist(), values.tolist(), strict=True)
        for key, (weight, total, count, epoch) in list(rows)[-self._most :]:
            group = self._known[key] = Group(int(epoch))
            group.weight, group.total, group.count = weight, total, int(count)
