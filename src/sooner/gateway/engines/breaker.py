"""Keeping away from an engine that fails, without letting one tenant's requests close it to the others."""

from __future__ import annotations

from collections import OrderedDict

_TENANTS = 256  # whose failures are remembered


class Breaker:
    """Opens after `failures` in a row of at least two tenants, for a time that doubles.

    One tenant's failures may be of its own making: after as many of them `avoids` says that this tenant
    does better elsewhere, and nobody else is told. A reply that succeeds ends the row. Once it has opened,
    a failure of two tenants each opens it again. `at_once`, where nothing listens at all, asks nobody.
    """

    def __init__(self, failures: int = 3, pause: float = 1.0, longest: float = 30.0) -> None:
        self._allowed = failures
        self._first = pause
        self._longest = longest
        self._pause = pause
        self._row: dict[str, int] = {}  # failures since the last success, by tenant
        self._own: OrderedDict[str, tuple[int, float]] = OrderedDict()  # in a row, and when the last was
        self.until = 0.0

    def ok(self, tenant: str | None = None) -> None:
        """Say that the engine served a tenant; None: that it lives again."""
        self._row.clear()
        self._pause = self._first
        self.until = 0.0
        if tenant is None:
            self._own.clear()
        else:
            self._own.pop(tenant, None)

    def failed(self, now: float, tenant: str = "", *, at_once: bool = False) -> None:
        """Say that it failed a tenant, or `at_once` everybody."""
        if at_once:
            self._open(now)
            return
        if len(self._row) < _TENANTS or tenant in self._row:
            self._row[tenant] = self._row.get(tenant, 0) + 1
        count, _ = self._own.pop(tenant, (0, 0.0))
        self._own[tenant] = count + 1, now
        if len(self._own) > _TENANTS:
            self._own.popitem(last=False)
        again = self._pause > self._first
        if len(self._row) > 1 and (again or sum(self._row.values()) >= self._allowed):
            self._open(now)

    def _open(self, now: float) -> None:
        self.until = now + self._pause
        self._pause = min(2 * self._pause, self._longest)
        self._row.clear()

    def tripped(self, now: float) -> bool:
        """Return whether no request should go there now."""
        return now < self.until

    def avoids(self, tenant: str, now: float) -> bool:
        """Return whether a tenant's requests had better go elsewhere, if they can."""
        count, when = self._own.get(tenant, (0, 0.0))
        return count >= self._allowed and now < when + self._longest
