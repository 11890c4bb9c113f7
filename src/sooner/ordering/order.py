"""Where each request stands: the policy, the scores as they come, the load, and the guard.

Pure logic between the engine's hooks and the queue; it knows request ids, never vLLM's requests.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from sooner.core import Prediction, View
from sooner.guard import Guard
from sooner.ordering.counters import Counters
from sooner.ordering.given import NOTHING, Given
from sooner.ordering.queue import Place
from sooner.policies import Policy


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

    def stand(self, key: float, promoted: bool) -> None:
        """Take the place of a key."""
        self.key = key
        self.promoted = promoted
        self.place = (0 if promoted else 1, key, self.arrival_time, self.sequence)


class Mean:
    """An exponentially weighted mean that starts at its first value; 0 before."""

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._seen = 0
        self.value = 0.0

    def add(self, value: float) -> None:
        """Take in one value; the first 1/weight of them are averaged plainly."""
        weight = self._weight
        if self._seen * weight < 1.0:
            self._seen += 1
            weight = 1.0 / self._seen
        self.value += (value - self.value) * weight


class Order:
    """Tickets by request id, and the rules that place them.

    A request without a score stands at a neutral place: the recent mean score and predicted length.
    With no score at all that is the same for everyone, so the order is the order of arrival.
    `now` [s] is set by the host once a step and does not move within it.
    """

    def __init__(self, policy: Policy, guard: Guard[str] | None, counters: Counters) -> None:
        self.policy = policy
        self._scalar_key = scalar_key(policy)
        self.guard = guard
        self.counters = counters
        self.tickets: dict[str, Ticket] = {}
        self.now = 0.0
        self.step = 0
        self._entries = 0
        self._mean_score = Mean(0.02)
        self._mean_len = Mean(0.02)
        self._mean_wait = Mean(0.05)
        self._last_key = 0.0

    @property
    def pressure(self) -> float:
        """Recent mean wait over recent mean predicted length [s/token]; 0 where nobody waits."""
        return self._mean_wait.value / self._mean_len.value if self._mean_len.value > 0 else 0.0

    @property
    def mean_predicted_len(self) -> float:
        """Recent mean predicted length [tokens]; 0 before the first."""
        return self._mean_len.value

    def arrive(self, id: str, arrival_time: float, prompt_len: int, given: Given = NOTHING) -> Ticket:
        """Give a new request its ticket, at a neutral place unless the client gave numbers."""
        self._entries += 1
        length = self._mean_len.value
        ticket = Ticket(
            self._entries, arrival_time, prompt_len, self._mean_wait.value / length if length > 0 else 0.0,
            self._mean_score.value, length, self.step,
        )  # fmt: skip
        if given is not NOTHING:
            if given.deadline_ms is not None:
                ticket.deadline = arrival_time + given.deadline_ms / 1000.0
            if given.score is not None:
                self._take(ticket, given.score, given.predicted_len)
        ticket.key = key = self._key(ticket, 0)
        ticket.place = (1, key, arrival_time, self._entries)
        self.tickets[id] = ticket
        if self.guard is not None:
            self.guard.arrive(id, self.step + 1)
        return ticket

    def predicted(self, id: str, prediction: Prediction, attained: int) -> bool:
        """Take in a score that came; return whether the request is still here to be moved."""
        ticket = self.tickets.get(id)
        if ticket is None:
            return False
        self._take(ticket, prediction.score, prediction.predicted_len)
        ticket.blind = ticket.first_scheduled_step >= 0
        ticket.stand(self._key(ticket, attained), ticket.promoted)
        return True

    def admitted(self, id: str) -> None:
        """Say that the engine took a request off the queue to run it in the current step."""
        ticket = self.tickets.get(id)
        if ticket is None:
            return
        if ticket.first_scheduled_step < 0:
            ticket.first_scheduled_step = self.step
            self._mean_wait.add(max(0.0, self.now - ticket.arrival_time))
        if self.guard is not None:
            self.guard.start(id, self.step)

    def preempted(self, id: str, attained: int) -> None:
        """Say that a running request goes back to the queue; its key is read anew."""
        ticket = self.tickets.get(id)
        if ticket is None:
            return
        ticket.preemptions += 1
        if not self.policy.static:
            ticket.stand(self._key(ticket, attained), ticket.promoted)
        if self.guard is not None:
            self.guard.stop(id, self.step + 1)

    def again(self, id: str, now: float, prompt_len: int, attained: int) -> None:
        """Say that a request comes back for more at `now` [s], its prompt grown by what it has attained."""
        ticket = self.tickets.get(id)
        if ticket is None:
            return
        self.now = now
        self._entries += 1
        ticket.arrival_time, ticket.prompt_len, ticket.sequence = now, prompt_len, self._entries
        ticket.stand(self._key(ticket, attained), ticket.promoted)

    def leave(self, id: str) -> Ticket | None:
        """Forget a request; return its ticket."""
        if self.guard is not None:
            self.guard.leave(id)
        return self.tickets.pop(id, None)

    def begin_step(self, now: float) -> list[str]:
        """Freeze `now` and let the guard act before the next step; return whose place changed."""
        self.now = now
        if self.guard is None:
            return []
        changes = self.guard.begin(self.step + 1)
        for ids, promoted in ((changes.promoted, True), (changes.demoted, False)):
            for id in ids:
                self.tickets[id].stand(self.tickets[id].key, promoted)
        self.counters.add("promotions", len(changes.promoted))
        return [*changes.promoted, *changes.demoted]

    def refresh(self, tickets: Sequence[Ticket], attained: Sequence[int]) -> None:
        """Read the keys of many requests anew, as columns, for policies whose keys change."""
        if not tickets:
            return
        column = {
            name: np.array([getattr(ticket, name) for ticket in tickets], dtype=np.float64)
            for name in ("arrival_time", "prompt_len", "predicted_len", "score", "deadline", "pressure")
        }
        view = View(**column, attained=np.array(attained, dtype=np.float64))
        try:
            keys = np.broadcast_to(self.policy.key(view, self.now), (len(tickets),))
        except Exception as error:
            self.counters.warn("policy_errors", "policy %r failed, keys stay: %r", self.policy.name, error)
            return
        for ticket, key in zip(tickets, keys.tolist(), strict=True):
            if key == key:
                ticket.stand(key, ticket.promoted)

    def _take(self, ticket: Ticket, score: float, predicted_len: float | None) -> None:
        ticket.scored = True
        ticket.score = score
        self._mean_score.add(score)
        if predicted_len is not None:
            ticket.predicted_len = predicted_len
            self._mean_len.add(predicted_len)

    def _key(self, ticket: Ticket, attained: int) -> float:
        """Return the policy's key, or the last good one where it fails: then arrival decides."""
        try:
            view = View(
                ticket.arrival_time, ticket.prompt_len, ticket.predicted_len, ticket.score,
                attained, 0.0, ticket.deadline, ticket.pressure,
            )  # fmt: skip
            key = float(self._scalar_key(view, self.now))
            if key != key:
                raise ValueError("the key is not a number")
        except Exception as error:
            self.counters.warn("policy_errors", "policy %r failed: %r", self.policy.name, error)
            return self._last_key
        self._last_key = key
        return key


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan


