"""The way in: one path for each request, and who counts as this machine where there are no keys."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import TypeAlias
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from sooner.gateway.admission import paths
from sooner.gateway.admission.paths import Called, UnknownPath
from sooner.gateway.delivery import answers

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


def one_path(engine: Callable[[web.Request, Called], Awaitable[web.StreamResponse]]) -> Middleware:
    """Return what refuses a path that could be read as another, and says in JSON what is not served.

    `engine` handles the paths that engines serve, wherever the router would have sent them.
    """

    @web.middleware
    async def taken(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            path = paths.canonical(request.raw_path)
            called = paths.called(path)
            if called is not None:
                return await engine(request, called)
            return await handler(request)
        except UnknownPath as error:
            return answers.error(404, str(error), "path_not_found")
        except web.HTTPNotFound:
            return answers.error(404, paths.closed(path), "path_not_found")
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            told = f"{request.method[:20]} is not served at {path[:80]!r}, allowed: {allowed}"
            return answers.error(405, told, "method_not_allowed", headers={"Allow": allowed})

    return taken


@lru_cache(maxsize=64)
def local(url: str) -> bool:
    """Return whether a URL names this machine; an origin of "null" does not."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
