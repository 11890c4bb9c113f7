"""What a replay keeps of each request: one JSONL line, and `Completed` columns made of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sooner import metrics
from sooner.core import Completed, DataError, columns
from sooner.workloads.jsonl import read_jsonl


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One request of a replay. Times are seconds from the start of the replay, lengths are tokens.

    `arrival_time` is when it was due, `sent_time` when it left. A request with an `error` keeps
    whatever was seen of it before. `itl` holds each gap between pieces of output [s]. `attached` is
    what was added to the request's body. `forced`: the length was set by the workload. `start_time`,
    the steps and the preemptions come from the engine's own trace.
    """

    index: int
    id: str | int
    request_id: str
    seed: int
    arrival_time: float
    sent_time: float | None = None
    first_token_time: float | None = None
    finish_time: float | None = None
    prompt_len: int | None = None
    output_len: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    forced: bool = False
    attached: Mapping[str, Any] = field(default_factory=dict)
    itl: Sequence[float] = ()
    start_time: float | None = None
    arrival_step: int | None = None
    first_scheduled_step: int | None = None
    first_token_step: int | None = None
    finish_step: int | None = None
    preemptions: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the whole reply came, so that the request can be measured."""
        return self.error is None and self.finish_time is not None and self.output_len is not None

    @property
    def schedule_delay(self) -> float:
        """Seconds between when the request was due and when it left; 0 where it never left."""
        return 0.0 if self.sent_time is None else self.sent_time - self.arrival_time

    def completed(self) -> Completed:
        """Return the record as `Completed`; what was not observed is NaN, or -1 for a step."""

        def step(value: int | None) -> int:
            return -1 if value is None else value

        def seen(value: float | None) -> float:
            return float("nan") if value is None else value

        return Completed(
            id=self.index,
            arrival_time=self.arrival_time,
            first_token_time=seen(self.first_token_time),
            finish_time=seen(self.finish_time),
            prompt_len=seen(self.prompt_len),
            output_len=seen(self.output_len),
            start_time=seen(self.start_time),
            preemptions=self.preemptions or 0,
            truncated=int(self.finish_reason == "length" and not self.forced),
            arrival_step=step(self.arrival_step),
            first_token_step=step(self.first_token_step),
            finish_step=step(self.finish_step),
        )


class Run(NamedTuple):
    """One replay read back: its settings and its records."""

    meta: dict[str, Any]
    records: list[Record]


def completed(records: Iterable[Record]) -> Completed:
    """Return the finished ones among `records` as columns of shape (n,)."""
    return columns(record.completed() for record in records if record.finished)


def summary(records: Sequence[Record]) -> dict[str, float]:
    """Return `metrics.summary` of the finished requests, with gaps, steps, failures and delays.

    Raises DataError when no request finished.
    """
    done = completed(records)
    gaps = np.array([gap for record in records if record.finished for gap in record.itl])
    steps = np.asarray(done.finish_step)
    result = metrics.summary(done)
    if gaps.size:
        result |= {"p50_itl_s": float(np.median(gaps)), "p99_itl_s": float(np.percentile(gaps, 99))}
    if steps.size and (steps >= 0).all():
        result["mean_e2e_steps"] = float(np.mean(metrics.e2e_steps(done)))
        result["mean_normalized_steps"] = float(np.mean(metrics.normalized_steps(done)))
    result["capped_share"] = float(np.mean(done.truncated))
    result["failed"] = sum(not record.finished for record in records)
    result["max_schedule_delay_s"] = max(record.schedule_delay for record in records)
    return {name: value for name, value in result.items() if np.isfinite(value)}


def to_line(record: Record) -> str:
    """Return the record as one JSON line; times to the microsecond, what is None left out."""
    line = {name: value for name, value in dataclasses.asdict(record).items() if value is not None}
    for name in ("arrival_time", "sent_time", "start_time", "first_token_time", "finish_time"):
        if name in line:
            line[name] = round(line[name], 6)
    line["itl"] = [round(gap, 6) for gap in record.itl]
    return json.dumps(line, ensure_ascii=False) + "\n"


def write_run(path: Path, run: Run) -> None:
    """Write the records to `path` and the settings to its side file, `x.meta.json` for `x.jsonl`."""
    path.write_text("".join(to_line(record) for record in run.records), encoding="utf-8")
    write_meta(path, run.meta)


def write_meta(path: Path, meta: Mapping[str, Any]) -> None:
    """Write the settings of the run at `path` to its side file."""
    meta_path(path).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def read_run(path: Path) -> Run:
    """Read a run back; without its side file the settings are empty. Raises DataError."""
    known = {item.name for item in dataclasses.fields(Record)}
    records = []
    for number, line in read_jsonl(path):
        try:
            records.append(Record(**{name: value for name, value in line.items() if name in known}))
        except TypeError as error:
            raise DataError(f"{path}:{number}: not a record of a replay: {error}") from error
    side = meta_path(path)
    try:
        meta = json.loads(side.read_text(encoding="utf-8")) if side.exists() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {str(side)!r}: {error}") from error
    return Run(meta, records)


def meta_path(path: Path) -> Path:
    """Return the side file of a JSONL file: `x.jsonl` has `x.meta.json`."""
    return path.with_name(path.name.removesuffix(".jsonl") + ".meta.json")
