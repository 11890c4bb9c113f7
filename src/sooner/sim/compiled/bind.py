"""Turn a policy, a plain Python function with keyword-only parameters, into compiled code.

The function's own bytecode is compiled, not a copy of the formula: its code object is rebuilt with
the parameters made positional, since numba takes no keyword-only ones; so are the functions it calls.
"""
# mypy: allow-untyped-decorators

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import numba
from numba import cfunc, njit
from numba.core.errors import NumbaError
from numba.extending import overload

from sooner.core import ConfigError, Number, View
from sooner.policies import Policy
from sooner.policies.reads import rebuilt

_SIGNATURE = numba.float64(*[numba.float64] * (len(View._fields) + 1))


def compiled(policy: Policy) -> Any:
    """Return the policy's key as a C function of the fields of `View` and `now`.

    Raises ConfigError, with numba's reason, for a function of the user's that it cannot compile.
    """
    try:
        return _compiled(policy.function, tuple(policy.parameters.values()))
    except NumbaError as error:
        raise ConfigError(
            f"policy {policy.name!r} cannot be compiled for the simulator: {_reason(error)};"
            " allowed: arithmetic, numbers, NumPy's functions of numbers, and functions made of these"
        ) from error


@functools.lru_cache(maxsize=256)
def _compiled(function: Callable[..., Number], bound: tuple[float, ...]) -> Any:
    assert isinstance(function, types.FunctionType)  # the registry takes no other
    helpers: dict[types.FunctionType, Any] = {}

    def swap(value: Any) -> Any:
        if not isinstance(value, types.FunctionType) or numba.config.DISABLE_JIT:
            return value
        if value not in helpers:
            helpers[value] = value  # one that calls itself is numba's to refuse
            helpers[value] = njit(rebuilt(value, swap))
        return helpers[value]

    plain = rebuilt(function, swap)
    code = plain.__code__
    plain.__code__ = code.replace(co_argcount=code.co_argcount + code.co_kwonlyargcount, co_kwonlyargcount=0)
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
        return number(inner(view, now, *bound))

    return key if numba.config.DISABLE_JIT else cfunc(_SIGNATURE)(key)


def number(key: Any) -> float:
    """Return a key as a number; numba gives an array without axes where `np.where` does."""
    return float(key)


@overload(number)
def _number(key: Any) -> Any:
    def of_array(key: Any) -> Any:
        return float(key[()])

    def of_number(key: Any) -> Any:
        return float(key)

    return of_array if isinstance(key, numba.types.Array) else of_number


def _reason(error: NumbaError) -> str:
    """Return what numba says in one line: why, and in which line of whose file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = (line for line in lines if not line.startswith(("Failed in", "During:", "-", "File")))
    place = (line.rstrip(":") for line in lines if line.startswith("File"))
    return f"{next(told, 'no reason given').rstrip(':')} ({next(place, 'no line given')})"
