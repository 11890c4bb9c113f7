"""The policy's key of a request that waits, or of one that may lose its place."""
# mypy: allow-untyped-decorators

from __future__ import annotations

from typing import Any

from sooner.sim import _shares
from sooner.sim._jit import compiled
from sooner.sim._state import DYNAMIC


@compiled
def key(w: Any, r: Any, now: Any, key_fn: Any) -> Any:
    """Return the key at `now` [s] of a waiting request, or of one taken by `_running.collect`."""
    q = w.request[r]
    if w.option[0].queue != DYNAMIC:
        return q.key
    served = 0.0
    if w.option[0].counted == 1:
        m = q.place
        served = _shares.counter(w.tally, m, w.tenant[r], w.instance[m].step) / w.multiple[0]
    return key_fn(
        w.arrival[r], float(q.prompt), w.predicted[r], w.score[r], float(q.generated), float(q.cached),
        w.deadline[r], 0.0, w.level[r], served, now,
    )  # fmt: skip
