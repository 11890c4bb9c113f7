"""The running requests of one instance.

Decoding requests all gain one token an iteration, so none of them is touched until it ends: a heap
holds the step at which each ends, `lead` the sum of (tokens - step) from which the context follows,
and `residue` counts those that need a new KV block at each step modulo the block size.
"""
# mypy: allow-untyped-decorators

from __future__ import annotations

from typing import Any

import numpy as np

from sooner.sim.compiled import shares
from sooner.sim.compiled.admission.state import DYNAMIC
from sooner.sim.compiled.closed_form import blocks
from sooner.sim.compiled.jit import allocating, compiled
from sooner.sim.compiled.marks import CANCELLED


@compiled
def _push_end(w: Any, m: Any, count: Any, step: Any, r: Any) -> None:
    steps, ids, i = w.ends.step[m], w.ends.id[m], count
    while i > 0:
        up = (i - 1) >> 1
        if steps[up] <= step:
            break
        steps[i], ids[i] = steps[up], ids[up]
        i = up
    steps[i], ids[i] = step, r


@compiled
def _pop_end(w: Any, m: Any, count: Any) -> Any:
    """Take the request that ends first off the heap, which holds `count`."""
    steps, ids = w.ends.step[m], w.ends.id[m]
    top, last = ids[0], count - 1
    step, r, i = steps[last], ids[last], np.int64(0)
    while True:
        down = 2 * i + 1
        if down >= last:
            break
        if down + 1 < last and steps[down + 1] < steps[down]:
            down += 1
        if steps[down] >= step:
            break
        steps[i], ids[i] = steps[down], ids[down]
        i = down
    steps[i], ids[i] = step, r
    return top


@compiled
def finish(w: Any, m: Any, r: Any) -> None:
    """End a request whose last token came with this step."""
    s, q = w.instance[m], w.request[r]
    w.finish[r] = s.t
    s.free += blocks(q.prompt + q.output - 1, s.block)
    s.running -= 1
    s.ended += 1
    leave(w, m, r)
    s.ended_load += q.load


@compiled
def leave(w: Any, m: Any, r: Any) -> None:
    """Take a request off the instance's load."""
    w.instance[m].load -= w.request[r].load


@compiled
def gain(w: Any, m: Any, r: Any, tokens: Any) -> None:
    """Give a request tokens that it was not decoding for."""
    w.request[r].generated += tokens
    if w.option[0].queue == DYNAMIC:
        shares.charge(w.tally, m, w.tenant[r], shares.OUTPUT * tokens)


@compiled
def decode(w: Any, m: Any, r: Any) -> None:
    """Let a request that holds its first tokens join the decoding ones."""
    s, q = w.instance[m], w.request[r]
    q.lead = q.prompt + q.generated - s.step
    _push_end(w, m, s.decoding, s.step + q.output - q.generated, r)
    w.residue[m, q.lead % s.block] += 1
    s.decoding += 1
    s.lead += q.lead
    if w.option[0].queue == DYNAMIC:
        shares.join(w.tally, m, w.tenant[r], s.step)


@compiled
def end_due(w: Any, m: Any) -> None:
    """End every decoding request whose step has come."""
    s = w.instance[m]
    while s.decoding > 0 and w.ends.step[m, 0] <= s.step:
        r = _pop_end(w, m, s.decoding)
        q = w.request[r]
        s.decoding -= 1
        s.lead -= q.lead
        w.residue[m, q.lead % s.block] -= 1
        if w.option[0].queue == DYNAMIC:
            shares.part(w.tally, m, w.tenant[r], s.step)
        q.generated = q.output
        finish(w, m, r)


@compiled
def growth(w: Any, m: Any, k: Any) -> Any:
    """KV blocks the decoding requests take in the next k steps."""
    s = w.instance[m]
    total = (k // s.block) * s.decoding
    at = (1 - s.step) % s.block
    for _ in range(k % s.block):
        total += w.residue[m, at]
        at = s.block - 1 if at == 0 else at - 1
    return total


@compiled
def affordable(w: Any, m: Any, k: Any) -> Any:
    """Return the most steps <= k whose growth fits into the free blocks; at least 1 is known to."""
    low, high = np.int64(1), k
    while low < high:
        middle = (low + high + 1) // 2
        if growth(w, m, middle) <= w.instance[m].free:
            low = middle
        else:
            high = middle - 1
    return low


@allocating
def _by_admission(request: Any, ids: Any, count: Any) -> None:
    """Sort the first `count` ids by the order of their admission."""
    seq = np.zeros(count, dtype=np.int64)
    for i in range(count):
        seq[i] = request[ids[i]].seq
    ids[:count] = ids[:count][np.argsort(seq)]


@compiled
def collect(w: Any, m: Any) -> Any:
    """Write the running requests in order of admission to scratch[0], their tokens to scratch[1]."""
    s, count = w.instance[m], w.instance[m].decoding
    ids, tokens = w.scratch[0], w.scratch[1]
    for i in range(count):
        ids[i] = w.ends.id[m, i]
    if s.part >= 0:
        ids[count] = s.part
        count += 1
    _by_admission(w.request, ids, count)
    for i in range(count):
        r = ids[i]
        q = w.request[r]
        if r == s.part:
            tokens[i] = s.computed
        else:
            tokens[i] = q.lead + s.step
            q.generated = tokens[i] - q.prompt
            if w.option[0].queue == DYNAMIC:
                shares.part(w.tally, m, w.tenant[r], s.step)
    return count


@compiled
def rebuild(w: Any, m: Any, count: Any, partial: Any) -> None:
    """Make scratch[0] the running set again, but for `partial`; their `generated` holds."""
    s = w.instance[m]
    s.decoding = 0
    s.lead = 0
    w.residue[m, :] = 0
    for i in range(count):
        if w.scratch[0, i] != partial:
            decode(w, m, w.scratch[0, i])
    s.part = partial


@compiled
def cancel(w: Any, m: Any, r: Any) -> None:
    """Remove a running request whose client left."""
    s = w.instance[m]
    count, kept, partial = collect(w, m), 0, s.part
    for i in range(count):
        other = w.scratch[0, i]
        if other != r:
            w.scratch[0, kept] = other
            kept += 1
        elif r == s.part:
            s.free += blocks(s.computed, s.block)
            partial = np.int64(-1)
        else:
            s.free += blocks(w.scratch[1, i] - 1, s.block)
    w.finish[r] = CANCELLED
    s.running -= 1
    rebuild(w, m, kept, partial)
