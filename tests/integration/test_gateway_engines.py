"""What the gateway learns of its engines: from several tenants, asked once, and anew after a restart."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest
from gateway_rig import chat, client, rig, run, until

REPLY = {
    "choices": [{"index": 0, "message": {"content": "x"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}


@dataclass
class Engine:
    """Answers GETs by `pages`, and POSTs: 400 where the text says bad, or to a priority it does not take."""

    pages: dict[str, object] = field(default_factory=dict)
    takes_priority: bool = True
    bodies: list[dict[str, object]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            status, told = 200, b""
            if head.startswith(b"GET"):
                page = self.pages.get(head.split()[1].decode(), "")
                status = 501 if page is None else 200
                told = page.encode() if isinstance(page, str) else json.dumps(page).encode()
            else:
                size = int(head.lower().split(b"content-length:")[1].split()[0])
                body = json.loads(await reader.readexactly(size))
                self.bodies.append(body)
                text = body["messages"][0]["content"]
                if text.startswith("cut"):
                    return
                tricky = text.startswith("tricky") and "priority" in body
                refused = text.startswith("bad") or tricky or ("priority" in body and not self.takes_priority)
                status, told = (400, b"{}") if refused else (200, json.dumps(REPLY).encode())
            writer.write(b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n" % status)
            writer.write(b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(told) + told)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Engine]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", self.port) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self


async def ask(http: aiohttp.ClientSession, text: str, tenant: str = "ann") -> int:
    headers = {"x-sooner-tenant": tenant}
    async with http.post("/v1/chat/completions", json=chat(text), headers=headers) as response:
        await response.read()
        return response.status


def test_a_bad_request_is_sent_once_and_switches_nothing_off() -> None:
    async def test() -> None:
        async with (
            Engine().serving() as one,
            rig([one.url], policy="fcfs") as gateway,
            client(gateway) as http,
        ):
            [backend] = gateway.dispatcher.backends
            assert await ask(http, "good") == 200
            for n in range(10):
                assert await ask(http, f"bad {n}") == 400
            assert len(one.bodies) <= 1 + 10 + 1  # the first may have been for its priority
            assert await ask(http, "tricky", "bob") == 200  # refused, then served: for its priority, it seems
            assert backend.hand_on
            assert await ask(http, "good", "cem") == 200
            assert "priority" in one.bodies[-1]
            assert await ask(http, "good") == 200
            assert "priority" in one.bodies[-1]

    run(test)


def test_replies_that_break_off_for_one_tenant_close_no_engine_to_others() -> None:
    async def test() -> None:
        one = Engine()
        async with one.serving(), rig([one.url]) as gateway, client(gateway) as http:
            [backend] = gateway.dispatcher.backends
            for n in range(4):
                assert await ask(http, f"cut {n}", "bob") == 502
                assert backend.accepts(time.monotonic())
            assert await ask(http, "good") == 200
            for tenant in ("bob", "cem"):  # three in a row, of two tenants: it is the engine
                assert await ask(http, "cut", tenant) in (502, 503)
            assert backend.breaker.until > 0.0

    run(test)


def test_after_a_restart_an_engine_is_asked_anew() -> None:
    async def test() -> None:
        one = Engine(takes_priority=False)
        async with one.serving():
            gateway_rig = rig([one.url], policy="fcfs")
            gateway = await gateway_rig.__aenter__()
        try:
            [backend] = gateway.dispatcher.backends
            async with client(gateway) as http:
                async with one.serving():
                    await until(lambda: backend.accepts(0.0), 20)
                    for tenant in ("ann", "bob"):
                        assert await ask(http, "good", tenant) == 200
                    assert not backend.hand_on
                await until(lambda: not backend.healthy, 20)
                one.takes_priority = True
                async with one.serving():
                    await until(lambda: backend.healthy, 20)
                    assert backend.hand_on
                    assert await ask(http, "good") == 200
                    assert "priority" in one.bodies[-1]
        finally:
            await gateway_rig.__aexit__(None, None, None)

    run(test, 60)


def test_llamacpp_says_how_many_it_runs_and_a_missing_gauge_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        one = Engine({"/props": {"total_slots": 4}, "/metrics": None})
        async with one.serving(), rig([one.url], backend={"kind": "llamacpp"}) as gateway:
            [backend] = gateway.dispatcher.backends
            assert backend.limit == backend.window.potential == 4
            for _ in range(3):
                await backend.check(hungry=True)
            said = [record.message for record in caplog.records if "--metrics" in record.message]
            assert len(said) == 1
            assert "llamacpp:requests_deferred" in said[0]
            one.pages["/metrics"] = "llamacpp:requests_deferred 0\nprocess_start_time_seconds 1\n"
            await backend.check(hungry=True)
            one.pages["/props"] = {"total_slots": 6}
            one.pages["/metrics"] = "llamacpp:requests_deferred 0\nprocess_start_time_seconds 2\n"
            await backend.check(hungry=True)  # another process, between two checks
            assert backend.limit == 6
        for odd in ({"total_slots": "4"}, {"total_slots": 0}, [], "no JSON", None):
            one.pages["/props"] = odd
            async with one.serving(), rig([one.url], backend={"kind": "llamacpp"}) as gateway:
                assert gateway.dispatcher.backends[0].limit == 16
        one.pages["/props"] = {"total_slots": 4}
        async with one.serving(), rig([one.url], backend={"kind": "llamacpp", "max_in_flight": 9}) as gateway:
            assert gateway.dispatcher.backends[0].limit == 9

    caplog.set_level(logging.WARNING, "sooner.gateway")
    run(test)
