"""A learner that starts from a log: the file that `sooner serve` and the plugin go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sooner.core import DataError
from sooner.learning import Learner, Salt, prequential
from sooner.learning.last_layer import probe
from sooner.learning.memory import save
from sooner.rankers import Ranker
from sooner.workloads.traces import Trace


def seed(trace: Trace, ranker: Ranker | None, out: Path) -> dict[str, Any]:
    """Play a log of texts through an empty learner in the order of time, and keep it in the file `out`.

    `ranker` is the one it will serve beside. Groups are hashed with this installation's salt, so it knows
    them only where that is. Raises DataError for a log without texts, OSError where `out` cannot be written.
    """
    if trace.requests is None:
        raise DataError("a log of lengths alone starts no learner, allowed: one with prompt or messages")
    senders, names = None, (trace.names or {}).get("sender")
    if trace.sender is not None and names:
        senders = [names[int(at)] for at in trace.sender.tolist()]
    salt, learner = Salt.of_installation(), Learner()
    learner.layer.bind(probe(ranker))
    facts = prequential.of_requests(trace.requests, ranker, trace.arrival_time, senders, salt)
    played = prequential.play(facts, trace.output_len, learner)
    save(learner, out)
    return {"out": str(out), "learned": learner.seen, "groups": len(learner.groups),
            "kendall_tau": played.kendall_tau, "alarms": played.alarms}  # fmt: skip
