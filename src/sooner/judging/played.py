"""A log or trace played through a learner, as `sooner evaluate --prequential` prints it."""

from __future__ import annotations

from typing import Any

import numpy as np

from sooner.learning import prequential
from sooner.metrics import kendall_tau
from sooner.rankers import Ranker
from sooner.workloads.traces import Trace


def played(trace: Trace, ranker: Ranker | None) -> dict[str, Any]:
    """Return how a learner's predictions stand; `ranker` reads the prompts, where the trace has them.

    `ranker_kendall_tau` is the ranker's own, None without one. Raises DataError for fewer than 2 requests.
    """
    senders = None if trace.sender is None else trace.sender.tolist()
    if trace.requests is None:
        who = senders if senders is not None else [""] * len(trace)
        facts = prequential.of_senders(who, trace.arrival_time)
    else:
        facts = prequential.of_requests(trace.requests, ranker, trace.arrival_time, senders)
    found = prequential.play(facts, trace.output_len)
    own = [text.score for text in facts.texts if text is not None]
    return {
        "n": found.n,
        "kendall_tau": found.kendall_tau,
        "ranker_kendall_tau": kendall_tau(np.array(own), trace.output_len) if own else None,
        "alarms": found.alarms,
        "off_share": found.off_share,
        "tau_by_hundred": found.tau_by_hundred,
    }
