"""The gateway as a server: its parts, its regular work, its start and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from sooner.core import EngineError, SoonerError
from sooner.gateway.admission.door import Door, MalformedLog
from sooner.gateway.admission.keys import KeyBook
from sooner.gateway.database import Database
from sooner.gateway.delivery import entrance
from sooner.gateway.delivery.context import Finished
from sooner.gateway.delivery.proxy import Proxy
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.engines.backend import Backend, key_in
from sooner.gateway.engines.certificates import served_as
from sooner.gateway.engines.discovery import LOOK_EVERY, Discovery
from sooner.gateway.engines.kept_engines import KeptEngines
from sooner.gateway.engines.window import COUNT_EVERY
from sooner.gateway.journal import Journal
from sooner.gateway.logs import AccessLog
from sooner.gateway.page.routes import Page
from sooner.gateway.reload import engines, renewed
from sooner.gateway.routes import Routes
from sooner.gateway.settings import GatewaySettings

logger = logging.getLogger("sooner.gateway")

_TICK = 0.25  # seconds between two looks at deadlines and stalled replies
_KEEP_ALIVE = 75.0  # seconds that a connection may be idle between two requests
_KEYS_EVERY = 5.0  # seconds until a new key is good, and a revoked one is not


class Gateway:
    """Everything that runs: made in an event loop, started by `serving`."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        backends = [Backend(chosen, settings.limits) for chosen in settings.backends]
        kept = KeptEngines(settings.state_file)
        self._discovery = Discovery()
        self.dispatcher = Dispatcher(settings, backends, kept=kept)
        self.proxy = Proxy(settings, self.dispatcher, self._finished)
        self.keys = KeyBook(Database(settings.keys)) if settings.keys else None
        self._journal = self._new_journal()
        self.admin_key = key_in(settings.admin_key_file)
        self.door = Door(settings.limits, self.dispatcher.counters)
        self._access = AccessLog(settings.access_log)
        self.page = Page(self.dispatcher, self.admin_key, open_here=not settings.keys, local=entrance.local)
        self.closing = False
        self.url = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._checks: list[asyncio.Task[None]] = []

    def _new_journal(self) -> Journal | None:
        chosen = self.settings.journal
        if not chosen.url:
            return None
        counters = self.dispatcher.counters
        return Journal(
            Database(chosen.url), prompts=chosen.prompts, max_rows=chosen.max_rows, counters=counters
        )

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Gateway]:
        """Serve in the running loop; at the end nothing new is taken and what runs is finished."""
        limits = self.settings.limits
        runner = web.AppRunner(
            Routes(self).application(),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=1.0,
            max_field_size=limits.max_header,
            max_line_size=limits.max_header,
            auto_decompress=False,  # it inflates before anyone has looked at the key
            keepalive_timeout=_KEEP_ALIVE,
            logger=MalformedLog(self.dispatcher.counters),
        )
        await runner.setup()
        if runner.server is not None:
            self.door.watch(runner.server)
        try:
            if self._journal is not None:
                await asyncio.to_thread(self._journal.open)
            if self.keys is not None:
                await asyncio.to_thread(self.keys.open)
                self._tasks.append(asyncio.create_task(self._read_keys(self.keys), name="gateway-keys"))
            await self._discover()
            await asyncio.gather(*(backend.check(hungry=False) for backend in self.dispatcher.backends))
            self._tasks.append(asyncio.create_task(self._rediscover(), name="gateway-names"))
            self._tasks.append(asyncio.create_task(self._tick(runner), name="gateway-tick"))
            self._tasks.append(asyncio.create_task(self.page.worth.run(), name="gateway-worth"))
            self._watch()
            tls = served_as(self.settings.tls_cert, self.settings.tls_key)
            site = web.TCPSite(runner, self.settings.host, self.settings.port, backlog=4096, ssl_context=tls)
            await site.start()
            host, port = runner.addresses[0][:2]
            at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            self.url = f"{'https' if tls else 'http'}://{at}"
            yield self
            await site.stop()
            await self._drain()
        finally:
            await self._stop(runner)

    async def _drain(self) -> None:
        """Let those who wait and run come to their end, within `limits.drain`."""
        self.closing = True
        await self.page.live.close()
        end = time.monotonic() + self.settings.limits.drain
        while self.dispatcher.waiting and time.monotonic() < end:
            await asyncio.sleep(0.05)
        if self.dispatcher.waiting:
            logger.warning("%d requests were cut off by the shutdown", len(self.dispatcher.waiting))

    async def _stop(self, runner: web.AppRunner) -> None:
        tasks = [*self._tasks, *self._checks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runner.cleanup()
        for backend in self.dispatcher.backends:
            backend.close()
        await asyncio.to_thread(self.dispatcher.close)
        await asyncio.to_thread(self.proxy.close)
        await asyncio.to_thread(self.page.close)
        if self._journal is not None:
            await asyncio.to_thread(self._journal.close)
        if self.keys is not None:
            self.keys.close()

    def reload(self, read: Callable[[], GatewaySettings]) -> None:
        """Take new engines, classes, tenants and bounds, and what their files hold now; what runs goes on.

        Host, port, policy, ranker, keys and journal stay until the next start, and the log says which of
        them were other ones. Settings that are wrong are logged and not taken.
        """
        try:
            new = renewed(read, self.settings, self.dispatcher.backends, self._discovery)
        except SoonerError as error:
            logger.error("the new settings are wrong and were not taken: %s", error)
            return
        new.take()
        self.settings, self.admin_key = new.settings, new.admin_key
        self.dispatcher.take(self.settings, new.backends)
        self.proxy.take(self.settings)
        self.door.take(self.settings.limits)
        self.page.take(self.admin_key)
        self._watch()
        logger.info("new settings: %d engines", len(new.backends))

    def _finished(self, record: Finished) -> None:
        """Take note of a request that is over."""
        self.page.finished(record)
        self._access.add(record)
        if self._journal is not None:
            self._journal.add(record, self.dispatcher.policy.name)

    # Regular work

    async def _tick(self, runner: web.AppRunner) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_TICK)
            try:
                self.dispatcher.sweep()
                self.dispatcher.keep()
                self.page.recent.tick()
                self.proxy.client.expire(loop.time())
                if runner.server is not None:
                    self.door.close_silent(runner.server, loop.time())
            except Exception as error:  # one bad round must not end the rounds
                self.dispatcher.counters.warn("hook_errors", "the regular work failed: %r", error)

    async def _read_keys(self, keys: KeyBook) -> None:
        while True:
            await asyncio.sleep(_KEYS_EVERY)
            try:
                await asyncio.to_thread(keys.read)
                if self.settings.cut_revoked:
                    self.proxy.cut_revoked()
            except SoonerError as error:  # those that are known stay good
                self.dispatcher.counters.warn("hook_errors", "the keys cannot be read: %s", error)

    async def _discover(self) -> bool:
        """Look which engines the names stand for now; return whether others than before."""
        if not await self._discovery.look(self.settings.backends):
            return False
        self.dispatcher.take(self.settings, engines(self.settings, self.dispatcher.backends, self._discovery))
        return True

    async def _rediscover(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                if await self._discover():
                    self._watch()
            except SoonerError as error:  # those that are known stay
                self.dispatcher.counters.warn("hook_errors", "an engine cannot be taken: %s", error)

    def _watch(self) -> None:
        """Look after the engines that are known now."""
        for task in self._checks:
            task.cancel()
        self._checks = [asyncio.create_task(self._check(backend)) for backend in self.dispatcher.backends]

    async def _check(self, backend: Backend) -> None:
        while not (backend.retired and not backend.in_flight):
            await asyncio.sleep(COUNT_EVERY)
            with contextlib.suppress(EngineError):
                await backend.check(hungry=self.dispatcher.queued > 0)
                self.dispatcher.pump()
