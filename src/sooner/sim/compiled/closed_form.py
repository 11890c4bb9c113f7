"""Closed forms: how long k decode-only iterations take, and how many fit into a gap."""
# mypy: allow-untyped-decorators

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sooner.sim.compiled.jit import compiled, inlined


@inlined
def blocks(tokens: Any, size: Any) -> Any:
    """KV blocks that hold so many tokens."""
    return (tokens + size - 1) // size


@compiled
def span(k: Any, first: Any, growth: Any) -> Any:
    """Picoseconds of k iterations, the first of which takes `first`, each `growth` more than the last."""
    return k * first + growth * (k * (k - 1) // 2)


@compiled
def steps_until(gap: Any, first: Any, growth: Any) -> Any:
    """Return the least k >= 1 with span(k) >= gap."""
    if growth > 0:
        half = first - 0.5 * growth
        k = np.int64((math.sqrt(half * half + 2.0 * growth * gap) - half) / growth)
    else:
        k = gap // first
    k = max(k, np.int64(1))
    while span(k, first, growth) < gap:
        k += 1
    while k > 1 and span(k - 1, first, growth) >= gap:
        k -= 1
    return k
