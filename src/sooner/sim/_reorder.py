"""The compiled engine that reorders everything at every iteration, as vllm-ltr's scheduler does.

Running and waiting requests stand in one order; each step serves a strict prefix of it under the
token, sequence and block budgets. Who falls out of the prefix pauses and keeps its KV until blocks
are short; then the last in order lose theirs, moved to the host or dropped and recomputed (Fu et
al., NeurIPS 2024, section 4 and the released scheduler). Two deliberate changes: among equal keys
a running request goes before a waiting one, and swapped requests come back only when chosen.
"""
# mypy: allow-untyped-decorators

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from sooner.sim._kernel import CANCELLED, FOREVER, REJECTED, WAITS, span, steps_until

# Places in `state`.
T, STEP, FREE, HOST, LIVE, CURSOR, MOVED, SORTED, GAINED = range(9)
PATIENCE = 100_000  # steps without a token, after which requests only evict each other
# Places in `limits`.
A, B, C, D, SEQS, TOKENS, BLOCK, BLOCKS, WATERMARK, SWAP, SWAP_TICKS = range(11)
# Places in `options`.
DYNAMIC, TIMELESS, GUARD, QUANTUM, PREDICT, KEYED = range(6)


class Table(NamedTuple):
    """The requests' state, columns (n,)."""

    computed: Any
    generated: Any
    held: Any  # KV blocks on the GPU
    swapped: Any  # KV blocks on the host
    decoding: Any
    running: Any  # 1: executed in the last step
    idle: Any
    quantum: Any
    up: Any  # 0: promoted
    key: Any


class World(NamedTuple):
    """Everything the kernel reads and writes."""

    load: Any  # a _kernel.Load
    start: Any
    first: Any
    finish: Any
    preemptions: Any
    table: Any
    limits: Any
    state: Any
    order: Any  # (n,) live requests, the first LIVE of them, best first
    want: Any  # (seqs,) tokens of each chosen request
    options: Any
    recent: Any
    cancels: Any


@njit(cache=True, inline="always")
def _blocks(tokens: Any, size: Any) -> Any:
    return (tokens + size - 1) // size


@njit(cache=True)
def _fresh_key(w: Any, r: Any, pressure: Any, now: Any, key_fn: Any) -> Any:
    load = w.load
    return key_fn(
        load.arrival[r], float(load.prompt[r]), load.predicted[r], load.score[r],
        float(w.table.generated[r]), 0.0, load.deadline[r], pressure, now,
    )  # fmt: skip


@njit(cache=True, inline="always")
def _before(w: Any, a: Any, b: Any) -> Any:
    t = w.table
    if t.up[a] != t.up[b]:
        return t.up[a] < t.up[b]
    if t.key[a] != t.key[b]:
        return t.key[a] < t.key[b]
    if t.running[a] != t.running[b]:
        return t.running[a] > t.running[b]
    return a < b


@njit(cache=True)
def _sort(w: Any) -> None:
    """Restore the order; nearly sorted but for a crowd of newcomers."""
    s, order, t = w.state, w.order, w.table
    live = s[LIVE]
    if live - s[SORTED] > 64:
        ids = np.sort(order[:live])
        ids = ids[np.argsort(-t.running[ids], kind="mergesort")]
        ids = ids[np.argsort(t.key[ids], kind="mergesort")]
        ids = ids[np.argsort(t.up[ids], kind="mergesort")]
        order[:live] = ids
    else:
        for i in range(1, live):
            r, j = order[i], i
            while j > 0 and _before(w, r, order[j - 1]):
                order[j] = order[j - 1]
                j -= 1
            order[j] = r
    s[SORTED] = live


@njit(cache=True)
def _arrive(w: Any, r: Any, key_fn: Any) -> None:
    s, l, load = w.state, w.limits, w.load
    if _blocks(load.prompt[r] + load.output[r] - 1, l[BLOCK]) > l[BLOCKS]:
        w.finish[r] = REJECTED
        return
    if w.options[KEYED] == 1:
        pressure = w.recent[0] / w.recent[1] if w.recent[1] > 0 else 0.0
        w.table.key[r] = _fresh_key(w, r, pressure, load.arrival[r], key_fn)
    elif w.options[DYNAMIC] == 1 and w.options[TIMELESS] == 1:
        w.table.key[r] = _fresh_key(w, r, 0.0, 0.0, key_fn)
    elif w.options[DYNAMIC] == 0:
        w.table.key[r] = load.key[r]
    s[T] += w.options[PREDICT]
    w.order[s[LIVE]] = r
    s[LIVE] += 1


