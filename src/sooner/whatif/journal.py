"""A gateway's journal, or its export, as served traffic on the wall clock."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sooner.core import DataError
from sooner.sim.calibrate import calibrate, most_in_use
from sooner.sim.cost import Engine
from sooner.whatif.served import Columns, ServedRow, ServedTraffic, ample_blocks, columns, order_of
from sooner.workloads.jsonl import read_jsonl
from sooner.workloads.traces.engine_run import EngineRun

FIELDS = ("arrival_time", "wait", "first_byte", "total", "prompt_len", "output_len")
MOST_FITTED = 1500
"""Requests that an engine is fitted to: more hold its four numbers no better, and take longer."""


def read_journal(
    source: str,
    policy: str | None = None,
    *,
    engine: Engine | None = None,
    most: int = 20_000,
    since: float = 0.0,
    last_order: bool = False,
) -> ServedTraffic:
    """Return the last `most` requests since a Unix time of a journal (URL) or its export (JSONL).

    The engines behind the gateway are taken as one of all their slots. Without `engine` it is fitted to
    the first half of the requests, served in `policy` order. With `last_order` only those are taken that
    came after the order last changed. Raises DataError where nothing finished, or in several orders.
    """
    packed = Path(source).suffix in (".jsonl", ".gz")
    rows = list(_exported(Path(source)) if packed else _rows(source, most, since))
    rows = [row for row in rows if row["output_len"] > 0 and row["arrival_time"] >= since][-most:]
    if last_order:
        rows = since_last_change(rows)
    made = columns([_row(row) for row in rows], source)
    orders = {row["policy"] for row in rows if row.get("policy")}
    if policy is None and len(orders) > 1:
        raise DataError(
            f"{source!r} was served in several orders ({', '.join(sorted(orders))}); allowed: one, say which"
            " with --served, or cut the time with --since or --last-order"
        )
    served_by = order_of(policy or next(iter(orders), None))
    if engine is not None:
        backends = max(1, len({row["backend"] for row in rows}))
        return ServedTraffic(*made, _pooled(engine, backends), True, "wall", served_by)
    run = _run(made)
    slots, _ = most_in_use(run, 16)
    limits = Engine(max_num_seqs=max(slots, 1), max_num_batched_tokens=max(2048, slots))
    limits = dataclasses.replace(limits, num_blocks=ample_blocks(made.workload, limits.block_size))
    first = _run(made, min(max(len(rows) // 2, 8), MOST_FITTED))
    found = calibrate([first], limits, policy=served_by, find_overhead=True).engine
    return ServedTraffic(*made, found, not found.approximate, "wall", served_by)


def since_last_change(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those of the rows, in the order in which they ended, that came after the order last changed."""
    if not rows:
        return []
    last = rows[-1].get("policy")
    before = [row["arrival_time"] + row["total"] for row in rows if row.get("policy") != last]
    changed = max(before, default=-math.inf)
    return [row for row in rows if row["arrival_time"] >= changed]


def _pooled(engine: Engine, n: int) -> Engine:
    """Return n engines as one that does n times the work in an iteration."""
    a, b, c, d = engine.coefficients
    pooled = engine.with_coefficients(a, b / n, c / n, d / n)
    return dataclasses.replace(
        pooled,
        max_num_seqs=engine.max_num_seqs * n,
        max_num_batched_tokens=engine.max_num_batched_tokens * n,
        num_blocks=engine.num_blocks * n,
    )


def _run(made: Columns, n: int | None = None) -> EngineRun:
    rows = slice(0, n)
    length = made.predicted_len if made.predicts else np.full(len(made.workload), math.nan)
    score = made.score if made.predicts else length
    done = type(made.completed)(*(np.asarray(column)[rows] for column in made.completed[:7]))
    return EngineRun(made.workload.take(np.arange(len(made.workload))[rows]), done, score[rows], length[rows])


def _row(row: Mapping[str, Any]) -> ServedRow:
    start = row["arrival_time"] + row["wait"]
    seen = bool(row.get("stream", True)) and row["first_byte"] > 0
    return ServedRow(
        arrival=row["arrival_time"],
        start=start,
        first=start + row["first_byte"] if seen else math.nan,
        finish=row["arrival_time"] + row["total"],
        prompt_len=row["prompt_len"],
        cached_len=0,
        output_len=row["output_len"],
        score=math.nan if row.get("score") is None else row["score"],
        predicted_len=math.nan if row.get("predicted_len") is None else row["predicted_len"],
        tenant=row.get("tenant") or "default",
    )


def _exported(path: Path) -> Iterable[dict[str, Any]]:
    for number, row in read_jsonl(path, torn=True):
        if not all(isinstance(row.get(name), int | float) for name in FIELDS):
            raise DataError(
                f"{path}:{number}: lacks one of {', '.join(FIELDS)}; allowed: what sooner export writes"
            )
        yield row


def _rows(url: str, most: int, since: float) -> list[dict[str, Any]]:
    from sooner.gateway.database import Database
    from sooner.gateway.journal import latest

    database = Database(url)
    try:
        database.must_exist()
        return latest(database, most, since)
    finally:
        database.close()
