"""Places and debts: what was made is charged, and an engine that is done serves the next, whoever reads."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from gateway_rig import chat, client, engine, raw, rig, run, until

from sooner.emulator.engine import Lengths
from sooner.gateway.admission.limits import Limits
from sooner.gateway.app import Gateway
from sooner.gateway.settings import LimitSettings, TenantSettings

SIZE = 12 << 20  # bytes, more than the kernel keeps for a socket
PROMPT = "hello " * 20


async def big(body: bytes, writer: asyncio.StreamWriter) -> None:
    """An engine whose reply is done at once, and larger than what any socket holds."""
    reply = b"x" * SIZE
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(reply), reply))
    await writer.drain()


@contextmanager
def one_who_never_reads(gateway: Gateway) -> Iterator[socket.socket]:
    host, port = gateway.url.removeprefix("http://").split(":")
    body = json.dumps(chat()).encode()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sock.connect((host, int(port)))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        sock.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        yield sock


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_before_the_end_is_charged_what_was_made(stream: bool) -> None:
    async def test() -> None:
        one = engine(lengths=Lengths("40"), iteration_s=0.01)
        tenants = tuple(TenantSettings(name=name, tokens_per_minute=1e6) for name in ("stays", "leaves"))
        alone = {"max_in_flight": 1}
        async with rig([one], backend=alone, tenants=tenants) as gateway, client(gateway) as http:
            for tenant in ("stays", "leaves"):
                who = {"x-sooner-tenant": tenant}
                task = asyncio.ensure_future(
                    http.post("/v1/chat/completions", json=chat(PROMPT, stream=stream), headers=who)
                )
                if tenant == "stays":
                    await (await task).read()
                    continue
                await until(lambda: any(job.produced >= 36 for job in one.emulator.running))
                one.emulator.time_scale = 100.0  # its last tokens do not come before the client has gone
                if task.done():
                    task.result().close()
                task.cancel()
                await until(lambda: not gateway.dispatcher.waiting)
            await until(lambda: one.emulator.aborted == 1)
            spent = gateway.dispatcher.gate.limits._tokens
            made, whole = (1e6 - spent[tenant]._level for tenant in ("leaves", "stays"))
            assert (0.85 if stream else 0.5) * whole < made < (1.05 if stream else 2.0) * whole

    run(test)


def test_who_leaves_a_queue_is_charged_nothing() -> None:
    async def test() -> None:
        one = engine(lengths=Lengths("1000"), iteration_s=0.01)
        async with rig([one], backend={"max_in_flight": 1}) as gateway, client(gateway) as http:
            first = await http.post("/v1/chat/completions", json=chat(PROMPT, stream=True))
            before = dict(gateway.dispatcher.shares._counters)
            task = asyncio.ensure_future(
                http.post("/v1/chat/completions", json=chat(PROMPT), headers={"x-sooner-tenant": "other"})
            )
            await until(lambda: gateway.dispatcher.queued == 1)
            task.cancel()
            await until(lambda: not gateway.dispatcher.queued)
            assert gateway.dispatcher.shares._counters["other"] == before["default"]
            first.close()

    run(test)


def test_replies_that_nobody_reads_hold_no_place() -> None:
    async def test() -> None:
        limits, two = LimitSettings(client_bytes=2 * SIZE), {"max_in_flight": 2}
        async with raw(big) as url, rig([url], backend=two, limits=limits) as gateway:
            [backend] = gateway.dispatcher.backends
            for _ in range(6):
                with one_who_never_reads(gateway), one_who_never_reads(gateway):
                    await until(lambda: gateway.dispatcher.counters.counts["finished"] == 2)
                    assert backend.in_flight == 0
                    async with client(gateway) as http:
                        response = await http.post("/v1/chat/completions", json=chat())
                        assert len(await response.read()) == SIZE
                await until(lambda: not gateway.dispatcher.waiting)
                gateway.dispatcher.counters.counts["finished"] = 0
            assert not gateway.proxy.delivery.backlog._kept

    run(test)


@pytest.mark.parametrize("kept", [64 << 10, 2 * SIZE])
def test_a_client_that_does_not_read_is_closed_in_the_end(kept: int) -> None:
    """Whether its engine waits for it, or only its reply does."""

    async def test() -> None:
        limits = LimitSettings(client_time=0.5, client_bytes=kept)
        async with raw(big) as url, rig([url], limits=limits) as gateway:
            with one_who_never_reads(gateway):
                await until(lambda: gateway.dispatcher.counters.counts["slow_clients"] == 1)
            [backend] = gateway.dispatcher.backends
            assert backend.in_flight == 0
            assert gateway.dispatcher.counters.counts["cut_streams"] == 0
            assert gateway.dispatcher.counters.counts["client_gone"] == 0

    run(test)


def test_a_slow_client_is_no_fault_of_its_engine() -> None:
    async def test() -> None:
        limits = LimitSettings(between_bytes=0.3, client_bytes=64 << 10)
        async with raw(big) as url, rig([url], limits=limits) as gateway, client(gateway) as http:
            response = await http.post("/v1/chat/completions", json=chat())
            [connection] = gateway.proxy.client._active
            await until(lambda: connection.held_up(time.monotonic()) > 0.8)
            assert len(await response.read()) == SIZE
            assert gateway.dispatcher.counters.counts["upstream_errors"] == 0

    run(test)


def test_what_is_kept_for_slow_clients_is_bounded_over_all_of_them() -> None:
    async def test() -> None:
        limits = LimitSettings(client_bytes=1 << 20, client_time=30.0)
        async with raw(big) as url, rig([url]) as gateway:
            backlog = gateway.proxy.delivery.backlog
            backlog.limits = limits
            assert all(backlog.keeps(n, 1 << 20) for n in range(16))
            assert not backlog.keeps(16, 1)
            assert not backlog.keeps(0, (1 << 20) + 1)
            backlog.forget(3)
            assert backlog.keeps(16, 1 << 20)

    run(test)


def test_new_limits_forgive_no_debts() -> None:
    tenant = TenantSettings(name="a", tokens_per_minute=600.0, requests_per_minute=10.0)
    limits = Limits([tenant])
    assert limits.admit("a", 100.0, now=0.0) == 0.0
    limits.correct("a", 1100.0)
    limits.take([tenant])
    assert limits.admit("a", 100.0, now=0.0) == pytest.approx(70.0)
    limits.take([TenantSettings(name="a", tokens_per_minute=60.0), TenantSettings(name="b")])
    assert limits.admit("a", 60.0, now=0.0) == pytest.approx(660.0)
    limits.take([TenantSettings(name="a", tokens_per_minute=6000.0)])
    assert limits.admit("a", 100.0, now=0.0) == pytest.approx(7.0)
