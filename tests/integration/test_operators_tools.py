"""`sooner check`, `sooner doctor`, and what the gateway writes while it serves."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from gateway_rig import chat, client, engine, rig, run

from sooner.cli import root
from sooner.gateway import checks
from sooner.gateway.admission.keys import KeyBook
from sooner.gateway.database import Database
from sooner.gateway.logs import AccessLog, JsonLines, TextLines
from sooner.gateway.settings import BackendSettings, GatewaySettings, JournalSettings, TenantSettings


def states(found: list[checks.Finding]) -> dict[str, str]:
    """Return the worst state of each thing."""
    worst = (checks.OK, checks.WARNING, checks.ERROR)
    told: dict[str, str] = {}
    for one in found:
        told[one.what] = max(told.get(one.what, checks.OK), one.state, key=worst.index)
    return told


def test_all_is_well_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "admin").write_text("k" * 32)
    (tmp_path / "admin").chmod(0o600)
    url = f"sqlite:///{tmp_path}/keys.db"
    book = KeyBook(Database(url))
    book.add("search")
    book.close()

    async def test() -> None:
        async with engine().serving() as one:
            settings = GatewaySettings(
                port=0, ranker="light", keys=url, admin_key_file=str(tmp_path / "admin"),
                aliases={"best": "m"},
                backends=(BackendSettings(url=one.url, kind="vllm", name="a"),),
                journal=JournalSettings(url=f"sqlite:///{tmp_path}/journal.db"),
                tenants=(TenantSettings(name="search"),),
            )  # fmt: skip
            assert set(states(await checks.check(settings)).values()) == {checks.OK}
            assert not (tmp_path / "journal.db").exists()  # looked at, not made

    run(test)


def test_what_a_start_would_only_find_later_is_found(tmp_path: Path) -> None:
    (tmp_path / "admin").write_text("short")
    (tmp_path / "admin").chmod(0o644)

    async def test() -> None:
        async with engine().serving() as one:
            settings = GatewaySettings(
                port=0, ranker=str(tmp_path / "none"), keys=f"sqlite:///{tmp_path}/none.db",
                admin_key_file=str(tmp_path / "admin"), aliases={"best": "gone"},
                backends=(BackendSettings(url=one.url, kind="vllm", name="a", models=("other",)),),
                journal=JournalSettings(url=f"sqlite:///{tmp_path}/no/folder/journal.db"),
            )  # fmt: skip
            told = states(await checks.check(settings))
            for what in ("backend a", "alias best", "keys", "journal", "ranker"):
                assert told[what] == checks.ERROR, what
            assert told["admin key"] == checks.WARNING
            down = GatewaySettings(
                port=0, ranker="", backends=(BackendSettings(url="http://127.0.0.1:9", name="b"),)
            )
            assert states(await checks.check(down))["backend b"] == checks.ERROR

    run(test)


def test_check_as_a_command(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('port = 0\nranker = ""\n[[backend]]\nurl = "http://127.0.0.1:9"\nname = "b"\n')
    done = CliRunner().invoke(root, ["check", "--config", str(config), "--json"])
    assert done.exit_code == 1
    assert {"what": "ranker", "state": "ok", "words": "none"} in json.loads(done.stdout)
    config.write_text("prot = 0\n")
    wrong = CliRunner().invoke(root, ["check", "--config", str(config)])
    assert wrong.exit_code != 0
    assert "port" in str(wrong.exception)


def test_doctor_says_what_is_here() -> None:
    done = CliRunner().invoke(root, ["doctor", "--json"])
    assert done.exit_code == 0, done.output
    told = {row["what"]: row for row in json.loads(done.stdout)}
    assert told["sooner"]["state"] == "ok"
    assert "a score takes" in told["default ranker"]["words"]
    assert all(row["state"] in ("ok", "missing", "slow") for row in told.values())
    assert "default ranker" in CliRunner().invoke(root, ["doctor"]).stdout


def line(formatter: logging.Formatter, message: str, **fields: Any) -> str:
    made = logging.LogRecord("sooner.access", logging.INFO, "f", 1, message, (), None)
    made.fields = fields
    return formatter.format(made)


def test_a_stranger_cannot_write_a_line_of_the_log() -> None:
    hostile = "a\n2026-01-01 root: all is well\x1b[2J\u2028"
    told = line(JsonLines(), "request", tenant=hostile, request_id="r1")
    assert "\n" not in told
    assert json.loads(told)["tenant"] == hostile
    assert json.loads(told)["request_id"] == "r1"
    plain = line(TextLines("%(name)s: %(message)s"), "request", tenant=hostile)
    assert "\n" not in plain
    assert "\x1b" not in plain
    try:
        raise ValueError("x")
    except ValueError:
        failed = logging.LogRecord("l", logging.ERROR, "f", 1, "m", (), sys.exc_info())
    assert "ValueError: x" in json.loads(JsonLines().format(failed))["exception"]


def test_each_finished_request_has_a_line_until_there_are_too_many(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with rig([engine()], access_log=1000) as gateway, client(gateway) as http:
            for n in range(3):
                headers = {"x-request-id": f"r{n}"}
                async with http.post("/v1/chat/completions", json=chat(), headers=headers) as response:
                    await response.read()
            async with asyncio.timeout(5):
                while len(caplog.records) < 3:
                    await asyncio.sleep(0.01)

    with caplog.at_level(logging.INFO, "sooner.access"):
        run(test)
    written = [record.fields for record in caplog.records if record.name == "sooner.access"]  # type: ignore[attr-defined]
    assert [one["request_id"] for one in written] == ["r0", "r1", "r2"]
    assert all(one["status"] == 200 and one["output_tokens"] == 5 for one in written)


def test_the_lines_are_bounded_and_what_is_left_out_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = AccessLog(10, lambda: now[0])
    record: Any = type("Done", (), {
        "id": "r", "tenant": "t", "asked": type("A", (), {"model": "m"}), "backend": "b", "status": 200,
        "wait": 0.0, "first_byte": 0.0, "total": 0.0, "prompt_len": 1, "output_len": 1,
        "trace": "",
    })  # fmt: skip
    with caplog.at_level(logging.INFO, "sooner.access"):
        for _ in range(1000):
            log.add(record)
        assert (len(caplog.records), log.left_out) == (10, 990)
        now[0] = 1.0
        log.add(record)
    assert caplog.records[-1].fields["left_out"] == 990  # type: ignore[attr-defined]
    silent = AccessLog(0)
    silent.add(record)
    assert silent.left_out == 0
