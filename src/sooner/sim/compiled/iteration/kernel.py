"""The compiled engine that reorders everything at every iteration, as vllm-ltr's scheduler does.

Running and waiting requests stand in one order; each step serves a strict prefix of it under the
token, sequence and block budgets. Who falls out of the prefix pauses and keeps its KV until blocks
are short; then the last in order lose theirs, moved to the host or dropped and recomputed (Fu et
al., NeurIPS 2024, section 4 and the released scheduler). Two deliberate changes: among equal keys
a running request goes before a waiting one, and swapped requests come back only when chosen.
"""
# mypy: allow-untyped-decorators

from __future__ import annotations

from typing import Any

import numpy as np

from sooner.sim.compiled import shares, usual
from sooner.sim.compiled.closed_form import blocks, span, steps_until
from sooner.sim.compiled.jit import allocating, compiled, entered, inlined
from sooner.sim.compiled.marks import CANCELLED, FOREVER, REJECTED, WAITS

PATIENCE = 10_000
"""Steps without a token, after which requests only evict each other."""


@inlined
def _served(w: Any, r: Any) -> Any:
    """The counter of a request's tenant, for keys that change with the host's state."""
    s = w.state[0]
    return w.tally.counter[0, w.tenant[r]] / w.multiple[0] if s.timeless == 0 and s.keyed == 0 else 0.0


@inlined
def _expected(w: Any, r: Any) -> Any:
    """The work of a request [s]; 0 where it is not counted."""
    return w.work[0, r] * 1e-12 if w.state[0].weighed == 1 else 0.0


@compiled
def _fresh_key(w: Any, r: Any, pressure: Any, now: Any, key_fn: Any) -> Any:
    s, q = w.state[0], w.entry[r]
    return key_fn(
        w.arrival[r], float(q.prompt), w.predicted[r], w.score[r], float(q.generated), float(q.cached),
        w.deadline[r], pressure, w.level[r], _served(w, r), _expected(w, r), s.usual_wait, s.usual_work, now,
    )  # fmt: skip


@compiled
def _fix_key(w: Any, r: Any, key_fn: Any) -> None:
    """Give a request the key that stays until what is usual is told anew, or it runs."""
    s, q = w.state[0], w.entry[r]
    if s.keyed == 1:
        pressure = s.mean_wait / s.mean_predicted if s.mean_predicted > 0 else 0.0
        generated, q.generated = q.generated, 0
        q.key = _fresh_key(w, r, pressure, w.arrival[r], key_fn)
        q.generated = generated
    elif s.dynamic == 1 and s.timeless == 1:
        q.key = _fresh_key(w, r, 0.0, 0.0, key_fn)


@compiled
def _learn(w: Any, r: Any, key_fn: Any) -> None:
    """Take request r, which arrives, into what is usual; place all anew where that is news."""
    s, backlog = w.state[0], np.int64(0)
    for i in range(s.live):
        if not w.entry[w.order[i]].running:
            backlog += w.work[0, w.order[i]]
    if usual.learn(s, backlog * 1e-12, w.work[0, r] * 1e-12):
        for i in range(s.live):
            _fix_key(w, w.order[i], key_fn)
        s.sorted = 0


@inlined
def _before(w: Any, a: Any, b: Any) -> Any:
    p, q = w.entry[a], w.entry[b]
    if p.up != q.up:
        return p.up > q.up
    if p.key != q.key:
        return p.key < q.key
    if p.running != q.running:
        return p.running > q.running
    return a < b


@allocating
def _sort_anew(entry: Any, order: Any, live: Any) -> None:
    ids = np.sort(order[:live])
    ids = ids[np.argsort(-entry.running[ids], kind="mergesort")]
    ids = ids[np.argsort(entry.key[ids], kind="mergesort")]
    ids = ids[np.argsort(-entry.up[ids], kind="mergesort")]
    order[:live] = ids


@compiled
def _sort(w: Any) -> None:
    """Restore the order; nearly sorted but for a crowd of newcomers."""
    s, order, e = w.state[0], w.order, w.entry
    live = s.live
    if live - s.sorted > 64:
        _sort_anew(e, order, live)
    else:
        for i in range(1, live):
            r, j = order[i], i
            while j > 0 and _before(w, r, order[j - 1]):
                order[j] = order[j - 1]
                j -= 1
            order[j] = r
    s.sorted = live


