"""A connection to a name: its addresses are tried one after another, each a little after the last began.

A name may have several addresses, and the first may be dead: nobody waits for the system to find that out.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

from aiohappyeyeballs import start_connection

_APART = 0.25  # seconds between two attempts, as RFC 8305 advises
_SHUNNED = 60.0  # seconds in which an address that did not answer in that time is tried last

_Made = TypeVar("_Made", bound=asyncio.Protocol)


class Dialer:
    """Knows which addresses of a name did not answer. `at` is what is resolved, `host` what it is called."""

    def __init__(self, host: str, port: int, at: str = "") -> None:
        self._host = host
        self._port = port
        self._at = at or host
        self._literal = is_address(self._at)
        self._shunned: dict[Any, float] = {}  # by address: until when

    async def dial(self, made: Callable[[], _Made], tls: ssl.SSLContext | None) -> _Made:
        """Return a connection. Raises OSError where no address takes one."""
        loop = asyncio.get_running_loop()
        name = self._host if tls is not None else None
        if self._literal:
            _, found = await loop.create_connection(made, self._at, self._port, ssl=tls, server_hostname=name)
            return found
        connected = await self._first(loop)
        try:
            _, found = await loop.create_connection(made, sock=connected, ssl=tls, server_hostname=name)
        except BaseException:
            connected.close()
            raise
        return found

    async def _first(self, loop: asyncio.AbstractEventLoop) -> socket.socket:
        """Return a socket to the address that took the connection first."""
        now = loop.time()
        known = await loop.getaddrinfo(self._at, self._port, type=socket.SOCK_STREAM)
        tried = sorted(known, key=lambda info: self._shunned.get(info[4], 0.0) > now)
        infos = [(*info[:4], info[4]) for info in tried]
        connected = await start_connection(infos, happy_eyeballs_delay=_APART, loop=loop)
        peer = connected.getpeername()
        self._shunned = {address: end for address, end in self._shunned.items() if end > now}
        for info in tried:
            if info[4] == peer:
                break
            self._shunned[info[4]] = now + _SHUNNED
        return connected


def is_address(host: str) -> bool:
    """Return whether a host is an address, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def addresses(host: str, port: int) -> list[str]:
    """Return all addresses of a name, sorted. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted({str(info[4][0]) for info in found})