@njit(cache=True)
def _evict(w: Any, r: Any) -> None:
    """Take a request's KV off the GPU: to the host where there is room, else it is recomputed."""
    s, l, t = w.state, w.limits, w.table
    s[FREE] += t.held[r]
    if l[SWAP] == 1 and t.held[r] <= s[HOST]:
        s[HOST] -= t.held[r]
        s[MOVED] += t.held[r]
        t.swapped[r] = t.held[r]
    else:
        t.computed[r] = 0
        t.decoding[r] = 0
    t.held[r] = 0
    w.preemptions[r] += 1


@njit(cache=True)
def _cancel_due(w: Any) -> None:
    s, t = w.state, w.table
    while s[CURSOR] < w.cancels.shape[0] and w.load.cancel[w.cancels[s[CURSOR]]] <= s[T]:
        r = w.cancels[s[CURSOR]]
        s[CURSOR] += 1
        if w.finish[r] != WAITS:
            continue
        w.finish[r] = CANCELLED
        s[FREE] += t.held[r]
        s[HOST] += t.swapped[r]
    kept = 0
    for i in range(s[LIVE]):
        if w.finish[w.order[i]] == WAITS:
            w.order[kept] = w.order[i]
            kept += 1
        elif i < s[SORTED]:
            s[SORTED] -= 1
    s[LIVE] = kept


@njit(cache=True)
def _guard(w: Any) -> None:
    s, t = w.state, w.table
    for i in range(s[LIVE]):
        r = w.order[i]
        if t.idle[r] >= w.options[GUARD]:
            t.up[r], t.idle[r], t.quantum[r] = 0, 0, w.options[QUANTUM]
        elif t.up[r] == 0 and t.quantum[r] <= 0:
            t.up[r] = 1


@njit(cache=True, inline="always")
def _need(w: Any, r: Any, want: Any) -> Any:
    """KV blocks a request must be given to run `want` tokens."""
    t, size = w.table, w.limits[BLOCK]
    if t.held[r] > 0:
        return max(0, _blocks(t.computed[r] + want, size) - t.held[r])
    if t.swapped[r] > 0:
        return max(t.swapped[r], _blocks(t.computed[r] + want, size))
    return _blocks(w.load.prompt[r] + t.generated[r], size)


@njit(cache=True)
def _choose(w: Any) -> Any:
    """Return how many of the order run, and whether anybody lost its KV for them."""
    s, l, t = w.state, w.limits, w.table
    budget, chosen, needed, evicted = l[TOKENS], 0, np.int64(0), False
    while chosen < s[LIVE] and chosen < l[SEQS] and budget > 0:
        r = w.order[chosen]
        w.want[chosen] = min(w.load.prompt[r] + t.generated[r] - t.computed[r], budget)
        budget -= w.want[chosen]
        needed += _need(w, r, w.want[chosen])
        chosen += 1
    last = s[LIVE] - 1
    while needed + (l[WATERMARK] if chosen > 1 else 0) > s[FREE]:
        while last >= chosen and t.held[w.order[last]] == 0:
            last -= 1
        if last < chosen:
            last = chosen = chosen - 1
            r = w.order[chosen]
            needed -= _need(w, r, w.want[chosen])
            if t.held[r] == 0:
                continue
        _evict(w, w.order[last])
        evicted = True
    return chosen, evicted


@njit(cache=True)
def _execute(w: Any, chosen: Any) -> Any:
    """Run one iteration; returns whether all of it was decoding and nobody ended."""
    s, l, t, load = w.state, w.limits, w.table, w.load
    prefill, decoding, context = np.int64(0), np.int64(0), np.int64(0)
    for i in range(chosen):
        r = w.order[i]
        need = _need(w, r, w.want[i])
        if t.swapped[r] > 0:
            s[MOVED] += t.swapped[r]
            s[HOST] += t.swapped[r]
            t.swapped[r] = 0
        t.held[r] += need
        s[FREE] -= need
        if t.decoding[r]:
            decoding += 1
            context += load.prompt[r] + t.generated[r]
        else:
            prefill += w.want[i]
        if w.start[r] < 0:
            w.start[r] = s[T]
            wait = s[T] * 1e-12 - load.arrival[r]
            w.recent[0] += (wait - w.recent[0]) / 64.0
            w.recent[1] += (load.predicted[r] - w.recent[1]) / 64.0
    s[T] += l[A] + l[B] * prefill + l[C] * decoding + l[D] * context + l[SWAP_TICKS] * s[MOVED]
    s[MOVED] = 0
    s[STEP] += 1
    ended = False
    for i in range(s[LIVE]):
        r = w.order[i]
        t.running[r] = 1 if i < chosen else 0
        if i >= chosen:
            t.idle[r] += 1
            continue
        t.idle[r] = 0
        if t.up[r] == 0:
            t.quantum[r] -= 1
        t.computed[r] += w.want[i]
        if t.computed[r] == load.prompt[r] + t.generated[r]:
            t.decoding[r] = 1
            _gain(w, r, 1)
            ended = ended or w.finish[r] >= 0
    if ended:
        _sweep(w)
    return prefill == 0 and not ended


