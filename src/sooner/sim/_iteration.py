"""Lays a workload out for the compiled engine in `_reorder` and runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner.policies import Policy
from sooner.sim import _bind, _kernel, _reorder
from sooner.sim._admission import IDLE, load_columns
from sooner.sim.cost import Engine, ticks
from sooner.sim.engine import Options, coefficient_ticks, static_keys
from sooner.workloads.columns import Workload


def serve(
    workload: Workload,
    engines: Sequence[Engine],
    policy: Policy,
    predicted: NDArray[np.float64],
    score: NDArray[np.float64],
    options: Options,
    router: int,
) -> tuple[NDArray[Any], ...]:
    """Return start, first, finish [ps], preemptions and instance, columns (n,); see `_reorder`."""
    n, engine = len(workload), engines[0]
    keys = static_keys(policy, workload, predicted, score)
    keyed = keys is None and policy.static
    load, cancels = load_columns(workload, keys, predicted, score, options)

    def column(kind: Any, value: int) -> NDArray[Any]:
        return np.full(n, value, dtype=kind)

    world = _reorder.World(
        load=load,
        start=column(np.int64, -1),
        first=column(np.int64, -1),
        finish=column(np.int64, -1),
        preemptions=column(np.int32, 0),
        table=_reorder.Table(
            computed=column(np.int32, 0),
            generated=column(np.int32, 0),
            held=column(np.int32, 0),
            swapped=column(np.int32, 0),
            decoding=column(np.int8, 0),
            running=column(np.int8, 0),
            idle=column(np.int64, 0),
            quantum=column(np.int32, 0),
            up=column(np.int8, 1),
            key=np.zeros(n),
        ),
        limits=np.array(
            [
                *coefficient_ticks(engine),
                engine.max_num_seqs,
                engine.max_num_batched_tokens,
                engine.block_size,
                engine.num_blocks,
                engine.watermark_blocks,
                options.swap,
                ticks(engine.swap_block_s),
            ],
            dtype=np.int64,
        ),
        state=np.array([0, 0, engine.num_blocks, engine.swap_blocks, 0, 0, 0, 0, 0], dtype=np.int64),
        order=column(np.int64, 0),
        want=np.zeros(engine.max_num_seqs, dtype=np.int64),
        options=np.array(
            [
                keys is None and not keyed,
                policy.timeless,
                options.guard,
                options.quantum,
                ticks(options.predict_s) if options.predict_blocks else 0,
                keyed,
            ],
            dtype=np.int64,
        ),
        recent=np.zeros(2),
        cancels=cancels,
    )
    _reorder.run(world, _bind.compiled(policy if keys is None else IDLE))
    return world.start, world.first, world.finish, world.preemptions, np.zeros(n, dtype=np.int64)
