"""The hinter in front of a target: what it writes, what it leaves alone, what becomes of one that dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import aiohttp
import pytest
from gateway_rig import chat, run, until
from hint_rig import Target, ask_any, hinter, process

from sooner.gateway.hints.passage import Passage
from sooner.gateway.hints.targets import TARGETS

SHORT, LONG = chat("What is 2 + 2?"), chat("Write a long and detailed novel about the sea. " * 20)


def hint_of(name: str, seen: tuple[dict[str, str], bytes]) -> float:
    """Return the number that a target was sent."""
    headers, body = seen
    rule = TARGETS[name]
    value = headers[rule.header] if rule.header else json.loads(body)[rule.field]
    return float(value)


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_request_is_hinted_before_a_long_one_that_came_first(name: str) -> None:
    async def test() -> None:
        async with Target().serving() as target, hinter(name, target.url) as server:
            async with aiohttp.ClientSession(server.url) as http:
                for body in (LONG, SHORT, {**SHORT, "priority": 3}):
                    raw = json.dumps(body)
                    rule = TARGETS[name]
                    headers = {rule.header: "123"} if rule.header else {}  # the client's own does not count
                    async with http.post("/v1/chat/completions", data=raw, headers=headers) as response:
                        assert response.status == 200
            long, short, again = (hint_of(name, seen) for seen in target.seen)
            larger_first = name in ("dynamo", "sglang", "trtllm")
            assert (short > long) == larger_first
            assert (again > long) == larger_first
            for sent, (headers, body) in zip(
                (LONG, SHORT, {**SHORT, "priority": 3}), target.seen, strict=True
            ):
                got = json.loads(body)
                assert {**got, "priority": None} == {**sent, "priority": None}
                assert int(headers["content-length"]) == len(body)
            counts = server.hinter.counters.counts
            assert (counts["requests"], counts["hinted"], counts["scored"]) == (3, 3, 3)

    run(test)


def test_what_cannot_be_read_goes_on_as_it_came() -> None:
    bodies = [b"not json", b"[1, 2]", b"{}", b"\xff\xfe", b'{"messages": ' + b"[" * 3000 + b"]" * 3000 + b"}"]

    async def test() -> None:
        async with Target().serving() as target, hinter("sglang", target.url) as server:
            async with aiohttp.ClientSession(server.url) as http:
                for body in bodies:
                    async with http.post("/v1/chat/completions", data=body) as response:
                        assert response.status == 200
                async with http.post("/v1/embeddings?x=1", data=b"{}") as response:
                    assert (await response.json())["path"] == "/v1/embeddings"
                async with http.get("/anything/else") as response:
                    assert response.status == 200
            assert [body for _, body in target.seen] == [*bodies, b"{}", b""]
            counts = server.hinter.counters.counts
            assert counts["unchanged"] == len(bodies)
            assert counts["hook_errors"] == 0

    run(test)


def test_a_score_that_comes_late_is_not_waited_for() -> None:
    """A ranker of one's own is asked in a process, which takes longer to start than a request waits."""

    async def test(ranker: str, counted: str) -> None:
        async with Target().serving() as target, hinter("vllm", target.url, ranker=ranker) as server:
            session = aiohttp.ClientSession(server.url)
            async with session as http, http.post("/v1/chat/completions", json=SHORT) as response:
                assert response.status == 200
            assert "x-vllm-priority" in target.seen[0][0]
            counts = server.hinter.counters.counts
            assert (counts["neutral"], counts[counted]) == (1, 1)

    run(lambda: test("ranker_slow:Ranker", "scorer_timeouts"), 60)


