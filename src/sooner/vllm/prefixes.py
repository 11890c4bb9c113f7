"""What the prefix cache holds of a prompt that waits: read when it comes, and again when it is first."""

from __future__ import annotations

from typing import Any

from sooner.ordering.order import Order
from sooner.vllm import compat
from sooner.vllm.counters import PluginCounters

_CHECKED = 32
"""Steps for which what the prefix cache held of the first in the queue is believed."""


class Prefixes:
    """Looks into the prefix cache while `caching`: one that cannot be read is not asked again."""

    def __init__(self, host: Any, order: Order, counters: PluginCounters, *, wanted: bool) -> None:
        self._host = host
        self._order = order
        self._counters = counters
        self._checked: tuple[str, int] = ("", 0)
        self.caching = wanted and compat.caches_prefixes(host)

    def cached_tokens(self, request: Any) -> int:
        """Return what the cache holds of a prompt."""
        try:
            return compat.cached_tokens(self._host, request)
        except Exception as error:
            self.caching = False
            self._counters.warn("hook_errors", "the prefix cache cannot be read: %r", error)
            return 0

    def check_first(self) -> None:
        """Read anew what the cache holds of the first in the queue, before it is admitted for it."""
        for _ in range(4):
            request = self._host.waiting.peek_request()
            id, step = self._checked
            if request.request_id == id and self._order.step - step < _CHECKED:
                return
            self._checked = (request.request_id, self._order.step)
            if not self._order.cached(request.request_id, self.cached_tokens(request)):
                return
            self._host.waiting.move(request)
