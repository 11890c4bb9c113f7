"""Replaying a workload against a real server, open-loop: requests leave when they are due."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import resource
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

from sooner.core import DataError, EngineError
from sooner.replay.client import Endpoint, Sampling, Stream, body, session
from sooner.replay.record import Record
from sooner.replay.trace import request_ids
from sooner.workloads.prompts import Prompt

Attach = Callable[[Prompt], Mapping[str, Any]]
"""What to add to the body of a prompt's request, such as `{"priority": 3}`."""

Until = Callable[[float], Awaitable[None]]
"""Waits until a request with this arrival time is due."""


_SEEN = ("sent_time", "first_token_time", "finish_time", "prompt_len", "output_len", "finish_reason", "itl")


@dataclass(frozen=True, slots=True)
class _Due:
    """A request ready to leave."""

    record: Record
    payload: bytes


async def replay(
    workload: Sequence[Prompt],
    arrival_times: Sequence[float] | NDArray[np.float64],
    endpoint: Endpoint,
    sampling: Sampling,
    *,
    attach: Attach | None = None,
    force_len: bool = False,
    until: Until | None = None,
    timeout: float | None = 3600.0,
    progress: Callable[[int, int], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Send each prompt at its arrival time [s from now], stream the replies and return a record of each.

    Requests never wait for one another. `force_len` makes each reply exactly the workload's
    `output_len` long (vLLM's `ignore_eos` and `min_tokens`). `until` puts another clock in place of the
    seconds from now, such as the engine's steps. A request that fails within `timeout`
    [s] or otherwise keeps its record, with the error. When cancelled, the requests under way are
    dropped and recorded as "interrupted". `on_record` gets each record as soon as it is known,
    `progress` (done, total). Records come in the workload's order.

    Raises DataError for times that do not fit the workload or a length to force that is missing.
    """
    due = _prepare(workload, arrival_times, endpoint, sampling, attach, force_len)
    _allow_files(len(due))
    records: list[Record] = []

    def keep(record: Record) -> None:
        records.append(record)
        if on_record:
            on_record(record)
        if progress:
            progress(len(records), len(due))

    async with session(endpoint, timeout) as http:
        loop = asyncio.get_running_loop()
        start = loop.time()

        def clock() -> float:
            return loop.time() - start

        async def seconds(arrival_time: float) -> None:
            wait = arrival_time - clock()
            if wait > 0:
                await asyncio.sleep(wait)

        async with asyncio.TaskGroup() as group:
            for each in sorted(due, key=lambda each: each.record.arrival_time):
                await (until or seconds)(each.record.arrival_time)
                group.create_task(_one(http, endpoint, each, clock, keep))
    return sorted(records, key=lambda record: record.index)


def run(*args: Any, **options: Any) -> list[Record]:
    """Run `replay` where there is no event loop; the same arguments, result and errors."""
    return asyncio.run(replay(*args, **options))


def attach_fields(score_field: str | None = None, priority_field: str | None = None) -> Attach:
    """Return an `Attach` that sends fields of the workload along.

    `score_field` goes into `vllm_xargs`, as `sooner_score` where the field is called `score` and as
    `sooner_predicted_len` [tokens] where it is anything else; `priority_field` must hold integers.
    """

    def attach(prompt: Prompt) -> dict[str, Any]:
        extra: dict[str, Any] = {}
        if score_field is not None:
            name = "sooner_score" if score_field == "score" else "sooner_predicted_len"
            extra["vllm_xargs"] = {name: prompt.number(score_field)}
        if priority_field is not None:
            priority = prompt.number(priority_field)
            if priority != int(priority):
                raise DataError(f"prompt {prompt.id!r}: priority {priority}, allowed: an integer")
            extra["priority"] = int(priority)
        return extra

    return attach


def _prepare(
    workload: Sequence[Prompt],
    arrival_times: Sequence[float] | NDArray[np.float64],
    endpoint: Endpoint,
    sampling: Sampling,
    attach: Attach | None,
    force_len: bool,
) -> list[_Due]:
    """Encode every request beforehand, so that nothing but the clock decides when one leaves."""
    times = np.asarray(arrival_times, dtype=np.float64)
    if times.shape != (len(workload),) or not (np.isfinite(times).all() and (times >= 0).all()):
        raise DataError(
            f"arrival times {times.shape} for {len(workload)} prompts, allowed: one >= 0 for each"
        )
    due = []
    for index, (prompt, id) in enumerate(zip(workload, request_ids(len(workload)), strict=True)):
        extra = dict(attach(prompt)) if attach else {}
        payload = body(endpoint, prompt, sampling) | extra
        payload |= {"stream": True, "stream_options": {"include_usage": True}}
        if force_len:
            if not prompt.output_len:
                raise DataError(f"prompt {prompt.id!r} has no output_len >= 1 to force")
            payload |= {"ignore_eos": True, "min_tokens": prompt.output_len, "max_tokens": prompt.output_len}
        record = Record(
            index=index,
            id=prompt.id,
            request_id=id,
            seed=payload["seed"],
            arrival_time=float(times[index]),
            forced=force_len,
            attached=extra,
        )
        due.append(_Due(record, json.dumps(payload).encode()))
    return due


async def _one(
    http: aiohttp.ClientSession,
    endpoint: Endpoint,
    due: _Due,
    clock: Callable[[], float],
    keep: Callable[[Record], None],
) -> None:
    stream, error = Stream(clock), None
    try:
        await stream.follow(http, endpoint, due.payload, due.record.request_id)
    except asyncio.CancelledError:
        error = "interrupted"
        raise
    except aiohttp.ClientResponseError as refused:
        error = f"status {refused.status}: {refused.message}"
    except (aiohttp.ClientError, EngineError, TimeoutError) as failure:
        error = f"{type(failure).__name__}: {failure}".rstrip(": ")
    finally:
        seen = {name: getattr(stream, name) for name in _SEEN}
        keep(dataclasses.replace(due.record, error=error, **seen))


def _allow_files(n: int) -> None:
    """Raise the soft limit on open files to hold n connections, as far as the hard limit lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
