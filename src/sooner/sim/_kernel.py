"""The compiled engine: vLLM V1's scheduling, one event at a time, on M instances.

Decoding sequences all gain one token an iteration, so none of them is touched until it ends: a
heap holds the step at which each ends, `BASE` the sum of (tokens - step) from which the context
follows, and `residue` counts the sequences that need a new KV block at each step modulo the block
size. A run of decode-only iterations is skipped in closed form. `tests/naive.py` says the same
thing iteration by iteration, and must agree to the picosecond.
"""
# mypy: allow-untyped-decorators

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from sooner.sim import _heap

FOREVER = np.int64(2**62)
WAITS, CANCELLED, REJECTED = -1, -2, -3  # in `finish`, where there is no time

# Columns of `limits` (m, 9) and `state` (m, 15).
A, B, C, D, SEQS, TOKENS, BLOCK, BLOCKS, WATERMARK = range(9)
T, STEP, RUNNING, WAITING, DECODING, BASE, PART, COMPUTED, FREE, ROOT, SEQ, ENDED, WORK, ENDED_WORK, STALL = range(15)
# Places in `options`.
DYNAMIC, BACKFILL, GUARD, QUANTUM, ROUTER, PREDICT, KEYED = range(7)
ROUND_ROBIN, LEAST_REQUESTS, LEAST_WORK, AFFINITY = range(4)


class Load(NamedTuple):
    """What arrives, sorted by arrival: columns (n,). `ready` <= `cancel` are in picoseconds."""

    ready: Any
    cancel: Any
    arrival: Any
    prompt: Any
    output: Any
    key: Any
    predicted: Any
    score: Any
    deadline: Any
    prefix: Any


class Progress(NamedTuple):
    """What became of it: columns (n,), times in picoseconds, -1 for not yet."""

    start: Any
    first: Any
    finish: Any
    preemptions: Any
    generated: Any
    base: Any  # decoding: tokens - step; waiting: the step since which it idles
    seq: Any  # order of admission
    quantum: Any  # steps left above the rest
    child: Any
    sibling: Any
    place: Any  # instance


class World(NamedTuple):
    """Everything the kernel reads and writes."""

    load: Any
    progress: Any
    limits: Any  # (m, 9)
    state: Any  # (m, 15)
    end_step: Any  # (m, seqs) heap of steps at which decoding requests end
    end_id: Any  # (m, seqs)
    residue: Any  # (m, block size)
    scratch: Any  # (3, seqs) room for the requests of one step
    options: Any  # (7,)
    recent: Any  # (m, 2) moving means: wait [s], predicted length [tokens]
    cancels: Any  # (c,) ids by time of cancellation
    cursor: Any  # (1,) next of `cancels`


@njit(cache=True, inline="always")
def _blocks(tokens: Any, size: Any) -> Any:
    return (tokens + size - 1) // size


