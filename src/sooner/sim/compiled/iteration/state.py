"""What the engine that reorders at every iteration reads and writes; all times in picoseconds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

ENTRY = np.dtype(
    [("ready", "i8"), ("key", "f8")]
    + [
        (name, "i4")
        for name in (
            "prompt",
            "output",
            "cached",  # prompt tokens whose KV is found, not computed
            "generated",
            "computed",
            "held",  # KV blocks on the GPU
            "swapped",  # KV blocks on the host
            "idle",  # steps since it last ran or was promoted
            "quantum",  # steps left above the rest
            "preemptions",
        )
    ]
    + [(name, "i1") for name in ("decoding", "running", "up")],  # running: in the last step; up: promoted
)

STATE = np.dtype(
    [(name, "i8") for name in ("a", "b", "c", "d", "seqs", "tokens", "block", "blocks", "watermark")]
    + [
        (name, "i8")
        for name in (
            "swap",
            "swap_ticks",
            "dynamic",
            "timeless",
            "guard",
            "quantum",
            "predict",
            "keyed",
            "weighed",
            "learns",
        )
    ]
    + [
        (name, "i8")
        for name in (
            "t",
            "step",
            "free",  # KV blocks on the GPU
            "host",  # KV blocks on the host
            "live",
            "gone",  # clients that left
            "moved",  # blocks between GPU and host in this step
            "sorted",  # how many of the live were in order after the last step
            "gained",  # the last step that made a token
            "last",  # the tenant who was last to run after a wait, or -1
            "arrivals",
        )
    ]
    + [("mean_wait", "f8"), ("mean_predicted", "f8")]
    + [(name, "f8") for name in ("square_wait", "work_mean", "square_work", "usual_wait", "usual_work")]
)


class IterationRun(NamedTuple):
    """One run. Requests are in order of arrival; the columns after `leaves` are what a policy may see."""

    entry: Any  # (n,) ENTRY
    start: Any  # (n,), -1 for not yet, as the next two
    first: Any
    finish: Any
    state: Any  # (1,) STATE
    order: Any  # (n,) live requests, the first `live` of them, best first
    want: Any  # (seqs,) tokens of each chosen request
    leaver: Any  # (c,) ids of clients that go away
    leaves: Any  # (c,) when [ps]
    arrival: Any  # (n,) [s]
    predicted: Any
    score: Any
    deadline: Any
    level: Any
    work: Any  # (1, n) expected [ps]; (1, 0) where nobody asks
    tenant: Any  # (n,) from 0, where the key hangs on the host's state; else empty, as is the next
    tally: Any  # (1, tenants) TALLY
    multiple: Any  # (1,) of the weights: what a counter is counted in
