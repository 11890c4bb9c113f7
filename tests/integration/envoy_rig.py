"""An Envoy's side of `ext_proc`: its messages written and read by hand, byte by byte, apart from ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from sooner.gateway.hints.ext_proc_server import ExtProcServer
from sooner.gateway.hints.settings import HintSettings

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
NONE, STREAMED, BUFFERED, PARTIAL, DUPLEX = range(5)


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: bytes | int) -> bytes:
    """Return a field: bytes, text and messages with their length, numbers and truths without."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(data: bytes) -> dict[int, list[Any]]:
    """Return the fields of a message by their numbers."""
    found: dict[int, list[Any]] = {}

    def number(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not data[at - 1] & 0x80:
                return value, at

    at = 0
    while at < len(data):
        tag, at = number(at)
        value: Any
        value, at = number(at)
        if tag & 7 == 2:
            value, at = data[at : at + value], at + value
        found.setdefault(tag >> 3, []).append(value)
    return found


def headers(
    path: str = "/v1/chat/completions",
    *,
    method: str = "POST",
    end: bool = False,
    mode: int | None = BUFFERED,
    reply_mode: int = NONE,
    raw: bool = True,
    more: bytes = b"",
) -> bytes:
    """Return the message with a request's headers; `raw`: as newer Envoys send their values."""
    given = ((":method", method), (":path", path), (":authority", "h"), ("x-vllm-priority", "5"))
    listed = b"".join(
        field(1, field(1, name.encode()) + field(3 if raw else 2, value.encode())) for name, value in given
    )
    content = field(1, listed) + (field(3, 1) if end else b"")
    modes = field(11, field(1, mode) + field(2, reply_mode)) if mode is not None else b""
    return field(2, content) + modes + more


def body(data: bytes, end: bool = True, number: int = 4) -> bytes:
    """Return the message with a piece of a request's body; number 5: of a reply's."""
    return field(number, field(1, data) + (field(2, 1) if end else b""))


class Answer:
    """An answer read: what it is about, the headers it sets, the body it writes (None: the old one)."""

    def __init__(self, data: bytes) -> None:
        ((self.kind, (content,)),) = fields(data).items()
        common = fields(fields(content).get(1, [b""])[0])
        self.headers: dict[str, bytes] = {}
        self.actions: dict[str, int] = {}
        for option in fields(common.get(2, [b""])[0]).get(1, []):
            said = fields(option)
            header = fields(said[1][0])
            name = header[1][0].decode()
            self.headers[name], self.actions[name] = header[3][0], said[3][0]
            assert 2 not in header  # an Envoy refuses one that has both forms of a value
        change = fields(common.get(3, [b""])[0])
        self.body: bytes | None = change.get(1, [None])[0]
        streamed = fields(change[3][0]) if 3 in change else None
        self.piece: bytes | None = None if streamed is None else streamed.get(1, [b""])[0]
        self.last = bool(streamed and streamed.get(2))

    @property
    def unchanged(self) -> bool:
        return not self.headers and self.body is None and self.piece is None


@asynccontextmanager
async def service(name: str, **settings: Any) -> AsyncIterator[tuple[ExtProcServer, grpc.aio.Channel]]:
    """Serve a hinter for an Envoy in this loop; give a connection to it."""
    given = {"port": 0, "ranker": "light", "backends": ("http://127.0.0.1:9",), **settings}
    async with ExtProcServer(HintSettings(target=name, ext_proc=True, **given)).serving() as server:
        big = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(server.url.removeprefix("grpc://"), options=big) as channel:
            yield server, channel


async def ask(channel: grpc.aio.Channel, *messages: bytes, leave: bool = False) -> list[Answer]:
    """Ask about one request as an Envoy does, until the service ends the stream; `leave`: end it first."""
    call = channel.stream_stream(PROCESS)()
    for message in messages:
        await call.write(message)
    if leave:
        await call.done_writing()
    return [Answer(answer) async for answer in call]
