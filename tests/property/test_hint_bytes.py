"""Requests and replies as bytes: however they are cut into pieces, they are read alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sooner.gateway.engines.http1 import Garbage
from sooner.gateway.hints.following import ReplyFollower
from sooner.gateway.hints.request_head import BadHead, read_request_head, written

REPLIES = (
    ("POST", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    (
        "POST",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\n\r\n!\r\n0\r\nT: 1\r\n\r\n",
    ),
    ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
    ("GET", b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    ("POST", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"),
)


@given(which=st.lists(st.sampled_from(REPLIES), min_size=1, max_size=6), data=st.data())
def test_the_ends_of_replies_are_found_in_any_pieces(
    which: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    follower = ReplyFollower()
    follower.methods.extend(method for method, _ in which)
    whole = b"".join(reply for _, reply in which)
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=12).map(sorted))
    ends = [len(b"".join(reply for _, reply in which[: n + 1])) for n in range(len(which))]
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        follower.feed(whole[start:end])
        assert len(follower.methods) == sum(one > end for one in ends)
    assert follower.between


def test_a_reply_that_nobody_asked_for_is_garbage() -> None:
    with pytest.raises(Garbage, match="nobody asked"):
        ReplyFollower().feed(b"HTTP/1.1 200 OK\r\n\r\n")


@given(
    length=st.integers(0, 10**9),
    drop=st.sampled_from([b"", b"x-vllm-priority", b"accept"]),
    add=st.sampled_from([b"", b"x-vllm-priority: 7"]),
    base=st.sampled_from(["", "/models/one"]),
)
def test_a_head_is_written_as_it_was_read(length: int, drop: bytes, add: bytes, base: str) -> None:
    block = (
        b"POST /v1/completions?a=1 HTTP/1.1\r\nHost: h\r\nX-Vllm-Priority: -9\r\nAccept: */*\r\n"
        b"Content-Length: 3\r\nExpect: 100-continue"
    )
    head = read_request_head(block)
    assert (head.method, head.path, head.length, head.expects) == ("POST", "/v1/completions", 3, True)
    again = read_request_head(written(head, length, base=base, drop=drop, add=add)[:-4])
    assert again.target == base + head.target
    assert again.length == length
    assert not again.expects
    kept = [line for name, line in head.headers if name not in (drop, b"content-length", b"expect")]
    assert [line for _, line in again.headers[:-1]] == [*kept, *([add] if add else [])]


@pytest.mark.parametrize(
    "block",
    [
        b"hello",
        b"GET /a b HTTP/1.1",
        b"GET / HTTP/2.0",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2",
        b"POST / HTTP/1.1\r\nContent-Length: -1",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"POST / HTTP/1.1\r\n folded: 1",
        b"POST / HTTP/1.1\r\nno colon",
        b"POST / HTTP/1.1\r\nContent-Length : 1",
    ],
    ids=repr,
)
def test_what_two_servers_could_read_in_two_ways_is_refused(block: bytes) -> None:
    with pytest.raises(BadHead, match=r"allowed|framed"):
        read_request_head(block)
