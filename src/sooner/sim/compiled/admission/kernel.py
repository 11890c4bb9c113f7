"""The compiled engine: vLLM V1's scheduling, one event at a time, on M instances.

A run of decode-only iterations is skipped in closed form. `tests/naive.py` says the same thing
iteration by iteration, and must agree to the picosecond.
"""
# mypy: allow-untyped-decorators

from __future__ import annotations

from typing import Any

import numpy as np

from sooner.sim.compiled import shares, usual
from sooner.sim.compiled.admission import running, waiting
from sooner.sim.compiled.admission.keys import fixed
from sooner.sim.compiled.admission.pressure import squeeze
from sooner.sim.compiled.admission.state import (
    AFFINITY,
    DYNAMIC,
    FREE_FIRST,
    HEAP,
    LEAST_REQUESTS,
    LEAST_TOKENS,
    LEAST_WORK,
    MAX_MIN,
    ROUND_ROBIN,
    VLLM_DP,
)
from sooner.sim.compiled.closed_form import blocks, span, steps_until
from sooner.sim.compiled.jit import compiled, entered
from sooner.sim.compiled.marks import FOREVER, REJECTED, WAITS

FULL = np.int64(2**61)
"""More than any load [ps]: an engine without a free slot comes behind all that have one."""


@compiled
def _admit(w: Any, m: Any, budget: Any, free: Any, key_fn: Any) -> Any:
    """Admit waiting requests while slots, tokens and blocks last.

    Returns the prefill tokens, the free blocks left and how many ids scratch[0] holds of requests
    whose whole prompt is in this step. vLLM admits only where the whole prompt would fit.
    """
    s, o = w.instance[m], w.option[0]
    prefill, done, passed = np.int64(0), 0, np.int64(-1)
    while budget > 0 and s.running < s.seqs and s.waiting > 0:
        r, before = waiting.head(w, m, key_fn)
        q = w.request[r]
        total = np.int64(q.prompt + q.generated)
        mark = s.watermark if s.running > 0 else np.int64(0)
        if blocks(total, s.block) + mark > free:
            if o.backfill == 0:
                break
            waiting.take(w, m, r, before)
            q.sibling = passed
            passed = r
            continue
        if o.guard > 0 and s.step - q.lead >= o.guard:
            q.quantum = o.quantum
        waiting.take(w, m, r, before)
        share = min(total - q.cached, budget)
        budget -= share
        prefill += share
        free -= blocks(q.cached + share, s.block)
        s.running += 1
        s.seq += 1
        q.seq = s.seq
        q.child = s.step
        _started(w, m, r)
        if q.cached + share == total:
            w.scratch[0, done] = r
            done += 1
        else:
            s.part = r
            s.computed = q.cached + share
    while passed >= 0:
        r, since = passed, w.request[passed].lead
        passed = np.int64(w.request[r].sibling)
        waiting.enqueue(w, m, r)
        w.request[r].lead = since
    return prefill, free, done


@compiled
def _started(w: Any, m: Any, r: Any) -> None:
    """Note when a request first ran, and what that says of the load."""
    s = w.instance[m]
    if w.start[r] < 0:
        w.start[r] = s.t
        if w.option[0].queue == DYNAMIC:
            shares.charge(w.tally, m, w.tenant[r], w.request[r].prompt)
        s.mean_wait += (s.t * 1e-12 - w.arrival[r] - s.mean_wait) / 64.0
        s.mean_predicted += (w.predicted[r] - s.mean_predicted) / 64.0


@compiled
def _step(w: Any, m: Any, until: Any, hard: Any, key_fn: Any) -> None:
    """Run one iteration, or a stretch of decode-only ones in closed form."""
    s = w.instance[m]
    s.ended = 0
    s.ended_load = 0
    decoding, part, share, total = s.decoding, s.part, np.int64(0), np.int64(0)
    need = w.residue[m, (1 - s.step) % s.block]
    if part >= 0:
        total = np.int64(w.request[part].prompt + w.request[part].generated)
        share = min(total - s.computed, s.tokens - decoding)
        need += blocks(s.computed + share, s.block) - blocks(s.computed, s.block)
    if need > s.free:
        squeeze(w, m, key_fn)
        return
    first = s.a + s.c * decoding + s.d * (s.lead + decoding * s.step)
    prefill, done, free, whole = share, 0, s.free - need, False
    if part >= 0:
        s.computed += share
        whole = s.computed == total
        if whole:
            s.part = -1  # before anybody else can become the partial one
    if s.waiting > 0 and s.running < s.seqs:
        more, free, done = _admit(w, m, s.tokens - decoding - share, free, key_fn)
        prefill += more
    if prefill == 0:
        _stretch(w, m, until, hard, first)
        return
    s.t += first + s.b * prefill
    s.step += 1
    s.free = free
    running.end_due(w, m)
    if whole:
        w.scratch[0, done] = part
        done += 1
    for i in range(done):
        r = w.scratch[0, i]
        q = w.request[r]
        running.gain(w, m, r, 1)
        if w.first[r] < 0:
            w.first[r] = s.t
        if q.generated >= q.output:
            running.finish(w, m, r)
        else:
            running.decode(w, m, r)