@compiled
def _arrive(w: Any, r: Any, key_fn: Any) -> None:
    s, q = w.state[0], w.entry[r]
    if blocks(q.prompt + q.output - 1, s.block) > s.blocks:
        w.finish[r] = REJECTED
        return
    if s.learns == 1:
        _learn(w, r, key_fn)
    _fix_key(w, r, key_fn)
    if s.dynamic == 1:
        shares.lift(w.tally, 0, w.tenant[r], s.last, 0)
        w.tally.waiting[0, w.tenant[r]] += 1
    s.t += s.predict
    w.order[s.live] = r
    s.live += 1


@compiled
def _evict(w: Any, r: Any) -> None:
    """Take a request's KV off the GPU: to the host where there is room, else it is recomputed."""
    s, q = w.state[0], w.entry[r]
    s.free += q.held
    if s.swap == 1 and q.held <= s.host:
        s.host -= q.held
        s.moved += q.held
        q.swapped = q.held
    else:
        q.computed = q.cached
        q.decoding = 0
    q.held = 0
    q.preemptions += 1


@compiled
def _close_gaps(w: Any) -> None:
    """Take those that ended or left out of the order."""
    s, kept, ordered = w.state[0], np.int64(0), np.int64(0)
    for i in range(s.live):
        if w.finish[w.order[i]] == WAITS:
            w.order[kept] = w.order[i]
            kept += 1
            ordered += i < s.sorted
    s.live = kept
    s.sorted = ordered


@inlined
def _leave_queue(w: Any, r: Any) -> None:
    w.state[0].last = w.tenant[r]
    w.tally.waiting[0, w.tenant[r]] -= 1


@compiled
def _cancel_due(w: Any) -> None:
    s = w.state[0]
    while s.gone < w.leaver.shape[0] and w.leaves[s.gone] <= s.t:
        r = w.leaver[s.gone]
        s.gone += 1
        if w.finish[r] == WAITS:
            w.finish[r] = CANCELLED
            s.free += w.entry[r].held
            s.host += w.entry[r].swapped
            if s.dynamic == 1 and not w.entry[r].running:
                _leave_queue(w, r)
    _close_gaps(w)


@compiled
def _guard(w: Any) -> None:
    s = w.state[0]
    for i in range(s.live):
        q = w.entry[w.order[i]]
        if q.idle >= s.guard:
            q.up, q.idle, q.quantum = 1, 0, s.quantum
        elif q.up == 1 and q.quantum <= 0:
            q.up = 0


@inlined
def _need(w: Any, r: Any, want: Any) -> Any:
    """KV blocks a request must be given to run `want` tokens."""
    q, size = w.entry[r], w.state[0].block
    if q.held > 0:
        return max(0, blocks(q.computed + want, size) - q.held)
    if q.swapped > 0:
        return max(q.swapped, blocks(q.computed + want, size))
    return blocks(q.prompt + q.generated, size)


@compiled
def _choose(w: Any) -> Any:
    """Return how many of the order run, and whether anybody lost its KV for them."""
    s = w.state[0]
    budget, chosen, needed, evicted = s.tokens, np.int64(0), np.int64(0), False
    while chosen < s.live and chosen < s.seqs and budget > 0:
        r = w.order[chosen]
        q = w.entry[r]
        w.want[chosen] = min(q.prompt + q.generated - q.computed, budget)
        budget -= w.want[chosen]
        needed += _need(w, r, w.want[chosen])
        chosen += 1
    last = s.live - 1
    while needed + (s.watermark if chosen > 1 else 0) > s.free:
        while last >= chosen and w.entry[w.order[last]].held == 0:
            last -= 1
        if last < chosen:
            last = chosen = chosen - 1
            r = w.order[chosen]
            needed -= _need(w, r, w.want[chosen])
            if w.entry[r].held == 0:
                continue
        _evict(w, w.order[last])
        evicted = True
    return chosen, evicted


@compiled
def _run_chosen(w: Any, chosen: Any) -> Any:
    """Give the chosen their blocks and let the time of one iteration pass; returns its prefill tokens."""
    s = w.state[0]
    prefill, decoding, context = np.int64(0), np.int64(0), np.int64(0)
    for i in range(chosen):
        r = w.order[i]
        q = w.entry[r]
        need = _need(w, r, w.want[i])
        if q.swapped > 0:
            s.moved += q.swapped
            s.host += q.swapped
            q.swapped = 0
        q.held += need
        s.free -= need
        if q.decoding:
            decoding += 1
            context += q.prompt + q.generated
        else:
            prefill += w.want[i]
        if s.dynamic == 1 and not q.running:
            _leave_queue(w, r)
        if w.start[r] < 0:
            w.start[r] = s.t
            if s.dynamic == 1:
                shares.charge(w.tally, 0, w.tenant[r], q.prompt)
            s.mean_wait += (s.t * 1e-12 - w.arrival[r] - s.mean_wait) / 64.0
            s.mean_predicted += (w.predicted[r] - s.mean_predicted) / 64.0
    s.t += s.a + s.b * prefill + s.c * decoding + s.d * context + s.swap_ticks * s.moved
    s.moved = 0
    s.step += 1
    return prefill


