"""A request's body, read within bounds: of its own size, of what it inflates to, of all that is held.

Nothing is read for who has no key or is over its limit, and nothing is inflated before it is bounded.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from types import TracebackType

from aiohttp import web

from sooner.gateway.admission.forms import BadRequest
from sooner.gateway.admission.refusals import NoRoomForBody
from sooner.gateway.settings import LimitSettings

_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # of zlib
_COPIED = 1024 * 1024  # bytes; more are put together in a thread, which then lets others run
_ASIDE = 16 * 1024  # bytes; more are inflated in a thread


class TooLarge(BadRequest):
    """A body, or what it inflates to, that is larger than is allowed."""

    status, code = 413, "body_too_large"


class OtherCoding(BadRequest):
    """A body in a coding that is not read here."""

    status, code = 415, "unsupported_encoding"


class Bodies:
    """All bodies that are held, from their first byte until their request has left. One event loop's."""

    def __init__(self, limits: LimitSettings, part: Callable[[str], float]) -> None:
        self.limits = limits
        self.held = 0  # bytes
        self._part = part  # of the budget that a tenant may hold
        self._of: dict[str, int] = {}
        self.aside = asyncio.Lock()  # what is large is inflated and read one at a time

    def hold(self, tenant: str) -> Held:
        """Return the account of one request, to be closed when it leaves."""
        return Held(self, tenant)

    def take(self, tenant: str, size: int) -> None:
        """Take `size` bytes of the budget. Raises NoRoomForBody."""
        most, mine = self.limits.held_bytes, self._of.get(tenant, 0)
        if self.held + size > most:
            raise NoRoomForBody(f"the requests that are here hold {self.held} bytes, allowed: {most}", 1.0)
        part = max(self._part(tenant) * most, float(min(self.limits.max_body, most)))
        if mine + size > part:
            raise NoRoomForBody(f"tenant {tenant!r} holds {mine} bytes, allowed: {part:.0f}", 1.0)
        self.held += size
        self._of[tenant] = mine + size

    def give_back(self, tenant: str, size: int) -> None:
        """Give bytes back."""
        self.held -= size
        left = self._of.get(tenant, 0) - size
        if left > 0:
            self._of[tenant] = left
        else:
            self._of.pop(tenant, None)

    async def read(self, request: web.BaseRequest, held: Held) -> bytes:
        """Return the body, inflated. Raises BadRequest, NoRoomForBody; TimeoutError is the caller's."""
        most = self.limits.max_body
        codings, length = request.headers.getall("Content-Encoding", ()), request.content_length
        coding = ",".join(codings).strip().lower() if codings else ""
        if coding not in ("", "identity") and coding not in _WINDOW:
            raise OtherCoding(f"Content-Encoding {coding[:40]!r}, allowed: gzip, deflate, or none")
        if length is not None and length > most:
            raise TooLarge(f"the body is larger than {most} bytes")
        pieces: list[bytes] = []
        size = 0
        while data := await request.content.readany():
            size += len(data)
            if size > most:
                raise TooLarge(f"the body is larger than {most} bytes")
            held.add(len(data))
            pieces.append(data)
        body = b"".join(pieces) if size <= _COPIED else await asyncio.to_thread(b"".join, pieces)
        return await self._inflated(body, coding, held) if coding in _WINDOW else body

    async def _inflated(self, body: bytes, coding: str, held: Held) -> bytes:
        most = self.limits.max_body
        if len(body) <= _ASIDE and most <= 64 * _ASIDE:
            inflated = inflate(body, coding, most)
        else:
            async with self.aside:
                inflated = await asyncio.to_thread(inflate, body, coding, most)
        held.add(len(inflated))
        return inflated


class Held:
    """What one request holds of the budget; a context, at whose end it is given back."""

    def __init__(self, bodies: Bodies, tenant: str) -> None:
        self._bodies = bodies
        self._tenant = tenant
        self._size = 0

    def add(self, size: int) -> None:
        """Hold so many bytes more. Raises NoRoomForBody."""
        self._bodies.take(self._tenant, size)
        self._size += size

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bodies.give_back(self._tenant, self._size)
        self._size = 0


def inflate(body: bytes, coding: str, most: int) -> bytes:
    """Return what a body inflates to, at most `most` bytes. Raises BadRequest, TooLarge."""
    try:
        found, rest = _inflate(body, _WINDOW[coding], most)
    except zlib.error:
        if coding != "deflate":
            raise BadRequest(f"the body is not {coding}") from None
        try:
            found, rest = _inflate(body, -15, most)  # as some clients understand deflate
        except zlib.error:
            raise BadRequest("the body is not deflate") from None
    if rest:
        raise BadRequest(f"something follows the {coding} body")
    return found


def _inflate(body: bytes, window: int, most: int) -> tuple[bytes, bytes]:
    stream = zlib.decompressobj(window)
    found = stream.decompress(body, most + 1)
    if len(found) > most:
        raise TooLarge(f"the body inflates to more than {most} bytes")
    if not stream.eof:
        raise BadRequest("the compressed body ends too early")
    return found, stream.unused_data
