"""Work and memory before admission: nothing is read, inflated, kept or logged beyond its bound."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import zlib
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import chat, client, engine, rig, run, until
from test_gateway_endpoints import Recorder

from sooner.gateway.admission import bodies
from sooner.gateway.admission.keys import KeyBook
from sooner.gateway.app import Gateway
from sooner.gateway.database import Database
from sooner.gateway.settings import LimitSettings, TenantSettings

CHAT = "/v1/chat/completions"


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


async def connected(gateway: Gateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = gateway.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("X-GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
    ],
)
def test_a_packed_body_reaches_the_engine_unpacked_and_without_a_label(coding: str, pack: Any) -> None:
    async def test() -> None:
        one = Recorder("m")
        async with one.serving(), rig([one.url]) as gateway, client(gateway) as http:
            body = json.dumps(chat("x" * 5000)).encode()
            async with http.post(CHAT, data=pack(body), headers={"Content-Encoding": coding}) as response:
                assert response.status == 200
            ((_, _, headers, sent),) = one.seen
            assert json.loads(sent)["messages"] == chat("x" * 5000)["messages"]
            assert "Content-Encoding" not in headers

    run(test)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "gzip,identity", "compress", "x" * 9000])
def test_another_coding_is_a_415_in_json(coding: str) -> None:
    async def test() -> None:
        async with rig([engine()]) as gateway, client(gateway) as http:
            response = await http.post(CHAT, data=b"\x00\x01", headers={"Content-Encoding": coding})
            assert response.status == 415
            error = (await response.json())["error"]
            assert error["code"] == "unsupported_encoding"
            assert len(error["message"]) < 200

    run(test)


@pytest.mark.parametrize(
    "packed",
    [b"nonsense", gzip.compress(b"{}")[:-4], gzip.compress(b"{}") + b"more", gzip.compress(b"{}") * 2],
    ids=["none", "cut", "more", "twice"],
)
def test_a_broken_packed_body_is_refused(packed: bytes) -> None:
    async def test() -> None:
        async with rig([engine()]) as gateway, client(gateway) as http:
            response = await http.post(CHAT, data=packed, headers={"Content-Encoding": "gzip"})
            assert response.status == 400

    run(test)


def test_a_bomb_is_not_inflated_without_a_key_and_bounded_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = KeyBook(Database(f"sqlite:///{tmp_path}/keys.db"))
    key = book.add("t")
    book.close()
    bomb = gzip.compress(bytes(200_000_000), compresslevel=1)
    inflated: list[int] = []
    real = bodies.inflate

    def inflate(body: bytes, coding: str, most: int) -> bytes:
        inflated.append(len(body))
        return real(body, coding, most)

    monkeypatch.setattr(bodies, "inflate", inflate)

    async def test() -> None:
        keys = f"sqlite:///{tmp_path}/keys.db"
        async with rig([engine()], keys=keys) as gateway, client(gateway) as http:
            packed = {"Content-Encoding": "gzip"}
            async with http.post(
                CHAT, data=bomb, headers={"Authorization": "Bearer x", **packed}
            ) as response:
                assert response.status == 401
            assert inflated == []
            good = {"Authorization": f"Bearer {key}", **packed}
            async with http.post(CHAT, data=bomb, headers=good) as response:
                assert response.status == 413
            assert inflated == [len(bomb)]
            await until(lambda: gateway.proxy._bodies.held == 0)

    run(test)


def test_who_is_over_the_limit_is_told_before_the_body_comes() -> None:
    async def test() -> None:
        tenants = (TenantSettings(name="default", requests_per_minute=1),)
        async with rig([engine()], tenants=tenants) as gateway, client(gateway) as http:
            async with http.post(CHAT, json=chat()) as response:
                assert response.status == 200
            reader, writer = await connected(gateway)
            writer.write(
                f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n".encode()
            )
            assert (await reader.readline()).startswith(b"HTTP/1.1 429")
            writer.close()

    run(test)


def test_a_body_too_large_is_told_before_it_comes() -> None:
    async def test() -> None:
        async with rig([engine()]) as gateway:
            reader, writer = await connected(gateway)
            writer.write(
                f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n".encode()
            )
            assert (await reader.readline()).startswith(b"HTTP/1.1 413")
            writer.close()

    run(test)


def test_all_bodies_share_one_budget_and_each_tenant_has_its_part() -> None:
    async def test() -> None:
        limits = LimitSettings(held_bytes=300_000, max_body=100_000)
        tenants = (TenantSettings(name="a", queue_share=0.4), TenantSettings(name="b"))
        options: dict[str, Any] = {"limits": limits, "tenants": tenants}
        async with rig([engine(iteration_s=30.0)], **options) as gateway, client(gateway) as http:

            async def ask(tenant: str) -> tuple[int, str]:
                named = {"x-sooner-tenant": tenant}
                async with http.post(CHAT, json=chat("x" * 70_000), headers=named) as response:
                    return response.status, (await response.json())["error"]["code"]

            kept = [asyncio.create_task(ask("a"))]
            held = gateway.proxy._bodies
            await until(lambda: held.held > 70_000)
            assert await ask("a") == (503, "too_many_bytes")  # its part is 120,000
            for n in range(3):
                kept.append(asyncio.create_task(ask(f"other-{n}")))
                await until(lambda n=n: held.held > 70_000 * (n + 2))
            assert await ask("b") == (503, "too_many_bytes")
            assert gateway.dispatcher.counters.counts["refused_bytes"] == 2
            for task in kept:
                task.cancel()
            await asyncio.gather(*kept, return_exceptions=True)
            await until(lambda: held.held == 0)
            assert held._of == {}

    run(test)


@pytest.mark.parametrize("field", ["model", "class", "path", "deadline", "model_id"])
def test_no_answer_repeats_a_long_value(field: str) -> None:
    async def test() -> None:
        long = "x" * 1_000_000
        async with rig([engine()]) as gateway, client(gateway) as http:
            body = chat(model=long) if field == "model" else chat()
            short = long[:8000]
            named = {"class": {"x-sooner-class": short}, "deadline": {"x-sooner-deadline-ms": short}}
            path = {"path": f"/v1/{short}", "model_id": f"/v1/models/{short}"}.get(field, CHAT)
            method = "GET" if field == "model_id" else "POST"
            response = await http.request(method, path, json=body, headers=named.get(field, {}))
            assert len(await response.read()) < 600

    run(test)


def test_strangers_are_bounded_and_make_room_for_each_other() -> None:
    async def test() -> None:
        limits = LimitSettings(strangers=20)
        async with rig([engine()], limits=limits) as gateway, client(gateway) as http:
            async with http.post(CHAT, json=chat()) as response:
                assert response.status == 200
            counts = gateway.dispatcher.counters.counts
            opened = [await connected(gateway) for _ in range(60)]
            await until(lambda: counts["strangers_closed"] >= 40)
            assert counts["strangers_closed"] == 40
            async with http.post(CHAT, json=chat()) as response:  # the one that is known is still there
                assert response.status == 200
            reader, writer = opened[-1]  # and so is the last that came
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            for _, one in opened:
                one.close()

    run(test)


def test_what_is_no_http_is_one_short_line(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with rig([engine()]) as gateway:
            counts = gateway.dispatcher.counters.counts
            for n in range(30):
                reader, writer = await connected(gateway)
                writer.write(b"POST /x HTTP/1.1\r\nBad\x00Header: " + b"x" * 5000 + b"\r\n\r\n")
                await reader.read()
                writer.close()
                await until(lambda n=n: counts["malformed"] == n + 1)

    with caplog.at_level(logging.DEBUG):
        run(test)
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1
    assert told[0].exc_info is None
    assert len(told[0].getMessage()) < 400
