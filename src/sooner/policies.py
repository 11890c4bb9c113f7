"""Every order in which waiting requests can be served: one pure function each, smallest key first.

The same function runs in the simulator (compiled), the vLLM plugin and the gateway (plain floats),
so each uses only arithmetic and NumPy ufuncs. Hosts break ties by arrival, then by order of entry.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sooner.core import ConfigError, Number, UnknownName, View

ORACLE_FED = {"sjf": "spjf", "srpt": "sprpt"}
"""Names for a policy fed by the oracle ranker: the truth enters through `predicted_len` only."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A chosen policy: its function with its parameters bound.

    `static`: the key never changes after arrival, so one heap insertion orders the request for
    good. `timeless`: the key does not depend on `now`, so a waiting request keeps its place.
    `preemptive`: meant to displace running requests too. `oracle`: `predicted_len` must be the truth.
    """

    name: str
    function: Callable[..., Number]
    parameters: Mapping[str, float]
    static: bool
    timeless: bool
    preemptive: bool
    oracle: bool = False

    def key(self, view: View, now: float) -> Number:
        """Return the key of one request, or of n requests given as columns; smallest runs first."""
        return self.function(view, now, **self.parameters)


_REGISTRY: dict[str, Policy] = {}


def policy(
    *, static: bool = False, timeless: bool = False, preemptive: bool = False
) -> Callable[[Callable[..., Number]], Callable[..., Number]]:
    """Register the decorated key function under its own name."""

    def register(function: Callable[..., Number]) -> Callable[..., Number]:
        parameters = {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        _REGISTRY[function.__name__] = Policy(
            function.__name__, function, parameters, static, static or timeless, preemptive
        )
        return function

    return register


def names() -> tuple[str, ...]:
    """Return every policy name, the oracle-fed ones included."""
    return (*_REGISTRY, *ORACLE_FED)


def get(name: str, **parameters: float) -> Policy:
    """Return policy `name` with `parameters` bound over its defaults.

    Raises UnknownName for a name or parameter that does not exist and ConfigError for a value that
    is not a finite number >= 0.
    """
    base = _REGISTRY.get(ORACLE_FED.get(name, name))
    if base is None:
        raise UnknownName("policy", name, names())
    for parameter, value in parameters.items():
        if parameter not in base.parameters:
            raise UnknownName(f"parameter of policy {name!r}", parameter, base.parameters)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and np.isfinite(value) and value >= 0):
            raise ConfigError(f"policy {name!r}: {parameter}={value!r}, allowed: a finite number >= 0")
    bound = {**base.parameters, **{key: float(value) for key, value in parameters.items()}}
    return Policy(name, base.function, bound, base.static, base.timeless, base.preemptive, name in ORACLE_FED)


def describe(name: str) -> dict[str, Any]:
    """Return what the documentation and `--help` say of a policy: summary, flags and defaults."""
    chosen = get(name)
    summary = (inspect.getdoc(chosen.function) or "").split("\n", 1)[0]
    return {"name": name, "summary": summary, "parameters": dict(chosen.parameters), "static": chosen.static}


@policy(static=True)
def fcfs(q: View, now: float) -> Number:
    """First come, first served: nobody is ever overtaken."""
    return q.arrival_time


@policy(static=True)
def aged(q: View, now: float, *, beta: float = 0.02, follow: float = 1.0) -> Number:
    """Arrival time plus a patience of b [s/token] for each predicted token; the default.

    b = max(beta, follow * pressure): `beta` [s/token] is the floor, and `follow` scales b with the
    load, since `pressure` is the recent mean wait over the recent mean predicted length. Both are
    fixed at arrival, so the key never changes.

    Guarantee: a request is overtaken only by requests that arrive less than `b * predicted_len`
    seconds after it, so nobody starves; with equal b for all, by at most b times the difference of
    predicted lengths. `beta = follow = 0` is FCFS; b -> infinity is shortest predicted job first.
    """
    return q.arrival_time + np.maximum(beta, follow * q.pressure) * q.predicted_len


@policy(static=True)
def ltr(q: View, now: float) -> Number:
    """Lowest score first, the rank order of vllm-ltr (Fu et al., NeurIPS 2024); may starve long work."""
    return q.score


@policy(static=True)
def spjf(q: View, now: float) -> Number:
    """Shortest predicted job first (Mitzenmacher, 2019); SSJF's order. May starve long work."""
    return q.predicted_len


@policy(timeless=True, preemptive=True)
def sprpt(q: View, now: float) -> Number:
    """Shortest predicted remaining processing time first (Mitzenmacher, 2019)."""
    return q.predicted_len - q.attained


@policy()
def hrrn(q: View, now: float) -> Number:
    """Highest response ratio next, (wait + service) / service (Brinch Hansen, 1971).

    Guarantee: the ratio of a waiting request grows without bound, so it is overtaken by no request
    that arrives after it once its ratio exceeds that of any newcomer, which is 1.
    """
    return -(1 + (now - q.arrival_time) / np.maximum(q.predicted_len, 1.0))


@policy(timeless=True, preemptive=True)
def las(q: View, now: float) -> Number:
    """Least attained service first, also foreground-background (Kleinrock, 1967); needs no prediction."""
    return q.attained


@policy(static=True)
def edf(q: View, now: float) -> Number:
    """Earliest deadline first (Liu and Layland, 1973); requests without one come last, by arrival."""
    return q.deadline


@policy(static=True)
def boost(q: View, now: float, *, gamma: float = 0.05, seconds_per_token: float = 0.02) -> Number:
    """Arrival time less a boost that shrinks with predicted size (Yu and Scully, 2024, section 3).

    boost(s) = log(1 / (1 - exp(-gamma s))) / gamma, s = predicted_len * seconds_per_token [s] and
    gamma [1/s] > 0 the decay rate of the tail to protect.

    Guarantee: a request is overtaken only by requests that arrive less than `boost(their size)`
    seconds after it, at most boost(one token), so nobody starves.
    """
    size = np.maximum(q.predicted_len, 1.0) * seconds_per_token
    late: Number = np.log(-np.expm1(-np.maximum(gamma, 1e-9) * size)) / np.maximum(gamma, 1e-9)
    return q.arrival_time + late
