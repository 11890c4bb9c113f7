"""HTTP/1.1 replies as bytes: the head is read, the body is only cut where it ends.

A chunked body keeps the framing that the engine gave it, so that a streamed piece goes to the client
as it came, with a few comparisons instead of a parse. No I/O in here.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

from sooner.core import EngineError

MAX_HEAD = 64 * 1024
_LONGEST_SIZE_LINE = 256
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([^\x00-\x08\x0a-\x1f\x7f]*))?\Z")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[^\r\n]*)?\Z")
HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
     "trailer", "transfer-encoding", "upgrade")
)  # fmt: skip


class Garbage(EngineError):
    """What an engine sent is not HTTP/1.1."""


class Head(NamedTuple):
    """The head of a reply: header names as they came, hop-by-hop ones left out.

    `length` is the body's, None where it is chunked or ends with the connection.
    """

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    length: int | None
    chunked: bool
    keep_alive: bool


def read_head(block: bytes, method: str = "POST") -> Head:
    """Return the head in `block`, which ends before the empty line. Raises Garbage."""
    status_line, *lines = block.decode("utf-8", "replace").split("\r\n")
    found = _STATUS.match(status_line)
    if found is None:
        raise Garbage(f"a reply starts with {status_line[:60]!r}, allowed: an HTTP/1.1 status line")
    status = int(found[2])
    keep_alive = found[1] == "1"
    headers: list[tuple[str, str]] = []
    lengths: set[str] = set()
    coding = ""
    for line in lines:
        key, colon, value = line.partition(":")
        if not colon or not _NAME.match(key):
            raise Garbage(f"a reply has the header line {line[:60]!r}")
        text = value.strip(" \t")
        if _CONTROL.search(text):
            raise Garbage(f"the header {key!r} of a reply holds control characters")
        low = key.lower()
        if low == "content-length":
            lengths.add(text)
        elif low == "transfer-encoding":
            coding = f"{coding}, {text}" if coding else text
        elif low == "connection":
            keep_alive = _keeps(text, keep_alive)
        elif low not in HOP_BY_HOP:
            headers.append((key, text))
    length, chunked = _body(method, status, lengths, coding)
    return Head(status, found[3] or "", tuple(headers), length, chunked, keep_alive)


def _keeps(value: str, otherwise: bool) -> bool:
    words = {word.strip().lower() for word in value.split(",")}
    return ("keep-alive" in words or otherwise) and "close" not in words


def _body(method: str, status: int, lengths: set[str], coding: str) -> tuple[int | None, bool]:
    """Return length and whether the body is chunked (RFC 9112, section 6.3)."""
    if method == "HEAD" or status < 200 or status in (204, 304):
        return 0, False
    if coding:
        if coding.lower() != "chunked" or lengths:
            raise Garbage(f"a reply is framed as {coding!r} with lengths {sorted(lengths)}")
        return None, True
    if len(lengths) > 1 or any(not (text.isascii() and text.isdigit()) for text in lengths):
        raise Garbage(f"a reply has the lengths {sorted(lengths)}, allowed: one whole number")
    return (int(lengths.pop()), False) if lengths else (None, False)


class Framing(Protocol):
    """Cuts a body out of a stream of bytes."""

    done: bool
    rest: bytes  # what came after the end, once done

    def feed(self, data: bytes) -> bytes:
        """Return what of `data` is the body, as it is handed on. Raises Garbage."""

    def eof(self) -> bool:
        """Return whether the body may end where the connection ended."""

    def whole(self) -> bool:
        """Return whether something of our own may be put in here without breaking a piece."""


class Length:
    """A body of known length."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return the part of `data` that belongs to the body."""
        if len(data) > self._left:
            data, self.rest = data[: self._left], data[self._left :]
        self._left -= len(data)
        self.done = self._left == 0
        return data

    def eof(self) -> bool:
        """Return False: an early end is a cut."""
        return self.done

    def whole(self) -> bool:
        """Return False: the length is promised."""
        return False


class UntilClose:
    """A body that ends with its connection; `frame` makes chunks of it for an HTTP/1.1 client."""

    def __init__(self, frame: bool) -> None:
        self._frame = frame
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return all of `data`, as one chunk where they are wanted."""
        return b"%x\r\n%b\r\n" % (len(data), data) if self._frame and data else data

    def eof(self) -> bool:
        """Return True: this is how it ends."""
        return True

    def whole(self) -> bool:
        """Return True: every piece is whole."""
        return True


class Chunked:
    """A chunked body: framing kept, but for the last chunk and its trailers, or stripped with `strip`."""

    def __init__(self, strip: bool = False) -> None:
        self._strip = strip
        self._left = 0  # bytes until the next size line, the line break after the chunk included
        self._held = b""  # the beginning of a size line, or of the trailers once `_last`
        self._last = False
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return what can be handed on; a size line is held back until it is whole."""
        if self._held:
            data, self._held = self._held + data, b""
        if self._last:
            self._end(data)
            return b""
        spans: list[bytes] = []
        size, at = len(data), self._left
        if self._strip and at:
            spans.append(data[: max(0, at - 2)])
        while at < size:
            line = data.find(b"\r\n", at, at + _LONGEST_SIZE_LINE)
            if line < 0:
                if size - at >= _LONGEST_SIZE_LINE:
                    raise Garbage(f"a chunk starts with {data[at : at + 40]!r}, allowed: its size")
                self._held, self._left = data[at:], 0
                return b"".join(spans) if self._strip else data[:at]
            found = _SIZE.match(data, at, line)
            if found is None or (at >= 2 and data[at - 2 : at] != b"\r\n"):
                raise Garbage(f"a chunk starts with {data[at : line + 2]!r}, allowed: its size")
            length = int(found[1], 16)
            if length == 0:
                self._last = True
                self._end(data[line:])
                return b"".join(spans) if self._strip else data[:at]
            if self._strip:
                spans.append(data[line + 2 : line + 2 + length])
            at = line + 4 + length
        self._left = at - size
        return b"".join(spans) if self._strip else data

    def _end(self, data: bytes) -> None:
        """Look for the empty line after the trailers; `data` starts at a line break."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MAX_HEAD:
                raise Garbage("the trailers of a reply do not end")
            self._held = data
            return
        self.done, self.rest = True, data[end + 4 :]

    def eof(self) -> bool:
        """Return False: without its last chunk the body was cut."""
        return self.done

    def whole(self) -> bool:
        """Return whether the last piece ended where a chunk ends."""
        return self._left == 0 and not self.done


def framing(head: Head, chunks: bool) -> Framing:
    """Return what cuts the body of `head`; `chunks` says whether the client takes chunks."""
    if head.chunked:
        return Chunked(strip=not chunks)
    return UntilClose(frame=chunks) if head.length is None else Length(head.length)
