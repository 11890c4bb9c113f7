"""Where each request stands: the policy, the scores as they come, the load, and the guard.

Pure logic between the engine's hooks and the queue; it knows request ids, never vLLM's requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sooner.core import Prediction, View
from sooner.guard import Guard
from sooner.ordering.counters import Counters
from sooner.ordering.given import NOTHING, Given
from sooner.ordering.ticket import Ticket, columns
from sooner.policies import Policy
from sooner.policies.plain import scalar_key
from sooner.work import Pace, Usual, work

_TYPICAL = (500.0, 0.0, 150.0)
"""Prompt, cached and reply tokens by which two paces are compared where no request is here to do it."""

TELLS = frozenset(View._fields) - {"counter"}
"""Fields of `View` that an order tells its policy; a host may know less, or more."""
_OF_WORK = frozenset({"work", "usual_wait", "usual_work"})
_OF_CACHE = _OF_WORK | {"cached_len"}


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
    `now` [s] is set by the host once a step and does not move within it. `pace` is how fast the engine
    works, which the host may learn and set; `usual` is what was learned of waits and work, which the
    host may keep over a restart. Where either moved, `take_news` says that all must be placed anew. Work
    is reckoned where the policy reads it, or the host `weighs`.
    """

    def __init__(
        self, policy: Policy, guard: Guard[str] | None, counters: Counters, pace: Pace | None = None,
        *, weighs: bool = False,
    ) -> None:  # fmt: skip
        self.policy = policy
        self.pace = Pace() if pace is None else pace
        self.usual = Usual()
        self.backlog = 0.0  # expected work of the waiting [s]
        self._waiting = 0
        self._reads_work = bool(policy.reads & _OF_WORK)
        self._weighs = weighs or self._reads_work
        self._news = self._chosen = False
        self._scalar_key = scalar_key(policy)
        self._columns = columns(policy)
        self.guard = guard
        self.counters = counters
        self.tickets: dict[str, Ticket] = {}
        self.now = 0.0
        self.step = 0
        self._entries = 0
        self._mean_score = Mean(0.02)
        self._mean_len = Mean(0.02)
        self._mean_wait = Mean(0.05)
        self.usual_len = 0.0  # of replies as they ended [tokens], where the host sees them
        self._last_key = 0.0

    @property
    def pressure(self) -> float:
        """Recent mean wait over recent mean predicted length [s/token]; 0 where nobody waits."""
        return self._mean_wait.value / self._mean_len.value if self._mean_len.value > 0 else 0.0

    @property
    def mean_predicted_len(self) -> float:
        """Recent mean predicted length [tokens]; 0 before the first."""
        return self._mean_len.value

    def gauges(self) -> dict[str, float]:
        """Return what is measured of the load, by the names that hosts publish."""
        return {
            "pressure_seconds_per_token": self.pressure,
            "mean_predicted_len_tokens": self.mean_predicted_len,
            "backlog_seconds": self.backlog,
            "usual_wait_seconds": self.usual.wait,
            "usual_work_seconds": self.usual.work,
        }

    def arrive(
        self,
        id: str,
        arrival_time: float,
        prompt_len: int,
        given: Given = NOTHING,
        level: float | None = None,
        cached_len: int = 0,
        ahead: float | None = None,
    ) -> Ticket:
        """Give a new request its ticket, at a neutral place unless the client gave numbers.

        `level` is its class, where the host has classes; else it is what the client said. `cached_len`
        are prompt tokens that need not be computed. `ahead` [s] is the work that waits for the same
        engines, where it is not all that waits here.
        """
        self._entries = sequence = self._entries + 1
        length = self._mean_len.value
        ticket = Ticket(
            sequence, arrival_time, prompt_len, self._mean_wait.value / length if length > 0 else 0.0,
            self._mean_score.value, length, self.step,
        )  # fmt: skip
        if level:
            ticket.level = level
        if self._weighs:
            ticket.cached_len = cached_len
            ticket.usual_len = self.usual_len if given.predicted_len is None else None  # it says what it has
            self.usual.arrive(self.backlog if ahead is None else ahead)
        if given is not NOTHING:
            if given.deadline_ms is not None:
                ticket.deadline = arrival_time + given.deadline_ms / 1000.0
            if level is None and given.level is not None:
                ticket.level = given.level
            if given.score is not None:
                self._take(ticket, given.score, given.predicted_len)
            elif given.predicted_len is not None:  # a length alone: it stands where it stood, and is so long
                ticket.predicted_len = given.predicted_len
        if self._weighs and not ticket.scored:
            self._reckon(ticket)
        ticket.key = key = self._key(ticket, 0)
        ticket.place = (1, key, arrival_time, sequence)
        self.tickets[id] = ticket
        self._waiting += 1  # its work is in the backlog by now
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
        if ticket.waiting:
            ticket.waiting = False
            self._part(ticket)
        if not ticket.weighed and self._weighs:  # no score came: it is what it seems
            ticket.weighed = True
            self.usual.weigh(ticket.work)
        if self.guard is not None:
            self.guard.start(id, self.step)

    def preempted(self, id: str, attained: int) -> None:
        """Say that a running request goes back to the queue; its key is read anew."""
        ticket = self.tickets.get(id)
        if ticket is None:
            return
        ticket.preemptions += 1
        ticket.attained = attained
        if not ticket.waiting:
            ticket.waiting = True
            self._join(ticket)
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
        ticket.attained = attained
        if not ticket.waiting:
            ticket.waiting = True
            self._join(ticket)
        if self._weighs:
            self._reckon(ticket)
        ticket.stand(self._key(ticket, attained), ticket.promoted)

    def leave(self, id: str) -> Ticket | None:
        """Forget a request; return its ticket."""
        if self.guard is not None:
            self.guard.leave(id)
        ticket = self.tickets.pop(id, None)
        if ticket is not None and ticket.waiting:
            self._part(ticket)
        return ticket

    def cached(self, id: str, cached_len: int) -> bool:
        """Take in how much of a waiting prompt need not be computed; return whether it moved."""
        ticket = self.tickets.get(id)
        if ticket is None or not self._weighs or ticket.cached_len == cached_len:
            return False
        ticket.cached_len = cached_len
        self._reckon(ticket)
        if not self.policy.reads & _OF_CACHE:  # only a shadow wants to know
            return False
        ticket.stand(self._key(ticket, ticket.attained), ticket.promoted)
        return True

    def set_pace(self, pace: Pace) -> float:
        """Reckon all work with another pace, what is usual too; all are placed anew at the next step.

        Returns how many times as large work is now.
        """
        old, self.pace = self.pace, pace
        if not self._weighs:
            return 1.0
        before = sum(ticket.work for ticket in self.tickets.values())
        for ticket in self.tickets.values():
            self._reckon(ticket)
        after = sum(ticket.work for ticket in self.tickets.values())
        if before <= 0.0:
            before, after = (float(work(one, *_TYPICAL)) for one in (old, pace))
        factor = after / before if before > 0.0 else 1.0
        self.usual.scale(factor)
        self._news = True
        return factor

    def set_usual_len(self, tokens: float) -> bool:
        """Take how long replies are, for the work of requests of which nothing is predicted.

        Returns whether that moved by a quarter: then the work of all such that are here is reckoned anew.
        """
        known = self.usual_len
        if known <= 1.25 * tokens and tokens <= 1.25 * known:
            return False
        self.usual_len = tokens
        for ticket in self.tickets.values():
            if ticket.usual_len is not None:
                ticket.usual_len = tokens
                if self._weighs:
                    self._reckon(ticket)
        self._news = True
        return True

    def choose(self, policy: Policy) -> None:
        """Go by another policy from the next step on; what was learned stays, and goes on being learned."""
        self.policy, self._scalar_key, self._columns = policy, scalar_key(policy), columns(policy)
        self._reads_work, self._chosen = bool(policy.reads & _OF_WORK), True
        self._weighs = self._weighs or self._reads_work

    def take_news(self) -> bool:
        """Return whether policy, pace or what is usual is another since the last call: then all move."""
        news, self._news = (self._weighs and self.usual.tell()) or self._news, False
        chosen, self._chosen = self._chosen, False
        return chosen or (news and self._reads_work)

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
        view = View(
            **{name: np.array(list(map(read, tickets)), float) for name, read in self._columns.items()},
            attained=np.array(attained, dtype=np.float64),
            usual_wait=self.usual.wait,
            usual_work=self.usual.work,
        )
        try:
            keys = np.broadcast_to(self.policy.key(view, self.now), (len(tickets),))
        except Exception as error:
            self.counters.warn("policy_errors", "policy %r failed, keys stay: %r", self.policy.name, error)
            return
        for ticket, key in zip(tickets, keys.tolist(), strict=True):
            if key == key:  # as `stand` does: thousands of calls a step would be felt
                ticket.key = key
                ticket.place = (0 if ticket.promoted else 1, key, ticket.arrival_time, ticket.sequence)

    def _take(self, ticket: Ticket, score: float, predicted_len: float | None) -> None:
        ticket.scored = True
        ticket.score = score
        self._mean_score.add(score)
        if predicted_len is not None:
            ticket.predicted_len = predicted_len
            self._mean_len.add(predicted_len)
        if self._weighs:
            self._reckon(ticket)
            if not ticket.weighed:
                ticket.weighed = True
                self.usual.weigh(ticket.work)

    def _reckon(self, ticket: Ticket) -> None:
        """Reckon a ticket's work anew."""
        before = ticket.work
        ticket.work = float(work(self.pace, ticket.prompt_len, ticket.cached_len, ticket.reply_len))
        if ticket.waiting:
            self.backlog += ticket.work - before

    def _join(self, ticket: Ticket) -> None:
        self._waiting += 1
        self.backlog += ticket.work

    def _part(self, ticket: Ticket) -> None:
        self._waiting -= 1
        self.backlog = self.backlog - ticket.work if self._waiting > 0 else 0.0  # no rounding stays

    def view(self, ticket: Ticket, attained: int) -> View:
        """Return what a policy sees of a request that has `attained` tokens of its reply."""
        return View(
            ticket.arrival_time, ticket.prompt_len, ticket.predicted_len, ticket.score,
            attained, ticket.cached_len, ticket.deadline, ticket.pressure, ticket.level, ticket.counter,
            ticket.work, self.usual.wait, self.usual.work,
        )  # fmt: skip

    def _key(self, ticket: Ticket, attained: int) -> float:
        """Return the policy's key, or the last good one where it fails: then arrival decides."""
        try:
            key = float(self._scalar_key(self.view(ticket, attained), self.now))
            if key != key:
                raise ValueError("the key is not a number")
        except Exception as error:
            self.counters.warn("policy_errors", "policy %r failed: %r", self.policy.name, error)
            return self._last_key
        self._last_key = key
        return key
