"""How the end of a job is packed: replies take turns, so that the long ones end together.

While much waits, any order fills every slot. At the end slots stand idle until the longest reply ends, and
no order helps where nobody knew that it would be the longest. So who has had a turn there makes room for
whoever has had less, and goes on later: least attained service first, which needs no prediction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

SHARE = 6.0
"""Turns in the longest reply: more pack closer, and each costs a prefill that a prefix cache may spare."""

APART = 3.0
"""The longest reply may be so many usual ones for turns to pay: one that is far longer must never wait."""

_AGAIN = 0.25
"""Of the job's tokens: so many may be read again at most, were no prefix cache to spare it."""

_LOOKS = 8.0  # times within a turn that it is asked again whether it is over


class EndTurns:
    """The replies that made room, and when those that run have had their turn. Lengths are tokens."""

    def __init__(self) -> None:
        self._waiting: dict[int, float] = {}  # sample: tokens so far
        self._until: dict[int, float] = {}
        self.turn = math.inf  # nobody makes room
        self.made = 0  # times that a reply made room
        self._again = 0.0  # tokens that were there when they did
        self._whole = 0.0  # tokens of replies that are whole

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, sample: int) -> bool:
        return sample in self._waiting

    def begin(self, sample: int, had: float = 0.0) -> None:
        """Say that a sample runs, with the tokens it has."""
        self._until[sample] = had + self.turn

    def end(self, sample: int, whole: int = 0) -> None:
        """Say that a sample does not run any more, with its tokens if it is whole."""
        self._until.pop(sample, None)
        self._whole += whole

    def leave(self, sample: int, had: float) -> None:
        """Say that a sample made room with `had` tokens."""
        self.end(sample)
        self.made += 1
        self._again += had
        self._waiting[sample] = had

    def back(self) -> tuple[int, float] | None:
        """Return the sample that had least, and its tokens; None where nobody made room."""
        if not self._waiting:
            return None
        sample = min(self._waiting, key=lambda one: (self._waiting[one], one))
        return sample, self._waiting.pop(sample)

    def due(self, sample: int, running: Mapping[int, float], fresh: int, to_come: float) -> bool:
        """Whether a running sample should make room for `fresh` that were never begun, of `to_come` tokens.

        It should where it has had its turn and is among the furthest, as many of them as wait with less.
        """
        had = running[sample]
        if had < self._until.get(sample, math.inf):
            return False
        self._until[sample] = had + self.turn / _LOOKS
        if self._again + had > _AGAIN * (self._whole + sum(running.values()) + to_come):
            return False
        less = fresh + sum(1 for other in self._waiting.values() if other <= had - self.turn / 2)
        further = sum(1 for other in running.values() if other > had)
        return further < less