@njit(cache=True)
def _gain(w: Any, r: Any, k: Any) -> None:
    """Credit k tokens at the present time."""
    w.table.generated[r] += k
    w.state[GAINED] = w.state[STEP]
    if w.first[r] < 0:
        w.first[r] = w.state[T]
    if w.table.generated[r] >= w.load.output[r]:
        w.finish[r] = w.state[T]
        w.state[FREE] += w.table.held[r]


@njit(cache=True)
def _sweep(w: Any) -> None:
    """Close the gaps the ended leave in the order."""
    s, kept = w.state, 0
    for i in range(s[LIVE]):
        if w.finish[w.order[i]] == WAITS:
            w.order[kept] = w.order[i]
            kept += 1
    s[LIVE] = s[SORTED] = kept


@njit(cache=True)
def _stretch(w: Any, chosen: Any, until: Any) -> None:
    """Repeat a decode-only iteration in closed form while nothing can change the batch."""
    s, l, t, load = w.state, w.limits, w.table, w.load
    size, k, context = l[BLOCK], FOREVER, np.int64(0)
    for i in range(chosen):
        r = w.order[i]
        k = min(k, load.output[r] - t.generated[r])
        context += load.prompt[r] + t.generated[r]
    if s[CURSOR] < w.cancels.shape[0]:
        until = min(until, load.cancel[w.cancels[s[CURSOR]]])
    if s[T] >= until:
        return
    first, growth = l[A] + l[C] * chosen + l[D] * context, l[D] * chosen
    if until < FOREVER and s[T] + span(k, first, growth) >= until:
        k = min(k, steps_until(until - s[T], first, growth))
    room = s[FREE] - (l[WATERMARK] if chosen > 1 else 0)
    low, high, taken = np.int64(0), k, np.int64(0)
    while low < high:
        middle = (low + high + 1) // 2
        total = np.int64(0)
        for i in range(chosen):
            r = w.order[i]
            total += max(0, _blocks(t.computed[r] + middle, size) - t.held[r])
        if total <= room:
            low, taken = middle, total
        else:
            high = middle - 1
    if low == 0:
        return
    s[T] += span(low, first, growth)
    s[STEP] += low
    s[FREE] -= taken
    ended = False
    for i in range(chosen):
        r = w.order[i]
        t.computed[r] += low
        if t.up[r] == 0:
            t.quantum[r] -= low
        t.held[r] = max(t.held[r], _blocks(t.computed[r], size))
        _gain(w, r, low)
        ended = ended or w.finish[r] >= 0
    if ended:
        _sweep(w)


@njit(cache=True)
def run(w: Any, key_fn: Any) -> None:
    """Serve the whole load on one instance."""
    s, load, options = w.state, w.load, w.options
    n, arrived = load.ready.shape[0], 0
    while (arrived < n or s[LIVE] > 0) and s[T] < FOREVER // 2 and s[STEP] - s[GAINED] < PATIENCE:
        if s[LIVE] == 0:
            s[T] = max(s[T], load.ready[arrived])
        while arrived < n and load.ready[arrived] <= s[T]:
            _arrive(w, arrived, key_fn)
            arrived += 1
        if s[CURSOR] < w.cancels.shape[0]:
            _cancel_due(w)
        if s[LIVE] == 0:
            continue
        if options[GUARD] > 0:
            _guard(w)
        if options[DYNAMIC] == 1:
            now = s[T] * 1e-12
            for i in range(s[LIVE]):
                r = w.order[i]
                if options[TIMELESS] == 0 or w.table.running[r]:
                    w.table.key[r] = _fresh_key(w, r, 0.0, now, key_fn)
        _sort(w)
        chosen, evicted = _choose(w)
        steady = _execute(w, chosen) and not evicted
        others = s[LIVE] > chosen
        if steady and (not others or (options[DYNAMIC] == 0 and options[GUARD] == 0)):
            _stretch(w, chosen, load.ready[arrived] if arrived < n else FOREVER)
