"""The journal: every finished request, written in batches by a thread of its own.

Serving never waits for it: when the database is slow or gone, rows wait in memory up to a bound,
and what does not fit is counted and dropped.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, TextIO

import sqlalchemy as sa

from sooner.chat import ChatRequest
from sooner.core import ConfigError
from sooner.gateway.database import REQUESTS, Database, Unavailable
from sooner.gateway.delivery.context import Finished
from sooner.ordering.counters import Counters

logger = logging.getLogger("sooner.gateway")

_BATCH = 500
_EVERY = 0.5  # seconds between two batches
_PAUSE = 5.0  # seconds until the next try after a failure
_MOST_WAITING = 20_000
_TRIM_EVERY = 100  # batches


class Journal:
    """Writes finished requests; `prompts` keeps their text, `max_rows` bounds the table."""

    def __init__(self, database: Database, *, prompts: bool, max_rows: int, counters: Counters) -> None:
        self._database = database
        self._prompts = prompts
        self._max_rows = max_rows
        self._counters = counters
        self._waiting: deque[dict[str, Any]] = deque()
        self._batches = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sooner-journal", daemon=True)
        self._thread.start()

    def add(self, record: Finished, policy: str | None = None) -> None:
        """Take in a finished request and the order that held; returns at once."""
        if len(self._waiting) >= _MOST_WAITING:
            self._counters.warn("journal_lost", "the journal is far behind; a request is not written")
            return
        self._waiting.append({**_row(record, self._prompts), "policy": policy})

    def open(self) -> None:
        """Open the database; one that cannot be reached now may come. Raises ConfigError: a newer version."""
        try:
            self._database.open()
        except Unavailable as error:
            self._counters.warn("journal_failures", "requests wait to be written: %s", error)

    def close(self) -> None:
        """Write what is left, if the database takes it, and stop."""
        self._stop.set()
        self._thread.join(timeout=10)
        self._database.close()

    def _run(self) -> None:
        while not self._stop.wait(_EVERY):
            if not self._flush():
                self._stop.wait(_PAUSE)
        self._flush()
        if self._waiting:
            self._counters.add("journal_lost", len(self._waiting))

    def _flush(self) -> bool:
        """Write all that waits; False where the database fails, and then it waits on."""
        while self._waiting:
            batch = [self._waiting[n] for n in range(min(_BATCH, len(self._waiting)))]
            try:
                with self._database.begin() as connection:
                    connection.execute(REQUESTS.insert(), batch)
                    if self._batches % _TRIM_EVERY == 0:
                        self._trim(connection)
            except (Unavailable, ConfigError) as error:  # gone, or of a newer version
                self._counters.warn("journal_failures", "requests wait to be written: %s", error)
                return False
            except Exception as error:  # a row that no database takes must not hold up those behind it
                self._counters.warn("journal_lost", "requests cannot be written: %r", error)
                self._counters.add("journal_lost", len(batch) - 1)
            self._batches += 1
            for _ in batch:
                self._waiting.popleft()
        return True

    def _trim(self, connection: sa.Connection) -> None:
        last = connection.execute(sa.select(sa.func.max(REQUESTS.c.number))).scalar() or 0
        connection.execute(REQUESTS.delete().where(REQUESTS.c.number <= last - self._max_rows))


def _row(record: Finished, prompts: bool) -> dict[str, Any]:
    said = record.asked.request.signals
    return {
        "id": record.id,
        "tenant": _plain(record.tenant),
        "model": _plain(record.asked.model[:256]),
        "backend": record.backend,
        "arrival_time": record.arrival,
        "wait": record.wait,
        "first_byte": record.first_byte,
        "total": record.total,
        "prompt_len": record.prompt_len,
        "output_len": record.output_len,
        "counted": record.counted,
        "status": record.status,
        "stream": record.asked.stream,
        "max_tokens": said.max_tokens or 0,
        "temperature": said.temperature,
        "tools": said.tools,
        "structured": said.structured,
        "sender": record.sender or None,
        "template": record.template or None,
        "score": record.score,
        "predicted_len": record.predicted_len,
        **(_asked(record.asked.request) if prompts else {"prompt": None, "messages": None}),
    }


def _asked(request: ChatRequest) -> dict[str, str | None]:
    """Return the columns that hold a text, or messages as JSON."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return {"prompt": _plain(prompt) or None, "messages": None}
    if request.tokenized:
        return {"prompt": None, "messages": None}
    messages = [{"role": turn.role, "content": _plain(turn.text)} for turn in request.turns]
    return {"prompt": None, "messages": json.dumps(messages, ensure_ascii=False)}


def _plain(text: str) -> str:
    """Return text that every database takes: no NUL, no lone surrogates."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def export(
    database: Database, out: TextIO, *, since: float = 0.0, model: str | None = None, text: bool = True
) -> tuple[int, int]:
    """Write finished requests as JSON lines, oldest first; return how many, and how many without text.

    With `text` only those whose prompt was kept are written: `sooner train` reads them.
    """
    written = without = 0
    for row in _rows(database, since, model):
        prompt, messages = row.pop("prompt"), row.pop("messages")
        if prompt is None and messages is None:
            without += 1
            if text:
                continue
        said = {"prompt": prompt} if messages is None else {"messages": json.loads(messages)}
        out.write(json.dumps({**(said if text else {}), **row}, ensure_ascii=False) + "\n")
        written += 1
    return written, without


def latest(database: Database, most: int, since: float = 0.0) -> list[dict[str, Any]]:
    """Return the last `most` requests that ran, oldest first, without their text; cut ones too."""
    chosen = [column for column in REQUESTS.c if column.name not in ("prompt", "messages")]
    query = sa.select(*chosen).where(REQUESTS.c.arrival_time >= since, REQUESTS.c.output_len > 0)
    with database.begin() as connection:
        page = connection.execute(query.order_by(REQUESTS.c.number.desc()).limit(most)).mappings().all()
    return [dict(row) for row in reversed(page)]


def _rows(database: Database, since: float, model: str | None) -> Iterator[dict[str, Any]]:
    """Yield the requests that were served to their end, a page at a time."""
    after = 0
    while True:
        query = sa.select(REQUESTS).where(
            REQUESTS.c.number > after, REQUESTS.c.arrival_time >= since, REQUESTS.c.status == 200
        )
        if model is not None:
            query = query.where(REQUESTS.c.model == model)
        with database.begin() as connection:
            page = connection.execute(query.order_by(REQUESTS.c.number).limit(1000)).mappings().all()
        if not page:
            return
        after = page[-1]["number"]
        for row in page:
            yield {name: value for name, value in row.items() if name != "number"}
