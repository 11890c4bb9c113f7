"""Lays a workload out for the compiled engine in `kernel` and runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner.policies import Policy
from sooner.sim.compiled import bind
from sooner.sim.compiled.admission import far, kernel
from sooner.sim.compiled.admission.state import (
    DYNAMIC,
    END,
    HEAP,
    IN_SECONDS,
    INSTANCE,
    LISTED,
    OPTION,
    REQUEST,
    AdmissionRun,
)
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
from sooner.sim.ticks import coefficient_ticks, kinds, ready_ticks, token_ticks
from sooner.work import WAIT_FLOOR, WORK_FLOOR
from sooner.workloads.columns import Workload


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
    weighed = bool(policy.reads & WORK) or router in IN_SECONDS
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
    world = AdmissionRun(
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
