"""Lays a workload out for the compiled engine in `kernel` and runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner.policies import Policy
from sooner.sim.compiled import bind
from sooner.sim.compiled.iteration import kernel, state
from sooner.sim.compiled.layout import (
    IDLE,
    USUAL,
    WORK,
    column,
    leavers,
    records,
    static_keys,
    tenants,
    weights,
)
from sooner.sim.cost import Engine, ticks
from sooner.sim.options import Options
from sooner.sim.ticks import coefficient_ticks, ready_ticks
from sooner.work import WAIT_FLOOR, WORK_FLOOR
from sooner.workloads.columns import Workload


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
    n, engine = len(workload), engines[0]
    work = weights(workload, engines, predicted, bool(policy.reads & WORK))
    keys = static_keys(policy, workload, predicted, score, work)
    keyed = keys is None and policy.static
    asked, empty = keys is None, np.zeros(0)
    ready = ready_ticks(workload, options)
    leaver, leaves = leavers(workload, ready)
    entry = records(
        state.ENTRY,
        ready=ready,
        key=0.0 if keys is None else keys,
        prompt=workload.prompt_len,
        output=workload.output_len,
        cached=workload.cached_len,
        computed=workload.cached_len,
    )
    world = state.IterationRun(
        entry=entry,
        start=np.full(n, -1),
        first=np.full(n, -1),
        finish=finish,
        state=_state(engine, policy, options, asked and not keyed, keyed),
        order=np.zeros(n, dtype=np.int64),
        want=np.zeros(engine.max_num_seqs, dtype=np.int64),
        leaver=leaver,
        leaves=leaves,
        arrival=column(workload.arrival_time, np.float64),
        predicted=column(predicted, np.float64),
        score=column(score if asked else empty, np.float64),
        deadline=column(workload.deadline if asked else empty, np.float64),
        level=column(workload.level if asked else empty, np.float64),
        work=work,
        **tenants(workload, options, 1, asked and not keyed),
    )
    kernel.run(world, bind.compiled(policy if asked else IDLE))
    return world.start, world.first, entry.preemptions.copy(), np.zeros(n, dtype=np.int64)


def _state(engine: Engine, policy: Policy, options: Options, dynamic: bool, keyed: bool) -> Any:
    """Return the instance at rest, (1,)."""
    a, b, c, d = coefficient_ticks(engine)
    return records(
        state.STATE,
        a=a,
        b=b,
        c=c,
        d=d,
        seqs=engine.max_num_seqs,
        tokens=engine.max_num_batched_tokens,
        block=engine.block_size,
        blocks=engine.num_blocks,
        free=engine.num_blocks,
        host=engine.swap_blocks,
        watermark=engine.watermark_blocks,
        swap=options.swap,
        swap_ticks=ticks(engine.swap_block_s),
        dynamic=dynamic,
        timeless=policy.timeless,
        guard=options.guard,
        quantum=options.quantum,
        predict=ticks(options.predict_s) if options.predict_blocks else 0,
        keyed=keyed,
        weighed=bool(policy.reads & WORK),
        learns=bool(policy.reads & USUAL),
        usual_wait=WAIT_FLOOR,
        usual_work=WORK_FLOOR,
        last=-1,
    )
