"""Which failures are tried again: few beside the traffic, never what an engine may have died of.

A request that an engine did not take (nobody listens, or it says 502 to 504) may go to another. One that
was in flight when an engine broke off or fell silent is sent once more: it may be what the engine died
of, and after the second time that is more likely than chance. So with a 500 of one that has replicas of its
own (Ray's ingress says so of a replica that died). Never again to an engine that was silent.
"""

from __future__ import annotations

import time

from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.engines.backend import Backend
from sooner.gateway.engines.connections import Cut, FellSilent, Unreachable
from sooner.gateway.engines.http1 import Garbage
from sooner.gateway.settings import LimitSettings
from sooner.gateway.visit import Visit

MOST_LOST = 1  # engines that may fail under a request until it is not sent again
_LEAST_KEPT = 16.0  # retries that may come at once, however small the engines


class Retries:
    """A bucket of retries: each request pays `limits.retry_share` of one in, each retry takes one.

    It holds as many as may be in flight, so that all who lose their engine at once go elsewhere.
    """

    def __init__(self, dispatcher: Dispatcher, limits: LimitSettings) -> None:
        self.limits = limits
        self._dispatcher = dispatcher
        self._spent = 0.0

    def came(self) -> None:
        """Say that a request came."""
        self._spent = max(0.0, self._spent - self.limits.retry_share)

    def may(self, waiting: Visit, backend: Backend, error: Exception) -> bool:
        """Take note of a failure; return whether the request is tried again."""
        waiting.tried.add(backend.name)
        waiting.lost += isinstance(error, Cut | Garbage)
        if isinstance(error, FellSilent):
            waiting.barred.add(backend.name)
        if waiting.tries >= self.limits.retries or waiting.lost > MOST_LOST:
            return False
        if backend.name in waiting.barred and not self.another(waiting, backend):
            return False
        counters = self._dispatcher.counters
        if not isinstance(error, Unreachable):  # that cost nobody anything
            most = max(_LEAST_KEPT, sum(backend.limit for backend in self._dispatcher.backends))
            if self._spent + 1.0 > most:
                counters.add("retries_refused")
                return False
            self._spent += 1.0
        waiting.tries += 1
        counters.add("retries")
        return True

    def another(self, waiting: Visit, backend: Backend) -> bool:
        """Return whether an engine lives that the request was not sent to."""
        now = time.monotonic()
        return any(
            other is not backend and other.name not in waiting.tried and other.accepts(now)
            for other in waiting.pool.backends
        )
