"""Comments while a streaming client waits: what comes through is as it was, and refusals are events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from gateway_rig import chat, client, engine, events, raw, rig, run, until

from sooner.core import ConfigError
from sooner.emulator.engine import Lengths
from sooner.gateway.app import Gateway
from sooner.gateway.settings import QueueSettings, SliceSettings

COMMENT = b": waiting\n\n"
OFTEN = 0.02  # seconds
PATIENCE = 120.0  # seconds, of tests that import clients
MESSAGE = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}], "stream": True}
BODIES = {
    "/v1/chat/completions": chat(stream=True),
    "/v1/completions": {"model": "m", "prompt": "hi", "stream": True},
    "/v1/responses": {"model": "m", "input": "hi", "stream": True},
    "/v1/messages": MESSAGE,
}


@asynccontextmanager
async def full(every: float = OFTEN, max_wait: float = 300.0) -> AsyncIterator[Gateway]:
    """Serve a gateway whose only place is taken, for as long as the test lasts."""
    slow = engine(iteration_s=0.05, lengths=Lengths("100000"))
    queue = QueueSettings(comment_every=every, max_wait=max_wait)
    async with (
        rig([slow], backend={"max_in_flight": 1}, queue=queue) as gateway,
        client(gateway) as http,
        http.post("/v1/chat/completions", json=chat(stream=True)) as first,
    ):
        await first.content.readany()
        yield gateway


@pytest.mark.parametrize("tokens", [0, 3], ids=["whole", "slices"])
def test_who_waits_hears_comments_and_then_the_reply_as_it_is(tokens: int) -> None:
    async def test() -> None:
        slow = engine(iteration_s=0.02)
        queue = QueueSettings(comment_every=OFTEN)
        slices = SliceSettings(tokens=tokens)
        async with (
            rig([slow], backend={"max_in_flight": 1}, queue=queue, slices=slices) as gateway,
            client(gateway) as http,
        ):

            async def ask() -> tuple[bytes, Any]:
                async with http.post("/v1/chat/completions", json=chat(stream=True)) as response:
                    assert response.status == 200
                    assert "event-stream" in response.headers["Content-Type"]
                    assert response.headers["x-sooner-request-id"]
                    return await response.read(), response.headers

            replies = await asyncio.gather(*(ask() for _ in range(4)))
            texts = []
            for body, headers in replies:
                if "x-sooner-wait-ms" not in headers:  # the head went before the reply
                    assert body.startswith(COMMENT)
                told = events(body.replace(COMMENT, b""))
                assert told[-1] == "[DONE]"
                texts.append(
                    "".join(
                        one["choices"][0]["delta"].get("content") or "" for one in told[:-1] if one["choices"]
                    )
                )
            assert sum(body.startswith(COMMENT) for body, _ in replies) >= 3
            assert len(set(texts)) == 1
            assert texts[0]
            assert gateway.dispatcher.backends[0].in_flight == 0

    run(test)


@pytest.mark.parametrize("path", BODIES)
def test_a_refusal_after_comments_is_an_error_event_of_the_clients_api(path: str) -> None:
    async def test() -> None:
        async with full(max_wait=0.3) as gateway, client(gateway) as http:
            async with http.post(path, json=BODIES[path]) as response:
                assert response.status == 200
                body = await response.read()  # a stream that ends as it should
            assert body.startswith(COMMENT)
            named, told = last_event(body)
            if path == "/v1/messages":
                assert (named, told["type"], told["error"]["type"]) == ("error", "error", "overloaded_error")
            elif path == "/v1/responses":
                assert (named, told["type"], told["code"]) == ("error", "error", "wait_too_long")
            else:
                assert (named, told["error"]["code"]) == ("", "wait_too_long")
            assert "waited" in json.dumps(told)
            assert b"[DONE]" not in body
            assert gateway.dispatcher.counters.counts["refused_wait"] == 1
            async with http.get("/health") as response:
                assert response.status == 200

    run(test)


def last_event(body: bytes) -> tuple[str, Any]:
    """Return the name and the data of a stream's last event."""
    lines = body.decode().split("\n\n")[-2].split("\n")
    named = next((line[7:] for line in lines if line.startswith("event: ")), "")
    return named, json.loads(next(line[6:] for line in lines if line.startswith("data: ")))