_SCALARS = SimpleNamespace(
    maximum=max,
    minimum=min,
    log=_log,
    log1p=math.log1p,
    exp=math.exp,
    expm1=math.expm1,
    sqrt=math.sqrt,
    abs=abs,
)


def scalar_key(policy: Policy) -> Callable[[View, float], Any]:
    """Return a policy's own function with `math` in place of NumPy: the same key, for one request.

    A NumPy function called on one number costs more than all else that placing a request takes. A
    policy that uses more of NumPy than there is here keeps NumPy.
    """
    function = policy.function
    if not isinstance(function, types.FunctionType):
        return policy.key
    used = {name for name in function.__code__.co_names if hasattr(np, name)} - {"np"}
    if not used <= set(vars(_SCALARS)) | set(View._fields):
        return policy.key
    plain = types.FunctionType(
        function.__code__, {**function.__globals__, "np": _SCALARS}, function.__name__,
        function.__defaults__, function.__closure__,
    )  # fmt: skip
    plain.__kwdefaults__ = {**(function.__kwdefaults__ or {}), **policy.parameters}
    return plain


def uses_predictions(policy: Policy) -> bool:
    """Return whether a policy's key depends on what a ranker says, so that none is run for nothing."""
    waiting = View(100.0, predicted_len=10.0, score=1.0, pressure=1.0)
    longer = waiting._replace(predicted_len=500.0, score=2.0)
    return any(  # a policy may look at them only once a request has run for a while
        policy.key(waiting._replace(attained=ran), 200.0) != policy.key(longer._replace(attained=ran), 200.0)
        for ran in (0.0, 100.0)
    )
