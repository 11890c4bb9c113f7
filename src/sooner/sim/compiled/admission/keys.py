"""The policy's key of a request that waits, or of one that may lose its place."""
# mypy: allow-untyped-decorators

from __future__ import annotations

from typing import Any

from sooner.sim.compiled import shares
from sooner.sim.compiled.admission.state import DYNAMIC
from sooner.sim.compiled.jit import compiled, inlined


@inlined
def expected(w: Any, m: Any, r: Any) -> Any:
    """The work of a request at instance m [s]; 0 where it is not counted."""
    return w.work[w.instance[m].kind, r] * 1e-12 if w.option[0].weighed == 1 else 0.0


@compiled
def key(w: Any, r: Any, now: Any, key_fn: Any) -> Any:
    """Return the key at `now` [s] of a waiting request, or of one taken by `running.collect`."""
    q = w.request[r]
    if w.option[0].queue != DYNAMIC:
        return q.key
    served, m = 0.0, q.place
    if w.option[0].counted == 1:
        served = shares.counter(w.tally, m, w.tenant[r], w.instance[m].step) / w.multiple[0]
    return key_fn(
        w.arrival[r], float(q.prompt), w.predicted[r], w.score[r], float(q.generated), float(q.cached),
        w.deadline[r], 0.0, w.level[r], served, expected(w, m, r),
        w.instance[m].usual_wait, w.instance[m].usual_work, now,
    )  # fmt: skip


@compiled
def fixed(w: Any, m: Any, r: Any, key_fn: Any) -> None:
    """Fix the key of a request at instance m, from what the host measures now."""
    s, q = w.instance[m], w.request[r]
    pressure = s.mean_wait / s.mean_predicted if s.mean_predicted > 0 else 0.0
    q.key = key_fn(
        w.arrival[r], float(q.prompt), w.predicted[r], w.score[r], 0.0, float(q.cached), w.deadline[r],
        pressure, w.level[r], 0.0, expected(w, m, r), s.usual_wait, s.usual_work, w.arrival[r],
    )  # fmt: skip
