"""The registry of policies: what a policy is, what it reads, and which hosts can tell it.

A decorator is the whole registry. Ours are chosen by name, yours as `module:name`.
"""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from sooner.core import ConfigError, Number, UnknownName, View
from sooner.policies.reads import asks

ORACLE_FED = {"sjf": "spjf", "srpt": "sprpt"}
"""Names for a policy fed by the oracle ranker: the truth enters through `predicted_len` only."""

PREDICTED = frozenset({"predicted_len", "score", "pressure", "work", "usual_wait", "usual_work"})
"""Fields that hang on what a ranker says."""

MOVING = frozenset({"attained", "counter"})
"""Fields that change while a request waits or runs."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A chosen policy: its function with its parameters bound.

    `static`: the key never changes after arrival, so one heap insertion orders the request for
    good. `timeless`: the key does not depend on `now`, so a waiting request keeps its place.
    `preemptive`: meant to displace running requests too. `oracle`: `predicted_len` must be the truth.
    `linear`: the key of a waiting request is a straight line in `now`, whatever it is made of.
    """

    name: str
    function: Callable[..., Number]
    parameters: Mapping[str, float]
    static: bool
    timeless: bool
    preemptive: bool
    oracle: bool = False
    linear: bool = False

    @property
    def reads(self) -> frozenset[str]:
        """The fields of `View` that the key may hang on, those that its helpers read included."""
        return asks(self.function).fields

    @property
    def uses_predictions(self) -> bool:
        """Whether the key hangs on what a ranker says, so that none is run for nothing."""
        return bool(self.reads & PREDICTED)

    def key(self, view: View, now: float) -> Number:
        """Return the key of one request, or of n requests given as columns; smallest runs first."""
        return self.function(view, now, **self.parameters)


class Host(NamedTuple):
    """A home of policies: its name in errors, and the fields of `View` that it tells."""

    name: str
    tells: frozenset[str]

    def bind(self, chosen: Policy) -> Policy:
        """Return the policy. Raises ConfigError where it reads what is not told here."""
        lacking = sorted(chosen.reads - self.tells)
        if not lacking:
            return chosen
        known = (name for name in names() if get(name).reads <= self.tells)
        raise ConfigError(
            f"policy {chosen.name!r} reads {', '.join(map(repr, lacking))}, which {self.name} does not tell;"
            f" allowed: a policy without, such as {', '.join(known)}"
        )


_OURS = "sooner.policies"
_REGISTRY: dict[str, Policy] = {}
_OWN: dict[Callable[..., Number], Policy] = {}  # of other modules: they take no name of ours


def policy(
    *, static: bool = False, timeless: bool = False, preemptive: bool = False, linear: bool = False
) -> Callable[[Callable[..., Number]], Callable[..., Number]]:
    """Register the decorated key function; ours under its own name, yours as `module:name`.

    Raises ConfigError for a function that no host could run.
    """

    def register(function: Callable[..., Number]) -> Callable[..., Number]:
        made = _made(function.__name__, function, static, static or timeless, preemptive, linear)
        if function.__module__ == _OURS:
            _REGISTRY[function.__name__] = made
        else:
            _OWN[function] = made
        return function

    return register


def _made(name: str, function: Any, static: bool, timeless: bool, preemptive: bool, linear: bool) -> Policy:
    """Return a policy with its defaults bound, checked."""
    where = f"policy {name!r}"
    if not isinstance(function, types.FunctionType):
        raise ConfigError(f"{where}: {function!r}, allowed: a plain function of (view, now)")
    kinds = inspect.signature(function).parameters.values()
    given = [parameter for parameter in kinds if parameter.kind is not inspect.Parameter.KEYWORD_ONLY]
    if len(given) != 2 or any(
        parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD for parameter in given
    ):
        raise ConfigError(
            f"{where} takes {inspect.signature(function)}, allowed: (view, now, *, parameter=number, ...)"
        )
    parameters = {
        parameter.name: parameter.default
        for parameter in kinds
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for parameter, default in parameters.items():
        if not _is_number(default):
            raise ConfigError(f"{where}: {parameter}={default!r}, allowed as a default: a finite number >= 0")
    made = Policy(name, function, parameters, static, timeless, preemptive, linear=linear)
    moving = made.reads & (MOVING if static else {"counter"} if timeless else frozenset())
    if moving:
        said = "static" if static else "timeless"
        raise ConfigError(f"{where} is said to be {said} but reads {', '.join(map(repr, sorted(moving)))}")
    return made


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and bool(np.isfinite(value)) and value >= 0  # type: ignore[call-overload,operator]


def names() -> tuple[str, ...]:
    """Return every policy name, the oracle-fed ones included."""
    return (*_REGISTRY, *ORACLE_FED)


def get(name: str, **parameters: float) -> Policy:
    """Return policy `name`, or your own `module:name`, with `parameters` bound over its defaults.

    Raises UnknownName for a name or parameter that does not exist and ConfigError for a value that
    is not a finite number >= 0, or a module that holds no policy.
    """
    base = _own(name) if ":" in name else _REGISTRY.get(ORACLE_FED.get(name, name))
    if base is None:
        raise UnknownName("policy", name, names())
    for parameter, value in parameters.items():
        if parameter not in base.parameters:
            raise UnknownName(f"parameter of policy {name!r}", parameter, base.parameters)
        if not _is_number(value):
            raise ConfigError(f"policy {name!r}: {parameter}={value!r}, allowed: a finite number >= 0")
    bound = {**base.parameters, **{key: float(value) for key, value in parameters.items()}}
    return replace(base, name=name, parameters=bound, oracle=name in ORACLE_FED)


def _own(name: str) -> Policy:
    """Return a policy of another module; the key of one without the decorator is read anew at each look."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module of others raises
        raise ConfigError(
            f"policy {name!r}: {error}; allowed: 'module:name' of a module on Python's path"
        ) from error
    if isinstance(found, types.FunctionType) and found in _OWN:
        chosen = _OWN[found]
    else:
        chosen = found if isinstance(found, Policy) else _made(name, found, False, False, False, False)
    column = np.array([1.0, 2.0])
    try:  # hosts read many keys at once
        with np.errstate(all="ignore"):
            keys = chosen.key(View(*[column] * len(View._fields)), 3.0)
        np.broadcast_to(keys, (2,)).astype(np.float64)
    except Exception as error:
        raise ConfigError(
            f"policy {name!r} given columns of requests: {error}; allowed: arithmetic and NumPy's functions,"
            " such as np.where for a branch"
        ) from error
    return chosen
