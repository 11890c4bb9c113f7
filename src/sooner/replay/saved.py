"""A replay that is written down while it goes: records as they finish, settings and versions beside."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner import __version__
from sooner.core import DataError, EngineError
from sooner.replay.client import Endpoint, Sampling, server_version, session
from sooner.replay.drive import Attach, Until, replay
from sooner.replay.record import Record, Run, to_line, write_meta, write_run
from sooner.replay.trace import join_trace
from sooner.workloads.prompts import Prompt


async def replay_to_file(
    out: Path,
    workload: Sequence[Prompt],
    arrival_times: Sequence[float] | NDArray[np.float64],
    endpoint: Endpoint,
    sampling: Sampling,
    *,
    label: str | None = None,
    attach: Attach | None = None,
    force_len: bool = False,
    until: Until | None = None,
    server_trace: Path | None = None,
    notes: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Replay the workload as `replay` does and keep the run in `out` and its side file.

    Each record is on disk as soon as it is known, so an interrupted run keeps what it had; at the
    end the file is put in the workload's order. `label` names the arm in reports, `notes` go into
    the side file as they are. `server_trace` is joined as `join_trace` does.

    Raises DataError for an empty workload, EngineError where the server cannot be reached at the
    start or no request finished.
    """
    if not workload:
        raise DataError("no prompt to replay; allowed: at least 1")
    async with session(endpoint, timeout=60.0) as http:
        version = await server_version(http, endpoint)
    started_at = time.time()
    meta = {
        "label": label or out.name.removesuffix(".jsonl"),
        "sooner": __version__,
        "server_version": version,
        "model": endpoint.model,
        "api": endpoint.api,
        "sampling": asdict(sampling),
        "force_len": force_len,
        "started_at": round(started_at, 3),
        **(notes or {}),
    }
    with out.open("w", encoding="utf-8", buffering=1) as file:

        def keep(record: Record) -> None:
            file.write(to_line(record))

        write_meta(out, {**meta, "complete": False})
        records = await replay(
            workload,
            arrival_times,
            endpoint,
            sampling,
            attach=attach,
            force_len=force_len,
            until=until,
            progress=progress,
            on_record=keep,
        )
    if server_trace is not None:
        records = join_trace(records, server_trace, started_at=started_at, patience=5.0)
    run = Run({**meta, "complete": True}, records)
    write_run(out, run)
    if not any(record.finished for record in records):
        raise EngineError(f"none of {len(records)} requests finished; the first: {records[0].error}")
    return run
