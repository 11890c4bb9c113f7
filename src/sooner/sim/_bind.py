"""Turn a policy, a plain Python function with keyword-only parameters, into compiled code.

The function's own bytecode is compiled, not a copy of the formula: its code object is rebuilt with
the parameters made positional, since numba takes no keyword-only ones.
"""
# mypy: allow-untyped-decorators

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import numba
from numba import cfunc, njit

from sooner.core import Number, View
from sooner.policies import Policy

_SIGNATURE = numba.float64(*[numba.float64] * (len(View._fields) + 1))


def compiled(policy: Policy) -> Any:
    """Return the policy's key as a C function of the fields of `View` and `now`."""
    return _compiled(policy.function, tuple(policy.parameters.values()))


@functools.lru_cache(maxsize=256)
def _compiled(function: Callable[..., Number], bound: tuple[float, ...]) -> Any:
    code = function.__code__
    positional = code.replace(co_argcount=code.co_argcount + code.co_kwonlyargcount, co_kwonlyargcount=0)
    plain = types.FunctionType(
        positional, function.__globals__, function.__name__, None, function.__closure__
    )
    inner = njit(plain)

    def key(
        arrival_time: float, prompt_len: float, predicted_len: float, score: float, attained: float,
        cached_len: float, deadline: float, pressure: float, level: float, counter: float, work: float,
        usual_wait: float, usual_work: float, now: float,
    ) -> float:  # fmt: skip
        view = View(
            arrival_time, prompt_len, predicted_len, score, attained, cached_len, deadline, pressure,
            level, counter, work, usual_wait, usual_work,
        )  # fmt: skip
        return float(inner(view, now, *bound))

    return key if numba.config.DISABLE_JIT else cfunc(_SIGNATURE)(key)