@njit(cache=True)
def span(k: Any, first: Any, growth: Any) -> Any:
    """Picoseconds of k iterations, the first of which takes `first`, each `growth` more than the last."""
    return k * first + growth * (k * (k - 1) // 2)


@njit(cache=True)
def steps_until(gap: Any, first: Any, growth: Any) -> Any:
    """Return the least k >= 1 with span(k) >= gap."""
    if growth > 0:
        half = first - 0.5 * growth
        k = np.int64((math.sqrt(half * half + 2.0 * growth * gap) - half) / growth)
    else:
        k = gap // first
    k = max(k, 1)
    while span(k, first, growth) < gap:
        k += 1
    while k > 1 and span(k - 1, first, growth) >= gap:
        k -= 1
    return k


@njit(cache=True)
def _push_end(w: Any, m: Any, count: Any, step: Any, r: Any) -> None:
    """Add a decoding request to the heap of ends, which holds `count`."""
    steps, ids, i = w.end_step[m], w.end_id[m], count
    while i > 0:
        up = (i - 1) >> 1
        if steps[up] <= step:
            break
        steps[i], ids[i] = steps[up], ids[up]
        i = up
    steps[i], ids[i] = step, r


@njit(cache=True)
def _pop_end(w: Any, m: Any, count: Any) -> Any:
    """Take the request that ends first off the heap, which holds `count`."""
    steps, ids = w.end_step[m], w.end_id[m]
    top, last = ids[0], count - 1
    step, r, i = steps[last], ids[last], 0
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


@njit(cache=True)
def _key(w: Any, r: Any, now: Any, key_fn: Any) -> Any:
    """The policy's key of one request at `now` [s]."""
    load = w.load
    if w.options[DYNAMIC] != 1:
        return load.key[r]
    return key_fn(
        load.arrival[r], float(load.prompt[r]), load.predicted[r], load.score[r],
        float(w.progress.generated[r]), 0.0, load.deadline[r], 0.0, now,
    )  # fmt: skip


@njit(cache=True)
def _promoted(w: Any, m: Any, r: Any) -> Any:
    """Whether a waiting request stands above those that did not idle for so long."""
    guard = w.options[GUARD]
    return guard > 0 and (
        w.progress.quantum[r] > 0 or w.state[m, STEP] - w.progress.base[r] >= guard
    )


@njit(cache=True)
def enqueue(w: Any, m: Any, r: Any) -> None:
    """Put a request among the waiting."""
    s, p = w.state[m], w.progress
    p.base[r] = s[STEP]
    if w.options[DYNAMIC] > 0:  # a plain list, searched at each admission
        p.sibling[r] = s[ROOT]
        s[ROOT] = r
    else:
        s[ROOT] = _heap.push(w.load.key, p.child, p.sibling, s[ROOT], r)
    s[WAITING] += 1


@njit(cache=True)
def _head(w: Any, m: Any, key_fn: Any) -> Any:
    """Return the waiting request that goes next and, in a plain list, the one before it."""
    s, p = w.state[m], w.progress
    if w.options[DYNAMIC] == 0:
        while p.finish[s[ROOT]] == CANCELLED:
            s[ROOT] = _heap.pop(w.load.key, p.child, p.sibling, s[ROOT])
        return s[ROOT], np.int64(-1)
    now = s[T] * 1e-12
    best, best_before, best_key, best_up = np.int64(-1), np.int64(-1), 0.0, False
    before, r = np.int64(-1), s[ROOT]
    while r >= 0:
        key, up = _key(w, r, now, key_fn), _promoted(w, m, r)
        better = best < 0 or (up and not best_up)
        if not better and up == best_up:
            better = key < best_key or (key == best_key and r < best)
        if better:
            best, best_before, best_key, best_up = r, before, key, up
        before, r = r, np.int64(p.sibling[r])
    return best, best_before


@njit(cache=True)
def _take(w: Any, m: Any, r: Any, before: Any) -> None:
    """Remove what `_head` returned."""
    s, p = w.state[m], w.progress
    if w.options[DYNAMIC] == 0:
        s[ROOT] = _heap.pop(w.load.key, p.child, p.sibling, s[ROOT])
    elif before < 0:
        s[ROOT] = p.sibling[r]
    else:
        p.sibling[before] = p.sibling[r]
    s[WAITING] -= 1


@njit(cache=True)
def _finish(w: Any, m: Any, r: Any) -> None:
    """End a request whose last token came with this step."""
    s, l = w.state[m], w.limits[m]
    w.progress.finish[r] = s[T]
    s[FREE] += _blocks(w.load.prompt[r] + w.load.output[r] - 1, l[BLOCK])
    s[RUNNING] -= 1
    s[ENDED] += 1
    s[WORK] -= np.int64(w.load.predicted[r])
    s[ENDED_WORK] += np.int64(w.load.predicted[r])


@njit(cache=True)
def _decode(w: Any, m: Any, r: Any) -> None:
    """Let a request that holds its first tokens join the decoding ones."""
    s, p = w.state[m], w.progress
    p.base[r] = w.load.prompt[r] + p.generated[r] - s[STEP]
    _push_end(w, m, s[DECODING], s[STEP] + w.load.output[r] - p.generated[r], r)
    w.residue[m, p.base[r] % w.limits[m, BLOCK]] += 1
    s[DECODING] += 1
    s[BASE] += p.base[r]


@njit(cache=True)
def _ends(w: Any, m: Any) -> None:
    """End every decoding request whose step has come."""
    s, p = w.state[m], w.progress
    while s[DECODING] > 0 and w.end_step[m, 0] <= s[STEP]:
        r = _pop_end(w, m, s[DECODING])
        s[DECODING] -= 1
        s[BASE] -= p.base[r]
        w.residue[m, p.base[r] % w.limits[m, BLOCK]] -= 1
        p.generated[r] = w.load.output[r]
        _finish(w, m, r)


@njit(cache=True)
def _growth(w: Any, m: Any, k: Any) -> Any:
    """KV blocks the decoding requests take in the next k steps."""
    size = w.limits[m, BLOCK]
    total = (k // size) * w.state[m, DECODING]
    at = (1 - w.state[m, STEP]) % size
    for _ in range(k % size):
        total += w.residue[m, at]
        at = size - 1 if at == 0 else at - 1
    return total


@njit(cache=True)
def _affordable(w: Any, m: Any, k: Any) -> Any:
    """Return the most steps <= k whose growth fits into the free blocks; at least 1 is known to."""
    low, high = 1, k
    while low < high:
        middle = (low + high + 1) // 2
        if _growth(w, m, middle) <= w.state[m, FREE]:
            low = middle
        else:
            high = middle - 1
    return low


@njit(cache=True)
def _collect(w: Any, m: Any) -> Any:
    """Write the running requests in order of admission to scratch[0], their tokens to scratch[1]."""
    s, p = w.state[m], w.progress
    count = s[DECODING]
    ids, tokens = w.scratch[0], w.scratch[1]
    for i in range(count):
        ids[i] = w.end_id[m, i]
    if s[PART] >= 0:
        ids[count] = s[PART]
        count += 1
    order = np.argsort(p.seq[ids[:count]])
    ids[:count] = ids[:count][order]
    for i in range(count):
        r = ids[i]
        if r == s[PART]:
            tokens[i] = s[COMPUTED]
        else:
            tokens[i] = p.base[r] + s[STEP]
            p.generated[r] = tokens[i] - w.load.prompt[r]
    return count


@njit(cache=True)
def _rebuild(w: Any, m: Any, count: Any, partial: Any) -> None:
    """Make scratch[0] the running set again, but for `partial`; their `generated` holds."""
    s = w.state[m]
    s[DECODING] = 0
    s[BASE] = 0
    w.residue[m, :] = 0
    for i in range(count):
        if w.scratch[0, i] != partial:
            _decode(w, m, w.scratch[0, i])
    s[PART] = partial


@njit(cache=True)
def _pressure(w: Any, m: Any, key_fn: Any) -> None:
    """One step in which the running need more blocks than are free: recompute preemption.

    As vLLM V1: in order of admission; who finds no block evicts the running request with the
    largest key, until it fits or has evicted itself, which ends the step's scheduling. Nobody is
    admitted.
    """
    s, l, p, load = w.state[m], w.limits[m], w.progress, w.load
    now = s[T] * 1e-12
    count = _collect(w, m)
    ids, tokens, took = w.scratch[0], w.scratch[1], w.scratch[2]
    part, size = s[PART], l[BLOCK]
    for i in range(count):
        took[i] = 0
    budget = l[TOKENS]
    i = 0
    while i < count and budget > 0:
        r = ids[i]
        if r < 0:
            i += 1
            continue
        if r == part:
            held, want = s[COMPUTED], min(load.prompt[r] + p.generated[r] - s[COMPUTED], budget)
        else:
            held, want = tokens[i] - 1, np.int64(1)
        need = _blocks(held + want, size) - _blocks(held, size)
        evicted_itself = False
        while need > s[FREE]:
            worst, worst_key, worst_up = -1, 0.0, True
            for j in range(count):
                v = ids[j]
                if v < 0:
                    continue
                key = _key(w, v, now, key_fn)
                up = w.options[GUARD] > 0 and p.quantum[v] > s[STEP] - _admitted(w, v)
                worse = worst < 0 or (worst_up and not up)
                if not worse and up == worst_up:
                    worse = key > worst_key or (key == worst_key and v > ids[worst])
                if worse:
                    worst, worst_key, worst_up = j, key, up
            v = ids[worst]
            if v == part:
                s[FREE] += _blocks(s[COMPUTED] + took[worst], size)
                part = -1
            else:
                s[FREE] += _blocks(tokens[worst] - 1 + took[worst], size)
            budget += took[worst]
            ids[worst] = -1
            p.preemptions[v] += 1
            p.seq[v] = -1
            if w.options[GUARD] > 0:
                p.quantum[v] = max(0, p.quantum[v] - (s[STEP] - _admitted(w, v)))
            s[RUNNING] -= 1
            enqueue(w, m, v)
            if worst == i:
                evicted_itself = True
                break
        if evicted_itself:
            break
        s[FREE] -= need
        took[i] = want
        budget -= want
        i += 1
    _advance_scheduled(w, m, count, part)


@njit(cache=True, inline="always")
def _admitted(w: Any, r: Any) -> Any:
    """The step of the last admission, kept in the links a running request does not use."""
    return w.progress.child[r]


@njit(cache=True)
def _advance_scheduled(w: Any, m: Any, count: Any, part: Any) -> None:
    """Run what `_pressure` scheduled: some of the running may sit this step out."""
    s, l, p, load = w.state[m], w.limits[m], w.progress, w.load
    ids, tokens, took = w.scratch[0], w.scratch[1], w.scratch[2]
    prefill, decoding, context = np.int64(0), np.int64(0), np.int64(0)
    for i in range(count):
        if ids[i] >= 0 and took[i] > 0:
            if ids[i] == part:
                prefill += took[i]
            else:
                decoding += 1
                context += tokens[i]
    s[STALL] += 1
    if prefill + decoding > 0:
        s[STALL] = 0
        s[T] += l[A] + l[B] * prefill + l[C] * decoding + l[D] * context
    s[STEP] += 1
    kept, partial = 0, np.int64(-1)
    for i in range(count):
        r, token = ids[i], took[i]
        if r < 0:
            continue
        if r == part:
            s[COMPUTED] += token
            if s[COMPUTED] < load.prompt[r] + p.generated[r]:
                partial = r
            else:
                p.generated[r] += 1
                if p.first[r] < 0:
                    p.first[r] = s[T]
        else:
            p.generated[r] = tokens[i] - load.prompt[r] + token
        if r != partial and p.generated[r] >= load.output[r]:
            _finish(w, m, r)
        else:
            ids[kept] = r
            kept += 1
    _rebuild(w, m, kept, partial)


@njit(cache=True)
def _cancel_due(w: Any, m: Any) -> None:
    """Drop every request whose client has left by now."""
    s, l, p, load = w.state[m], w.limits[m], w.progress, w.load
    while w.cursor[0] < w.cancels.shape[0]:
        r = w.cancels[w.cursor[0]]
        if load.cancel[r] > s[T]:
            return
        w.cursor[0] += 1
        if p.finish[r] != WAITS:
            continue
        if p.seq[r] < 0:  # waiting
            p.finish[r] = CANCELLED
            if w.options[DYNAMIC] > 0:
                before, at = np.int64(-1), s[ROOT]
                while at != r:
                    before, at = at, np.int64(p.sibling[at])
                _take(w, m, r, before)
            else:
                s[WAITING] -= 1  # the heap drops it when it comes to the top
                if s[WAITING] == 0:
                    s[ROOT] = -1
            continue
        count, kept, partial = _collect(w, m), 0, s[PART]
        for i in range(count):
            other = w.scratch[0, i]
            if other == r:
                held = s[COMPUTED] if r == s[PART] else w.scratch[1, i] - 1
                s[FREE] += _blocks(held, l[BLOCK])
                partial = np.int64(-1) if r == s[PART] else partial
            else:
                w.scratch[0, kept] = other
                kept += 1
        p.finish[r] = CANCELLED
        s[RUNNING] -= 1
        _rebuild(w, m, kept, partial)


@njit(cache=True)
def _admit(w: Any, m: Any, budget: Any, free: Any, key_fn: Any) -> Any:
    """Admit waiting requests while slots, tokens and blocks last.

    Returns the prefill tokens, the free blocks left and how many ids scratch[0] holds of requests
    whose whole prompt is in this step. vLLM admits only where the whole prompt would fit.
    """
    s, l, p = w.state[m], w.limits[m], w.progress
    prefill, done, stash = np.int64(0), 0, np.int64(-1)
    while budget > 0 and s[RUNNING] < l[SEQS] and s[WAITING] > 0:
        r, before = _head(w, m, key_fn)
        total = w.load.prompt[r] + p.generated[r]
        mark = l[WATERMARK] if s[RUNNING] > 0 else np.int64(0)
        if _blocks(total, l[BLOCK]) + mark > free:
            if w.options[BACKFILL] == 0:
                break
            _take(w, m, r, before)
            p.sibling[r] = stash
            stash = r
            continue
        if w.options[GUARD] > 0 and s[STEP] - p.base[r] >= w.options[GUARD]:
            p.quantum[r] = w.options[QUANTUM]
        _take(w, m, r, before)
        take = min(total, budget)
        budget -= take
        prefill += take
        free -= _blocks(take, l[BLOCK])
        s[RUNNING] += 1
        s[SEQ] += 1
        p.seq[r] = s[SEQ]
        p.child[r] = s[STEP]
        if p.start[r] < 0:
            p.start[r] = s[T]
            wait = s[T] * 1e-12 - w.load.arrival[r]
            w.recent[m, 0] += (wait - w.recent[m, 0]) / 64.0
            w.recent[m, 1] += (w.load.predicted[r] - w.recent[m, 1]) / 64.0
        if take == total:
            w.scratch[0, done] = r
            done += 1
        else:
            s[PART] = r
            s[COMPUTED] = take
    while stash >= 0:
        r, since = stash, p.base[stash]
        stash = np.int64(p.sibling[r])
        enqueue(w, m, r)
        p.base[r] = since
    return prefill, free, done


@njit(cache=True)
def _step(w: Any, m: Any, until: Any, key_fn: Any) -> None:
    """Run one iteration, or a stretch of decode-only ones in closed form."""
    s, l, p = w.state[m], w.limits[m], w.progress
    s[ENDED] = 0
    s[ENDED_WORK] = 0
    size, decoding, part = l[BLOCK], s[DECODING], s[PART]
    grow = w.residue[m, (1 - s[STEP]) % size]
    take, need, total = np.int64(0), grow, np.int64(0)
    if part >= 0:
        total = w.load.prompt[part] + p.generated[part]
        take = min(total - s[COMPUTED], l[TOKENS] - decoding)
        need += _blocks(s[COMPUTED] + take, size) - _blocks(s[COMPUTED], size)
    if need > s[FREE]:
        _pressure(w, m, key_fn)
        return
    first = l[A] + l[C] * decoding + l[D] * (s[BASE] + decoding * s[STEP])
    prefill, done, free, whole = take, 0, s[FREE] - need, False
    if part >= 0:
        s[COMPUTED] += take
        whole = s[COMPUTED] == total
        if whole:
            s[PART] = -1  # before anybody else can become the partial one
    if s[WAITING] > 0 and s[RUNNING] < l[SEQS]:
        more, free, done = _admit(w, m, l[TOKENS] - decoding - take, free, key_fn)
        prefill += more
    if prefill > 0:
        s[T] += first + l[B] * prefill
        s[STEP] += 1
        s[FREE] = free
        _ends(w, m)
        if whole:
            w.scratch[0, done] = part
            done += 1
        for i in range(done):
            r = w.scratch[0, i]
            p.generated[r] += 1
            if p.first[r] < 0:
                p.first[r] = s[T]
            if p.generated[r] >= w.load.output[r]:
                _finish(w, m, r)
            else:
                _decode(w, m, r)
        return
    k = w.end_step[m, 0] - s[STEP]
    growth = l[D] * decoding
    if s[RUNNING] == l[SEQS] and w.options[GUARD] == 0 and w.options[PREDICT] == 0:
        until = FOREVER  # an arrival changes nothing while every slot is taken
    elif s[RUNNING] < l[SEQS] and s[WAITING] > 0 and w.options[DYNAMIC] > 0:
        k = 1  # the head is blocked on memory, and who is head may change with time
    if w.cursor[0] < w.cancels.shape[0]:
        until = min(until, w.load.cancel[w.cancels[w.cursor[0]]])
    if k > 1 and until < FOREVER and s[T] + span(k, first, growth) >= until:
        k = min(k, steps_until(until - s[T], first, growth))
    if k > 1 and (k // size + 1) * decoding > s[FREE]:
        k = _affordable(w, m, k)
    s[FREE] -= _growth(w, m, k)
    s[T] += span(k, first, growth)
    s[STEP] += k
    _ends(w, m)


@njit(cache=True)
def advance(w: Any, m: Any, until: Any, key_fn: Any) -> None:
    """Run instance m until its next step would start at or after `until`, or it has nothing to do."""
    s, l_seqs = w.state[m], w.limits[m, SEQS]
    while s[T] < until:
        if w.cursor[0] < w.cancels.shape[0]:
            _cancel_due(w, m)
        if s[RUNNING] == 0 and s[WAITING] == 0:
            return
        _step(w, m, until, key_fn)
        if s[STALL] > l_seqs or s[T] > FOREVER // 2:
            return  # no progress: the caller finds requests without an end


@njit(cache=True)
def _route(w: Any, i: Any, now: Any, key_fn: Any) -> Any:
    """Choose the instance of request i, whose time `now` has come."""
    count, router = w.state.shape[0], w.options[ROUTER]
    if count == 1 or router == ROUND_ROBIN:
        m = i % count
        advance(w, m, now, key_fn)
        return m
    if router == AFFINITY:
        m = w.load.prefix[i] % count
        advance(w, m, now, key_fn)
        return m
    best, least = 0, np.int64(0)
    for m in range(count):
        s = w.state[m]
        if s[T] < now and s[RUNNING] + s[WAITING] > 0:
            advance(w, m, now, key_fn)
        ending = s[T] > now  # what ends with the step under way is still there
        if router == LEAST_WORK:
            work = s[WORK] + (s[ENDED_WORK] if ending else 0)
        else:
            work = s[RUNNING] + s[WAITING] + (s[ENDED] if ending else 0)
        if m == 0 or work < least:
            best, least = m, work
    return best


@njit(cache=True)
def _arrive(w: Any, m: Any, i: Any, now: Any, key_fn: Any) -> None:
    """Let request i enter instance m."""
    s, l, load = w.state[m], w.limits[m], w.load
    w.progress.place[i] = m
    if s[RUNNING] == 0 and s[WAITING] == 0:
        s[T] = max(s[T], now)
    if _blocks(load.prompt[i] + load.output[i] - 1, l[BLOCK]) > l[BLOCKS]:
        w.progress.finish[i] = REJECTED
        return
    if w.options[KEYED] == 1:  # the key is fixed now, from what the host measures now
        pressure = w.recent[m, 0] / w.recent[m, 1] if w.recent[m, 1] > 0 else 0.0
        load.key[i] = key_fn(
            load.arrival[i], float(load.prompt[i]), load.predicted[i], load.score[i],
            0.0, 0.0, load.deadline[i], pressure, load.arrival[i],
        )  # fmt: skip
    if w.options[PREDICT] > 0:
        s[T] += w.options[PREDICT]
    s[WORK] += np.int64(load.predicted[i])
    enqueue(w, m, i)


@njit(cache=True)
def run(w: Any, key_fn: Any) -> None:
    """Serve the whole load."""
    for i in range(w.load.ready.shape[0]):
        now = w.load.ready[i]
        m = _route(w, i, now, key_fn)
        _arrive(w, m, i, now, key_fn)
    for m in range(w.state.shape[0]):
        advance(w, m, FOREVER, key_fn)
