"""The head of a request as bytes: read for what decides its way, and written again with a hint. No I/O."""

from __future__ import annotations

import re
from typing import NamedTuple

from sooner.core import ConfigError

_LINE = re.compile(rb"([A-Z]{1,20}) (\S+) HTTP/1\.([01])\Z")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"expect"))


class BadHead(ConfigError):
    """What came is no request of HTTP/1.1."""


class RequestHead(NamedTuple):
    """A request's first line and its header lines, by their names in small letters.

    `length` is the body's, None where it is `chunked`. `expects`: the client waits to be told to go on.
    """

    method: str
    target: str
    first: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    length: int | None
    expects: bool
    upgrades: bool

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


def read_request_head(block: bytes) -> RequestHead:
    """Return the head in `block`, which ends before the empty line. Raises BadHead."""
    first, *lines = block.split(b"\r\n")
    found = _LINE.match(first)
    if found is None:
        raise BadHead(f"a request starts with {first[:60]!r}, allowed: METHOD /path HTTP/1.1")
    headers: list[tuple[bytes, bytes]] = []
    lengths: set[bytes] = set()
    coding = b""
    expects = upgrades = False
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.match(name):
            raise BadHead(f"a request has the header line {line[:60]!r}, allowed: Name: value")
        low = name.lower()
        if low == b"content-length":
            lengths.add(value.strip(b" \t"))
        elif low == b"transfer-encoding":
            coding = coding + b"," + value if coding else value.strip(b" \t").lower()
        elif low == b"expect":
            expects = True
        elif low == b"upgrade":
            upgrades = True
        headers.append((low, line))
    if coding:
        if coding != b"chunked" or lengths:
            raise BadHead(f"a request is framed as {coding!r} with lengths {sorted(lengths)}")
    elif len(lengths) > 1 or any(not length.isdigit() or len(length) > 15 for length in lengths):
        raise BadHead(f"a request has the lengths {sorted(lengths)}, allowed: one whole number")
    length = None if coding else int(lengths.pop()) if lengths else 0
    return RequestHead(
        found[1].decode(),
        found[2].decode("utf-8", "replace"),
        first,
        tuple(headers),
        length,
        expects,
        upgrades,
    )


def written(head: RequestHead, length: int, *, base: str = "", drop: bytes = b"", add: bytes = b"") -> bytes:
    """Return the head for a whole body of `length` bytes, its path behind `base`.

    The header named `drop` is left out and the line `add` put in; what told the body's end is told anew.
    """
    first = head.first.replace(b" ", b" " + base.encode(), 1) if base else head.first
    lines = [first, *(line for name, line in head.headers if name not in _FRAMING and name != drop)]
    if add:
        lines.append(add)
    if length or head.length != 0 or any(name == b"content-length" for name, _ in head.headers):
        lines.append(b"Content-Length: %d" % length)
    return b"\r\n".join([*lines, b"", b""])
