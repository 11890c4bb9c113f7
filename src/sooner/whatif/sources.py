"""Where served traffic is kept: a plugin's trace, a gateway's journal, or the journal's export."""

from __future__ import annotations

import itertools
from pathlib import Path

from sooner.core import DataError
from sooner.sim.cost import Engine
from sooner.whatif.journal import read_journal
from sooner.whatif.served import ServedTraffic
from sooner.whatif.trace import read_trace
from sooner.workloads.jsonl import read_jsonl


def read(
    source: str,
    policy: str | None = None,
    *,
    engine: Engine | None = None,
    most: int = 20_000,
    since: float = 0.0,
    last_order: bool = False,
) -> ServedTraffic:
    """Return what `source` says was served, in `policy` order where it does not say so itself.

    `engine` stands in for what would be fitted, or taken from a trace's steps. With `last_order` a journal's
    requests are those since the order last changed; a trace has one order. Raises DataError.
    """
    if not _is_trace(source):
        return read_journal(source, policy, engine=engine, most=most, since=since, last_order=last_order)
    served = read_trace(Path(source), policy, since=since)
    return served if engine is None else served._replace(engine=engine, paced=not engine.approximate)


def _is_trace(source: str) -> bool:
    path = Path(source)
    if "://" in source or path.suffix in (".db", ".sqlite", ".sqlite3"):
        return False
    if not path.is_file():
        raise DataError(
            f"no file {source!r}; allowed: a trace, an export (JSONL), or a journal (sqlite:///FILE)"
        )
    with path.open("rb") as file:
        if file.read(16).startswith(b"SQLite format 3"):
            return False
    return any("finish_step" in line for _, line in itertools.islice(read_jsonl(path, torn=True), 1))
