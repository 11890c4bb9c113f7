"""What Envoy is answered when it asks about a request (`ext_proc`): the hint as a change of it. No I/O."""

from __future__ import annotations

from typing import Any

from sooner.gateway.hints import envoy_wire as wire
from sooner.gateway.hints.hinter import Hint, Hinter, generates

_PIECE = 62_000  # bytes of a body in one answer of many: some proxies take no more than 64 KiB
_HEADERS, _BODY = "request_headers", "request_body"


class Consultation:
    """One request that Envoy asks about, from its headers to its last byte; then it is `over`.

    Its stream is ended then, which tells Envoy to go on by itself: nothing is held while an engine writes.
    Whatever cannot be read or hinted goes on as it came, and is counted.
    """

    def __init__(self, hinter: Hinter) -> None:
        self.over = False
        self._hinter = hinter
        self._counters = hinter.counters
        self._mode: int | None = None  # how bodies are sent, where Envoy says so
        self._reply_mode: int | None = None
        self._generates = False
        self._held: list[bytes] | None = None  # the pieces of a body that is answered as a whole
        self._size = 0

    async def answers(self, sent: bytes) -> list[bytes]:
        """Return the answers to a message of Envoy's, in their order."""
        try:
            said = wire.ProcessingRequest.FromString(sent)
        except wire.Unreadable:
            said = wire.ProcessingRequest()
        kind = next((kind for kind in wire.KINDS if said.HasField(kind)), "")
        if not kind:
            self._counters.warn("unread", "Envoy sent what cannot be read: %r", sent[:40])
            self.over = self._held is None  # it waits for an answer, and goes on where the stream ends
            return []
        if said.observability_mode:  # it must not be answered
            self.over = True
            return []
        if said.HasField("protocol_config"):
            self._mode = said.protocol_config.request_body_mode
            self._reply_mode = said.protocol_config.response_body_mode
        content = getattr(said, kind)
        if kind == _HEADERS:
            return self._headers(content)
        if kind == _BODY:
            return await self._body(content.body, content.end_of_stream)
        if kind == "request_trailers":
            self.over = True
            held = [] if self._held is None else await self._whole(self._held, last=False)
            return [*held, wire.CONTINUE[kind]]
        if kind == "response_body" and self._reply_mode == wire.FULL_DUPLEX:
            return _in_pieces(kind, content.body, content.end_of_stream)
        return [wire.CONTINUE[kind]]

    def _headers(self, headers: Any) -> list[bytes]:
        self.over = headers.end_of_stream
        self._generates = generates(*wire.method_and_path(headers))
        if self._generates:
            self._counters.add("requests")
            if self._mode == wire.FULL_DUPLEX and not self.over:
                self._held = []
                return []  # they are answered with the body: only then the hint is known
            if self.over or self._mode in (wire.NONE, wire.STREAMED):
                self._unchanged("Envoy sends no whole body; request_body_mode: BUFFERED does")
        return [wire.CONTINUE[_HEADERS]]

    async def _body(self, body: bytes, last: bool) -> list[bytes]:
        first, self._size = not self._size, self._size + len(body)
        self.over = last
        if self._mode == wire.FULL_DUPLEX:
            if self._held is None:
                return _in_pieces(_BODY, body, last)
            self._held.append(body)
            if last or self._size > self._hinter.settings.max_body:
                return await self._whole(self._held, last)
            return []
        if self._generates:
            if first and (last or self._mode == wire.BUFFERED):  # trailers may follow
                return [_changed(_BODY, await self._hint(body), body)]
            self._unchanged("Envoy sends bodies in pieces; request_body_mode: BUFFERED sends them whole")
        return [wire.CONTINUE[_BODY]]

    async def _whole(self, held: list[bytes], last: bool) -> list[bytes]:
        """Answer the headers and a body that was held; what still comes of it goes on as it comes."""
        self._held = None
        body = b"".join(held)
        try:
            hint = await self._hint(body)
        except Exception as error:  # what was held goes on, whatever happens
            hint = None
            self._unchanged(f"the hint failed: {error!r}")
        return [
            _changed(_HEADERS, hint, body, replace=False),
            *_in_pieces(_BODY, body if hint is None else hint.body, last),
        ]

    async def _hint(self, body: bytes) -> Hint | None:
        self._generates = False
        most = self._hinter.settings.max_body
        if len(body) > most:
            self._unchanged(f"a body is larger than {most} bytes")
            return None
        return await self._hinter.later(body) if self._hinter.waits else self._hinter.now(body)

    def _unchanged(self, why: str) -> None:
        """Count once that a request gets no hint."""
        self._generates = False
        self._counters.warn("unchanged", "a request goes on as it came: %s", why)


def _changed(kind: str, hint: Hint | None, body: bytes, replace: bool = True) -> bytes:
    """Return the answer that writes a hint, in a body too where that is to be replaced."""
    if hint is None:
        return wire.CONTINUE[kind]
    headers = []
    if hint.header:
        name, _, value = hint.header.partition(b": ")
        headers.append(wire.set_header(name.decode(), value))
    if hint.body is body:
        return wire.answer(kind, headers)
    length = str(len(hint.body)).encode()
    headers.append(wire.set_header("content-length", length, wire.OVERWRITE_IF_THERE))
    return wire.answer(kind, headers, {"body": hint.body} if replace else None)


def _in_pieces(kind: str, body: bytes, last: bool) -> list[bytes]:
    """Return a body, or what has come of it, as the answers of a stream in both directions."""
    starts = range(0, max(1, len(body)), _PIECE)
    return [
        wire.answer(kind, [], {"streamed_response": {
            "body": body[at : at + _PIECE], "end_of_stream": last and at == starts[-1]
        }})
        for at in starts
    ]  # fmt: skip
