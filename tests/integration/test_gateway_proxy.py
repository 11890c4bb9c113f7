"""The gateway as a proxy: what goes in and out is what the engine and the client said."""

from __future__ import annotations

import asyncio
import re
from functools import partial

import aiohttp
import pytest
from gateway_rig import chat, client, engine, events, raw, rig, run, until

from sooner.emulator.engine import Lengths

AT_ONCE = 1.0  # seconds; generous to a busy machine, and the next token would come after 3


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_replies_are_byte_for_byte_the_engines(path: str, stream: bool) -> None:
    async def test() -> None:
        one = engine()
        async with rig([one]) as gateway, client(gateway) as http, aiohttp.ClientSession(one.url) as direct:
            field = {"/v1/completions": "prompt", "/v1/responses": "input"}.get(path)
            body = {"model": "m", field: "hi"} if field else chat("hi")
            body |= {"stream": stream, "stream_options": {"include_usage": True}, "seed": 7}
            replies = []
            for session in (direct, http):
                one._count = 0  # the same id for both
                async with session.post(path, json=body) as response:
                    assert response.status == 200
                    replies.append((response.headers["Content-Type"], await response.read()))
            timeless = [(kind, re.sub(rb'"created(_at)?": ?[0-9]+', b"", data)) for kind, data in replies]
            assert timeless[0] == timeless[1]
            assert len(replies[0][1]) == len(replies[1][1]) > 100

    run(test)


def test_headers_say_how_long_it_waited() -> None:
    async def test() -> None:
        async with rig([engine()]) as gateway, client(gateway) as http:
            named = {"X-Request-Id": "abc"}
            response = await http.post("/v1/chat/completions", json=chat(), headers=named)
            assert float(response.headers["x-sooner-wait-ms"]) < 1000
            assert response.headers["x-sooner-rank"] == "0"
            assert response.headers["x-sooner-request-id"] == "abc"

    run(test)


def test_models_health_metrics_and_unknown_model() -> None:
    async def test() -> None:
        async with rig([engine()], aliases={"best": "m"}) as gateway, client(gateway) as http:
            async with http.get("/v1/models") as response:
                assert [card["id"] for card in (await response.json())["data"]] == ["m", "best"]
            async with http.post("/v1/chat/completions", json=chat(model="best")) as response:
                assert (await response.json())["choices"][0]["message"]["content"]
            async with http.post("/v1/chat/completions", json=chat(model="other")) as response:
                assert response.status == 404
                assert (await response.json())["error"]["code"] == "model_not_found"
            async with http.get("/health") as response:
                assert response.status == 200
            async with http.get("/ready") as response:
                assert response.status == 200
            async with http.get("/metrics") as response:
                text = await response.text()
                assert "sooner_finished_total 1" in text
                assert 'sooner_backend_up{backend="127.0.0.1' in text

    run(test)


def test_an_engines_refusal_is_handed_on() -> None:
    async def test() -> None:
        async with rig([engine()]) as gateway, client(gateway) as http:
            async with http.post("/v1/chat/completions", json=chat(max_tokens=0)) as response:
                assert response.status == 400
                assert "max_tokens=0" in (await response.json())["error"]["message"]
            async with http.post("/v1/chat/completions", data=b"{nonsense") as response:
                assert response.status == 400

    run(test)


def test_priority_is_dropped_where_the_engine_refuses_it_to_two_tenants() -> None:
    async def test() -> None:
        async with rig([engine(by_priority=False)], policy="fcfs") as gateway, client(gateway) as http:
            for tenant, handed_on in (("ann", True), ("ann", True), ("bob", False), ("cem", False)):
                headers = {"x-sooner-tenant": tenant}
                async with http.post("/v1/chat/completions", json=chat(), headers=headers) as response:
                    assert response.status == 200
                assert gateway.dispatcher.backends[0].hand_on == handed_on

    run(test)


@pytest.mark.parametrize("when", ["waiting", "before the first token", "between tokens"])
def test_a_client_that_leaves_frees_the_engine_at_once(when: str) -> None:
    async def test() -> None:
        slow = {"iteration_s": 0.005} if when != "between tokens" else {"iteration_s": 3.0}
        first = {"prefill_token_s": 1.0} if when == "before the first token" else {}
        one = engine(lengths=Lengths("1000"), **slow, **first)
        async with rig([one], backend={"max_in_flight": 1}) as gateway, client(gateway) as http:
            post = partial(
                http.post,
                "/v1/chat/completions",
                json=chat("hello " * 20, stream=when != "before the first token"),
            )
            if when == "waiting":
                other = await post()
                task = asyncio.create_task(post())
                await until(lambda: gateway.dispatcher.queued == 1)
                task.cancel()
                await until(lambda: gateway.dispatcher.queued == 0, AT_ONCE)
                assert len(one.seen) == 1
                other.close()
            elif when == "before the first token":
                task = asyncio.create_task(post())
                await until(lambda: bool(one.emulator.running))
                task.cancel()
            else:
                response = await post()
                await response.content.readany()
                response.close()
            await until(lambda: not one.emulator.running, AT_ONCE)
            await until(lambda: not gateway.dispatcher.waiting)
            assert gateway.dispatcher.backends[0].in_flight == 0

    run(test)


def test_a_slow_reader_makes_the_engine_wait_and_loses_nothing() -> None:
    async def test() -> None:
        big = b"x" * (32 << 20)

        async def reply(body: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(big), big))
            await writer.drain()

        async with raw(reply) as url, rig([url]) as gateway, client(gateway) as http:
            response = await http.post("/v1/chat/completions", json=chat())
            [connection] = gateway.proxy.client._active
            await until(lambda: connection.paused)
            assert connection.size < len(big)
            assert await response.read() == big

    run(test)


def test_http_1_0_clients_get_the_body_without_chunks() -> None:
    async def test() -> None:
        async with rig([engine()]) as gateway:
            host, port = gateway.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            body = b'{"model":"m","prompt":"x","stream":true}'
            writer.write(
                b"POST /v1/completions HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            reply = await reader.read()
            writer.close()
            assert b"chunked" not in reply.split(b"\r\n\r\n")[0]
            told = events(reply.split(b"\r\n\r\n", 1)[1])
            assert told[-1] == "[DONE]"
            assert len(told) == 7

    run(test)
