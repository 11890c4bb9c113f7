"""Models whose replies cannot be continued, for they reason first: as replies show it, and not for good.

What a client's replies show holds for its own tenant; from those of two tenants it holds for all.
"""

from __future__ import annotations

from collections import OrderedDict

HOLDS = 600.0
"""Seconds that a reply's word holds."""
_MOST = 1024  # words that are kept


class Uncut:
    """What is known of models, by tenant. Times are the monotonic clock's [s]."""

    def __init__(self) -> None:
        self._words: OrderedDict[tuple[str, str], float] = (
            OrderedDict()
        )  # by model and tenant, the latest last

    def add(self, model: str, tenant: str, now: float) -> None:
        """Say that a reply of a model could not be continued."""
        self._words.pop((model, tenant), None)
        self._words[model, tenant] = now
        while len(self._words) > _MOST or next(iter(self._words.values())) + HOLDS <= now:
            self._words.popitem(last=False)

    def has(self, model: str, tenant: str, now: float) -> bool:
        """Return whether a tenant's requests for a model are to be served whole."""
        if not self._words:
            return False
        if now < self._words.get((model, tenant), now - HOLDS) + HOLDS:
            return True
        return sum(of == model and now < when + HOLDS for (of, _), when in self._words.items()) > 1
