"""The continuous-batching engine: a workload, an engine and a policy in, finished requests out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import Completed, ConfigError, DataError, EngineError, UnknownName
from sooner.policies import Policy
from sooner.sim.compiled.marks import CANCELLED, REJECTED
from sooner.sim.cost import TICKS_PER_SECOND, Engine
from sooner.sim.options import ROUTERS, Options
from sooner.sim.ticks import LONGEST_RUN_S
from sooner.workloads.columns import Workload

__all__ = ["ROUTERS", "Options", "Outcome", "simulate"]


class Outcome(NamedTuple):
    """What a run gives: finished requests as columns, and the ids that were cancelled or refused.

    `instance` (n,) is where each finished request ran.
    """

    completed: Completed
    cancelled: NDArray[np.int64]
    rejected: NDArray[np.int64]
    instance: NDArray[np.int64]


def simulate(
    workload: Workload,
    engine: Engine | Sequence[Engine],
    policy: Policy,
    *,
    predicted_len: NDArray[np.float64] | None = None,
    score: NDArray[np.float64] | None = None,
    options: Options | None = None,
    router: str = "round-robin",
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Serve a workload and return who finished when; `progress` is told (ended, n) twice a second.

    `predicted_len` [tokens] and `score` are the ranker's columns (n,); an oracle-fed policy reads
    the true lengths instead. Several engines make a cluster behind `router`. Raises DataError for
    columns of the wrong shape, ConfigError for options that do not go together.
    """
    options = options or Options()
    engines = [engine] if isinstance(engine, Engine) else list(engine)
    if router not in ROUTERS:
        raise UnknownName("router", router, ROUTERS)
    if not engines:
        raise ConfigError("a cluster of 0 instances, allowed: at least 1")
    n = len(workload)
    told = workload.output_len.astype(np.float64) if policy.oracle else predicted_len
    predicted = _column("predicted_len", told, n, 0.0)
    ordinal = _column("score", score, n, predicted if predicted_len is not None or policy.oracle else 0.0)
    if n and workload.arrival_time[-1] > LONGEST_RUN_S:
        raise DataError(f"arrivals up to {workload.arrival_time[-1]:.0f} s, allowed: {LONGEST_RUN_S:.0f} s")
    reorder = policy.preemptive if options.iteration_level is None else options.iteration_level
    if options.swap and not reorder:
        raise ConfigError("swap=True needs iteration_level=True: vLLM's own scheduler recomputes")
    if len(engines) > 1 and reorder:
        raise ConfigError("a cluster does not serve iteration-level orders; allowed: one instance")
    from sooner.sim.compiled.admission import serve as by_admission
    from sooner.sim.compiled.iteration import serve as by_iteration

    serve = by_iteration.serve if reorder else by_admission.serve
    finish = np.full(n, -1)
    with watched(finish, progress):
        columns = serve(workload, engines, policy, predicted, ordinal, options, ROUTERS[router], finish)
    start, first, preemptions, place = columns
    if np.any(finish == -1):
        raise EngineError(
            f"{int(np.sum(finish == -1))} of {n} requests did not end within {LONGEST_RUN_S:.0f} s, or they"
            " only evict each other; allowed: more KV blocks, a longer guard, or swap"
        )
    ended = finish >= 0
    done = slice(None) if ended.all() else ended
    beside = np.array([instance.overhead_s for instance in engines])[place[done]]
    completed = Completed(
        id=workload.id[done].astype(np.float64),
        arrival_time=workload.arrival_time[done],
        first_token_time=first[done] / TICKS_PER_SECOND + beside,
        finish_time=finish[done] / TICKS_PER_SECOND + beside,
        prompt_len=workload.prompt_len[done].astype(np.float64),
        output_len=workload.output_len[done].astype(np.float64),
        start_time=start[done] / TICKS_PER_SECOND,
        preemptions=preemptions[done].astype(np.float64),
    )
    return Outcome(completed, workload.id[finish == CANCELLED], workload.id[finish == REJECTED], place[done])


@contextmanager
def watched(finish: NDArray[np.int64], progress: Callable[[int, int], None] | None) -> Iterator[None]:
    """Report, while a kernel fills `finish` without holding the interpreter's lock, how far it is."""
    if progress is None:
        yield
        return
    over, n = threading.Event(), finish.shape[0]

    def look() -> None:
        while not over.wait(0.5):
            progress(int(np.count_nonzero(finish != -1)), n)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    progress(n, n)


def _column(
    name: str, given: NDArray[np.float64] | None, n: int, default: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a column of the caller's as it is where it can be, else the default."""
    values = np.broadcast_to(default, n) if given is None else np.asarray(given, dtype=np.float64)
    if values.shape != (n,) or not np.isfinite(values).all():
        raise DataError(f"{name}: shape {values.shape}, allowed: {n} finite numbers")
    return values
