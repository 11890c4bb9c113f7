"""The waiting requests of one instance: a heap where keys stay, else a list searched at each admission."""
# mypy: allow-untyped-decorators

from __future__ import annotations

from typing import Any

import numpy as np

from sooner.sim.compiled import shares
from sooner.sim.compiled.admission import far, heap
from sooner.sim.compiled.admission.keys import fixed, key
from sooner.sim.compiled.admission.state import DYNAMIC, HEAP
from sooner.sim.compiled.jit import compiled
from sooner.sim.compiled.marks import CANCELLED, WAITS


@compiled
def enter(w: Any, m: Any, r: Any) -> None:
    """Let a request that was not waiting wait."""
    if w.option[0].queue == DYNAMIC:
        s = w.instance[m]
        shares.lift(w.tally, m, w.tenant[r], s.last, s.step)
    enqueue(w, m, r)


@compiled
def enqueue(w: Any, m: Any, r: Any) -> None:
    """Put a request among the waiting; it idles from this step on."""
    s, q = w.instance[m], w.request[r]
    q.lead = s.step
    if w.option[0].queue == HEAP:
        s.root = heap.push(w.request, s.root, r)
    else:
        q.sibling = s.root
        s.root = r
        s.near += 1
    if w.option[0].queue == DYNAMIC:
        w.tally.waiting[m, w.tenant[r]] += 1
    if w.option[0].weighed == 1:
        s.backlog += w.work[s.kind, r]
    s.waiting += 1


@compiled
def head(w: Any, m: Any, key_fn: Any) -> Any:
    """Return the waiting request that goes next and, in a list, the one before it."""
    s = w.instance[m]
    if w.option[0].queue == HEAP:
        while w.finish[s.root] == CANCELLED:
            s.root = heap.pop(w.request, s.root)
        return s.root, np.int64(-1)
    if w.option[0].linear == 1 and far.worthwhile(w, m):
        return far.head(w, m, key_fn)
    now, guard = s.t * 1e-12, w.option[0].guard
    best, best_before, best_key, best_up = np.int64(-1), np.int64(-1), 0.0, False
    before, r = np.int64(-1), s.root
    while r >= 0:
        q = w.request[r]
        up = guard > 0 and (q.quantum > 0 or s.step - q.lead >= guard)
        mine = key(w, r, now, key_fn)
        better = best < 0 or (up and not best_up)
        if not better and up == best_up:
            better = mine < best_key or (mine == best_key and r < best)
        if better:
            best, best_before, best_key, best_up = r, before, mine, up
        before, r = r, np.int64(q.sibling)
    return best, best_before


@compiled
def take(w: Any, m: Any, r: Any, before: Any) -> None:
    """Remove what `head` returned, or another one of the same list."""
    s = w.instance[m]
    if w.option[0].queue != HEAP:
        s.near -= 1
    if w.option[0].queue == HEAP:
        s.root = heap.pop(w.request, s.root)
    elif before < 0:
        s.root = w.request[r].sibling
    else:
        w.request[before].sibling = w.request[r].sibling
    if w.option[0].queue == DYNAMIC:
        s.last = w.tenant[r]
        w.tally.waiting[m, s.last] -= 1
    if w.option[0].weighed == 1:
        s.backlog -= w.work[s.kind, r]
    s.waiting -= 1


@compiled
def drop(w: Any, m: Any, r: Any) -> None:
    """Remove a waiting request whose client left; a heap sheds it when it comes to the top."""
    s = w.instance[m]
    w.finish[r] = CANCELLED
    if w.option[0].queue == HEAP:
        if w.option[0].weighed == 1:
            s.backlog -= w.work[s.kind, r]
        s.waiting -= 1
        if s.waiting == 0:
            s.root = -1
        return
    if s.far >= 0:
        far.gather(w, m)
    before, at = np.int64(-1), s.root
    while at != r:
        before, at = at, np.int64(w.request[at].sibling)
    take(w, m, r, before)


@compiled
def place_anew(w: Any, m: Any, end: Any, key_fn: Any) -> None:
    """Fix the keys of all that are at instance m anew, of the requests before `end`."""
    s, o = w.instance[m], w.option[0]
    if o.queue == DYNAMIC:
        if s.far >= 0:
            far.gather(w, m)
        return
    if o.queue == HEAP:
        s.root = -1
    start = s.oldest
    while start < end and (w.finish[start] != WAITS or w.request[start].place != m):
        start += 1
    s.oldest = start
    for r in range(start, end):
        q = w.request[r]
        if w.finish[r] == WAITS and q.place == m:
            fixed(w, m, r, key_fn)
            if o.queue == HEAP and q.seq < 0:
                s.root = heap.push(w.request, s.root, r)
