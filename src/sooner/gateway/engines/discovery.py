"""Engines that are found by a name: each of its addresses is one, and they come and go with the name's."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Sequence

from sooner.gateway.engines.connections import Address
from sooner.gateway.engines.dialing import addresses
from sooner.gateway.settings import BackendSettings

logger = logging.getLogger("sooner.gateway")

LOOK_EVERY = 5.0
"""Seconds between two looks."""
_PATIENCE = 4.0  # seconds that a name's resolution may take


class Discovery:
    """What the names last had. A name that cannot be resolved keeps what it had."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}  # addresses, by host and port

    async def look(self, backends: Sequence[BackendSettings]) -> bool:
        """Resolve the names that stand for many engines; return whether any has other addresses now."""
        before = dict(self._found)
        await asyncio.gather(*(self._resolve(Address.of(one.url)) for one in backends if one.each_address))
        return self._found != before

    async def _resolve(self, address: Address) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                found = await addresses(address.host, address.port)
        except (OSError, TimeoutError) as error:
            logger.warning("the name %s cannot be resolved: %r", address.host, error)
            return
        self._found[address.authority] = found

    def engines(self, backends: Sequence[BackendSettings]) -> list[BackendSettings]:
        """Return the engines: those that were named, and for a name of many one for each of its addresses."""
        engines: list[BackendSettings] = []
        for one in backends:
            found = self._found.get(Address.of(one.url).authority) if one.each_address else None
            if not found:
                engines.append(one)
                continue
            engines += [
                dataclasses.replace(one, name=f"{one.title}@{at}", address=at, each_address=False)
                for at in found
            ]
        return engines
