"""Policies x loads x seeds in parallel processes; what is done is kept, so a sweep can be resumed."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sooner.core import ConfigError, DataError
from sooner.sim.study import Study, run
from sooner.workloads.build import Shape
from sooner.workloads.jsonl import read_jsonl

Progress = Callable[[int, int], None]
Row = dict[str, Any]


def cases(
    base: Study,
    policies: Sequence[str],
    seeds: int,
    *,
    rates: Sequence[float] = (),
    loads: Sequence[float] = (),
    taus: Sequence[float] = (),
) -> list[Study]:
    """Return every combination; no rates means the base's own arrivals. Oracle-fed policies have no tau."""
    if seeds < 1 or not policies:
        raise ConfigError(f"{len(policies)} policies, {seeds} seeds; allowed: at least 1 of each")
    arrivals: list[tuple[Shape, float | None]] = [
        (dataclasses.replace(base.shape, rate=rate), None) for rate in rates
    ]
    arrivals += [(base.shape, load) for load in loads]
    qualities: Sequence[float | None] = taus or [None]
    found = []
    for policy, (shape, load), tau, seed in itertools.product(
        policies, arrivals or [(base.shape, base.load)], qualities, range(seeds)
    ):
        told = None if dataclasses.replace(base, policy=policy, tau=None).order.oracle else tau
        study = dataclasses.replace(
            base, policy=policy, shape=shape, load=load, tau=told, seed=base.seed + seed
        )
        if study not in found:
            found.append(study)
    return found


def sweep(
    studies: Sequence[Study], out: Path, *, processes: int = 1, progress: Progress | None = None
) -> list[Row]:
    """Run what `out` (JSONL, a line a case) does not hold yet; return the rows of all studies, in order.

    A line is appended when its case ends, so what is interrupted goes on where it stopped. Raises
    DataError where `out` holds something else.
    """
    if processes < 1:
        raise ConfigError(f"processes={processes}, allowed: at least 1")
    keys = [key(study) for study in studies]
    known = _read(out)
    todo = [(name, study) for name, study in zip(keys, studies, strict=True) if name not in known]
    ended = len(studies) - len(todo)
    with out.open("a", encoding="utf-8") as file:
        for name, row in _run_all(todo, processes):
            known[name] = row
            file.write(json.dumps({"case": name, **row}) + "\n")
            file.flush()
            ended += 1
            if progress is not None:
                progress(ended, len(studies))
    return [known[name] for name in keys]


def key(study: Study) -> str:
    """Return the name of a case: equal names are equal simulations."""
    return json.dumps(dataclasses.asdict(study), sort_keys=True)


def _run_all(todo: Sequence[tuple[str, Study]], processes: int) -> Iterator[tuple[str, Row]]:
    if processes == 1 or len(todo) < 2:
        for name, study in todo:
            yield name, _row(study)
        return
    with ProcessPoolExecutor(min(processes, len(todo)), mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_row, study): name for name, study in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _row(study: Study) -> Row:
    return {"tau": study.tau, "load": study.load, "given_rate": study.shape.rate, **run(study)}


def _read(out: Path) -> dict[str, Row]:
    """Return the rows of an earlier sweep by case; a last line that was cut off is dropped from the file."""
    if not out.exists():
        return {}
    text = out.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        out.write_text(whole, encoding="utf-8")
    rows: dict[str, Row] = {}
    for number, row in read_jsonl(out):
        if "case" not in row:
            raise DataError(f"{out}:{number} is not what a sweep writes; allowed: another --out")
        rows[row.pop("case")] = row
    return rows


def averages(rows: Iterable[Row], measure: str) -> list[tuple[str, str, float | None, float, int]]:
    """Return (policy, arrivals, tau, mean of `measure` over seeds, how many) of each combination."""
    groups: dict[tuple[str, str, float | None], list[float]] = {}
    for row in rows:
        if row.get(measure) is not None:
            groups.setdefault((row["policy"], _arrivals(row), row["tau"]), []).append(float(row[measure]))
    return [(*group, sum(values) / len(values), len(values)) for group, values in groups.items()]


def _arrivals(row: Row) -> str:
    if row["load"] is not None:
        return f"load {row['load']:g}"
    return "-" if row["given_rate"] is None else f"{row['given_rate']:g}/s"
