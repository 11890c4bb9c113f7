"""The hinter as a server: its connections, its two pages, its start and its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from sooner.gateway.engines.connections import Address, Unreachable
from sooner.gateway.hints.hinter import Hinter
from sooner.gateway.hints.pages import page
from sooner.gateway.hints.passage import FarSide, Passage
from sooner.gateway.hints.request_head import RequestHead
from sooner.gateway.hints.settings import HintSettings
from sooner.gateway.serve import settle

if TYPE_CHECKING:
    from sooner.gateway.hints.ext_proc_server import ExtProcServer

logger = logging.getLogger("sooner.hint")


class HintServer:
    """Everything that runs: made in an event loop, started by `serving`."""

    def __init__(self, settings: HintSettings) -> None:
        self.settings = settings
        self.hinter = Hinter(settings)
        self.closing = False
        self.url = ""
        self._addresses = [Address.of(url) for url in settings.backends]
        self._first = 0
        self._passages: set[Passage] = set()
        self._tls = (
            ssl.create_default_context() if any(address.secure for address in self._addresses) else None
        )

    @property
    def under_way(self) -> int:
        """Connections whose request has no whole reply yet."""
        return sum(passage.busy for passage in self._passages)

    def opened(self, passage: Passage) -> None:
        """Say that a client has come."""
        self._passages.add(passage)

    def closed(self, passage: Passage) -> None:
        """Say that a client has gone."""
        self._passages.discard(passage)

    async def connect(self, passage: Passage) -> None:
        """Connect a passage to the target: the next address, or one after it. Raises Unreachable."""
        self._first = first = (self._first + 1) % len(self._addresses)
        failed = ""
        for address in self._addresses[first:] + self._addresses[:first]:
            try:
                async with asyncio.timeout(self.settings.connect):
                    await asyncio.get_running_loop().create_connection(
                        lambda base=address.base: FarSide(passage, self, base),
                        address.host,
                        address.port,
                        ssl=self._tls if address.secure else None,
                    )
                return
            except (OSError, TimeoutError) as error:
                failed = f"cannot connect to {address.authority}: {error!r}"
        raise Unreachable(failed)

    def page(self, head: RequestHead) -> bytes | None:
        """Return one of our own pages as a whole reply; None for any other path."""
        return page(head.path, self.hinter, self.closing, self.under_way)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[HintServer]:
        """Serve in the running loop; at the end what is under way is finished."""
        loop, settings = asyncio.get_running_loop(), self.settings
        try:
            server = await loop.create_server(
                lambda: Passage(self), settings.host, settings.port, backlog=4096, reuse_port=False
            )
            host, port = server.sockets[0].getsockname()[:2]
            self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            try:
                yield self
            finally:
                server.close()
                await self._drain()
        finally:
            self.hinter.close()

    async def _drain(self) -> None:
        """Close what is idle, and what is under way once its reply has ended, within `drain`."""
        self.closing = True
        loop = asyncio.get_running_loop()
        end = loop.time() + self.settings.drain
        while True:
            for passage in list(self._passages):
                if not passage.busy:
                    passage.close()
            if not self._passages or loop.time() >= end:
                break
            await asyncio.sleep(0.02)
        if self._passages:
            logger.warning("%d connections were cut off by the shutdown", len(self._passages))
        for passage in list(self._passages):
            if passage.transport is not None:
                passage.transport.abort()
        while self._passages:  # their ends come with the loop's next turns
            await asyncio.sleep(0)


async def serve(settings: HintSettings, ready: Callable[[HintServer | ExtProcServer], None]) -> None:
    """Serve until SIGTERM or SIGINT."""
    serving: AbstractAsyncContextManager[HintServer | ExtProcServer]
    if settings.ext_proc:
        from sooner.gateway.hints.ext_proc_server import ExtProcServer

        serving = ExtProcServer(settings).serving()
    else:
        serving = HintServer(settings).serving()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving as server:
        settle()
        ready(server)
        await stop.wait()
        logger.info("stopping: %d requests are under way", server.under_way)
