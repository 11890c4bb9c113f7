"""What an operator does: starts, reloads, stops; and what is said where it cannot be done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from gateway_rig import chat, client, engine, rig, run, until
from test_gateway_faults import serving

from sooner.cli import root
from sooner.core import ConfigError, DataError
from sooner.emulator.engine import Lengths
from sooner.gateway.admission.keys import KeyBook
from sooner.gateway.database import Database
from sooner.gateway.settings import BackendSettings, GatewaySettings, JournalSettings, LimitSettings

DEAD = "http://127.0.0.1:9"


def made_by_a_newer_one(path: Path) -> str:
    database = Database(str(path))
    database.open()
    database.close()
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO sooner_version VALUES (99)")
    connection.close()
    return f"sqlite:///{path}"


def test_a_journal_of_a_newer_version_is_refused_at_the_start(tmp_path: Path) -> None:
    journal = JournalSettings(url=made_by_a_newer_one(tmp_path / "journal.db"))

    async def test() -> None:
        with pytest.raises(ConfigError, match="version 99, allowed: at most"):
            async with rig([engine()], journal=journal):
                pytest.fail("it serves")

    run(test)


def test_a_journal_that_becomes_a_newer_one_loses_no_row(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = JournalSettings(url=f"sqlite:///{path}")

    async def test() -> None:
        async with rig([engine()], journal=journal) as gateway, client(gateway) as http:
            counts = gateway.dispatcher.counters.counts
            made_by_a_newer_one(path)
            assert gateway._journal is not None
            gateway._journal._database._ready = False  # as after a file that was gone for a while
            async with http.post("/v1/chat/completions", json=chat()) as response:
                assert response.status == 200
            await until(lambda: counts["journal_failures"] > 0)
            assert counts["journal_lost"] == 0
            assert len(gateway._journal._waiting) == 1

    run(test)


def test_databases_are_their_owners_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        book = KeyBook(Database(str(tmp_path / "keys.db")))
        book.add("tenant")
        for path in tmp_path.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        book.close()
    finally:
        os.umask(before)


def test_a_database_that_others_could_read_is_closed_to_them_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.db"
    KeyBook(Database(str(path))).add("tenant")
    beside = tmp_path / "keys.db-wal"
    beside.touch()
    path.chmod(0o644)
    beside.chmod(0o664)
    book = KeyBook(Database(str(path)))
    assert [key.tenant for key in book.all()] == ["tenant"]
    book.close()
    for one in tmp_path.iterdir():
        assert stat.S_IMODE(one.stat().st_mode) == 0o600, one
    assert "keys.db could be read by other users (0644)" in caplog.text


def test_what_is_anothers_is_neither_changed_nor_read_as_an_empty_database(tmp_path: Path) -> None:
    """It gave a folder and any file the rights of a database, made tables in others', and said 0 requests."""
    text, folder, theirs = tmp_path / "notes.txt", tmp_path / "folder", tmp_path / "theirs.db"
    text.write_text("what I did today")
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(theirs)) as made:
        made.execute("CREATE TABLE mine (a)")
        made.commit()
    held = {path: (stat.S_IMODE(path.stat().st_mode), path.is_file() and path.read_bytes())
            for path in (text, folder, theirs)}  # fmt: skip
    for path in (text, folder):
        with pytest.raises(ConfigError, match="no database of SQLite"):
            KeyBook(Database(str(path))).add("tenant")
    for path in (text, theirs):
        for command in (["export", str(path)], ["keys", "list", "--database", str(path)]):
            told = CliRunner().invoke(root, command)
            assert isinstance(told.exception, DataError), command
            assert "holds nothing of sooner's" in str(told.exception)
    for path, (mode, content) in held.items():
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert (path.is_file() and path.read_bytes()) == content


def test_a_mistyped_path_of_keys_makes_no_database(tmp_path: Path) -> None:
    typo = tmp_path / "kyes.db"

    async def test() -> None:
        with pytest.raises(DataError, match=r"kyes\.db.*sooner keys add"):
            async with rig([engine()], keys=str(typo)):
                pytest.fail("it serves")

    run(test)
    assert not typo.exists()


@pytest.mark.parametrize("ranker", ["/nonexistent", "no_such_module:Ranker", "no.such.module:Ranker"])
def test_a_ranker_that_is_not_there_is_one_line(ranker: str) -> None:
    command = [sys.executable, "-m", "sooner", "serve", "--backend", DEAD, "--port", "0", "--ranker", ranker]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("sooner: ")
    assert ranker in done.stderr


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "sooner", "serve", "--backend", DEAD, "--ranker", "", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert port in done.stderr.splitlines()[-1]


def test_the_second_interrupt_ends_at_once() -> None:
    async def test() -> None:
        one = engine(lengths=Lengths("100000"))
        async with one.serving():
            with_server = serving("--backend", f"vllm={one.url}", "--ranker", "")
            process, url = await asyncio.to_thread(with_server.__enter__)
            try:
                host, port = url.removeprefix("http://").split(":")
                _, writer = await asyncio.open_connection(host, int(port))
                body = b'{"model":"m","prompt":"x","stream":true,"max_tokens":90000}'
                head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"
                writer.write(head % len(body) + body)
                await until(lambda: bool(one.emulator.running), 30)
                process.send_signal(signal.SIGINT)
                while True:  # until it takes nothing new: the first was heard
                    try:
                        _, other = await asyncio.open_connection(host, int(port))
                    except OSError:
                        break
                    other.close()
                    await asyncio.sleep(0.05)
                assert process.poll() is None
                process.send_signal(signal.SIGINT)
                assert await asyncio.to_thread(process.wait, 30) == 130
                writer.close()
            finally:
                process.kill()
                await asyncio.to_thread(process.wait)
                await asyncio.to_thread(with_server.__exit__, None, None, None)

    run(test, 90)


def test_a_reload_takes_keys_and_bounds_and_says_what_it_leaves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    key, admin = tmp_path / "engine.key", tmp_path / "admin.key"
    key.write_text("old")
    admin.write_text("boss")

    async def test() -> None:
        async with engine().serving() as one:
            backend = BackendSettings(url=one.url, kind="vllm", key_file=str(key))
            async with rig([], backends=(backend,), admin_key_file=str(admin)) as gateway:
                [serving] = gateway.dispatcher.backends
                key.write_text("new")
                admin.write_text("another")
                limits = LimitSettings(max_body=1000, head_time=3.0, first_byte=77.0, connect=2.0)
                new = replace(gateway.settings, limits=limits, port=9, policy="fcfs")
                gateway.reload(lambda: new)
                assert gateway.dispatcher.backends == [serving]
                assert b"Bearer new" in serving.head
                assert serving.connections._timeout == 2.0
                assert gateway.proxy.client.limits.first_byte == 77.0
                async with client(gateway) as http:
                    for given, status in (("boss", 401), ("another", 200)):
                        auth = {"Authorization": f"Bearer {given}"}
                        async with http.get("/sooner/v1/admin/backends", headers=auth) as response:
                            assert response.status == status
                assert "not taken until the next start: port, policy, limits.max_body" in caplog.text
                key.unlink()
                gateway.reload(lambda: replace(new, port=0))
                assert "were not taken: cannot read key_file" in caplog.text
                assert b"Bearer new" in serving.head
                gateway.reload(lambda: GatewaySettings(ranker=""))
                assert "they name no engine" in caplog.text
                assert gateway.dispatcher.backends == [serving]

    run(test)
