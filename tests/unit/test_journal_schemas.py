"""Journals of every version there was are read, written on and asked by what is installed now."""

from __future__ import annotations

import io
import json
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from sooner.core import DataError
from sooner.gateway.database import REQUESTS, VERSION, Database
from sooner.gateway.journal import export, latest
from sooner.whatif.sources import read

FIRST = """
CREATE TABLE sooner_requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id VARCHAR(64) NOT NULL, tenant VARCHAR(64) NOT NULL,
    model VARCHAR(256) NOT NULL, backend VARCHAR(256) NOT NULL, arrival_time FLOAT NOT NULL,
    wait FLOAT NOT NULL, first_byte FLOAT NOT NULL, total FLOAT NOT NULL, prompt_len INTEGER NOT NULL,
    output_len INTEGER NOT NULL, counted BOOLEAN NOT NULL, status INTEGER NOT NULL, stream BOOLEAN NOT NULL,
    max_tokens INTEGER NOT NULL, score FLOAT, predicted_len FLOAT, prompt TEXT)
"""
THIRD = ("temperature FLOAT", "tools INTEGER", "structured BOOLEAN", "messages TEXT")


def journal(path: Path, version: int, rows: int = 30) -> str:
    """Write a journal as that version did; return its URL."""
    made = sqlite3.connect(path)
    with made:
        made.execute("CREATE TABLE sooner_version (version INTEGER NOT NULL)")
        made.execute(FIRST)
        for number in range(version):
            made.execute("INSERT INTO sooner_version VALUES (?)", (number + 1,))
        if version >= 2:
            made.execute("CREATE INDEX sooner_requests_arrival ON sooner_requests (arrival_time)")
        if version >= 3:
            for column in THIRD:
                made.execute(f"ALTER TABLE sooner_requests ADD COLUMN {column}")
        for n in range(rows):
            made.execute(
                "INSERT INTO sooner_requests (id, tenant, model, backend, arrival_time, wait, first_byte,"
                " total, prompt_len, output_len, counted, status, stream, max_tokens, prompt)"
                " VALUES (?, 't', 'm', 'b', ?, 0.5, 0.1, 2.0, 10, 20, 1, 200, 1, 0, 'p')",
                (f"r{n}", 1e9 + n),
            )
    made.close()
    return f"sqlite:///{path}"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_journal_of_each_version_is_brought_up_and_read(version: int, tmp_path: Path) -> None:
    url = journal(tmp_path / "old.db", version)
    database = Database(url)
    assert [row["id"] for row in latest(database, 3)] == ["r27", "r28", "r29"]
    out = io.StringIO()
    assert export(database, out) == (30, 0)
    assert json.loads(out.getvalue().splitlines()[0])["prompt"] == "p"
    with database.begin() as connection:
        assert connection.execute(sa.select(sa.func.max(VERSION.c.version))).scalar() == 5
        known = {column["name"] for column in sa.inspect(connection).get_columns(REQUESTS.name)}
        assert known == {column.name for column in REQUESTS.c}
        row = dict(connection.execute(sa.select(REQUESTS)).mappings().first() or {})
        connection.execute(REQUESTS.insert(), [{**row, "number": None, "id": "new", "policy": "boost"}])
    assert [row["policy"] for row in latest(database, 2)] == [None, "boost"]
    database.close()


def test_a_journal_served_in_two_orders_is_not_taken_for_one(tmp_path: Path) -> None:
    url = journal(tmp_path / "old.db", 3)
    database = Database(url)
    latest(database, 1)
    with database.begin() as connection:
        for policy, half in (("boost", 15), ("fcfs", 30)):
            unsaid = REQUESTS.c.policy.is_(None)
            connection.execute(
                REQUESTS.update().where(unsaid, REQUESTS.c.number <= half).values(policy=policy)
            )
    database.close()
    with pytest.raises(DataError, match=r"several orders \(boost, fcfs\)"):
        read(url)
