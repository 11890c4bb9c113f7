"""What the compiled engine reads and writes: one record a request, one an instance, all times in picoseconds.

Few wide records instead of many columns: a request is one cache line, and a compiled function takes
a handful of arguments.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

ROUND_ROBIN, LEAST_REQUESTS, LEAST_WORK, AFFINITY, MAX_MIN, VLLM_DP, LEAST_TOKENS, FREE_FIRST = range(8)
IN_SECONDS = (LEAST_WORK, FREE_FIRST)
"""Routers that count work in seconds; the others count predicted tokens."""
HEAP, LISTED, DYNAMIC = range(
    3
)  # the queue: by key; a list by key and promotion; a list by a key that changes

REQUEST = np.dtype(
    [
        ("ready", "i8"),  # when the scheduler sees it
        ("key", "f8"),
        ("load", "i8"),  # what it adds to its instance's load, as the router counts it; 0 where none asks
        ("lead", "i8"),  # decoding: tokens - step; waiting: the step since which it idles
        ("prompt", "i4"),
        ("output", "i4"),
        ("cached", "i4"),  # prompt tokens whose KV is found, not computed
        ("generated", "i4"),
        ("seq", "i4"),  # order of admission; -1: not running
        ("child", "i4"),  # waiting: link of the heap; running: the step of its admission
        ("sibling", "i4"),
        ("quantum", "i4"),  # steps left above the rest
        ("preemptions", "i4"),
        ("place", "i4"),  # its instance
    ]
)

INSTANCE = np.dtype(
    [(name, "i8") for name in ("a", "b", "c", "d", "seqs", "tokens", "block", "blocks", "watermark")]
    + [("pace", "i8")]  # of a token in a full batch
    + [
        (name, "i8")
        for name in (
            "t",
            "step",
            "running",
            "waiting",
            "decoding",
            "lead",  # sum of `lead` over the decoding
            "part",  # the request whose prompt is computed in part, or -1
            "computed",  # its tokens
            "free",  # KV blocks
            "root",  # of the waiting: a heap, or a list
            "seq",
            "ended",  # by the last step
            "load",  # of all that are here, as the router counts: expected work [ps], or predicted tokens
            "ended_load",
            "stall",  # steps in a row that ran nothing
            "last",  # the tenant who was last taken off the queue, or -1
            "far",  # root of the list of those who cannot be next yet, or -1; see `far`
            "near",  # how many of the waiting are not in it
            "crowd",  # so many of them that they are parted anew
            "kind",  # the row of `work` that is meant for it
            "backlog",  # work that waits [ps]
            "arrivals",
            "oldest",  # all before it have ended or are elsewhere
        )
    ]
    + [("mean_wait", "f8"), ("mean_predicted", "f8")]
    + [(name, "f8") for name in ("square_wait", "work_mean", "square_work", "usual_wait", "usual_work")]
    + [(name, "f8") for name in ("parted", "horizon", "low", "later", "pause")]  # of `far`
)

OPTION = np.dtype(
    [
        (name, "i8")
        for name in (
            "queue",
            "keyed",
            "weighed",  # whether work is counted
            "learns",  # whether a key hangs on what is usual
            "counted",
            "linear",
            "backfill",
            "guard",
            "quantum",
            "router",
            "predict",
        )
    ]
)

END = np.dtype([("step", "i8"), ("id", "i8")])


class AdmissionRun(NamedTuple):
    """One run. Requests are in order of arrival; the columns after `option` are what a policy may see."""

    request: Any  # (n,) REQUEST
    start: Any  # (n,), -1 for not yet, as the next two
    first: Any
    finish: Any
    instance: Any  # (m,) INSTANCE
    ends: Any  # (m, seqs) END: heap of the steps at which decoding requests end
    residue: Any  # (m, block size): decoding requests by lead modulo the block size
    scratch: Any  # (3, seqs): ids, tokens and shares of the requests of one step
    option: Any  # (1,) OPTION
    arrival: Any  # (n,) [s]
    predicted: Any
    score: Any
    deadline: Any
    level: Any
    work: Any  # (kinds of engine, n) expected [ps]; (kinds, 0) where nobody asks
    tenant: Any  # (n,) from 0, where the key may change; else empty, as is the next
    tally: Any  # (m, tenants) TALLY
    multiple: Any  # (1,) of the weights: what a counter is counted in
    sample: Any  # (2, SAMPLE) keys, for `far`
