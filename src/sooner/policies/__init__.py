"""Every order in which waiting requests can be served: one pure function each, smallest key first.

The same function runs in the simulator (compiled), the vLLM plugin and the gateway (plain floats),
so each uses only arithmetic and NumPy ufuncs. Hosts break ties by arrival, then by order of entry.
A policy of your own is such a function in a module of yours, chosen as `module:name`; see `docs/policies.md`.
"""

from __future__ import annotations

import numpy as np

from sooner.core import Number, View
from sooner.policies.registry import ORACLE_FED, Host, Policy, get, names, policy

__all__ = ["DEFAULT", "ORACLE_FED", "Host", "Policy", "get", "names", "policy"]

DEFAULT = "boost"
"""What everything orders by that is not told otherwise."""

LEVEL = 1e10
"""Far above any time [s]: a class, a queue's level, or what has been announced decides before time does."""

REACH = 2.5
"""Of `boost`, in time and in work; measured on five workloads, where 2 to 3 do as well."""

SMALLEST_SHARE = 1e-6
"""Of the usual work: less counts as this, so that a boost is at most 14 / gamma seconds."""


@policy(static=True)
def fcfs(q: View, now: float) -> Number:
    """First come, first served: nobody is ever overtaken."""
    return q.arrival_time


@policy(static=True)
def aged(q: View, now: float, *, beta: float = 0.02, follow: float = 1.0) -> Number:
    """Arrival time plus a patience of b [s/token] for each predicted token.

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


@policy(linear=True)
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
def edf_classes(q: View, now: float) -> Number:
    """Classes first, the lowest level before all others, and earliest deadline first inside a class.

    Guarantee: no request of a higher level ever passes one of a lower level. Requests without a
    deadline come last in their class, by arrival.
    """
    key: Number = q.level * LEVEL + np.minimum(q.deadline, 0.5 * LEVEL)
    return key


@policy()
def vtc(q: View, now: float) -> Number:
    """The virtual token counter (Sheng et al., OSDI 2024): the tenant served least so far goes next.

    The host counts, for each tenant, a token of input as 1 when it is admitted and one of output as
    2 when it is made, over the tenant's weight, and lifts a tenant that comes back to those who wait;
    ties, a tenant's own requests among them, go by arrival. The gateway shares out by such counters
    around whatever policy it has, and the simulator counts for this one.

    Guarantee: between tenants who wait, counters differ by no more than one prompt and twice what
    one tenant can still have running, so none is held up by how much another sends.
    """
    return q.counter


@policy(static=True)
def boost(q: View, now: float, *, gamma: float = 0.0) -> Number:
    """Arrival time less a boost that shrinks with expected work, the default; keeps the tail.

    boost(work) = log(1 / (1 - exp(-2.5 work / usual_work))) / gamma, the tail-optimal boost of Yu and
    Scully (2024, section 3) with two changes that an engine needs, which serves thousands of requests in
    the time that one waits. The boost is gone at about `usual_work`, not at 1 / gamma, so the large
    requests are one class, in order of arrival. And `gamma` [1/s] is 1 / (2.5 usual_wait) where it is 0:
    a long memory of waits, never the present backlog, which would put large work off without end.

    Guarantee: a request is overtaken only by requests that arrive less than boost(their work)
    seconds after it, so nobody starves.
    """
    rate = gamma if gamma > 0.0 else 1.0 / (REACH * q.usual_wait)
    share = np.maximum(REACH * q.work / q.usual_work, SMALLEST_SHARE)
    late: Number = np.log(-np.expm1(-share)) / rate
    return q.arrival_time + late


@policy(static=True)
def spw(q: View, now: float) -> Number:
    """Shortest predicted work first: prompt and reply together, in engine seconds. May starve long work."""
    return q.work


@policy(static=True)
def longest(q: View, now: float) -> Number:
    """Longest predicted work first (Graham, 1969): who all wait at once end soonest. Starves short work."""
    return -q.work


@policy(linear=True)
def hrrn_prompt(q: View, now: float) -> Number:
    """Highest response ratio next on the prompt alone, wait / prompt tokens, as proposed for SGLang.

    Needs no prediction. Guarantee: the ratio of a waiting request grows without bound, so no
    newcomer, whose ratio is 0, ever passes it.
    """
    return -(now - q.arrival_time) / np.maximum(q.prompt_len, 1.0)


@policy(static=True)
def wspt(q: View, now: float) -> Number:
    """Weighted shortest processing time (Smith, 1956) as Dynamo's router orders: shortest prompt first.

    All weights are equal here, for classes are the host's to keep apart. Needs no prediction; may starve
    long prompts.
    """
    return q.prompt_len


@policy(timeless=True, preemptive=True)
def mlfq(
    q: View, now: float, *, quantum_s: float = 0.01, growth: float = 2.0, seconds_per_token: float = 0.02
) -> Number:
    """Multi-level feedback queue: a level for each `growth`-fold of attained service, FCFS inside one.

    Level p holds requests served up to quantum_s * growth**p; needs no prediction. As in vllm-ltr's
    comparison (Fu et al., NeurIPS 2024), with service counted in tokens of `seconds_per_token`.
    """
    served = q.attained * seconds_per_token / np.maximum(quantum_s, 1e-9)
    level = np.ceil(np.log(np.maximum(served, 1.0)) / np.log(np.maximum(growth, 1.01)) - 1e-9)
    key: Number = level * LEVEL + q.arrival_time
    return key


@policy(timeless=True, preemptive=True)
def fastserve(
    q: View,
    now: float,
    *,
    quantum_s: float = 0.01,
    growth: float = 2.0,
    seconds_per_token: float = 0.02,
    prompt_token_s: float = 5e-5,
) -> Number:
    """FastServe's skip-join MLFQ (Wu et al., 2023): `mlfq`, joined at the level of the first iteration.

    The first iteration takes the prompt's `prompt_token_s` a token, so a long prompt skips the
    levels whose quantum it would outlast. FastServe's promotion of the starved is the host's guard.
    """
    served = q.prompt_len * prompt_token_s + q.attained * seconds_per_token
    level = np.log(np.maximum(served / np.maximum(quantum_s, 1e-9), 1.0)) / np.log(np.maximum(growth, 1.01))
    key: Number = np.ceil(level - 1e-9) * LEVEL + q.arrival_time
    return key


@policy(timeless=True, preemptive=True)
def po(q: View, now: float, *, announce_tokens: float = 15.0) -> Number:
    """Perception only: first come, first served until a request has said its own length, then shortest.

    The model announces its reply's length in its first `announce_tokens` tokens, which `predicted_len`
    holds; whoever still announces goes before whoever has (vllm-ltr's PO arm).
    """
    announced = np.minimum(np.floor(q.attained / np.maximum(announce_tokens, 1.0)), 1.0)
    key: Number = announced * (LEVEL + q.predicted_len) + (1.0 - announced) * q.arrival_time
    return key


@policy(timeless=True, preemptive=True)
def boost_blind(q: View, now: float, *, gamma: float = 0.05, seconds_per_token: float = 0.02) -> Number:
    """`boost` without predictions: the boost of the size attained so far, in the spirit of UniBoost (2026).

    A newcomer has the whole boost and loses it token by token, so replies that prove long yield.

    Guarantee: a request is overtaken only by requests that arrive less than boost(one token)
    seconds after it, so nobody starves.
    """
    size = (q.attained + 1.0) * seconds_per_token
    late: Number = np.log(-np.expm1(-np.maximum(gamma, 1e-9) * size)) / np.maximum(gamma, 1e-9)
    return q.arrival_time + late


_STOPS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.15, 1.3, 1.5, 1.7, 1.9, 2.1, 2.33)
"""Where Gittins may stop, in multiples of the prediction: its best stop is never beyond 2.33 times."""


@policy(timeless=True, preemptive=True)
def gittins(q: View, now: float) -> Number:
    """Gittins' index for a prediction that is wrong by a factor: least work per chance to end, tokens.

    The length is log-logistic around `predicted_len` m with shape 2, P(S > x) = 1 / (1 + (x / m)^2), a
    smooth law with a heavy tail; the index is the least over stops b of
    E[min(S, b) - a | S > a] / P(S <= b | S > a), a = attained (Gittins, 1979).
    """
    m = np.maximum(q.predicted_len, 1.0)
    u = q.attained / m
    best: Number = (1.0 + u * u) / np.maximum(2.0 * u, 1e-9)
    for stop in _STOPS:
        w = np.maximum(u + 0.01, stop)
        work = np.arctan(w) - np.arctan(u)
        best = np.minimum(best, work * (1.0 + u * u) * (1.0 + w * w) / ((w - u) * (w + u)))
    index: Number = m * best
    return index
