"""Lays a workload out for the compiled engine in `kernel` and runs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner import policies
from sooner.policies import Policy
from sooner.sim.compiled import bind, shares
from sooner.sim.compiled.admission import far, kernel
from sooner.sim.compiled.admission.state import (
    DYNAMIC,
    END,
    HEAP,
    INSTANCE,
    LEAST_WORK,
    LISTED,
    OPTION,
    REQUEST,
    World,
)
from sooner.sim.cost import TICKS_PER_SECOND, Engine, ticks
from sooner.sim.engine import (
    LONGEST_RUN_S,
    Options,
    coefficient_ticks,
    kinds,
    ready_ticks,
    static_keys,
    token_ticks,
    work_ticks,
)
from sooner.work import WAIT_FLOOR, WORK_FLOOR
from sooner.workloads.columns import Workload

IDLE = policies.get("fcfs")
"""What the kernel is given where keys are known beforehand; it is not called."""

USUAL = {"usual_wait", "usual_work"}
WORK = USUAL | {"work"}
"""Fields of `View` for which work is counted."""


def leavers(workload: Workload, ready: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows whose clients go away and when [ps], by time."""
    rows = np.flatnonzero(np.isfinite(workload.cancel_time))
    latest = np.minimum(workload.cancel_time[rows], LONGEST_RUN_S)
    times = np.maximum(np.rint(latest * TICKS_PER_SECOND).astype(np.int64), ready[rows])
    order = np.argsort(times, kind="stable")
    return rows[order].astype(np.int64), times[order]


def records(dtype: np.dtype[Any], /, **columns: Any) -> Any:
    """Return a record array of the given columns (n,) or scalars; the others are 0."""
    size = max((np.shape(column)[0] for column in columns.values() if np.ndim(column)), default=1)
    table = np.zeros(size, dtype=dtype).view(np.recarray)
    for name, column in columns.items():
        table[name] = column
    return table


def instances(engines: Sequence[Engine]) -> Any:
    """Return the instances at rest (m,)."""
    a, b, c, d = np.array([coefficient_ticks(engine) for engine in engines]).T
    blocks = [engine.num_blocks for engine in engines]
    return records(
        INSTANCE,
        a=a,
        b=b,
        c=c,
        d=d,
        seqs=[engine.max_num_seqs for engine in engines],
        tokens=[engine.max_num_batched_tokens for engine in engines],
        block=[engine.block_size for engine in engines],
        blocks=blocks,
        free=blocks,
        pace=[token_ticks(engine) for engine in engines],
        kind=kinds(engines)[1],
        usual_wait=WAIT_FLOOR,
        usual_work=WORK_FLOOR,
        watermark=[engine.watermark_blocks for engine in engines],
        part=-1,
        root=-1,
        last=-1,
        far=-1,
        crowd=far.FEW,
    )


def column(values: NDArray[Any], kind: Any) -> NDArray[Any]:
    """Return a column as the kernel was compiled for: contiguous and writable."""
    return np.require(values, kind, ["C", "W"])


def weights(
    workload: Workload, engines: Sequence[Engine], predicted: NDArray[np.float64], wanted: bool
) -> NDArray[np.int64]:
    """Return the expected work [ps] of each kind of engine and request; (kinds, 0) where nobody asks."""
    unlike, _ = kinds(engines)
    if not wanted:
        return np.zeros((len(unlike), 0), dtype=np.int64)
    return np.stack([work_ticks(workload, engine, predicted) for engine in unlike])


def tenants(workload: Workload, options: Options, count: int, wanted: bool) -> dict[str, Any]:
    """Return the columns of the tenants' counters, for `count` instances; empty where no key asks."""
    named, rows = np.unique(workload.tenant if wanted else workload.tenant[:0], return_inverse=True)
    weights = [options.weights.get(int(name), 1) for name in named]
    multiple = math.lcm(*weights)
    units = np.array([multiple // weight for weight in weights], dtype=np.int64)
    tally = np.zeros((count, len(units)), dtype=shares.TALLY).view(np.recarray)
    tally.unit[:] = units
    return {
        "tenant": column(rows, np.int64),
        "tally": tally,
        "multiple": np.array([multiple], dtype=np.int64),
    }


def serve(
    workload: Workload,
    engines: Sequence[Engine],
    policy: Policy,
    predicted: NDArray[np.float64],
    score: NDArray[np.float64],
    options: Options,
    router: int,
    finish: NDArray[np.int64],
) -> tuple[NDArray[Any], ...]:
    """Fill `finish`; return start, first [ps], preemptions and instance, columns (n,); see `kernel`."""
    n, count = len(workload), len(engines)
    seqs = max(engine.max_num_seqs for engine in engines)
    weighed = bool(policy.reads & WORK) or router == LEAST_WORK
    work = weights(workload, engines, predicted, weighed)
    keys = static_keys(policy, workload, predicted, score, work)
    keyed = keys is None and policy.static
    asked, empty = keys is None, np.zeros(0)
    ready = ready_ticks(workload, options)
    rows, leaves = leavers(workload, ready)
    request = records(
        REQUEST,
        ready=ready,
        key=0.0 if keys is None else keys,
        prompt=workload.prompt_len,
        output=workload.output_len,
        cached=workload.cached_len,
        seq=-1,
        child=-1,
        sibling=-1,
    )
    del ready, keys
    world = World(
        request=request,
        start=np.full(n, -1),
        first=np.full(n, -1),
        finish=finish,
        instance=instances(engines),
        ends=np.zeros((count, seqs), dtype=END).view(np.recarray),
        residue=np.zeros((count, max(engine.block_size for engine in engines)), dtype=np.int64),
        scratch=np.zeros((3, seqs), dtype=np.int64),
        option=records(
            OPTION,
            queue=DYNAMIC if not policy.static else LISTED if options.guard else HEAP,
            keyed=keyed,
            weighed=weighed,
            learns=bool(policy.reads & USUAL),
            counted="counter" in policy.reads,
            linear=policy.linear and not options.guard,
            backfill=options.backfill,
            guard=options.guard,
            quantum=options.quantum,
            router=router,
            predict=ticks(options.predict_s) if options.predict_blocks else 0,
        ),
        arrival=column(workload.arrival_time, np.float64),
        predicted=column(predicted, np.float64),
        score=column(score if asked else empty, np.float64),
        deadline=column(workload.deadline if asked else empty, np.float64),
        level=column(workload.level if asked else empty, np.float64),
        work=work,
        **tenants(workload, options, count, not policy.static),
        sample=np.zeros((2, far.SAMPLE)),
    )
    key_fn = bind.compiled(policy if asked else IDLE)
    kernel.run(world, column(workload.prefix, np.int64), rows, leaves, key_fn)
    return world.start, world.first, request.preemptions.copy(), request.place.astype(np.int64)
