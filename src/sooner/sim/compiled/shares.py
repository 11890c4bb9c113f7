"""The virtual token counters of an instance's tenants (Sheng et al., OSDI 2024, algorithm 2).

Counters are whole numbers: a token adds `unit`, the common multiple of the weights over the tenant's
own. Decoding requests are not touched at every step: `counter` is what a tenant's counter would have
been at step 0 had those that decode now decoded since, so it grows in closed form.
"""
# mypy: allow-untyped-decorators

from __future__ import annotations

from typing import Any

import numpy as np

from sooner.sim.compiled.jit import compiled, inlined

OUTPUT = 2
"""Tokens of input that one of output counts for; the paper's weights."""

TALLY = np.dtype([("counter", "i8"), ("unit", "i8"), ("decoding", "i8"), ("waiting", "i8")])


@inlined
def counter(tally: Any, m: Any, u: Any, step: Any) -> Any:
    """Return the counter of tenant u at a step of instance m."""
    return tally.counter[m, u] + OUTPUT * tally.unit[m, u] * tally.decoding[m, u] * step


@compiled
def lift(tally: Any, m: Any, u: Any, last: Any, step: Any) -> None:
    """Lift tenant u, who had nobody waiting, to the least of those who have, else to who had last."""
    if tally.waiting[m, u] > 0:
        return
    found, floor = False, np.int64(0)
    for v in range(tally.shape[1]):
        if tally.waiting[m, v] > 0:
            there = counter(tally, m, v, step)
            if not found or there < floor:
                found, floor = True, there
    if not found:
        if last < 0:
            return
        floor = counter(tally, m, last, step)
    missing = floor - counter(tally, m, u, step)
    if missing > 0:
        tally.counter[m, u] += missing


@inlined
def charge(tally: Any, m: Any, u: Any, amount: Any) -> None:
    """Count work [tokens of input] for tenant u."""
    tally.counter[m, u] += amount * tally.unit[m, u]


@inlined
def join(tally: Any, m: Any, u: Any, step: Any) -> None:
    """Let one request of tenant u decode from this step on."""
    tally.decoding[m, u] += 1
    tally.counter[m, u] -= OUTPUT * tally.unit[m, u] * step


@inlined
def part(tally: Any, m: Any, u: Any, step: Any) -> None:
    """Let one request of tenant u decode no more from this step on."""
    tally.decoding[m, u] -= 1
    tally.counter[m, u] += OUTPUT * tally.unit[m, u] * step
