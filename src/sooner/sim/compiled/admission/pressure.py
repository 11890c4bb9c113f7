"""A step in which the running requests need more KV blocks than are free: preemption by recompute.

As vLLM V1: in order of admission; who finds no block evicts the running request with the largest
key, until it fits or has evicted itself, which ends the step's scheduling. Nobody is admitted.
"""
# mypy: allow-untyped-decorators

from __future__ import annotations

from typing import Any

import numpy as np

from sooner.sim.compiled.admission.keys import key
from sooner.sim.compiled.admission.running import collect, finish, gain, rebuild
from sooner.sim.compiled.admission.waiting import enter
from sooner.sim.compiled.closed_form import blocks
from sooner.sim.compiled.jit import compiled, inlined


@compiled
def squeeze(w: Any, m: Any, key_fn: Any) -> None:
    """Run one step, evicting as needed."""
    s = w.instance[m]
    count = collect(w, m)
    ids, tokens, took = w.scratch[0], w.scratch[1], w.scratch[2]
    part, budget, i = s.part, s.tokens, 0
    took[:count] = 0
    while i < count and budget > 0:
        r = ids[i]
        if r < 0:
            i += 1
            continue
        held, want = tokens[i] - 1, np.int64(1)
        if r == part:
            q = w.request[r]
            held, want = s.computed, min(q.prompt + q.generated - s.computed, budget)
        need = blocks(held + want, s.block) - blocks(held, s.block)
        evicted = False
        while need > s.free and not evicted:
            worst = _worst(w, m, count, key_fn)
            budget += took[worst]
            part = _evict(w, m, worst, part)
            evicted = worst == i
        if evicted:
            break
        s.free -= need
        took[i] = want
        budget -= want
        i += 1
    _execute(w, m, count, part)


@inlined
def _quantum_left(w: Any, m: Any, r: Any) -> Any:
    """Steps that a running request still stands above the rest; `child` is the step of its admission."""
    return w.request[r].quantum - (w.instance[m].step - w.request[r].child)


@compiled
def _worst(w: Any, m: Any, count: Any, key_fn: Any) -> Any:
    """Return the place in scratch[0] of the running request with the largest key."""
    now, ids = w.instance[m].t * 1e-12, w.scratch[0]
    worst, worst_key, worst_up = -1, 0.0, True
    for j in range(count):
        r = ids[j]
        if r < 0:
            continue
        mine = key(w, r, now, key_fn)
        up = w.option[0].guard > 0 and _quantum_left(w, m, r) > 0
        worse = worst < 0 or (worst_up and not up)
        if not worse and up == worst_up:
            worse = mine > worst_key or (mine == worst_key and r > ids[worst])
        if worse:
            worst, worst_key, worst_up = j, mine, up
    return worst


@compiled
def _evict(w: Any, m: Any, at: Any, part: Any) -> Any:
    """Send the request at `at` of scratch[0] back to the waiting; returns the partial one that is left."""
    s, r = w.instance[m], w.scratch[0, at]
    q, took = w.request[r], w.scratch[2, at]
    s.free += blocks((s.computed if r == part else w.scratch[1, at] - 1) + took, s.block)
    w.scratch[0, at] = -1
    q.preemptions += 1
    q.seq = -1
    if w.option[0].guard > 0:
        q.quantum = max(0, _quantum_left(w, m, r))
    s.running -= 1
    enter(w, m, r)
    return np.int64(-1) if r == part else part


@compiled
def _execute(w: Any, m: Any, count: Any, part: Any) -> None:
    """Run what was scheduled: some of the running may sit this step out."""
    s = w.instance[m]
    ids, tokens, took = w.scratch[0], w.scratch[1], w.scratch[2]
    prefill, decoding, context = np.int64(0), np.int64(0), np.int64(0)
    for i in range(count):
        if ids[i] >= 0 and took[i] > 0:
            if ids[i] == part:
                prefill += took[i]
            else:
                decoding += 1
                context += tokens[i]
    s.stall += 1
    if prefill + decoding > 0:
        s.stall = 0
        s.t += s.a + s.b * prefill + s.c * decoding + s.d * context
    s.step += 1
    kept, partial = 0, np.int64(-1)
    for i in range(count):
        r = ids[i]
        if r < 0:
            continue
        q = w.request[r]
        if r == part:
            s.computed += took[i]
            if s.computed < q.prompt + q.generated:
                partial = r
            else:
                gain(w, m, r, 1)
                if w.first[r] < 0:
                    w.first[r] = s.t
        else:
            gain(w, m, r, took[i])
        if r != partial and q.generated >= q.output:
            finish(w, m, r)
        else:
            ids[kept] = r
            kept += 1
    rebuild(w, m, kept, partial)
