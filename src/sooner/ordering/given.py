"""Numbers a client sends with its request, checked: `vllm_xargs` or vLLM's own `priority`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

LIMITS = {
    "sooner_score": (-1e15, 1e15),  # a score has no unit; the bound keeps arithmetic finite
    "sooner_predicted_len": (0.0, 1e9),  # tokens
    "sooner_deadline_ms": (0.0, 1e12),  # after arrival
    "sooner_level": (0.0, 1e3),  # 0 is the most urgent
}

_NUMBERS = (int, float)  # no bool


class Given(NamedTuple):
    """What a client said of its request, None where it said nothing; `malformed` counts what was ignored."""

    score: float | None = None
    predicted_len: float | None = None
    deadline_ms: float | None = None
    level: float | None = None
    malformed: int = 0


NOTHING = Given()


def read(extra_args: Any, priority: Any = 0) -> Given:
    """Return what the client said. Never raises: what is not a finite number in range is ignored.

    A predicted length alone is also the score, and a `priority` other than 0 is the score where
    none was sent: vLLM's smaller-first is the same sense as a score's.
    """
    if not extra_args and not priority:
        return NOTHING
    score = length = deadline = level = None
    malformed = 0
    if type(extra_args) is dict or isinstance(extra_args, Mapping):  # of an abstract class is costly to ask
        for name, value in extra_args.items():
            limits = LIMITS.get(name)
            if limits is None:
                continue
            if not (type(value) in _NUMBERS and limits[0] <= value <= limits[1]):  # NaN is in no range
                malformed += 1
            elif name == "sooner_score":
                score = float(value)
            elif name == "sooner_predicted_len":
                length = float(value)
            elif name == "sooner_deadline_ms":
                deadline = float(value)
            else:
                level = float(value)
    if score is None:
        score = length
    if score is None and priority and _is_number(priority):
        score = float(priority)
    return Given(score, length, deadline, level, malformed)


def _is_number(value: Any) -> bool:
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return type(value) is float and math.isfinite(value)
