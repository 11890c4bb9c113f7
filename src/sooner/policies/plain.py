"""A policy's own function for one request at a time: `math` in place of NumPy, the same keys.

A NumPy function called on one number costs more than all else that placing a request takes.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from sooner.core import View
from sooner.policies.reads import asks, rebuilt
from sooner.policies.registry import Policy


def _whole(function: Callable[[float], float]) -> Callable[[float], float]:
    """Return a rounding that leaves infinities and NaN, as NumPy's does."""
    return lambda x: float(function(x)) if math.isfinite(x) else x


def _growing(function: Callable[[float], float]) -> Callable[[float], float]:
    def safe(x: float) -> float:
        try:
            return function(x)
        except OverflowError:
            return math.inf

    return safe


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan


def _log1p(x: float) -> float:
    return math.log1p(x) if x > -1 else -math.inf if x == -1 else math.nan


SCALARS = SimpleNamespace(
    maximum=max,
    minimum=min,
    log=_log,
    log1p=_log1p,
    exp=_growing(math.exp),
    expm1=_growing(math.expm1),
    sqrt=lambda x: math.sqrt(x) if x >= 0 else math.nan,
    arctan=math.atan,
    floor=_whole(math.floor),
    ceil=_whole(math.ceil),
    abs=abs,
    where=lambda chosen, one, other: one if chosen else other,
)
"""What stands for NumPy; a policy that uses more of it keeps NumPy."""


def scalar_key(policy: Policy) -> Callable[[View, float], Any]:
    """Return a policy's key for views of numbers, the helpers that it calls included."""
    function = policy.function
    if not (isinstance(function, types.FunctionType) and asks(function).numpy <= set(vars(SCALARS))):
        return policy.key
    made: dict[types.FunctionType, types.FunctionType] = {}

    def swap(value: Any) -> Any:
        if value is np:
            return SCALARS
        if not isinstance(value, types.FunctionType) or not asks(value).numpy:
            return value
        if value not in made:
            made[value] = value  # one that calls itself keeps NumPy inside
            made[value] = rebuilt(value, swap)
        return made[value]

    plain = rebuilt(function, swap)
    plain.__kwdefaults__ = {**(function.__kwdefaults__ or {}), **policy.parameters}
    return plain