@compiled
def _stretch(w: Any, m: Any, until: Any, hard: Any, first: Any) -> None:
    """Run decode-only iterations, the first of which takes `first`, while nothing changes the batch."""
    s, o = w.instance[m], w.option[0]
    k, growth = w.ends.step[m, 0] - s.step, s.d * s.decoding
    if s.running == s.seqs and o.guard == 0 and o.predict == 0 and o.queue != DYNAMIC:
        until = hard  # an arrival changes nothing while every slot is taken, but it may lift its tenant
    elif s.running < s.seqs and s.waiting > 0 and o.queue != HEAP:
        k = np.int64(1)  # the head is blocked on memory, and who is head may change with time
    if k > 1 and until < FOREVER and s.t + span(k, first, growth) >= until:
        k = min(k, steps_until(until - s.t, first, growth))
    if k > 1 and (k // s.block + 1) * s.decoding > s.free:
        k = running.affordable(w, m, k)
    s.free -= running.growth(w, m, k)
    s.t += span(k, first, growth)
    s.step += k
    running.end_due(w, m)


@compiled
def advance(w: Any, m: Any, until: Any, hard: Any, key_fn: Any) -> None:
    """Run instance m until its next step would start at or after `until`, or it has nothing to do.

    `hard` >= `until` is the next time at which somebody leaves.
    """
    s = w.instance[m]
    while s.t < until and (s.running > 0 or s.waiting > 0):
        _step(w, m, until, hard, key_fn)
        if s.stall > s.seqs or s.t > FOREVER // 2:
            return  # no progress: the caller finds requests without an end


@compiled
def _route(w: Any, i: Any, now: Any, hard: Any, prefix: Any, key_fn: Any) -> Any:
    """Choose the instance of request i, whose time `now` has come."""
    count, router = w.instance.shape[0], w.option[0].router
    if count == 1 or router == ROUND_ROBIN:
        m = i % count
        advance(w, m, now, hard, key_fn)
        return m
    if router == AFFINITY:
        m = prefix[i] % count
        advance(w, m, now, hard, key_fn)
        return m
    best, least = 0, np.int64(0)
    for m in range(count):
        s = w.instance[m]
        if s.t < now and s.running + s.waiting > 0:
            advance(w, m, now, hard, key_fn)
        ending = s.t > now  # what ends with the step under way is still there
        if router == LEAST_REQUESTS:
            load = s.running + s.waiting + (s.ended if ending else 0)
        elif router == VLLM_DP:
            load = s.running + 4 * s.waiting + (s.ended if ending else 0)
        else:
            load = s.load + (s.ended_load if ending else 0)
            if router in (LEAST_WORK, FREE_FIRST):
                load += w.work[s.kind, i]  # it takes longer on a slower engine
            elif router == MAX_MIN:
                load *= s.pace
            if router == FREE_FIRST and s.running + s.waiting + (s.ended if ending else 0) >= s.seqs:
                load += FULL
        if m == 0 or load < least:
            best, least = m, load
    return best


@compiled
def _arrive(w: Any, m: Any, i: Any, now: Any, key_fn: Any) -> None:
    """Let request i enter instance m."""
    s, q, o = w.instance[m], w.request[i], w.option[0]
    q.place = m
    if s.running == 0 and s.waiting == 0:
        s.t = max(s.t, now)
    if blocks(q.prompt + q.output - 1, s.block) > s.blocks:
        w.finish[i] = REJECTED
        return
    if o.learns == 1:
        news = usual.learn(s, s.backlog * 1e-12, w.work[s.kind, i] * 1e-12)
        if news:
            waiting.place_anew(w, m, i, key_fn)
    if o.keyed == 1:
        fixed(w, m, i, key_fn)
    s.t += o.predict
    if o.router in (LEAST_WORK, FREE_FIRST):
        q.load = w.work[s.kind, i]
    elif o.router in (LEAST_TOKENS, MAX_MIN):
        q.load = np.int64(w.predicted[i])
    s.load += q.load
    waiting.enter(w, m, i)


@compiled
def _leave(w: Any, r: Any, now: Any, hard: Any, key_fn: Any) -> None:
    """Let the client of request r go away."""
    q = w.request[r]
    m = np.int64(q.place)
    advance(w, m, now, hard, key_fn)
    if w.finish[r] != WAITS:
        return
    if q.seq < 0:
        waiting.drop(w, m, r)
    else:
        running.cancel(w, m, r)
    running.leave(w, m, r)


@entered
def run(w: Any, prefix: Any, leaver: Any, leaves: Any, key_fn: Any) -> None:
    """Serve the whole load; `leaver` (c,) are the ids of clients that go away, at the times `leaves` [ps]."""
    n, gone = w.request.shape[0], 0
    for i in range(n + 1):
        now = w.request[i].ready if i < n else FOREVER
        while gone < leaves.shape[0] and (leaves[gone] < now or i == n):
            hard = leaves[gone]
            _leave(w, leaver[gone], hard, hard, key_fn)
            gone += 1
        if i < n:
            hard = leaves[gone] if gone < leaves.shape[0] else FOREVER
            m = _route(w, i, now, hard, prefix, key_fn)
            _arrive(w, m, i, now, key_fn)
    for m in range(w.instance.shape[0]):
        advance(w, m, FOREVER, FOREVER, key_fn)
