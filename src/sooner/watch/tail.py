"""The end of a plugin's trace: who waits and runs now, and how the last requests fared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sooner.core import DataError
from sooner.metrics import kendall_tau
from sooner.watch.scrape import SHADOWS

_END = 1 << 20  # bytes that are read from the end of a file
LAST = 1000
FEWEST = 20


def look(trace: Path) -> dict[str, float]:
    """Return the last step's counts and the last requests' waits, in steps. Raises DataError for no trace."""
    requests = [line for line in _last(trace) if line.get("first_scheduled_step", -1) > 0][-LAST:]
    steps = _last(Path(f"{trace}.steps"))
    if not steps and not requests:
        raise DataError(f"{str(trace)!r} and its steps hold nothing yet; allowed: a plugin's trace")
    told: dict[str, float] = {}
    if steps:
        now = steps[-1]
        told = {name: float(now[name]) for name in ("step", "waiting", "running") if name in now}
        if len(steps) > 1:
            seconds = float(now["time"]) - float(steps[0]["time"])
            told["steps_per_s"] = (len(steps) - 1) / seconds if seconds > 0 else 0.0
    if requests:
        waits = [line["first_scheduled_step"] - line["arrival_step"] - 1 for line in requests]
        told["requests"] = float(len(requests))
        told["p50_wait_steps"], told["p99_wait_steps"] = np.percentile(waits, (50, 99)).tolist()
        told["preemptions"] = float(sum(line.get("preemptions", 0) for line in requests))
        told["scored"] = sum(bool(line.get("scored")) for line in requests) / len(requests)
        told |= _tau(requests)
    for line in _last(Path(f"{trace}.shadow")):  # the last of each is what stays
        told |= {name: float(line[name]) for name in SHADOWS if name in line}
    return told


def _tau(requests: list[dict[str, Any]]) -> dict[str, float]:
    pairs = [(line["score"], line["output_tokens"]) for line in requests if line.get("scored")]
    if len(pairs) < FEWEST:
        return {}
    score, real = np.array(pairs, dtype=np.float64).T
    return {"tau": float(kendall_tau(score, real))} if np.ptp(score) and np.ptp(real) else {}


def _last(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines at the end of a file that another process writes; none where there is none."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _END))
        read = file.read()
    lines = read[: read.rfind(b"\n") + 1].splitlines()
    found = []
    for line in lines[1:] if size > _END else lines:
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{str(path)!r}: not JSON: {error}; allowed: a plugin's trace") from error
    return [line for line in found if isinstance(line, dict)]