@pytest.mark.parametrize(
    ("every", "body"),
    [(0.0, chat(stream=True)), (60.0, chat(stream=True)), (OFTEN, chat())],
    ids=["off", "not yet", "not a stream"],
)
def test_without_comments_a_refusal_after_waiting_has_its_status(every: float, body: dict[str, Any]) -> None:
    async def test() -> None:
        async with (
            full(every, max_wait=0.3) as gateway,
            client(gateway) as http,
            http.post("/v1/chat/completions", json=body) as response,
        ):
            assert response.status == 503
            assert response.headers["Retry-After"]
            assert (await response.json())["error"]["code"] == "wait_too_long"

    run(test)


def test_a_client_of_http_1_0_gets_no_comments() -> None:
    async def test() -> None:
        async with full(max_wait=0.3) as gateway:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rsplit(":", 1)[1]))
            body = json.dumps(chat(stream=True)).encode()
            head = f"POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(body)}"
            writer.write(head.encode() + b"\r\n\r\n" + body)
            assert b" 503 " in (await reader.read()).split(b"\r\n")[0]
            writer.close()
            await writer.wait_closed()

    run(test)


async def late(data: bytes, writer: asyncio.StreamWriter) -> None:
    """Wait long enough for comments, then send an engine's reply."""
    await asyncio.sleep(5 * OFTEN)
    writer.write(data)
    await writer.drain()


