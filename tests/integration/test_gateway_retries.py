"""What is tried again, and what never: a request may not take one engine after the other with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from gateway_rig import chat, client, engine, raw, rig, run

from sooner.core import EngineError
from sooner.gateway.admission import reading
from sooner.gateway.app import Gateway
from sooner.gateway.engines.connections import Unreachable
from sooner.gateway.settings import LimitSettings
from sooner.gateway.visit import Visit

Reply = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def counted(reply: Reply) -> tuple[Reply, list[bytes]]:
    """Return a reply and the bodies that it was asked for."""
    seen: list[bytes] = []

    async def counting(body: bytes, writer: asyncio.StreamWriter) -> None:
        seen.append(body)
        await reply(body, writer)

    return counting, seen


async def silent(body: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def dies_of_some(body: bytes, writer: asyncio.StreamWriter) -> None:
    if b"deadly" not in body:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


async def busy(body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")


@pytest.mark.parametrize(("engines", "prefills"), [(1, 1), (2, 2), (4, 2)])
def test_a_timeout_is_never_tried_again_where_it_was(engines: int, prefills: int) -> None:
    async def test() -> None:
        reply, seen = counted(silent)
        limits = LimitSettings(first_byte=0.3, retries=5)
        async with contextlib.AsyncExitStack() as stack:
            urls = [await stack.enter_async_context(raw(reply)) for _ in range(engines)]
            gateway = await stack.enter_async_context(rig(urls, limits=limits))
            http = await stack.enter_async_context(client(gateway))
            async with http.post("/v1/chat/completions", json=chat()) as response:
                assert response.status == 502
            assert len(seen) == prefills
            assert all(one.in_flight == 0 for one in gateway.dispatcher.backends)

    run(test)


@pytest.mark.parametrize(
    ("kind", "fails", "status", "sent"),
    [("ray", 1, 200, 2), ("ray", 5, 500, 2), ("openai", 1, 500, 1)],
)
def test_what_a_replica_died_under_is_sent_once_more(kind: str, fails: int, status: int, sent: int) -> None:
    """Ray's ingress says 500 where a replica died, and has others; elsewhere 500 is the engine's answer."""
    died = b'{"error":{"message":"The actor died unexpectedly before finishing this task."}}'

    async def replica(body: bytes, writer: asyncio.StreamWriter) -> None:
        answer, line = (died, b"500 Oops") if len(seen) <= fails else (b"{}", b"200 OK")
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (line, len(answer), answer))

    reply, seen = counted(replica)

    async def test() -> None:
        async with raw(reply) as url, rig([url], backend={"kind": kind}) as gateway:
            async with client(gateway) as http, http.post("/v1/chat/completions", json=chat()) as response:
                assert response.status == status
                assert (await response.read() == died) == (status == 500)
            assert len(seen) == sent
            assert gateway.dispatcher.backends[0].in_flight == 0
            assert gateway.dispatcher.counters.counts["retries"] == sent - 1

    run(test)


def test_a_deadly_request_kills_two_engines_and_no_third() -> None:
    async def test() -> None:
        reply, seen = counted(dies_of_some)
        async with contextlib.AsyncExitStack() as stack:
            urls = [await stack.enter_async_context(raw(reply)) for _ in range(4)]
            gateway = await stack.enter_async_context(rig(urls, limits=LimitSettings(retries=5)))
            http = await stack.enter_async_context(client(gateway))
            async with http.post("/v1/chat/completions", json=chat("deadly")) as response:
                assert response.status == 502
            assert len(seen) == 2
            async with http.post("/v1/chat/completions", json=chat("good")) as response:
                assert response.status == 200

    run(test)


def visit(gateway: Gateway, id: str) -> Visit:
    asked = reading.read(b'{"model":"m"}', client_scores=False, deadline_ms=None)
    return gateway.dispatcher.arrive(id, "t", 0, asked, 0.0)


def test_retries_are_a_share_of_the_traffic() -> None:
    async def test() -> None:
        limits, few = LimitSettings(retry_share=0.25), {"max_in_flight": 8}
        async with rig([engine(), engine()], limits=limits, backend=few) as gateway:
            dispatcher, retries = gateway.dispatcher, gateway.proxy.delivery.retries
            backend, said = dispatcher.backends[0], EngineError("it says 503")
            visits = [visit(gateway, f"{n}") for n in range(30)]
            assert [retries.may(one, backend, said) for one in visits[:18]] == [True] * 16 + [False] * 2
            assert dispatcher.counters.counts["retries_refused"] == 2
            assert retries.may(visits[18], backend, Unreachable("nobody listens"))
            for _ in range(8):
                retries.came()
            assert [retries.may(one, backend, said) for one in visits[19:22]] == [True, True, False]
            for one in visits:
                dispatcher.leave(one)

    run(test)


def test_an_engines_own_refusal_is_handed_on_once_the_budget_is_spent() -> None:
    async def test() -> None:
        async with raw(busy) as url, rig([url, engine()]) as gateway, client(gateway) as http:
            gateway.proxy.delivery.retries._spent = 1e9
            answers = set()
            for _ in range(6):
                async with http.post("/v1/chat/completions", json=chat()) as response:
                    answers.add((response.status, (await response.read())[:4]))
            assert (503, b"busy") in answers
            assert gateway.dispatcher.counters.counts["retries"] == 0

    run(test)
