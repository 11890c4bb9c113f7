"""Whose turn it is among the tenants that wait, in logarithmic time.

Heaps whose entries are not taken out when a tenant changes: only its last entry counts, and one that
does not is dropped when it comes up.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple


class TenantTurn(NamedTuple):
    """Where a tenant stands: the least goes first.

    `counter` is what it was served, `waiting` how many of its requests wait, `entered` a number that grows
    with each that comes. `need` is what it asks for of an allowance, for each unit of its weight.
    """

    counter: float
    waiting: int
    entered: int
    need: float
    tenant: str


class Turns:
    """Those of one class that wait, or of all; `read` returns a tenant's counter, how many wait, its need."""

    def __init__(self, read: Callable[[str], tuple[float, int, float]]) -> None:
        self._read = read
        self._now: dict[str, TenantTurn] = {}
        self._count = 0
        self._all: list[TenantTurn] = []
        self._within: list[TenantTurn] = []  # those whose need was small enough when it was last asked
        self._beyond: list[tuple[float, TenantTurn]] = []  # the others, by their need

    def enter(self, tenant: str) -> None:
        """Say that a tenant waits now."""
        self._count += 1
        counter, waiting, need = self._read(tenant)
        self._put(TenantTurn(counter, waiting, self._count, need, tenant))

    def leave(self, tenant: str) -> None:
        """Say that it does not any more."""
        del self._now[tenant]

    def changed(self, tenant: str | None) -> None:
        """Say that one of them may stand elsewhere; None: all of them."""
        for name in list(self._now) if tenant is None else (tenant,):
            old = self._now.get(name)
            if old is not None:
                counter, waiting, need = self._read(name)
                new = TenantTurn(counter, waiting, old.entered, need, name)
                if new != old:
                    self._put(new)

    def _put(self, turn: TenantTurn) -> None:
        self._now[turn.tenant] = turn
        heapq.heappush(self._all, turn)
        heapq.heappush(self._beyond, (turn.need, turn))
        if len(self._all) + len(self._beyond) + len(self._within) > 64 + 8 * len(self._now):
            self._all = sorted(self._now.values())
            self._beyond = sorted((turn.need, turn) for turn in self._all)
            self._within = []

    def first(self, allowed: float) -> str:
        """Return who is next: of those who need no more than is `allowed`, else of all."""
        while self._beyond and self._beyond[0][0] <= allowed:
            turn = heapq.heappop(self._beyond)[1]
            if self._now.get(turn.tenant) is turn:
                heapq.heappush(self._within, turn)
        while self._within:
            turn = self._within[0]
            if self._now.get(turn.tenant) is not turn:
                heapq.heappop(self._within)
            elif turn.need > allowed:
                heapq.heappop(self._within)
                heapq.heappush(self._beyond, (turn.need, turn))
            else:
                return turn.tenant
        return self._least().tenant

    @property
    def lowest(self) -> float | None:
        """The smallest counter of those who wait, None where nobody does."""
        return self._least().counter if self._now else None

    def _least(self) -> TenantTurn:
        while self._now.get(self._all[0].tenant) is not self._all[0]:
            heapq.heappop(self._all)
        return self._all[0]
