"""What clients of every kind find at the door: browsers' preflights, websockets, and no version of ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

from aiohttp import web
from aiohttp.typedefs import Middleware

from sooner.gateway.delivery import answers

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_METHODS = "GET, HEAD, POST, OPTIONS"
_KEPT = "600"  # seconds that a browser may remember a preflight
_SHOWN = ("x-sooner-request-id, x-sooner-wait-ms, x-sooner-rank, x-sooner-predicted-tokens, "
          "retry-after, retry-after-ms, x-should-retry")  # fmt: skip


def add(app: web.Application, origins: Callable[[], Collection[str]]) -> None:
    """Let every answer of an application say to browsers of the `origins` that they may read it."""

    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = "sooner"
        known = origins()
        if not known:
            return
        origin = request.headers.get("Origin")
        response.headers.add("Vary", "Origin")
        if origin is not None and allowed(origin, known):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _SHOWN

    app.on_response_prepare.append(prepare)


def allowed(origin: str, origins: Collection[str]) -> bool:
    """Return whether web pages of an origin may ask."""
    return origin in origins or "*" in origins


def courtesy(origins: Callable[[], Collection[str]]) -> Middleware:
    """Return what answers preflights without a key, and those who want a websocket."""

    @web.middleware
    async def courteous(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            told = "websockets are not served, allowed: HTTP with stream=true"
            return answers.error(426, told, "upgrade_required", headers={"Connection": "close"})
        asked = request.headers.get("Access-Control-Request-Method")
        if request.method != "OPTIONS" or asked is None or not origins():
            return await handler(request)
        if not allowed(request.headers.get("Origin", ""), origins()):
            return answers.error(403, "pages of this origin may not ask", "forbidden")
        wanted = request.headers.get("Access-Control-Request-Headers", "authorization, content-type")
        return web.Response(
            status=204,
            headers={"Access-Control-Allow-Methods": _METHODS, "Access-Control-Max-Age": _KEPT,
                     "Access-Control-Allow-Headers": wanted[:1024]},
        )  # fmt: skip

    return courteous
