"""The page's routes: who may look and who may turn the switch; headers that let nothing run but ours."""

from __future__ import annotations

import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from urllib.parse import parse_qsl, urlsplit

from aiohttp import web

from sooner.core import ConfigError, EngineError
from sooner.gateway import shadow
from sooner.gateway.admission.keys import bearer
from sooner.gateway.delivery import answers
from sooner.gateway.delivery.context import Finished
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.page import html, request_html, why
from sooner.gateway.page.live import MOST, LiveView
from sooner.gateway.page.recent import Recent
from sooner.gateway.page.remembered import RememberedPage
from sooner.gateway.page.state import state
from sooner.gateway.page.words import plain
from sooner.gateway.page.worth import Worth
from sooner.gateway.switch import OrderSwitch

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with none, a form of our own would come from the origin "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_STATIC = {"page.css": "text/css", "page.js": "text/javascript"}
_COOKIE = "sooner_session"
_SESSION = 12 * 3600.0  # seconds
_SESSIONS = 64
_LONGEST_BODY = 4096
_FORM = "application/x-www-form-urlencoded"


class Page:
    """Serves the page, and the switch; made by the gateway, which says who is `local`.

    With an admin key all of it wants the key, as a bearer or by signing in. Without one it is served where
    the gateway serves this machine only (`open_here`), and nowhere else.
    """

    def __init__(
        self, dispatcher: Dispatcher, admin_key: str, *, open_here: bool, local: Callable[[str], bool]
    ) -> None:
        settings = dispatcher.settings
        self._dispatcher = dispatcher
        self.remembered = RememberedPage(settings.remembered_file)
        self.switch = OrderSwitch(dispatcher, self.remembered)
        self.recent = Recent(dispatcher.counters.counts, settings.slo)
        self.worth = Worth(settings.journal.url, settings.whatif, self.remembered)
        self.live = LiveView(lambda: state(dispatcher, self.recent, self.switch, self.worth))
        self._key = admin_key
        self._open_here = open_here
        self._local = local
        self._sessions: dict[str, float] = {}

    def add(self, router: web.UrlDispatcher, wrap: Callable[[Handler], Handler]) -> None:
        """Add the routes; `wrap` is what all of the gateway's share."""
        for method, path, handler in (
            ("GET", "/sooner/", self._guarded(self._page)),
            ("GET", "/sooner", self._to_page),
            ("GET", "/sooner/requests/{id}", self._guarded(self._request)),
            ("GET", "/sooner/events", self._guarded(self._events)),
            ("GET", "/sooner/static/{name}", self._file),
            ("POST", "/sooner/login", self._login),
            ("POST", "/sooner/logout", self._logout),
            ("GET", "/sooner/v1/state", self._guarded(self._state)),
            ("POST", "/sooner/v1/switch", self._guarded(self._turn)),
            ("POST", "/sooner/v1/promote", self._guarded(self._promote)),
        ):
            router.add_route(method, path, wrap(handler))

    def take(self, admin_key: str) -> None:
        """Take settings that were read again; who signed in with another key signs in again."""
        self.recent.slo = self._dispatcher.settings.slo
        if admin_key != self._key:
            self._sessions.clear()
        self._key = admin_key

    def finished(self, record: Finished) -> None:
        """Take note of a request that is over."""
        self._dispatcher.counters.add("in_time", self.recent.add(record))

    def close(self) -> None:
        """Finish what is being written."""
        self.remembered.close()

    # Who may

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            refused = self._refusal(request)
            return refused if refused is not None else await handler(request)

        return guarded

    def _refusal(self, request: web.Request) -> web.StreamResponse | None:
        """Return the answer to one who may not, None to one who may."""
        if not self._same_site(request):
            return answers.error(403, "asked by another site's page", "forbidden")
        if self._key:
            if self._is_key(bearer(request.headers.get("Authorization"))) or self._signed_in(request):
                return None
            if request.path == "/sooner/" or request.path.startswith("/sooner/requests/"):
                return _html(html.sign_in(failed=False), 401)
            return answers.error(401, "not the admin key", "invalid_api_key", kind="authentication_error")
        if self._open_here and self._local("//" + request.headers.get("Host", "")):
            return None
        told = "the page wants admin_key_file in the settings, where not only this machine is served"
        return answers.error(403, told, "forbidden")

    def _same_site(self, request: web.Request) -> bool:
        """Return whether no other site's page asks: a browser names the page that a question comes from."""
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
        host = request.headers.get("Host", "")
        return all(urlsplit(origin).netloc == host for origin in request.headers.getall("Origin", []))

    def _is_key(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._key.encode())

    def _signed_in(self, request: web.Request) -> bool:
        return self._sessions.get(request.cookies.get(_COOKIE, ""), 0.0) > time.monotonic()

    async def _login(self, request: web.Request) -> web.StreamResponse:
        """Give a cookie for the key; the cookie is not the key."""
        given = (await _form(request)).get("key", "")
        if not self._key or not self._same_site(request) or not self._is_key(given):
            return _html(html.sign_in(failed=True), 401)
        now = time.monotonic()
        self._sessions = {name: end for name, end in self._sessions.items() if end > now}
        while len(self._sessions) >= _SESSIONS:
            del self._sessions[min(self._sessions, key=self._sessions.__getitem__)]
        session = secrets.token_urlsafe(32)
        self._sessions[session] = now + _SESSION
        response = _away()
        response.set_cookie(
            _COOKIE, session, max_age=int(_SESSION), path="/sooner", httponly=True, samesite="Strict"
        )
        return response

    async def _logout(self, request: web.Request) -> web.StreamResponse:
        if self._same_site(request):
            self._sessions.pop(request.cookies.get(_COOKIE, ""), None)
        return _away()

    # What is served

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return _html(html.page(self.live.state(), signed_in=self._signed_in(request)))

    async def _request(self, request: web.Request) -> web.StreamResponse:
        """Say why a request stands where it stands."""
        dispatcher = self._dispatcher
        visit = dispatcher.waiting.get(request.match_info["id"])
        if visit is None:
            return _html(request_html.no_request(request.match_info["id"]), 404)
        told = await why.told(visit, dispatcher.settings.queue, dispatcher.scores)
        return _html(request_html.request({**told, "tenant": visit.tenant}))

    async def _to_page(self, request: web.Request) -> web.StreamResponse:
        return _away()

    async def _state(self, request: web.Request) -> web.StreamResponse:
        return answers.as_json(self.live.state())

    async def _file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in _STATIC:
            return answers.error(404, f"no file {name[:40]!r}", "not_found")
        body = resources.files("sooner.gateway.page").joinpath("static", name).read_bytes()
        headers = {**HEADERS, "Content-Type": f"{_STATIC[name]}; charset=utf-8"}
        return web.Response(body=body, headers=headers)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self.live.viewers >= MOST:
            return answers.error(503, f"{MOST} look already, allowed: {MOST}", "too_many_viewers")
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        await self.live.send(response)
        return response

    async def _turn(self, request: web.Request) -> web.StreamResponse:
        """Turn the switch, by a form of the page or by JSON such as {"on": false, "by": "anna"}."""
        form = request.content_type == _FORM
        if form and not request.headers.get("Origin"):
            return answers.error(
                403, "a form without an Origin, allowed: the page's own, or JSON", "forbidden"
            )
        if not form and request.content_type != "application/json":
            told = f"content type {request.content_type[:40]!r}, allowed: application/json"
            return answers.error(415, told, "unsupported_media_type")
        said = await (_form(request) if form else _json(request))
        on = {"true": True, "false": False}.get(str(said.get("on")).lower())
        if on is None:
            return answers.error(
                400, f"on={str(said.get('on'))[:40]!r}, allowed: true or false", "invalid_request"
            )
        self.switch.turn(on, self._who(request, said))
        self.live.forget()
        if form:
            return _away()
        return answers.as_json({"on": self.switch.on, "policy": self.switch.policy})

    def _who(self, request: web.Request, said: Mapping[str, object]) -> str:
        """Return who turns something, for the log."""
        who = plain(str(said.get("by") or "").strip(), 64) or "somebody"
        door = "the admin key" if self._key else "this machine"
        return f"{who} ({door}, {plain(str(request.remote), 45)})"

    async def _promote(self, request: web.Request) -> web.StreamResponse:
        """Let a shadow act, by JSON such as {"by": "anna", "if_better": true, "what": "policy"}."""
        if request.content_type != "application/json":
            told = f"content type {request.content_type[:40]!r}, allowed: application/json"
            return answers.error(415, told, "unsupported_media_type")
        said = await _json(request)
        what = said.get("what", "ranker")
        if what not in ("ranker", "policy"):
            told = f"what={str(what)[:40]!r}, allowed: ranker or policy"
            return answers.error(400, told, "invalid_request")
        now = (shadow.policy_state if what == "policy" else shadow.state)(self._dispatcher)
        if said.get("if_better") is True and now is not None and not now["is_better"]:
            return answers.error(409, "the shadow is not better beyond chance", "not_better")
        by = self._who(request, said)
        try:
            if what == "policy":
                after = shadow.promote_policy(self._dispatcher, self.switch, by)
            else:
                after = await shadow.promote(self._dispatcher, by)
        except ConfigError as error:
            return answers.error(404, str(error), "no_shadow")
        except EngineError as error:
            return answers.error(503, str(error), "scorer_unavailable")
        self.live.forget()
        return answers.as_json(after)


def _html(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/html", headers=HEADERS)


def _away() -> web.Response:
    return web.Response(status=303, headers={**HEADERS, "Location": "/sooner/"})


async def _body(request: web.Request) -> bytes:
    """Return a short body; nothing of one that is longer than any form of the page."""
    body = b""
    async for part in request.content.iter_any():
        body += part
        if len(body) > _LONGEST_BODY:
            return b""
    return body


async def _form(request: web.Request) -> Mapping[str, str]:
    if request.content_type != _FORM:
        return {}
    return dict(parse_qsl((await _body(request)).decode("utf-8", "replace")))


async def _json(request: web.Request) -> Mapping[str, object]:
    try:
        found = json.loads(await _body(request))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
