"""The gateway as a server: its routes, its regular work, its start and its end."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from importlib import resources

from aiohttp import web

from sooner.core import EngineError, SoonerError
from sooner.gateway import telemetry
from sooner.gateway.admission import paths
from sooner.gateway.admission.door import Door, MalformedLog
from sooner.gateway.admission.keys import KeyBook, bearer, presented
from sooner.gateway.admission.paths import Called, UnknownPath
from sooner.gateway.counts import COUNTERS
from sooner.gateway.database import Database
from sooner.gateway.delivery import answers, courtesy, entrance
from sooner.gateway.delivery.context import Finished
from sooner.gateway.delivery.proxy import Caller, Proxy, always
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.engines import models
from sooner.gateway.engines.backend import Backend, key_in
from sooner.gateway.engines.certificates import served_as
from sooner.gateway.engines.discovery import LOOK_EVERY, Discovery
from sooner.gateway.engines.kept_engines import KeptEngines
from sooner.gateway.engines.window import COUNT_EVERY
from sooner.gateway.journal import Journal
from sooner.gateway.logs import AccessLog
from sooner.gateway.page import why
from sooner.gateway.page.routes import Page
from sooner.gateway.reload import engines, renewed
from sooner.gateway.settings import GatewaySettings

logger = logging.getLogger("sooner.gateway")

_TICK = 0.25  # seconds between two looks at deadlines and stalled replies
_KEEP_ALIVE = 75.0  # seconds that a connection may be idle between two requests
_KEYS_EVERY = 5.0  # seconds until a new key is good, and a revoked one is not
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Guarded = Callable[..., Awaitable[web.StreamResponse]]  # of a request, and perhaps what it calls


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
        self._admin_key = key_in(settings.admin_key_file)
        self._door = Door(settings.limits, self.dispatcher.counters)
        self._access = AccessLog(settings.access_log)
        self.page = Page(self.dispatcher, self._admin_key, open_here=not settings.keys, local=entrance.local)
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

    def app(self) -> web.Application:
        """Return the routes as an application."""
        entered = entrance.one_path(self._guarded(self._engine))
        app = web.Application(middlewares=[courtesy.courtesy(self._origins), entered])
        courtesy.add(app, self._origins)
        add = app.router.add_route
        for method in ("GET", "HEAD"):
            add(method, "/v1/models", self._guarded(self._models))
            add(method, "/health", self._public(self._health))
            add(method, "/ready", self._public(self._ready))
            add(method, "/metrics", self._public(self._metrics))
        add("GET", "/v1/models/{id:(?s:.+)}", self._guarded(self._model))
        add("GET", "/sooner/v1/requests/{id}", self._guarded(self._request))
        add("*", "/v1/{rest:(?s:.*)}", self._guarded(self._closed))
        add("GET", "/sooner/v1/openapi.json", self._public(_openapi))
        self.page.add(app.router, self._public)
        add("GET", "/sooner/v1/admin/backends", self._admin(self._list))
        add("POST", "/sooner/v1/admin/backends/{name}/{what:drain|resume}", self._admin(self._turn))
        return app

    def _origins(self) -> Collection[str]:
        return self.settings.cors_origins

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Gateway]:
        """Serve in the running loop; at the end nothing new is taken and what runs is finished."""
        limits = self.settings.limits
        runner = web.AppRunner(
            self.app(),
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
            self._door.watch(runner.server)
        try:
            if self._journal is not None:
                await asyncio.to_thread(self._journal.open)
            if self.keys is not None:
                await asyncio.to_thread(self.keys.open)
                self._tasks.append(asyncio.create_task(self._read_keys(self.keys), name="gateway-keys"))
            await self._discover()
            await self._check_all()
            self._tasks.append(asyncio.create_task(self._rediscover(), name="gateway-names"))
            self._tasks.append(asyncio.create_task(self._tick(runner), name="gateway-tick"))
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
        self.settings, self._admin_key = new.settings, new.admin_key
        self.dispatcher.take(self.settings, new.backends)
        self.proxy.take(self.settings)
        self._door.take(self.settings.limits)
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
                    self._door.close_silent(runner.server, loop.time())
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

    async def _check_all(self) -> None:
        await asyncio.gather(*(backend.check(hungry=False) for backend in self.dispatcher.backends))

    async def _check(self, backend: Backend) -> None:
        while not (backend.retired and not backend.in_flight):
            await asyncio.sleep(COUNT_EVERY)
            with contextlib.suppress(EngineError):
                await backend.check(hungry=self.dispatcher.queued > 0)
                self.dispatcher.pump()

    # Routes

    def _guarded(self, handler: Guarded) -> Guarded:
        """Let only those in who may be, before anything of a body is read."""

        async def guarded(request: web.Request, *called: Called) -> web.StreamResponse:
            self._door.asked(request)
            if self.closing:
                return answers.error(
                    503, "the gateway is shutting down", "shutting_down",
                    headers={"Retry-After": "5", "Connection": "close"},
                )  # fmt: skip
            caller = self._caller(request)
            if isinstance(caller, web.StreamResponse):
                return caller
            self._door.admitted(request)
            try:
                return await handler(request, caller, *called)
            except (web.HTTPException, ConnectionError, UnknownPath):
                raise
            except Exception:  # ours, and no client's business
                logger.exception("a request failed")
                self.dispatcher.counters.add("hook_errors")
                return answers.error(500, "the gateway failed", "internal_error")

        return guarded

    def _caller(self, request: web.Request) -> Caller | web.Response:
        """Return who asks, or the answer to one who may not.

        Without keys only this machine is served, and no web page is: a browser names the page's
        origin, and the host it was told to reach.
        """
        if self.keys is not None:
            keys, key = self.keys, presented(request.headers)
            tenant, good = keys.tenant(key), lambda: keys.is_good(key)
            if tenant is None:
                return answers.error(
                    401, "no key, or one that is not good", "invalid_api_key", kind="authentication_error"
                )
        else:
            named = ["//" + request.headers.get("Host", ""), *request.headers.getall("Origin", [])]
            if not all(entrance.local(url) or url in self.settings.cors_origins for url in named):
                return answers.error(403, "without keys only this machine is served", "forbidden")
            tenant, good = request.headers.get("x-sooner-tenant", "default")[:64], always
        known = next((entry for entry in self.settings.tenants if entry.name == tenant), None)
        return Caller(tenant, known.classes if known else (), good)

    async def _engine(self, request: web.Request, caller: Caller, called: Called) -> web.StreamResponse:
        """Serve what engines serve."""
        if request.method != "POST":
            told = f"{request.method[:20]} is not served at {called.endpoint.path}, allowed: POST"
            return answers.error(405, told, "method_not_allowed", headers={"Allow": "POST"})
        return await self.proxy.serve(request, caller, called)

    async def _closed(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Say that a path which might be an engine's is not among those that are listed."""
        path = paths.canonical(request.raw_path)
        if paths.changes_an_engine(path):
            return answers.error(403, "this path changes an engine for everyone", "forbidden")
        raise UnknownPath(paths.closed(path))

    async def _models(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        return answers.as_json(
            {
                "object": "list",
                "data": list(models.cards(self.dispatcher.backends, self.settings.aliases).values()),
            }
        )

    async def _model(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        card = models.cards(self.dispatcher.backends, self.settings.aliases).get(request.match_info["id"])
        if card is None:
            return answers.error(404, f"unknown model {request.match_info['id'][:80]!r}", "model_not_found")
        return answers.as_json(card)

    async def _request(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        waiting = self.dispatcher.waiting.get(request.match_info["id"])
        if waiting is None or waiting.tenant != caller.tenant:
            return answers.error(404, "no such request waits or runs", "request_not_found")
        return answers.as_json(why.standing(waiting, self.settings.queue))

    def _public(self, handler: Handler) -> Handler:
        """Let everyone in."""

        async def opened(request: web.Request) -> web.StreamResponse:
            self._door.asked(request)
            return await handler(request)

        return opened

    def _admin(self, handler: Handler) -> Handler:
        """Let only the admin key in; it is no tenant's."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            self._door.asked(request)
            if not self._admin_key:
                raise web.HTTPNotFound
            given = bearer(request.headers.get("Authorization"))
            if not hmac.compare_digest(given.encode(), self._admin_key.encode()):
                return answers.error(401, "not the admin key", "invalid_api_key", kind="authentication_error")
            return await handler(request)

        return guarded

    async def _list(self, request: web.Request) -> web.StreamResponse:
        now = time.monotonic()
        return answers.as_json([
            {"name": backend.name, "kind": backend.settings.kind, "open": backend.accepts(now),
             "draining": backend.draining, "in_flight": backend.in_flight, "limit": backend.limit,
             "outstanding_seconds": round(backend.outstanding, 3),
             "waiting_inside": backend.waiting_inside, "models": sorted(backend.cards)}
            for backend in self.dispatcher.backends
        ])  # fmt: skip

    async def _turn(self, request: web.Request) -> web.StreamResponse:
        """Stop sending to an engine, or send to it again; what runs there goes on."""
        name = request.match_info["name"]
        found = [
            backend for backend in self.dispatcher.backends if backend.name == name and not backend.retired
        ]
        if not found:
            return answers.error(404, f"unknown backend {name[:80]!r}", "backend_not_found")
        found[0].draining = request.match_info["what"] == "drain"
        self.dispatcher.pump()
        return answers.as_json({"name": name, "draining": found[0].draining, "in_flight": found[0].in_flight})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _ready(self, request: web.Request) -> web.Response:
        now = time.monotonic()
        ready = not self.closing and any(backend.accepts(now) for backend in self.dispatcher.backends)
        return web.Response(text="ready\n" if ready else "not ready\n", status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        form, ours = telemetry.form(request.headers.getall("Accept", [])), self.dispatcher
        text = telemetry.page(
            self.proxy.delivery.telemetry, ours.counters.counts, COUNTERS, ours.gauges(), ours.backends,
            time.monotonic(), ours.scores.standings, form,
        )  # fmt: skip
        return web.Response(text=text, headers={"Content-Type": form})


async def _openapi(request: web.Request) -> web.Response:
    found = resources.files("sooner.gateway").joinpath("openapi.json")
    return web.Response(body=found.read_bytes(), content_type="application/json")
