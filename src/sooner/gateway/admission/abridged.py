"""A large JSON body made short enough to be parsed at once: the middles of long strings are left out.

Parsing 30 MB would stop everything else for the better part of a second, and a tree of small values
takes thirty times their bytes. Strings are found by their quotes, without a copy; what is left is bounded
by the values in it.
"""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

from sooner.gateway.admission.forms import BadRequest

LARGE = 256 * 1024
"""Bytes above which a body is abridged."""

_LONG = 64 * 1024  # bytes of a string above which its middle is left out: half of it at each end stays
_LONG_INSIDE = 4 * 1024  # the same, where it begins and ends far from both ends of the body
_EDGE = 512 * 1024  # bytes at each end of a body where strings stay as long as elsewhere
_PIECE = 256 * 1024  # bytes looked at in one go
_WHOLE = re.compile(rb"(?:[^\\]|\\u[0-9a-fA-F]{4}|\\[^u])*", re.DOTALL)
_ESCAPE = 12  # bytes of the longest escape: two halves of one letter
_MOST_STRINGS = 1_000_000
_MOST_WEIGHT = 32_000_000  # bytes, about, of the parsed values
_WEIGHTS = ((b"{", 240), (b"[", 120), (b",", 40))


class TooManyValues(BadRequest):
    """A body of so many small values that its tree would take too much memory."""

    status, code = 413, "body_too_large"


class Abridged(NamedTuple):
    """What is left of a body; `cut` are the spans left out, where `mark` and their number stand."""

    body: bytes
    mark: str
    cut: tuple[tuple[int, int], ...]

    def missing(self, text: str) -> float:
        """Return about how many tokens of a text were left out."""
        return sum(self._size(int(found)) for found in re.findall(f"{self.mark}:([0-9]+);", text)) / 4.0

    def _size(self, number: int) -> int:
        start, end = self.cut[number] if number < len(self.cut) else (0, 0)
        return end - start

    def bare(self, text: str) -> str:
        """Return a text without the marks."""
        return re.sub(f"{self.mark}:[0-9]+;", "", text) if self.mark in text else text

    def restored(self, changed: bytes, original: bytes) -> bytes:
        """Return a body with what was left out of the original put in again."""
        pieces: list[bytes] = []
        at = 0
        for found in re.finditer(self.mark.encode() + b":([0-9]+);", changed):
            start, end = self.cut[int(found[1])]
            pieces += (changed[at : found.start()], original[start:end])
            at = found.end()
        return b"".join((*pieces, changed[at:]))


def abridged(body: bytes) -> Abridged:
    """Return a body without the middles of its long strings. Raises BadRequest, TooManyValues."""
    if body.count(b'"') > 2 * _MOST_STRINGS:
        raise TooManyValues(f"the body has more than {_MOST_STRINGS} strings")
    mark = secrets.token_hex(12)
    pieces: list[bytes] = []
    cut: list[tuple[int, int]] = []
    at = 0
    start = body.find(b'"')
    while start >= 0:
        end = _end(body, start)
        if end < 0:
            break  # it is no JSON, which the parser will say
        inside = start > _EDGE and end < len(body) - _EDGE
        longest = _LONG_INSIDE if inside else _LONG
        if end - start > longest:
            first, last = _middle(body, start + 1, end, longest // 2)
            pieces += (body[at:first], f"{mark}:{len(cut)};".encode())
            cut.append((first, last))
            at = last
        start = body.find(b'"', end + 1)
    short = b"".join((*pieces, body[at:])) if cut else body
    weight = sum(short.count(sign) * bytes_of_one for sign, bytes_of_one in _WEIGHTS)
    if weight > _MOST_WEIGHT:
        raise TooManyValues(f"the body has too many values for {weight} bytes, allowed: {_MOST_WEIGHT}")
    if any(short[at : at + _LONG].isdigit() for at in range(0, len(short) - _LONG + 1, _LONG)):
        raise BadRequest(f"a number of the body has more than {_LONG} digits")  # no text is so long any more
    return Abridged(short, mark, tuple(cut))


def _end(body: bytes, start: int) -> int:
    """Return where the string that begins at `start` ends: at a quote that is not escaped; -1 for nowhere."""
    at = start + 1
    while (at := body.find(b'"', at)) >= 0:
        if _backslashes(body, start + 1, at) % 2 == 0:
            return at
        at += 1
    return -1


def _backslashes(body: bytes, start: int, end: int) -> int:
    """Return how many stand right before `end`; piece by piece, so that others may run in between."""
    found, size = 0, 64
    while end - found > start:
        piece = body[max(start, end - found - size) : end - found]
        run = len(piece) - len(piece.rstrip(b"\\"))
        found += run
        if run < len(piece):
            break
        size = min(8 * size, _PIECE)
    return found


def _middle(body: bytes, start: int, end: int, kept: int) -> tuple[int, int]:
    """Return the span of a string's text that is left out; both ends are where no letter is cut."""
    whole = _WHOLE.match(body, start, start + kept)
    first = whole.end() if whole is not None else start
    while first > start and body[first] & 0xC0 == 0x80:
        first -= 1
    for last in range(end - kept, end - kept // 2):
        if body[last] & 0xC0 != 0x80 and b"\\" not in body[last - _ESCAPE : last]:
            return first, last
    return first, end