def test_bodies_in_chunks_and_clients_that_wait_to_go_on() -> None:
    async def talk(url: str, *parts: bytes) -> bytes:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        got = b""
        for part in parts:
            if part == b"<go on>":
                got += await reader.readuntil(b"\r\n\r\n")
                continue
            writer.write(part)
            await writer.drain()
        got += await reader.read()
        writer.close()
        await writer.wait_closed()
        return got

    async def test() -> None:
        body = json.dumps(SHORT).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:5], body[5:]))
        async with Target().serving() as target, hinter("llm-d", target.url, max_body=1000) as server:
            waits = head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
            replies = [
                await talk(server.url, head + b"Transfer-Encoding: chunked\r\n\r\n", chunks + b"0\r\n\r\n"),
                await talk(server.url, waits, b"<go on>", body),
                await talk(server.url, head + b"Content-Length: 1001\r\n\r\n"),
                await talk(server.url, head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
                await talk(server.url, b"HELO there\r\n\r\n"),
            ]
            statuses = [reply.split(b" ")[1] for reply in replies]
            assert statuses == [b"200", b"100", b"413", b"400", b"400"]
            assert b"HTTP/1.1 200" in replies[1]
            assert [seen[1] for seen in target.seen] == [body, body]
            assert all("x-llm-d-slo-ttft-ms" in seen[0] for seen in target.seen)
            assert server.hinter.counters.counts["refused"] == 3

    run(test)


def test_a_reply_is_passed_on_byte_by_byte_and_a_client_that_leaves_frees_the_target() -> None:
    async def test() -> None:
        async with (
            Target().serving() as target,
            hinter("vllm", target.url) as server,
            aiohttp.ClientSession(server.url) as http,
        ):
            body = chat("count", stream=True)
            for _ in range(3):  # over one connection
                async with http.post("/v1/chat/completions", json=body) as response:
                    events = b"".join(b"data: %d\n\n" % n for n in range(5))
                    assert await response.read() == events
            target.hold = asyncio.Event()
            waits = asyncio.create_task(http.post("/v1/chat/completions", json=SHORT).__aenter__())
            await until(lambda: len(target.seen) == 4)
            assert server.under_way == 1
            waits.cancel()
            await asyncio.gather(waits, return_exceptions=True)
            await until(lambda: server.under_way == 0)
            target.hold.set()

    run(test)


def test_the_next_address_is_tried_and_none_is_an_error() -> None:
    async def test() -> None:
        dead = "http://127.0.0.1:9"
        async with Target().serving() as target, hinter("vllm", dead, target.url, dead) as server:
            for _ in range(3):
                session = aiohttp.ClientSession(server.url)
                async with session as http, http.post("/v1/chat/completions", json=SHORT) as response:
                    assert response.status == 200
        async with hinter("vllm", dead) as server, aiohttp.ClientSession(server.url) as http:
            async with http.post("/v1/chat/completions", json=SHORT) as response:
                assert response.status == 502
                assert (await response.json())["error"]["code"] == "engine_failed"
            async with http.get("/sooner/metrics") as response:
                assert "sooner_hint_no_backend_total 1" in await response.text()
            async with http.get("/sooner/health") as response:
                assert (await response.json())["target"] == "vllm"

    run(test)


def test_a_shutdown_waits_for_what_is_under_way() -> None:
    async def test() -> None:
        async with Target().serving() as target, aiohttp.ClientSession() as http:
            target.hold = asyncio.Event()
            async with hinter("vllm", target.url) as server:
                url = f"{server.url}/v1/chat/completions"
                asked = asyncio.create_task(http.post(url, json=SHORT).__aenter__())
                await until(lambda: len(target.seen) == 1)
                asyncio.get_running_loop().call_later(0.05, target.hold.set)
            response = await asked
            assert response.status == 200
            assert response.headers["Connection"] == "close"
            response.release()

    run(test)


def test_a_connection_made_for_a_client_that_has_left_is_dropped() -> None:
    async def test() -> None:
        ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                ended.set_result(await reader.read())
            except ConnectionResetError:
                ended.set_result(b"")
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as target:
            url = f"http://127.0.0.1:{target.sockets[0].getsockname()[1]}"
            async with hinter("vllm", url) as server:
                await server.connect(Passage(server))  # its client's connection is gone, or never was
                assert await ended == b""

    run(test)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_one_of_three_instances_that_ends_in_a_burst_is_seen_by_nobody(how: signal.Signals) -> None:
    """The client does what any proxy before several instances does: it tries another one."""

    async def test(target: Target, instances: list[Any]) -> None:
        urls = [url for _, url in instances]
        asked = 0

        async def worker(http: aiohttp.ClientSession, first: int) -> None:
            nonlocal asked
            for n in range(40):
                reply = await ask_any(http, urls, first + n, chat(f"question {first} {n}"))
                assert b"seen" in reply
                asked += 1

        async with aiohttp.ClientSession() as http:
            tasks = [asyncio.create_task(worker(http, first)) for first in range(6)]
            await until(lambda: asked >= 60, 30.0)
            os.kill(instances[1][0].pid, how)
            await asyncio.gather(*tasks)
        assert asked == 240
        assert all("x-dynamo-request-priority" in headers for headers, _ in target.seen)
        assert len(target.seen) >= 240

    async def whole() -> None:
        async with Target().serving() as target:
            options = ("--target", "dynamo", "--backend", target.url)
            loop = asyncio.get_running_loop()
            made = [process(*options) for _ in range(3)]
            instances = await asyncio.gather(*(loop.run_in_executor(None, one.__enter__) for one in made))
            try:
                await test(target, list(instances))
            finally:
                for one in made:
                    await loop.run_in_executor(None, one.__exit__, None, None, None)

    run(whole, 120)


def test_a_rolling_restart_loses_nothing() -> None:
    """As Kubernetes does it: a new instance is up before an old one is told to stop, one after the other."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with Target().serving() as target, aiohttp.ClientSession() as http:
            options = ("--target", "llm-d", "--backend", target.url)

            async def started() -> Any:
                one = process(*options)
                return one, *(await loop.run_in_executor(None, one.__enter__))

            instances = list(await asyncio.gather(started(), started()))
            urls = [url for _, _, url in instances]
            over, asked = False, 0

            async def worker(first: int) -> None:
                nonlocal asked
                while not over:
                    assert b"seen" in await ask_any(http, list(urls), first + asked, chat(f"{first} {asked}"))
                    asked += 1

            workers = [asyncio.create_task(worker(first)) for first in range(4)]
            try:
                for place in range(2):
                    fresh = await started()
                    old, instances[place] = instances[place], fresh
                    urls[place] = fresh[2]
                    before = asked
                    old[1].terminate()
                    assert await loop.run_in_executor(None, old[1].wait, 60) == 0
                    await until(lambda before=before: asked >= before + 40, 60.0)  # type: ignore[misc]
                    await loop.run_in_executor(None, old[0].__exit__, None, None, None)
            finally:
                over = True
                results = await asyncio.gather(*workers, return_exceptions=True)
                for one, _, _ in instances:
                    await loop.run_in_executor(None, one.__exit__, None, None, None)
            assert results == [None] * 4
            assert len(target.seen) >= asked >= 80

    run(test, 120)