STREAM = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'
REFUSED = b'{"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}'
HEADS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
ANSWERS = {
    "an engine's refusal": (
        b"HTTP/1.1 400 Bad\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(REFUSED)
        + REFUSED,
        b'"message": "too long"',
    ),
    "an engine's refusal in words": (
        b'HTTP/1.1 404 No\r\nContent-Length: 21\r\n\r\n{"error": "no model"}',
        b'"message": "no model"',
    ),
    "a reply that is no stream": (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'5\r\n{"a":\r\n3\r\n\n1}\r\n0\r\n\r\n',
        b'data: {"a":\ndata: 1}\n\n',
    ),
    "a stream of known length": (HEADS + b"Content-Length: %d\r\n\r\n" % len(STREAM) + STREAM, STREAM),
    "a stream that ends with its connection": (HEADS + b"Connection: close\r\n\r\n" + STREAM, STREAM),
    "a stream in chunks": (
        HEADS + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(STREAM) + STREAM + b"\r\n0\r\n\r\n",
        STREAM,
    ),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_whatever_an_engine_answers_after_comments_is_framed_as_the_stream_that_has_begun(
    answer: str,
) -> None:
    sent, expected = ANSWERS[answer]

    async def test() -> None:
        queue = QueueSettings(comment_every=OFTEN)
        async with (
            raw(lambda body, writer: late(sent, writer)) as url,
            rig([url], queue=queue) as gateway,
            client(gateway) as http,
        ):
            async with http.post("/v1/chat/completions", json=chat(stream=True)) as response:
                body = await response.read()
            assert body.startswith(COMMENT)
            assert expected in body.replace(COMMENT, b"")
            await until(lambda: not gateway.dispatcher.backends[0].in_flight)

    run(test)


@pytest.mark.parametrize(
    ("path", "every"),
    [*((path, 0.0) for path in BODIES), ("/v1/messages", OFTEN)],
)
def test_a_cut_stream_says_so_in_its_clients_api(path: str, every: float) -> None:
    """It was OpenAI's chat event for everyone, which Anthropic's clients do not read."""
    cut = HEADS + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(STREAM) + STREAM + b"\r\n"

    async def test() -> None:
        queue = QueueSettings(comment_every=every)
        async with (
            raw(lambda body, writer: late(cut, writer)) as url,
            rig([url], queue=queue) as gateway,
            client(gateway) as http,
        ):
            body = b""
            async with http.post(path, json=BODIES[path]) as response:
                try:
                    async for piece in response.content.iter_any():
                        body += piece
                except aiohttp.ClientPayloadError:
                    body += COMMENT
            assert body.endswith(COMMENT)  # it ended too early
            body = body.removesuffix(COMMENT)
            named, told = last_event(body)
            plain = path in ("/v1/chat/completions", "/v1/completions")
            assert named == ("" if plain else "error")
            assert "broke off" in told["error"]["message"]
            if path == "/v1/messages":
                assert told["error"]["type"] == "api_error"

    run(test)


def test_a_client_that_leaves_while_it_hears_comments_waits_no_more() -> None:
    async def test() -> None:
        async with full() as gateway, client(gateway) as http:
            async with http.post("/v1/chat/completions", json=chat(stream=True)) as response:
                assert await response.content.readexactly(len(COMMENT)) == COMMENT
                assert gateway.dispatcher.queued == 1
                response.close()
            await until(lambda: not gateway.dispatcher.queued and len(gateway.dispatcher.waiting) == 1)

    run(test)


def test_openais_client_takes_comments_and_raises_what_was_refused() -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed; it comes with vLLM")

    async def test() -> None:
        said = [{"role": "user", "content": "hi"}]
        queue = QueueSettings(comment_every=OFTEN)
        options = {"api_key": "none", "max_retries": 0}
        async with (
            rig([engine(iteration_s=5 * OFTEN)], queue=queue) as gateway,
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", **options) as ai,
        ):
            stream = await ai.chat.completions.create(model="m", messages=said, stream=True)
            pieces = [one async for one in stream]
            assert sum(bool(one.choices and one.choices[0].delta.content) for one in pieces) == 5
            reply = await ai.responses.create(model="m", input="hi", stream=True)
            assert [one.type async for one in reply][-1] == "response.completed"
        async with (
            full(max_wait=0.3) as gateway,
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", **options) as ai,
        ):
            stream = await ai.chat.completions.create(model="m", messages=said, stream=True)
            with pytest.raises(openai.APIError, match="waited") as raised:
                [one async for one in stream]
            assert raised.value.code == "wait_too_long"
            reply = await ai.responses.create(model="m", input="hi", stream=True)
            with pytest.raises(openai.APIError, match="waited"):
                [one async for one in reply]

    run(test, PATIENCE)


def test_anthropics_client_takes_comments_and_raises_what_was_refused() -> None:
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed; it comes with vLLM")
    start = {"id": "1", "type": "message", "role": "assistant", "model": "m", "content": [],
             "stop_reason": None, "usage": {"input_tokens": 1, "output_tokens": 0}}  # fmt: skip
    said = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]
    stream = "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in said).encode()
    asked = {name: value for name, value in MESSAGE.items() if name != "stream"}

    async def test() -> None:
        queue = QueueSettings(comment_every=OFTEN)
        reply = HEADS + b"Content-Length: %d\r\n\r\n" % len(stream) + stream
        options = {"api_key": "none", "max_retries": 0}
        async with (
            raw(lambda body, writer: late(reply, writer)) as url,
            rig([url], queue=queue) as gateway,
            anthropic.AsyncAnthropic(base_url=gateway.url, **options) as ai,
            ai.messages.stream(**asked) as got,
        ):
            assert await got.get_final_text() == "hello"
        async with (
            full(max_wait=0.3) as gateway,
            anthropic.AsyncAnthropic(base_url=gateway.url, **options) as ai,
            ai.messages.stream(**asked) as got,
        ):
            with pytest.raises(anthropic.APIStatusError, match="waited"):
                await got.get_final_text()

    run(test, PATIENCE)


def test_a_wrong_time_between_comments_is_refused() -> None:
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=f"comment_every={wrong}"):
            QueueSettings(comment_every=wrong)
    assert QueueSettings().comment_every == 0.0
