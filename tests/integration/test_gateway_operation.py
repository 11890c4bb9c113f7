"""Running it: settings read again, clocks that jump, slow clients, databases that go away, PostgreSQL."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from gateway_rig import chat, client, engine, rig, run, until
from test_gateway_faults import serving

from sooner.emulator.engine import Lengths
from sooner.gateway.admission.keys import KeyBook
from sooner.gateway.database import KEYS, REQUESTS, VERSION, Database
from sooner.gateway.journal import export
from sooner.gateway.settings import JournalSettings, LimitSettings, QueueSettings

Server = tuple[subprocess.Popen[bytes], str]
POSTGRES = os.environ.get("SOONER_TEST_POSTGRES", "")


@asynccontextmanager
async def beside(server: AbstractContextManager[Server]) -> AsyncIterator[Server]:
    """Start a server without holding up the engines that run in this loop."""
    yield await asyncio.to_thread(server.__enter__)
    await asyncio.to_thread(server.__exit__, None, None, None)


def test_sighup_reads_the_settings_again_and_drops_nothing(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"

    def write(*urls: str, more: str = "") -> None:
        backends = "".join(f'[[backend]]\nurl = "{url}"\nkind = "vllm"\n' for url in urls)
        config.write_text(f"{more}{backends}")

    async def models(http: aiohttp.ClientSession) -> list[str]:
        async with http.get("/v1/models") as response:
            return [card["id"] for card in (await response.json())["data"]]

    async def test() -> None:
        old, new = engine(model="old", lengths=Lengths("400")), engine(model="new")
        async with old.serving(), new.serving():
            write(old.url)
            async with (
                beside(serving("--config", str(config))) as (process, url),
                aiohttp.ClientSession(url) as http,
            ):
                assert await models(http) == ["old"]
                streamed = await http.post("/v1/chat/completions", json=chat(model="old", stream=True))
                await streamed.content.readany()
                write(new.url, more="this is no TOML\n")
                process.send_signal(signal.SIGHUP)
                await asyncio.sleep(0.5)
                assert await models(http) == ["old"]  # wrong settings are not taken
                write(new.url, more='aliases = { best = "new" }\n')
                process.send_signal(signal.SIGHUP)
                async with asyncio.timeout(10):
                    while "best" not in await models(http):
                        await asyncio.sleep(0.05)
                async with http.post("/v1/chat/completions", json=chat(model="best")) as response:
                    assert response.status == 200
                assert (await streamed.content.read()).endswith(b"data: [DONE]\n\n")
                async with asyncio.timeout(10):
                    while "old" in await models(http):
                        await asyncio.sleep(0.05)

    run(test, 60)


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_wall_clock_that_jumps_changes_nothing(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        one = engine(lengths=Lengths("100"))
        queue = QueueSettings(max_wait=20.0)
        async with rig([one], backend={"max_in_flight": 1}, queue=queue) as gateway, client(gateway) as http:
            headers = {"x-sooner-deadline-ms": "15000"}
            tasks = [
                asyncio.create_task(http.post("/v1/chat/completions", json=chat(f"{n}"), headers=headers))
                for n in range(4)
            ]
            await until(lambda: gateway.dispatcher.queued == 3)
            real = time.time
            monkeypatch.setattr(time, "time", lambda: real() + jump)
            for response in await asyncio.gather(*tasks):
                assert response.status == 200
                assert 0.0 <= float(response.headers["x-sooner-wait-ms"]) < 15_000

    run(test)


def test_after_a_machine_slept_those_who_waited_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        one = engine(lengths=Lengths("100000"))
        async with rig([one], backend={"max_in_flight": 1}) as gateway, client(gateway) as http:
            running = asyncio.create_task(http.post("/v1/chat/completions", json=chat(stream=True)))
            await until(lambda: gateway.dispatcher.backends[0].in_flight == 1)
            waiting = asyncio.create_task(http.post("/v1/chat/completions", json=chat("next")))
            await until(lambda: gateway.dispatcher.queued == 1)
            awake = gateway.dispatcher.clock
            monkeypatch.setattr(gateway.dispatcher, "clock", lambda: awake() + 3600.0)
            response = await waiting
            assert response.status == 503
            assert (await response.json())["error"]["code"] == "wait_too_long"
            (await running).close()

    run(test)


@pytest.mark.parametrize("where", ["head", "body"])
def test_a_client_that_drips_is_closed_all_the_same(where: str) -> None:
    """A byte now and then renews no patience: the bound is on the whole head, and on the whole body."""

    async def test() -> None:
        limits = LimitSettings(head_time=0.5, body_time=0.5)
        async with rig([engine()], limits=limits) as gateway:
            host, port = gateway.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            writer.write(head + (b"\r\n" if where == "body" else b"X-Slow: "))
            reading = asyncio.create_task(reader.read(200))
            began = time.monotonic()
            while not reading.done():
                writer.write(b"x")
                await asyncio.sleep(0.1)
                assert time.monotonic() - began < 10
            writer.close()
            assert (await reading)[:12] == (b"HTTP/1.1 400" if where == "body" else b"")

    run(test)


def test_a_database_that_vanishes_while_serving_holds_nobody_up(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    url = f"sqlite:///{folder / 'journal.db'}"

    async def test() -> None:
        async with (
            rig([engine()], journal=JournalSettings(url=url)) as gateway,
            client(gateway) as http,
        ):
            counts = gateway.dispatcher.counters.counts
            for n in range(2):
                async with http.post("/v1/chat/completions", json=chat()) as response:
                    assert response.status == 200
                if n == 0:
                    await until(lambda: (folder / "journal.db").exists(), 10)
                    await asyncio.sleep(1.0)
                    shutil.rmtree(folder)
                    folder.write_text("no folder any more")
            await until(lambda: counts["journal_failures"] > 0, 10)
            async with http.post("/v1/chat/completions", json=chat()) as response:
                assert response.status == 200
            folder.unlink()
            folder.mkdir()

    run(test, 60)
    assert len(rows_of(url)) == 2  # those that came after it had gone; they waited for it


def rows_of(url: str) -> list[str]:
    """Return the journal, a line for each request."""
    out, database = io.StringIO(), Database(url)
    export(database, out, text=False)
    database.close()
    return out.getvalue().splitlines()


def test_a_row_that_no_database_takes_does_not_end_the_journal(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'journal.db'}"

    async def test() -> None:
        async with (
            rig([engine()], journal=JournalSettings(url=url, prompts=True)) as gateway,
            client(gateway) as http,
        ):
            odd = {**chat(), "max_tokens": 10**30}
            odd["messages"] = [{"role": "user", "content": "lone \ud800 surrogate, and \x00"}]
            for body in (odd, chat("plain")):
                headers = {"Content-Type": "application/json", "x-sooner-tenant": "caf\udce9"}
                async with http.post(
                    "/v1/chat/completions", data=json.dumps(body).encode(), headers=headers
                ) as response:
                    assert response.status == 200

    run(test)
    out = io.StringIO()
    assert export(Database(url), out) == (2, 0)
    assert "plain" in out.getvalue()


@pytest.mark.skipif(not POSTGRES, reason="SOONER_TEST_POSTGRES names no PostgreSQL database (a URL)")
def test_journal_and_keys_in_postgresql() -> None:
    database = Database(POSTGRES)
    with database.begin() as connection:
        for table in (REQUESTS, KEYS, VERSION):
            table.drop(connection, checkfirst=True)
    database.close()
    book = KeyBook(Database(POSTGRES))
    key = book.add("search")

    async def test() -> None:
        settings = JournalSettings(url=POSTGRES, prompts=True)
        async with rig([engine()], journal=settings, keys=POSTGRES) as gateway, client(gateway) as http:
            http.headers["Authorization"] = f"Bearer {key}"
            for prompt in ("one", "two \x00 \ud800", "three"):
                data = json.dumps(chat(prompt)).encode()
                async with http.post(
                    "/v1/chat/completions", data=data, headers={"Content-Type": "application/json"}
                ) as response:
                    assert response.status == 200

    run(test)
    out = io.StringIO()
    written = Database(POSTGRES)
    assert export(written, out)[0] == 3
    written.close()
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [row["tenant"] for row in rows] == ["search"] * 3
    assert rows[2]["messages"][0]["content"] == "three"
    book.revoke(book.all()[0].id)
    book.read()
    assert book.tenant(key) is None
    book.close()


def test_the_sqlite_journal_survives_a_second_reader(tmp_path: Path) -> None:
    """The journal is in WAL mode: who reads it, as `sooner export` does, locks no writer out."""
    path = tmp_path / "journal.db"

    async def test() -> None:
        async with (
            rig([engine()], journal=JournalSettings(url=f"sqlite:///{path}")) as gateway,
            client(gateway) as http,
        ):
            async with http.post("/v1/chat/completions", json=chat()) as response:
                assert response.status == 200
            await until(path.exists, 10)
            await asyncio.sleep(1.0)
            reader = sqlite3.connect(path, isolation_level=None)
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM sooner_requests").fetchone() == (1,)
            async with http.post("/v1/chat/completions", json=chat()) as response:
                assert response.status == 200
            await asyncio.sleep(1.5)
            assert gateway.dispatcher.counters.counts["journal_failures"] == 0
            reader.close()

    run(test)
    out = io.StringIO()
    assert export(Database(str(path)), out, text=False)[0] == 2
