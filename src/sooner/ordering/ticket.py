"""What is known of one request while a host holds it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from sooner.core import View
from sooner.ordering.queue import Place
from sooner.policies import Policy

_ON_TICKETS = frozenset(View._fields) - {"attained", "usual_wait", "usual_work"}


@dataclass(slots=True)
class Ticket:
    """What is known of one request while the engine holds it; steps are -1 for "not yet"."""

    sequence: int
    arrival_time: float
    prompt_len: int
    pressure: float
    score: float
    predicted_len: float
    arrival_step: int
    deadline: float = math.inf
    cached_len: float = 0.0
    usual_len: float | None = 0.0  # tokens of its reply for its work, while nothing is predicted of any
    work: float = 0.0  # expected [s]
    weighed: bool = False  # its work is among what is usual
    waiting: bool = True  # not taken by the engine
    level: float = 0.0
    attained: int = 0  # tokens of its reply when it last came to wait
    counter: float = 0.0  # of its tenant, where the host counts
    key: float = 0.0
    place: Place = (1, 0.0, 0.0, 0)  # in the queue, and among the running when a victim is sought
    scored: bool = False
    blind: bool = False  # it was admitted before its score came
    promoted: bool = False
    first_scheduled_step: int = -1
    first_token_step: int = -1
    preemptions: int = 0
    rank_preemptions: int = 0
    tag: str = ""

    @property
    def reply_len(self) -> float:
        """Tokens that its reply is taken to have for its work."""
        return self.predicted_len or self.usual_len or 0.0

    def stand(self, key: float, promoted: bool) -> None:
        """Take the place of a key."""
        self.key = key
        self.promoted = promoted
        self.place = (0 if promoted else 1, key, self.arrival_time, self.sequence)


def columns(policy: Policy) -> dict[str, Callable[[Ticket], float]]:
    """Return what reads each field that a policy asks of a ticket; the arrival is always asked."""
    return {name: attrgetter(name) for name in sorted(_ON_TICKETS & {"arrival_time", *policy.reads})}
