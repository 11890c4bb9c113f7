"""Lays a workload out for the compiled engine in `_kernel` and runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner import policies
from sooner.policies import Policy
from sooner.sim import _bind, _kernel
from sooner.sim.cost import TICKS_PER_SECOND, Engine, ticks
from sooner.sim.engine import LONGEST_RUN_S, Options, coefficient_ticks, ready_ticks, static_keys
from sooner.workloads.columns import Workload

IDLE = policies.get("fcfs")
"""What the kernel is given where keys are known beforehand; it is not called."""


def load_columns(
    workload: Workload,
    keys: NDArray[np.float64] | None,
    predicted: NDArray[np.float64],
    score: NDArray[np.float64],
    options: Options,
) -> tuple[_kernel.Load, NDArray[np.int64]]:
    """Return the kernel's columns and the rows that are cancelled, by time of cancellation."""
    n, ready = len(workload), ready_ticks(workload, options)
    cancels = np.flatnonzero(np.isfinite(workload.cancel_time))
    cancel = np.full(n if cancels.size else 0, _kernel.FOREVER)
    if cancels.size:
        latest = np.minimum(workload.cancel_time[cancels], LONGEST_RUN_S)
        cancel[cancels] = np.rint(latest * TICKS_PER_SECOND).astype(np.int64)
        cancel = np.maximum(cancel, ready)
        cancels = cancels[np.argsort(cancel[cancels], kind="stable")]
    load = _kernel.Load(
        ready=ready,
        cancel=cancel,
        arrival=workload.arrival_time,
        prompt=workload.prompt_len,
        output=workload.output_len,
        key=np.zeros(n) if keys is None else keys,
        predicted=predicted,
        score=score,
        deadline=np.ascontiguousarray(workload.deadline),
        prefix=np.ascontiguousarray(workload.prefix),
    )
    return load, cancels.astype(np.int64)


def serve(
    workload: Workload,
    engines: Sequence[Engine],
    policy: Policy,
    predicted: NDArray[np.float64],
    score: NDArray[np.float64],
    options: Options,
    router: int,
) -> tuple[NDArray[Any], ...]:
    """Return start, first, finish [ps], preemptions and instance, columns (n,); see `_kernel`."""
    n, count = len(workload), len(engines)
    seqs = max(engine.max_num_seqs for engine in engines)
    keys = static_keys(policy, workload, predicted, score)
    keyed = keys is None and policy.static
    load, cancels = load_columns(workload, keys, predicted, score, options)

    def column(kind: Any, value: int) -> NDArray[Any]:
        return np.full(n, value, dtype=kind)

    progress = _kernel.Progress(
        start=column(np.int64, -1),
        first=column(np.int64, -1),
        finish=column(np.int64, -1),
        preemptions=column(np.int32, 0),
        generated=column(np.int32, 0),
        base=column(np.int64, 0),
        seq=column(np.int64, -1),
        quantum=column(np.int32, 0),
        child=column(np.int64, -1),
        sibling=column(np.int32, -1),
        place=column(np.int32, 0),
    )
    state = np.zeros((count, 15), dtype=np.int64)
    state[:, [_kernel.PART, _kernel.ROOT]] = -1
    state[:, _kernel.FREE] = [engine.num_blocks for engine in engines]
    dynamic = 1 if keys is None and not keyed else 2 if options.guard else 0
    blocking = ticks(options.predict_s) if options.predict_blocks else 0
    world = _kernel.World(
        load=load,
        progress=progress,
        limits=np.array([_limits(engine) for engine in engines], dtype=np.int64),
        state=state,
        end_step=np.zeros((count, seqs), dtype=np.int64),
        end_id=np.zeros((count, seqs), dtype=np.int64),
        residue=np.zeros((count, max(engine.block_size for engine in engines)), dtype=np.int64),
        scratch=np.zeros((3, seqs), dtype=np.int64),
        options=np.array(
            [dynamic, options.backfill, options.guard, options.quantum, router, blocking, keyed],
            dtype=np.int64,
        ),
        recent=np.zeros((count, 2)),
        cancels=cancels,
        cursor=np.zeros(1, dtype=np.int64),
    )
    _kernel.run(world, _bind.compiled(policy if keys is None else IDLE))
    return progress.start, progress.first, progress.finish, progress.preemptions, progress.place


def _limits(engine: Engine) -> tuple[int, ...]:
    return (
        *coefficient_ticks(engine),
        engine.max_num_seqs,
        engine.max_num_batched_tokens,
        engine.block_size,
        engine.num_blocks,
        engine.watermark_blocks,
    )
