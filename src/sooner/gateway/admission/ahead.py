"""How much waits before a newcomer, in logarithmic time: what each tenant of a class gets until its turn.

A tenant's part is nothing as far as its counter, grows evenly while what it has waiting is served, and
is all of that from then on. The sum of such functions is read from sorted corners with running sums; a
tenant that changes has its old corners taken back by others of opposite sign.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

from sooner.gateway.admission.waiting import NOTHING, Amount

_LOOSE = 32  # corners that are looked at one by one, until they are sorted in


class Corner(NamedTuple):
    """Where a sum of functions gets steeper by `slope`."""

    at: float
    slope: float


class _Run(NamedTuple):
    """Sorted corners, and the running sums of their slopes and of slope times distance from the first."""

    corners: list[Corner]
    slopes: list[float]
    moments: list[float]

    @classmethod
    def of(cls, corners: list[Corner]) -> _Run:
        corners.sort()
        base = corners[0].at
        slopes = list(accumulate((slope for _, slope in corners), initial=0.0))
        moments = list(accumulate((slope * (at - base) for at, slope in corners), initial=0.0))
        return cls(corners, slopes, moments)

    def value(self, at: float) -> float:
        upto = bisect_left(self.corners, (at,))
        return self.slopes[upto] * (at - self.corners[0].at) - self.moments[upto]


class Corners:
    """The sum of functions that are 0 at first, by its corners: sorted runs, each shorter than the last."""

    def __init__(self) -> None:
        self._loose: list[Corner] = []
        self._runs: list[_Run] = []
        self.size = 0

    def add(self, at: float, slope: float) -> None:
        """Let the sum get steeper by `slope` from `at` on."""
        self._loose.append(Corner(at, slope))
        self.size += 1
        if len(self._loose) < _LOOSE:
            return
        corners, self._loose = self._loose, []
        while self._runs and len(self._runs[-1].corners) <= len(corners):
            corners += self._runs.pop().corners
        self._runs.append(_Run.of(corners))

    def value(self, at: float) -> float:
        """Return the sum at a place."""
        sorted_in = sum(run.value(at) for run in self._runs)
        return sorted_in + sum(slope * (at - corner) for corner, slope in self._loose if corner < at)


class _Part(NamedTuple):
    """One tenant's function as it is in the sum: it begins, it ends, and how steep it is in between."""

    begin: float
    end: float
    slope: float


class Ahead:
    """The amounts that wait in one class, by tenant.

    `standing` returns a tenant's counter and weight; where either moves, `moved` has to be called.
    """

    def __init__(self, standing: Callable[[str], tuple[float, float]]) -> None:
        self._standing = standing
        self._amounts: dict[str, Amount] = {}
        self._parts: dict[str, _Part] = {}  # that are in the sum
        self._moved: set[str] = set()  # those whose part is another one now
        self._corners = Corners()
        self.work = 0.0  # of all [s]

    def __getitem__(self, tenant: str) -> Amount:
        return self._amounts.get(tenant, NOTHING)

    def put(self, tenant: str, amount: Amount) -> None:
        """Say how much of a tenant waits now."""
        self.work = max(0.0, self.work + amount.work - self[tenant].work)
        self._amounts[tenant] = amount
        self._moved.add(tenant)

    def drop(self, tenant: str) -> None:
        """Say that nothing of a tenant waits any more."""
        self.put(tenant, NOTHING)
        del self._amounts[tenant]
        self._moved.discard(tenant)
        self._take_back(tenant)
        if not self._amounts:  # what is left are errors of rounding
            self.work, self._corners = 0.0, Corners()

    def moved(self, tenant: str | None) -> None:
        """Say that a tenant's counter or weight moved; None: those of all may have."""
        if tenant is None:
            self._moved.update(self._amounts)
        elif tenant in self._amounts:
            self._moved.add(tenant)

    def before(self, turn: float) -> float:
        """Return the work that is done before a counter of `turn` gets its turn [s]."""
        for tenant in self._moved:
            part = self._part(tenant)
            if part != self._parts.get(tenant):
                self._take_back(tenant)
                self._parts[tenant] = part
                self._add(part, 1.0)
        self._moved.clear()
        if self._corners.size > 4 * _LOOSE + 8 * len(self._parts):  # most of them were taken back
            self._corners = Corners()
            for part in self._parts.values():
                self._add(part, 1.0)
        return min(self.work, max(0.0, self._corners.value(turn)))

    def _part(self, tenant: str) -> _Part:
        tokens, work = self._amounts[tenant]
        counter, weight = self._standing(tenant)
        return _Part(counter, counter + tokens / weight, work * weight / tokens if tokens > 0.0 else 0.0)

    def _take_back(self, tenant: str) -> None:
        part = self._parts.pop(tenant, None)
        if part is not None:
            self._add(part, -1.0)

    def _add(self, part: _Part, times: float) -> None:
        self._corners.add(part.begin, times * part.slope)
        self._corners.add(part.end, -times * part.slope)
