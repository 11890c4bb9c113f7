"""Keys, the journal and limits: who may ask, how much, and what is written down."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
import time
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner
from gateway_rig import chat, client, engine, rig, run, until

from sooner.cli import root
from sooner.core import ConfigError
from sooner.emulator.engine import Lengths
from sooner.gateway.admission.keys import KeyBook
from sooner.gateway.database import Database, Unavailable
from sooner.gateway.journal import export
from sooner.gateway.settings import JournalSettings, TenantSettings
from sooner.workloads import logs, traces


def test_keys_open_the_gateway_and_revoked_ones_do_not(tmp_path: Path) -> None:
    book = KeyBook(Database(str(tmp_path / "keys.db")))
    good, bad = book.add("search"), book.add("search")
    book.revoke(book.all()[1].id)

    async def test() -> None:
        async with rig([engine()], keys=str(tmp_path / "keys.db")) as gateway, client(gateway) as http:
            for key, status in ((good, 200), (bad, 401), (good[:-1] + "x", 401), ("", 401)):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                async with http.post("/v1/chat/completions", json=chat(), headers=headers) as response:
                    assert response.status == status
            for path in ("/v1/models", "/v1/embeddings", "/sooner/v1/requests/x"):
                async with http.get(path) as response:
                    assert response.status == 401

    run(test)
    assert good not in (tmp_path / "keys.db").read_bytes().decode("latin-1")
    with pytest.raises(ConfigError, match="no good key"):
        book.revoke(book.all()[1].id)


def test_without_keys_no_web_page_and_no_other_host_is_served() -> None:
    async def test() -> None:
        async with rig([engine()]) as gateway, client(gateway) as http:
            for headers in (
                {"Host": "evil.example"},
                {"Host": "[::1"},
                {"Origin": "https://evil.example"},
                {"Origin": "null"},
            ):
                async with http.get("/v1/models", headers=headers) as response:
                    assert response.status == 403

    run(test)
    with pytest.raises(ConfigError, match="without keys"):
        run(lambda: rig([], host="0.0.0.0").__aenter__())


def test_the_admin_key_is_no_tenants(tmp_path: Path) -> None:
    (tmp_path / "admin").write_text("open-sesame\n")

    async def test() -> None:
        async with (
            rig([engine(), engine()], admin_key_file=str(tmp_path / "admin")) as gateway,
            client(gateway) as http,
        ):
            async with http.get("/sooner/v1/admin/backends") as response:
                assert response.status == 401
            http.headers["Authorization"] = "Bearer open-sesame"
            async with http.get("/sooner/v1/admin/backends") as response:
                names = [one["name"] for one in await response.json()]
            async with http.post(f"/sooner/v1/admin/backends/{names[0]}/drain") as response:
                assert (await response.json())["draining"]
            for _ in range(4):
                async with http.post("/v1/chat/completions", json=chat()) as response:
                    assert response.status == 200
            first, second = gateway.dispatcher.backends
            assert first.name == names[0]
            assert not first.sent._tokens
            assert second.sent._tokens

    run(test)


def test_limits_refuse_with_the_time_to_wait() -> None:
    async def test() -> None:
        tenants = (TenantSettings(name="a", requests_per_minute=2), TenantSettings(name="b"))
        async with rig([engine()], tenants=tenants) as gateway, client(gateway) as http:
            statuses = []
            for _ in range(3):
                async with http.post(
                    "/v1/chat/completions", json=chat(), headers={"x-sooner-tenant": "a"}
                ) as response:
                    statuses.append(response.status)
                    last = response.headers
            assert statuses == [200, 200, 429]
            assert 25 <= int(last["Retry-After"]) <= 31
            assert int(last["retry-after-ms"]) <= 30_000
            async with http.post(
                "/v1/chat/completions", json=chat(), headers={"x-sooner-tenant": "b"}
            ) as response:
                assert response.status == 200

    run(test)


def test_the_journal_is_what_training_reads(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'journal.db'}"

    async def test() -> None:
        async with (
            rig([engine()], journal=JournalSettings(url=url, prompts=True)) as gateway,
            client(gateway) as http,
        ):
            for prompt, stream in (("tell me a joke", False), ("list three colours", True)):
                body = chat(prompt, stream=stream, stream_options={"include_usage": True})
                async with http.post("/v1/chat/completions", json=body) as response:
                    await response.read()

    run(test)
    done = CliRunner().invoke(root, ["export", url, "--out", str(tmp_path / "log.jsonl")])
    assert done.exit_code == 0
    rows = logs.read(tmp_path / "log.jsonl").rows
    assert [row.messages[-1]["content"] for row in rows] == ["tell me a joke", "list three colours"]
    assert [row.output_len for row in rows] == [5, 5]
    for more in ((), ("--lengths-only",)):
        done = CliRunner().invoke(root, ["export", url, "--out", str(tmp_path / "log.jsonl"), *more])
        assert done.exit_code == 0
        trace = traces.read(tmp_path / "log.jsonl")
        assert trace.arrival_time is not None
        assert trace.output_len.tolist() == [5, 5]
        assert (trace.requests is None) == bool(more)


def test_prompts_are_not_kept_unless_asked_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'journal.db'}"

    async def test() -> None:
        async with rig([engine()], journal=JournalSettings(url=url)) as gateway, client(gateway) as http:
            response = await http.post("/v1/chat/completions", json=chat("a secret matter"))
            await response.read()

    run(test)
    assert b"secret" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    out = io.StringIO()
    assert export(Database(url), out, text=False) == (1, 1)
    row = json.loads(out.getvalue())
    assert row["output_len"] == 5
    assert row["status"] == 200
    assert CliRunner().invoke(root, ["export", url]).exception is not None
    kept = tmp_path / "log.jsonl"
    kept.write_text("what was there", encoding="utf-8")
    assert CliRunner().invoke(root, ["export", url, "--out", str(kept)]).exception is not None
    assert kept.read_text(encoding="utf-8") == "what was there"
    assert not list(tmp_path.glob("*.part"))


def test_a_locked_database_holds_nobody_up_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Database(str(path)).begin():
        pass
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")

    async def test() -> None:
        async with (
            rig([engine()], journal=JournalSettings(url=f"sqlite:///{path}")) as gateway,
            client(gateway) as http,
        ):
            began = time.monotonic()
            for _ in range(3):
                async with http.post("/v1/chat/completions", json=chat()) as response:
                    assert response.status == 200
            assert time.monotonic() - began < 3
            counts = gateway.dispatcher.counters.counts
            await until(lambda: counts["journal_failures"] > 0, 10)
            lock.execute("ROLLBACK")
            lock.close()

    run(test)
    out = io.StringIO()
    assert export(Database(str(path)), out, text=False)[0] == 3


def test_a_database_that_is_gone_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(Unavailable), Database(str(tmp_path / "no" / "such" / "folder" / "x.db")).begin():
        pass


def test_keys_by_the_command_line(tmp_path: Path) -> None:
    database = ["--database", str(tmp_path / "keys.db")]
    made = CliRunner().invoke(root, ["keys", "add", *database, "--tenant", "web", "--json"])
    key = json.loads(made.output)["key"]
    [listed] = json.loads(CliRunner().invoke(root, ["keys", "list", *database]).output)
    assert listed["tenant"] == "web"
    assert listed["id"] in key
    book = KeyBook(Database(str(tmp_path / "keys.db")))
    book.read()
    assert book.tenant(key) == "web"
    assert CliRunner().invoke(root, ["keys", "revoke", *database, listed["id"]]).exit_code == 0
    book.read()
    assert book.tenant(key) is None


@pytest.mark.parametrize("cut", [False, True])
def test_a_revoked_key_buys_no_place_and_runs_on_as_configured(cut: bool, tmp_path: Path) -> None:
    database = str(tmp_path / "keys.db")
    book = KeyBook(Database(database))
    ours, other = book.add("ours"), book.add("other")

    async def test() -> None:
        one, alone = engine(lengths=Lengths("100"), iteration_s=0.01), {"max_in_flight": 1}
        async with (
            rig([one], backend=alone, keys=database, cut_revoked=cut) as gateway,
            client(gateway) as http,
        ):
            assert gateway.keys is not None
            auth = {"Authorization": f"Bearer {ours}"}
            runs = await http.post("/v1/chat/completions", json=chat(stream=True), headers=auth)
            await runs.content.readany()
            waits = asyncio.ensure_future(
                http.post("/v1/chat/completions", json=chat(), headers={"x-api-key": ours})
            )
            served = asyncio.ensure_future(
                http.post("/v1/chat/completions", json=chat(), headers={"api-key": other})
            )
            await until(lambda: gateway.dispatcher.queued == 2)
            book.revoke(ours.split("-")[2])
            gateway.keys.read()
            if cut:
                gateway.proxy.cut_revoked()
                with pytest.raises(aiohttp.ClientPayloadError):
                    await runs.read()
            else:
                assert (await runs.read()).endswith(b"[DONE]\n\n")
            answer = await waits
            assert answer.status == 401
            assert (await answer.json())["error"]["code"] == "invalid_api_key"
            assert (await served).status == 200
            assert gateway.dispatcher.counters.counts["refused_key"] == 1 + cut

    run(test)
    book.close()
