"""Clients that do not read: how much of their replies is kept for them, and for how long.

An engine that is done has its place back at once; what its client has not taken is kept here, bounded
in bytes for one reply and for all, and in seconds. Only beyond those bytes is the engine made to wait.
"""

from __future__ import annotations

from sooner.gateway.settings import LimitSettings

_ALL = 16  # replies that may have all of their bytes kept at once


class Backlog:
    """The bytes kept for slow clients, beyond the few that any connection may have waiting."""

    def __init__(self, limits: LimitSettings) -> None:
        self.limits = limits
        self._kept: dict[object, int] = {}
        self._sum = 0

    def keeps(self, reply: object, size: int) -> bool:
        """Return whether `size` bytes of a reply may wait here; they are counted until `forget`."""
        more = size - self._kept.get(reply, 0)
        most = self.limits.client_bytes
        if size > most or (more > 0 and self._sum + more > _ALL * most):
            return False
        self._kept[reply] = size
        self._sum += more
        return True

    def forget(self, reply: object) -> None:
        """Say that a reply is over."""
        self._sum -= self._kept.pop(reply, 0)