@compiled
def _credit(w: Any, chosen: Any) -> Any:
    """Count what the iteration did for each; returns whether anybody ended."""
    s, ended = w.state[0], False
    for i in range(s.live):
        r = w.order[i]
        q = w.entry[r]
        if s.dynamic == 1 and q.running and i >= chosen:
            w.tally.waiting[0, w.tenant[r]] += 1
        q.running = i < chosen
        if i >= chosen:
            q.idle += 1
            continue
        q.idle = 0
        q.quantum -= q.up
        q.computed += w.want[i]
        if q.computed == q.prompt + q.generated:
            q.decoding = 1
            _gain(w, r, 1)
            ended = ended or w.finish[r] >= 0
    if ended:
        _close_gaps(w)
        s.sorted = s.live
    return ended


@compiled
def _gain(w: Any, r: Any, k: Any) -> None:
    """Credit k tokens at the present time."""
    s, q = w.state[0], w.entry[r]
    q.generated += k
    if s.dynamic == 1:
        shares.charge(w.tally, 0, w.tenant[r], shares.OUTPUT * k)
    s.gained = s.step
    if w.first[r] < 0:
        w.first[r] = s.t
    if q.generated >= q.output:
        w.finish[r] = s.t
        s.free += q.held


@compiled
def _affordable(w: Any, chosen: Any, k: Any) -> Any:
    """Return the most iterations <= k whose growth fits into the free blocks, and that growth."""
    s, low, taken = w.state[0], np.int64(0), np.int64(0)
    room = s.free - (s.watermark if chosen > 1 else 0)
    while low < k:
        middle, total = (low + k + 1) // 2, np.int64(0)
        for i in range(chosen):
            q = w.entry[w.order[i]]
            total += max(0, blocks(q.computed + middle, s.block) - q.held)
        if total <= room:
            low, taken = middle, total
        else:
            k = middle - 1
    return low, taken


@compiled
def _stretch(w: Any, chosen: Any, until: Any) -> None:
    """Repeat a decode-only iteration in closed form while nothing can change the batch."""
    s, k, context = w.state[0], FOREVER, np.int64(0)
    if s.gone < w.leaver.shape[0]:
        until = min(until, w.leaves[s.gone])
    if s.t >= until:
        return
    for i in range(chosen):
        q = w.entry[w.order[i]]
        k = min(k, np.int64(q.output - q.generated))
        context += q.prompt + q.generated
    first, growth = s.a + s.c * chosen + s.d * context, s.d * chosen
    if until < FOREVER and s.t + span(k, first, growth) >= until:
        k = min(k, steps_until(until - s.t, first, growth))
    k, taken = _affordable(w, chosen, k)
    if k == 0:
        return
    s.t += span(k, first, growth)
    s.step += k
    s.free -= taken
    ended = False
    for i in range(chosen):
        r = w.order[i]
        q = w.entry[r]
        q.computed += k
        q.quantum -= q.up * k
        q.held = max(q.held, blocks(q.computed, s.block))
        _gain(w, r, k)
        ended = ended or w.finish[r] >= 0
    if ended:
        _close_gaps(w)


@entered
def run(w: Any, key_fn: Any) -> None:
    """Serve the whole load on one instance."""
    s, n, arrived = w.state[0], w.entry.shape[0], 0
    while (arrived < n or s.live > 0) and s.t < FOREVER // 2 and s.step - s.gained < PATIENCE:
        if s.live == 0:
            s.t = max(s.t, w.entry[arrived].ready)
        while arrived < n and w.entry[arrived].ready <= s.t:
            _arrive(w, arrived, key_fn)
            arrived += 1
        if s.gone < w.leaver.shape[0]:
            _cancel_due(w)
        if s.live == 0:
            continue
        if s.guard > 0:
            _guard(w)
        if s.dynamic == 1:
            now = s.t * 1e-12
            for i in range(s.live):
                r = w.order[i]
                if s.timeless == 0 or w.entry[r].running:
                    w.entry[r].key = _fresh_key(w, r, 0.0, now, key_fn)
        _sort(w)
        chosen, evicted = _choose(w)
        prefill = _run_chosen(w, chosen)
        ended = _credit(w, chosen)
        steady = prefill == 0 and not ended and not evicted
        if steady and (s.live == chosen or (s.dynamic == 0 and s.guard == 0)):
            _stretch(w, chosen, w.entry[arrived].ready if arrived < n else FOREVER)
