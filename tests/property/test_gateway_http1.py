"""Replies cut from bytes: whatever the pieces, the body that goes on is the one that came."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sooner.gateway.engines.http1 import Chunked, Garbage, Length, UntilClose, framing, read_head

BODIES = st.lists(st.binary(min_size=1, max_size=40), max_size=8)


def chunked(pieces: list[bytes], extension: bytes = b"", trailers: bytes = b"") -> tuple[bytes, bytes]:
    """Return the chunks, and the end that follows them."""
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    return chunks, b"0\r\n" + trailers + b"\r\n"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


@given(
    BODIES,
    st.lists(st.integers(0, 500), max_size=12),
    st.booleans(),
    st.sampled_from([b"", b";a=b", b" "]),
    st.sampled_from([b"", b"X-Sum: 1\r\n"]),
    st.binary(max_size=5),
)
def test_chunks_go_on_whole_and_end_where_they_end(
    pieces: list[bytes], places: list[int], strip: bool, extension: bytes, trailers: bytes, after: bytes
) -> None:
    body, end = chunked(pieces, extension, trailers)
    cutter = Chunked(strip=strip)
    out = b""
    for piece in cut(body + end + after, places):
        if cutter.done:
            cutter.rest += piece
        else:
            out += cutter.feed(piece)
    assert cutter.done
    assert cutter.eof()
    assert out == (b"".join(pieces) if strip else body)
    assert cutter.rest == after


@given(BODIES.filter(bool), st.integers(0, 500))
def test_a_body_cut_short_is_never_taken_for_whole(pieces: list[bytes], place: int) -> None:
    body, end = chunked(pieces)
    data = body + end
    cutter = Chunked()
    out = cutter.feed(data[: place % len(data)])
    assert not cutter.done
    assert not cutter.eof()
    if cutter.whole():  # then what went on is whole chunks, and an event of ours may follow
        again = Chunked()
        again.feed(out + b"0\r\n\r\n")
        assert again.done


@pytest.mark.parametrize("size", [b"", b"-1", b"0x5", b"+5", b"5 5", b"g", b"1" * 300, b"fffffffffffff"])
def test_sizes_that_are_none_are_refused(size: bytes) -> None:
    with pytest.raises(Garbage):
        Chunked().feed(size + b"\r\nabcde\r\n")


@given(st.binary(max_size=60))
def test_no_bytes_make_it_raise_anything_but_garbage(data: bytes) -> None:
    for made in (Chunked, lambda: Length(7), lambda: UntilClose(True)):
        try:
            made().feed(data)
        except Garbage:
            continue
    try:
        head = read_head(b"HTTP/1.1 200 OK\r\n" + data)
    except Garbage:
        return
    framing(head, True)


@pytest.mark.parametrize(
    ("block", "length", "is_chunked", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", 5, False, True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nContent-Length: 5\r\nConnection: Close", 5, False, False),
        (b"HTTP/1.1 200\r\nTransfer-Encoding: Chunked", None, True, True),
        (b"HTTP/1.0 200 OK", None, False, False),
        (b"HTTP/1.1 204 No Content", 0, False, True),
    ],
)
def test_heads(block: bytes, length: int | None, is_chunked: bool, keep_alive: bool) -> None:
    head = read_head(block)
    assert (head.length, head.chunked, head.keep_alive) == (length, is_chunked, keep_alive)
    assert not {"content-length", "transfer-encoding", "connection"} & {k.lower() for k, _ in head.headers}


@pytest.mark.parametrize(
    "block",
    [
        b"ICY 200 OK",
        b"HTTP/1.1 99 No",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
        b"HTTP/1.1 200 OK\r\nX: a\nEvil: b",
        b"HTTP/1.1 200 OK\r\n folded",
        b"HTTP/1.1 200 OK\r\nNo colon",
    ],
)
def test_heads_that_could_be_read_in_two_ways_are_refused(block: bytes) -> None:
    with pytest.raises(Garbage):
        read_head(block)
