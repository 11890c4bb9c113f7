"""The search for the smallest of many keys that are straight lines in time, without looking at all of them.

The waiting are parted into those near and those far. When that is done, at `parted`, no far key is
below `low`, and at `parted + horizon` none will be below `later`; lines in between are above the line
in between. So as long as the best near key is clearly below that line it is the best of all, by
the policy's own keys and ties. Else, or when too many came, all are parted anew.
"""
# mypy: allow-untyped-decorators

from __future__ import annotations

from typing import Any

import numpy as np

from sooner.sim.compiled.admission.keys import key
from sooner.sim.compiled.jit import compiled

SAMPLE = 64
"""Keys that are looked at to find a bound which few are below."""
FEW = 2 * SAMPLE
MARGIN = 1e-9
"""Far more than rounding can move a key, relative to the numbers in it."""


@compiled
def worthwhile(w: Any, m: Any) -> Any:
    """Whether some are far, or so many came that it is time to part them."""
    s = w.instance[m]
    return s.far >= 0 or (s.near > s.crowd and s.t * 1e-12 >= s.parted + s.pause)


@compiled
def head(w: Any, m: Any, key_fn: Any) -> Any:
    """Return the waiting request with the smallest key and the near one before it."""
    s = w.instance[m]
    now = s.t * 1e-12
    if s.near <= s.crowd:
        best, before, least = _first(w, m, now, key_fn)
        after = now - s.parted
        if best >= 0 and after <= s.horizon:
            bound = s.low + (s.later - s.low) * (after / s.horizon)
            if least < bound - MARGIN * (1.0 + abs(s.low) + abs(s.later)):
                return best, before
    _part(w, m, now, key_fn)
    best, before, _ = _first(w, m, now, key_fn)
    return best, before


@compiled
def _first(w: Any, m: Any, now: Any, key_fn: Any) -> Any:
    """Return the near request with the smallest key, the one before it, and the key."""
    best, best_before, least = np.int64(-1), np.int64(-1), 0.0
    before, r = np.int64(-1), w.instance[m].root
    while r >= 0:
        mine = key(w, r, now, key_fn)
        if best < 0 or mine < least or (mine == least and r < best):
            best, best_before, least = r, before, mine
        before, r = r, np.int64(w.request[r].sibling)
    return best, best_before, least


@compiled
def gather(w: Any, m: Any) -> None:
    """Put the far ones with the near ones."""
    s = w.instance[m]
    while s.far >= 0:
        r = s.far
        s.far = np.int64(w.request[r].sibling)
        w.request[r].sibling = s.root
        s.root = r
    s.near = s.waiting


@compiled
def _part(w: Any, m: Any, now: Any, key_fn: Any) -> None:
    """Keep near whose key is among the smallest now, or will be at the horizon."""
    s = w.instance[m]
    gather(w, m)
    # as far ahead as the last parting lasted, and a little more
    s.horizon = min(max(2.0 * (now - s.parted), 1.0), 1e4)
    s.parted = now
    if s.waiting <= FEW:
        s.crowd = FEW
        return
    s.low = _small(w, m, now, 0, key_fn)
    s.later = _small(w, m, now + s.horizon, 1, key_fn)
    r, s.root, s.near = s.root, np.int64(-1), np.int64(0)
    while r >= 0:
        after = np.int64(w.request[r].sibling)
        if key(w, r, now, key_fn) <= s.low or key(w, r, now + s.horizon, key_fn) <= s.later:
            w.request[r].sibling = s.root
            s.root = r
            s.near += 1
        else:
            w.request[r].sibling = s.far
            s.far = r
        r = after
    if s.far >= 0:
        s.crowd, s.pause = 2 * s.near + FEW, 0.0
    else:  # all alike, as at the start of a burst: later they may differ
        s.crowd, s.pause = np.int64(FEW), max(2.0 * s.pause, 1e-3)


@compiled
def _small(w: Any, m: Any, now: Any, row: Any, key_fn: Any) -> Any:
    """Return the second smallest key of a sample of the waiting: about one in 32 is below."""
    s, sample = w.instance[m], w.sample
    stride, count, i, r = s.waiting // SAMPLE, 0, np.int64(0), s.root
    while r >= 0 and count < SAMPLE:
        if i % stride == 0:
            mine, j = key(w, r, now, key_fn), count
            while j > 0 and sample[row, j - 1] > mine:
                sample[row, j] = sample[row, j - 1]
                j -= 1
            sample[row, j] = mine
            count += 1
        i += 1
        r = np.int64(w.request[r].sibling)
    return sample[row, 1]
