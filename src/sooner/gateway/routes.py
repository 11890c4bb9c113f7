"""The gateway's routes: who is let in by each, and what those answer that make no engine work."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from importlib import resources
from typing import TYPE_CHECKING

from aiohttp import web

from sooner.gateway import telemetry
from sooner.gateway.admission import paths
from sooner.gateway.admission.keys import bearer, presented
from sooner.gateway.admission.paths import Called, UnknownPath
from sooner.gateway.counts import COUNTERS
from sooner.gateway.delivery import answers, courtesy, entrance
from sooner.gateway.delivery.proxy import Caller, always
from sooner.gateway.engines import models
from sooner.gateway.page import why
from sooner.gateway.settings import GatewaySettings

if TYPE_CHECKING:
    from sooner.gateway.app import Gateway

logger = logging.getLogger("sooner.gateway")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Guarded = Callable[..., Awaitable[web.StreamResponse]]  # of a request, and perhaps what it calls


class Routes:
    """What a gateway answers, as an application; it reads the gateway's parts as they are now."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._dispatcher = gateway.dispatcher

    @property
    def _settings(self) -> GatewaySettings:
        return self._gateway.settings

    def application(self) -> web.Application:
        """Return the routes as an application."""
        entered = entrance.one_path(self._guarded(self._engine))
        app = web.Application(middlewares=[courtesy.courtesy(self._origins), entered])
        courtesy.add(app, self._origins)
        add = app.router.add_route
        for endpoint in paths.ENDPOINTS.values():
            if endpoint.priority:  # most requests: found at once on the way to what enters them
                add("POST", endpoint.path, self._guarded(self._closed))
        for method in ("GET", "HEAD"):
            add(method, "/v1/models", self._guarded(self._models))
            add(method, "/health", self._public(self._health))
            add(method, "/ready", self._public(self._ready))
            add(method, "/metrics", self._public(self._metrics))
        add("GET", "/v1/models/{id:(?s:.+)}", self._guarded(self._model))
        add("GET", "/sooner/v1/requests/{id}", self._guarded(self._request))
        add("*", "/v1/{rest:(?s:.*)}", self._guarded(self._closed))
        add("GET", "/sooner/v1/openapi.json", self._public(_openapi))
        self._gateway.page.add(app.router, self._public)
        add("GET", "/sooner/v1/admin/backends", self._admin(self._list))
        add("POST", "/sooner/v1/admin/backends/{name}/{what:drain|resume}", self._admin(self._turn))
        return app

    def _origins(self) -> Collection[str]:
        return self._settings.cors_origins

    def _guarded(self, handler: Guarded) -> Guarded:
        """Let only those in who may be, before anything of a body is read."""

        async def guarded(request: web.Request, *called: Called) -> web.StreamResponse:
            self._gateway.door.asked(request)
            if self._gateway.closing:
                return answers.error(
                    503, "the gateway is shutting down", "shutting_down",
                    headers={"Retry-After": "5", "Connection": "close"},
                )  # fmt: skip
            caller = self._caller(request)
            if isinstance(caller, web.StreamResponse):
                return caller
            self._gateway.door.admitted(request)
            try:
                return await handler(request, caller, *called)
            except (web.HTTPException, ConnectionError, UnknownPath):
                raise
            except Exception:  # ours, and no client's business
                logger.exception("a request failed")
                self._dispatcher.counters.add("hook_errors")
                return answers.error(500, "the gateway failed", "internal_error")

        return guarded

    def _caller(self, request: web.Request) -> Caller | web.Response:
        """Return who asks, or the answer to one who may not.

        Without keys only this machine is served, and no web page is: a browser names the page's
        origin, and the host it was told to reach.
        """
        if self._gateway.keys is not None:
            keys, key = self._gateway.keys, presented(request.headers)
            tenant, good = keys.tenant(key), lambda: keys.is_good(key)
            if tenant is None:
                return answers.error(
                    401, "no key, or one that is not good", "invalid_api_key", kind="authentication_error"
                )
        else:
            named = ["//" + request.headers.get("Host", ""), *request.headers.getall("Origin", [])]
            if not all(entrance.local(url) or url in self._settings.cors_origins for url in named):
                return answers.error(403, "without keys only this machine is served", "forbidden")
            tenant, good = request.headers.get("x-sooner-tenant", "default")[:64], always
        known = next((entry for entry in self._settings.tenants if entry.name == tenant), None)
        return Caller(tenant, known.classes if known else (), good)

    async def _engine(self, request: web.Request, caller: Caller, called: Called) -> web.StreamResponse:
        """Serve what engines serve."""
        if request.method != "POST":
            told = f"{request.method[:20]} is not served at {called.endpoint.path}, allowed: POST"
            return answers.error(405, told, "method_not_allowed", headers={"Allow": "POST"})
        return await self._gateway.proxy.serve(request, caller, called)

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
                "data": list(models.cards(self._dispatcher.backends, self._settings.aliases).values()),
            }
        )

    async def _model(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        card = models.cards(self._dispatcher.backends, self._settings.aliases).get(request.match_info["id"])
        if card is None:
            return answers.error(404, f"unknown model {request.match_info['id'][:80]!r}", "model_not_found")
        return answers.as_json(card)

    async def _request(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        waiting = self._dispatcher.waiting.get(request.match_info["id"])
        if waiting is None or waiting.tenant != caller.tenant:
            return answers.error(404, "no such request waits or runs", "request_not_found")
        return answers.as_json(await why.told(waiting, self._settings.queue, self._dispatcher.scores))

    def _public(self, handler: Handler) -> Handler:
        """Let everyone in."""

        async def opened(request: web.Request) -> web.StreamResponse:
            self._gateway.door.asked(request)
            return await handler(request)

        return opened

    def _admin(self, handler: Handler) -> Handler:
        """Let only the admin key in; it is no tenant's."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            self._gateway.door.asked(request)
            if not self._gateway.admin_key:
                raise web.HTTPNotFound
            given = bearer(request.headers.get("Authorization"))
            if not hmac.compare_digest(given.encode(), self._gateway.admin_key.encode()):
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
            for backend in self._dispatcher.backends
        ])  # fmt: skip

    async def _turn(self, request: web.Request) -> web.StreamResponse:
        """Stop sending to an engine, or send to it again; what runs there goes on."""
        name = request.match_info["name"]
        found = [
            backend for backend in self._dispatcher.backends if backend.name == name and not backend.retired
        ]
        if not found:
            return answers.error(404, f"unknown backend {name[:80]!r}", "backend_not_found")
        found[0].draining = request.match_info["what"] == "drain"
        self._dispatcher.pump()
        return answers.as_json({"name": name, "draining": found[0].draining, "in_flight": found[0].in_flight})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _ready(self, request: web.Request) -> web.Response:
        now = time.monotonic()
        ready = not self._gateway.closing and any(
            backend.accepts(now) for backend in self._dispatcher.backends
        )
        return web.Response(text="ready\n" if ready else "not ready\n", status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        form, ours = telemetry.form(request.headers.getall("Accept", [])), self._dispatcher
        histograms, now = self._gateway.proxy.delivery.telemetry, time.monotonic()
        text = telemetry.page(
            histograms, ours.counters.counts, COUNTERS, ours.gauges(), ours.backends, now,
            ours.scores.standings, form,
        )  # fmt: skip
        return web.Response(text=text, headers={"Content-Type": form})


async def _openapi(request: web.Request) -> web.Response:
    found = resources.files("sooner.gateway").joinpath("openapi.json")
    return web.Response(body=found.read_bytes(), content_type="application/json")
