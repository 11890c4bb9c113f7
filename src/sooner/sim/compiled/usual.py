"""What is usual, learned as requests come; the same arithmetic as `sooner.work.Usual`, compiled.

`s` is an instance's record with the fields `arrivals`, `square_wait`, `work_mean`, `square_work`,
`usual_wait` and `usual_work`.
"""
# mypy: allow-untyped-decorators

from __future__ import annotations

import math
from typing import Any

from sooner.sim.compiled.jit import compiled
from sooner.work import STEADY, WAIT_FLOOR, WAIT_MEMORY, WORK_FLOOR, WORK_MEMORY


@compiled
def learn(s: Any, waiting: Any, work: Any) -> Any:
    """Take in an arrival of `work` [s] that finds `waiting` [s]; return whether what is usual moved."""
    s.arrivals += 1
    s.square_wait += (waiting * waiting - s.square_wait) / min(s.arrivals, WAIT_MEMORY)
    memory = min(s.arrivals, WORK_MEMORY)
    s.work_mean += (work - s.work_mean) / memory
    s.square_work += (work * work - s.square_work) / memory
    wait = max(math.sqrt(s.square_wait), WAIT_FLOOR)
    size = max(s.square_work / s.work_mean, WORK_FLOOR) if s.work_mean > 0.0 else WORK_FLOOR
    steady = s.usual_wait <= wait * STEADY and wait <= s.usual_wait * STEADY
    if steady and s.usual_work <= size * STEADY and size <= s.usual_work * STEADY:
        return False
    s.usual_wait, s.usual_work = wait, size
    return True
