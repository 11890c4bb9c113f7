"""Connections that say nothing: closed when their first request does not come."""

from __future__ import annotations

from aiohttp import web

_EVERY = 1.0  # seconds between two looks


class Door:
    """Knows who has asked for something; later requests of a connection are bounded by aiohttp itself."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._asked: set[web.RequestHandler] = set()
        self._silent: dict[web.RequestHandler, float] = {}
        self._looked = 0.0

    def asked(self, request: web.BaseRequest) -> None:
        """Say that a whole request came."""
        self._asked.add(request.protocol)

    def close_silent(self, server: web.Server, now: float) -> None:
        """Close the connections whose first request has not come within the patience."""
        if now - self._looked < _EVERY:
            return
        self._looked = now
        live = server.connections
        self._asked = {one for one in live if one in self._asked}
        self._silent = {one: self._silent.get(one, now) for one in live if one not in self._asked}
        for handler, since in self._silent.items():
            if now - since > self._patience:
                handler.force_close()
