"""What goes wrong around the gateway: nothing hangs, is lost, or looks whole when it is not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from gateway_rig import chat, client, engine, events, raw, rig, run, until

from sooner.emulator.engine import Lengths
from sooner.gateway.settings import LimitSettings, QueueSettings

DEAD = "http://127.0.0.1:9"  # the discard port: nobody listens


async def cut_mid_stream(body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "half"}, "finish_reason": null}]}\n\n'
    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
    await writer.drain()


async def cut_before(body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Ty")


async def cut_after_head(body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(0.1)


async def garbage(body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x16\x03\x01 not http at all\r\n\r\n")


async def nothing(body: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def busy(body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")


FAULTS = {
    "cut": cut_before,
    "cut after the head": cut_after_head,
    "garbage": garbage,
    "silent": nothing,
    "busy": busy,
}


@pytest.mark.parametrize("fault", [*FAULTS, "refuses"])
def test_before_the_first_byte_another_engine_serves(fault: str) -> None:
    async def test() -> None:
        async with contextlib.AsyncExitStack() as stack:
            bad = DEAD if fault == "refuses" else await stack.enter_async_context(raw(FAULTS[fault]))
            limits = LimitSettings(first_byte=0.4)
            gateway = await stack.enter_async_context(rig([bad, engine()], limits=limits))
            http = await stack.enter_async_context(client(gateway))
            for n in range(4):
                async with http.post("/v1/chat/completions", json=chat(f"{n}")) as response:
                    assert response.status == 200
                    assert (await response.json())["usage"]["completion_tokens"] == 5
            assert all(one.in_flight == 0 for one in gateway.dispatcher.backends)

    run(test)


@pytest.mark.parametrize("fault", FAULTS)
def test_with_one_engine_a_fault_is_a_clean_error(fault: str) -> None:
    async def test() -> None:
        limits = LimitSettings(first_byte=0.3, retries=1)
        async with raw(FAULTS[fault]) as bad, rig([bad], limits=limits) as gateway, client(gateway) as http:
            response = await http.post("/v1/chat/completions", json=chat())
            assert response.status == (503 if fault == "busy" else 502)
            if fault == "busy":
                assert await response.read() == b"busy"
            else:
                assert (await response.json())["error"]["code"] == "engine_failed"

    run(test)


def test_an_engine_too_busy_for_a_health_check_is_given_three() -> None:
    busy = False

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if busy and head.startswith(b"GET"):
            await reader.read()  # until the other side gives up
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        writer.close()

    async def test() -> None:
        nonlocal busy
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with rig([url]) as gateway, client(gateway) as http:
                [backend] = gateway.dispatcher.backends
                busy = True
                await until(lambda: backend._missed == 1, 20)
                async with http.post("/v1/chat/completions", json=chat()) as response:
                    assert response.status == 200
                await until(lambda: not backend.healthy, 20)

    run(test, 60)


def test_no_engine_up_is_said_at_once() -> None:
    async def test() -> None:
        async with rig([DEAD]) as gateway, client(gateway) as http:
            async with http.post("/v1/chat/completions", json=chat()) as response:
                assert response.status == 503
                assert response.headers["Retry-After"] == "5"
            async with http.get("/ready") as response:
                assert response.status == 503

    run(test)


def test_a_cut_stream_is_an_error_and_never_a_normal_end() -> None:
    async def test() -> None:
        async with raw(cut_mid_stream) as bad, rig([bad, engine()]) as gateway, client(gateway) as http:
            gateway.dispatcher.backends[1].draining = True
            async with http.post("/v1/chat/completions", json=chat(stream=True)) as response:
                body = await response.content.readuntil(b"}]}\n\n")
                body += await response.content.readuntil(b"}}\n\n")
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()
            told = events(body)
            assert told[0]["choices"][0]["delta"]["content"] == "half"
            assert told[-1]["error"]["code"] == "engine_failed"
            assert "[DONE]" not in told
            assert gateway.dispatcher.counters.counts["cut_streams"] == 1
            assert gateway.dispatcher.counters.counts["retries"] == 0

    run(test)


def test_an_engine_that_stalls_between_tokens_is_given_up() -> None:
    async def stall(body: bytes, writer: asyncio.StreamWriter) -> None:
        await cut_mid_stream(body, writer)
        await asyncio.sleep(30)

    async def test() -> None:
        limits = LimitSettings(between_bytes=0.5)
        async with raw(stall) as bad, rig([bad], limits=limits) as gateway, client(gateway) as http:
            response = await http.post("/v1/chat/completions", json=chat(stream=True))
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()

    run(test)


def test_a_client_that_half_closes_and_reads_nothing_frees_the_engine() -> None:
    """Its connection closes only once the last byte has gone, which is never; the engine is free before."""
    sent = 0

    async def endless(body: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await cut_mid_stream(body, writer)
        while True:
            writer.write(b"10000\r\n%b\r\n" % (b"x" * 0x10000))
            await writer.drain()
            sent += 1

    async def test() -> None:
        async with raw(endless) as url, rig([url]) as gateway:
            host, port = gateway.url.removeprefix("http://").split(":")
            body = json.dumps(chat(stream=True)).encode()
            backend = gateway.dispatcher.backends[0]
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
                sock.connect((host, int(port)))
                head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                sock.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                before = -1
                while before < sent or not sent:  # until all the buffers between them are full
                    before = sent
                    await asyncio.sleep(0.3)
                assert backend.in_flight == 1
                sock.shutdown(socket.SHUT_WR)
                await until(lambda: backend.in_flight == 0)

    run(test)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/completions HTTP/1.1\r\nHo", None])
def test_a_client_that_sends_slowly_is_closed(sent: bytes | None) -> None:
    async def test() -> None:
        limits = LimitSettings(head_time=0.3, body_time=0.3)
        async with rig([engine()], limits=limits) as gateway:
            host, port = gateway.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
            writer.write(head if sent is None else sent)
            reply = await asyncio.wait_for(reader.read(200), 10)
            assert reply == b"" if sent is not None else reply.startswith(b"HTTP/1.1 400")
            writer.close()

    run(test)


def test_too_much_is_refused() -> None:
    async def test() -> None:
        limits = LimitSettings(max_body=1000, max_header=2000)
        async with rig([engine()], limits=limits) as gateway, client(gateway) as http:
            async with http.post("/v1/chat/completions", json=chat("x" * 2000)) as response:
                assert response.status == 413
            async with http.get("/v1/models", headers={"X-Long": "x" * 4000}) as response:
                assert response.status == 400
            async with http.get("/v1/../metrics") as response:
                assert response.status in (200, 403, 404)
            async with http.post("/v1/load_lora_adapter", json={}) as response:
                assert response.status == 403

    run(test)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def test() -> None:
        one = engine(
            lengths=Lengths("20"), iteration_s=0.02
        )  # slow, so that what a busy machine adds is little
        queue = QueueSettings(max_waiting=4)
        async with rig([one], backend={"max_in_flight": 1}, queue=queue) as gateway, client(gateway) as http:
            async with http.post("/v1/chat/completions", json=chat()) as response:
                await response.read()  # from this it knows how long such a request takes

            async def ask() -> tuple[int, float]:
                async with http.post("/v1/chat/completions", json=chat()) as response:
                    await response.read()
                    return response.status, float(response.headers.get("retry-after-ms", 0))

            began = time.monotonic()
            answers = await asyncio.gather(*(ask() for _ in range(12)))
            took = (time.monotonic() - began) * 1000
            assert [status for status, _ in answers].count(200) == 5
            told = [wait for status, wait in answers if status == 503]
            assert len(told) == 7
            assert all(took / 4 < wait < took * 4 for wait in told)

    run(test)


def test_deadlines_are_kept_first_and_hopeless_ones_told() -> None:
    async def test() -> None:
        one = engine(lengths=Lengths("50"), iteration_s=0.004)
        async with (
            rig([one], backend={"max_in_flight": 1}, policy="fcfs") as gateway,
            client(gateway) as http,
        ):
            async with http.post("/v1/chat/completions", json=chat()) as response:
                await response.read()
            done: list[str] = []

            async def ask(name: str, deadline: str | None) -> int:
                headers = {"x-sooner-deadline-ms": deadline} if deadline else {}
                async with http.post("/v1/chat/completions", json=chat(name), headers=headers) as response:
                    await response.read()
                    done.append(name)
                    return response.status

            tasks = [asyncio.create_task(ask(f"plain{n}", None)) for n in range(4)]
            await until(lambda: gateway.dispatcher.queued == 3)
            tasks.append(asyncio.create_task(ask("urgent", "4000")))
            tasks.append(asyncio.create_task(ask("hopeless", "50")))
            statuses = await asyncio.gather(*tasks)
            assert statuses == [200, 200, 200, 200, 200, 503]
            assert done.index("urgent") <= 2
            assert done.index("hopeless") <= 1

    run(test)


def test_position_and_eta_while_waiting_are_for_the_tenant_only() -> None:
    async def test() -> None:
        one = engine(lengths=Lengths("100000"))
        async with (
            rig([one], backend={"max_in_flight": 1}, policy="fcfs") as gateway,
            client(gateway) as http,
        ):
            tasks = [
                asyncio.create_task(
                    http.post("/v1/chat/completions", json=chat(), headers={"X-Request-Id": f"r{n}"})
                )
                for n in range(3)
            ]
            await until(lambda: gateway.dispatcher.queued == 2)
            states = []
            for n in range(3):
                async with http.get(f"/sooner/v1/requests/r{n}") as response:
                    states.append(await response.json())
            assert [state["state"] for state in states] == ["running", "waiting", "waiting"]
            assert [state["position"] for state in states[1:]] == [1, 2]
            async with http.get("/sooner/v1/requests/r1", headers={"x-sooner-tenant": "other"}) as response:
                assert response.status == 404
            for task in tasks:
                task.cancel()
            await until(lambda: not gateway.dispatcher.waiting)

    run(test)


def test_a_scorer_that_dies_holds_nobody_up() -> None:
    async def test() -> None:
        async with rig([engine()], ranker="no.such.module:Ranker") as gateway, client(gateway) as http:
            for _ in range(3):
                async with http.post("/v1/chat/completions", json=chat()) as response:
                    assert response.status == 200

    run(test)


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `sooner serve` in a process of its own; give it and its URL."""
    command = [sys.executable, "-m", "sooner", "serve", "--port", "0", "--ranker", "", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(b"serving "):
                yield process, line.split()[1].decode().removesuffix("/v1")
                break
        else:
            raise AssertionError("sooner serve did not start")
    finally:
        process.kill()
        process.communicate()


def test_sigterm_finishes_what_waits_and_runs(tmp_path: Path) -> None:
    async def ask(url: str, process: subprocess.Popen[bytes]) -> list[int]:
        async with aiohttp.ClientSession(url) as http:
            tasks = [asyncio.create_task(_status(http)) for _ in range(8)]
            await asyncio.sleep(1.0)
            process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*tasks)

    options = ("--emulate", "llama3-8b-a100", "--lengths", "150", "--journal", str(tmp_path / "j.db"))
    with serving(*options) as (process, url):
        assert asyncio.run(ask(url, process)) == [200] * 8
        assert process.wait(20) == 0
    assert rows(tmp_path / "j.db") == 8


