"""The continuous-batching engine: a workload, an engine and a policy in, finished requests out."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import Completed, ConfigError, DataError, EngineError, UnknownName, View
from sooner.policies import Policy
from sooner.sim.compiled.admission.state import CANCELLED, REJECTED
from sooner.sim.cost import TICKS_PER_SECOND, Engine, ticks
from sooner.work import work
from sooner.workloads.columns import Workload

ROUTERS = {
    "round-robin": 0,
    "least-requests": 1,
    "least-work": 2,
    "prefix-affinity": 3,
    "max-min": 4,
    "vllm-dp": 5,
}
"""`least-work` goes where expected work [s], the request's own there included, is least; `max-min` (SCLS's
rule) counts predicted tokens outstanding and the time they take there; `vllm-dp` is how vLLM balances its
data-parallel replicas: a waiting request counts as four running ones."""

HOST_STATE = {"pressure", "usual_wait", "usual_work", "counter"}
"""Fields of `View` that hang on what the host did so far."""
LONGEST_RUN_S = 2e6
"""Picoseconds must fit 62 bits: about 23 days of simulated time."""


MULTIPLE = 10**6
"""The least common multiple of tenants' weights, at most: counters are whole numbers of its parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How batches are formed, beyond the engine's own limits.

    `iteration_level` reorders running and waiting requests at every iteration, as vllm-ltr does;
    else the policy orders admissions and KV victims only, as vLLM V1 does; None: where the policy
    is meant to displace. `swap` moves evicted KV to the host instead of recomputing it (iteration
    level only). `backfill` lets later requests pass a head that does not fit. `guard` [steps] is
    the starvation guard's threshold, 0 for none, and `quantum` [steps] how long it promotes.
    `predict_s` is charged for each prediction, before the request is seen, or, with
    `predict_blocks`, to the engine itself. `weights` are tenants' shares under `vtc`, whole numbers,
    1 for those who are not in it.
    """

    iteration_level: bool | None = None
    swap: bool = False
    backfill: bool = False
    guard: int = 0
    quantum: int = 10
    predict_s: float = 0.0
    predict_blocks: bool = False
    weights: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.guard < 0 or self.quantum < 1 or self.predict_s < 0:
            raise ConfigError(
                f"guard={self.guard!r}, quantum={self.quantum!r}, predict_s={self.predict_s!r}; "
                "allowed: guard >= 0, quantum >= 1 [steps], predict_s >= 0 [s]"
            )
        weights = self.weights.values()
        if any(weight < 1 for weight in weights) or math.lcm(*weights) > MULTIPLE:
            raise ConfigError(
                f"weights={dict(self.weights)}, allowed: whole numbers >= 1, a common multiple <= {MULTIPLE}"
            )


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
    beside = np.array([one.overhead_s for one in engines])[place[done]]
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


def static_keys(
    policy: Policy,
    workload: Workload,
    predicted: NDArray[np.float64],
    score: NDArray[np.float64],
    work: NDArray[np.int64],
) -> NDArray[np.float64] | None:
    """Return the keys (n,) of a static policy, or None where they hang on the state of the host.

    `work` (kinds, n) [ps] is of each kind of engine.
    """
    if not policy.static or policy.reads & HOST_STATE or (work.shape[0] > 1 and "work" in policy.reads):
        return None
    view = View(
        workload.arrival_time,
        prompt_len=workload.prompt_len.astype(np.float64),
        predicted_len=predicted,
        score=score,
        cached_len=workload.cached_len.astype(np.float64),
        deadline=workload.deadline,
        level=workload.level.astype(np.float64),
        work=work[0] * 1e-12 if work.shape[1] else 0.0,
    )
    return np.array(np.broadcast_to(policy.key(view, 0.0), len(workload)), dtype=np.float64)


def work_ticks(workload: Workload, engine: Engine, predicted: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the expected work (n,) of requests on an engine [ps].

    The usual batch is what its slots or its KV memory hold of the mean of the requests so far.
    """
    held = workload.prompt_len + 0.5 * predicted
    mean = np.cumsum(held) / np.arange(1, len(workload) + 1)
    batch = np.clip(engine.num_blocks * engine.block_size / mean, 1.0, engine.max_num_seqs)
    cached = workload.cached_len.astype(np.float64)
    seconds = work(engine.pace, workload.prompt_len.astype(np.float64), cached, predicted, batch)
    whole: NDArray[np.int64] = np.rint(np.asarray(seconds) * TICKS_PER_SECOND).astype(np.int64)
    return whole


def kinds(engines: Sequence[Engine]) -> tuple[list[Engine], list[int]]:
    """Return the unlike engines of a cluster, and which of them each instance is."""
    unlike = list(dict.fromkeys(engines))
    return unlike, [unlike.index(engine) for engine in engines]


def ready_ticks(workload: Workload, options: Options) -> NDArray[np.int64]:
    """When each request is seen by the scheduler [ps]."""
    shift = 0.0 if options.predict_blocks else options.predict_s
    return np.rint((workload.arrival_time + shift) * TICKS_PER_SECOND).astype(np.int64)


def coefficient_ticks(engine: Engine) -> tuple[int, int, int, int]:
    """The cost coefficients in whole picoseconds; the first is at least 1."""
    a, b, c, d = (ticks(value) for value in engine.coefficients)
    return max(a, 1), b, c, d


def token_ticks(engine: Engine) -> int:
    """Picoseconds that a token takes in a full batch without context: what unlike engines differ in."""
    a, _, c, _ = coefficient_ticks(engine)
    return a // engine.max_num_seqs + c


def _column(
    name: str, given: NDArray[np.float64] | None, n: int, default: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a column of the caller's as it is where it can be, else the default."""
    values = np.broadcast_to(default, n) if given is None else np.asarray(given, dtype=np.float64)
    if values.shape != (n,) or not np.isfinite(values).all():
        raise DataError(f"{name}: shape {values.shape}, allowed: {n} finite numbers")
    return values
