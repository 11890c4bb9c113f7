"""Connections before anyone has shown a key: how long they may be silent, and how many there may be."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable

from aiohttp import web

from sooner.gateway.settings import LimitSettings
from sooner.ordering.counters import Counters

_EVERY = 1.0  # seconds between two looks
_LONGEST_LINE = 200


class Door:
    """Knows who has asked for something; later requests of a connection are bounded by aiohttp itself.

    A connection is a stranger until a request on it was let in. When there are too many, the one that
    came first goes: so no number of them takes all descriptors, and no known one is ever closed for it.
    """

    def __init__(self, limits: LimitSettings, counters: Counters) -> None:
        self.patience = limits.head_time
        self._most = min(limits.strangers, _descriptors() // 2)
        self._counters = counters
        self._asked: set[web.RequestHandler] = set()
        self._silent: dict[web.RequestHandler, float] = {}
        self._strangers: dict[web.RequestHandler, None] = {}  # in the order they came
        self._looked = 0.0

    def take(self, limits: LimitSettings) -> None:
        """Take bounds, at the start and when they were read again."""
        self.patience = limits.head_time
        self._most = min(limits.strangers, _descriptors() // 2)

    def watch(self, server: web.Server) -> None:
        """Be told of every connection of a server."""
        made, lost = server.connection_made, server.connection_lost

        def came(handler: web.RequestHandler, transport: asyncio.Transport) -> None:
            made(handler, transport)
            self._strangers[handler] = None
            if len(self._strangers) > self._most:
                self._close(next(iter(self._strangers)))

        def went(handler: web.RequestHandler, error: BaseException | None = None) -> None:
            self._strangers.pop(handler, None)
            lost(handler, error)

        _replace(server, came, went)

    def asked(self, request: web.BaseRequest) -> None:
        """Say that a whole request came."""
        self._asked.add(request.protocol)

    def admitted(self, request: web.BaseRequest) -> None:
        """Say that a request was let in: its connection is no stranger's."""
        self._strangers.pop(request.protocol, None)

    def _close(self, handler: web.RequestHandler) -> None:
        self._strangers.pop(handler, None)
        self._counters.warn("strangers_closed", "more than %d connections without a good key", self._most)
        if handler.transport is not None:
            handler.transport.abort()

    def close_silent(self, server: web.Server, now: float) -> None:
        """Close the connections whose first request has not come within the patience."""
        if now - self._looked < _EVERY:
            return
        self._looked = now
        live = server.connections
        self._asked = {peer for peer in live if peer in self._asked}
        self._silent = {peer: self._silent.get(peer, now) for peer in live if peer not in self._asked}
        for handler, since in self._silent.items():
            if now - since > self.patience:
                handler.force_close()


def _replace(
    server: web.Server,
    came: Callable[[web.RequestHandler, asyncio.Transport], None],
    went: Callable[[web.RequestHandler, BaseException | None], None],
) -> None:
    """Put these in the place of a server's own; its handlers call them by name."""
    vars(server).update(connection_made=came, connection_lost=went)


def _descriptors() -> int:
    """Return how many descriptors this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


class MalformedLog(logging.Logger):
    """The server's own log: what is no HTTP is counted and now and then one short line, never a traceback."""

    def __init__(self, counters: Counters) -> None:
        super().__init__("sooner.gateway.http", logging.WARNING)
        self._counters = counters

    def handle(self, record: logging.LogRecord) -> None:
        """Count a record; the counters decide whether it is told."""
        error = record.exc_info[1] if record.exc_info else None
        told = " ".join(f"{record.getMessage()}: {error!r}".split())
        self._counters.warn("malformed", "%s", told[:_LONGEST_LINE])