async def _status(http: aiohttp.ClientSession) -> int:
    async with http.post("/v1/chat/completions", json={**chat(), "model": "llama3-8b-a100"}) as response:
        await response.read()
        return response.status


def test_after_kill_9_the_journal_is_whole(tmp_path: Path) -> None:
    async def ask(url: str) -> list[int]:
        async with aiohttp.ClientSession(url) as http:
            found = [await _status(http) for _ in range(3)]
            await asyncio.sleep(2.0)  # longer than the half second between two batches
            return found

    options = ("--emulate", "llama3-8b-a100", "--lengths", "2", "--journal", str(tmp_path / "j.db"))
    with serving(*options) as (process, url):
        assert asyncio.run(ask(url)) == [200] * 3
        os.kill(process.pid, signal.SIGKILL)
    assert rows(tmp_path / "j.db") == 3
    with serving(*options) as (process, url):
        assert asyncio.run(ask(url)) == [200] * 3
    assert rows(tmp_path / "j.db") == 6


def rows(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        count: int = database.execute("SELECT count(*) FROM sooner_requests WHERE status = 200").fetchone()[0]
        return count


def test_json_of_errors_is_openais() -> None:
    async def test() -> None:
        async with rig([engine()]) as gateway, client(gateway) as http:
            response = await http.post("/v1/completions", data=b"[1]")
            error = json.loads(await response.read())["error"]
            assert set(error) == {"message", "type", "param", "code"}
            response = await http.get("/v1/models/a%0Ab")  # a line break is in a name as in any other
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "model_not_found"

    run(test)
