"""A running request sent back for a waiting one that ranks before it: by vLLM's rules, or not at all.

vLLM preempts inside `schedule` and admits nobody in such a step. We preempt before it, so the step may admit:
it must admit the one we made room for, and never the victim again. So we ask beforehand whether the first in
the queue can run now, and the victim stays out of the queue until the step is over.
"""

from __future__ import annotations

import time
from typing import Any

from sooner.ordering.order import Order
from sooner.ordering.queue import RankedQueue
from sooner.ordering.ticket import Ticket
from sooner.vllm import compat
from sooner.vllm.counters import PluginCounters
from sooner.vllm.settings import VllmSettings

YOUNG = 64
"""Tokens up to which a request that was admitted before its score came may be sent back."""

_SECOND_LOOK_GAIN = 1.25
"""How many times the first waiting one's tokens it must need then: a prompt is computed again for it."""


class Displacement:
    """At most one victim a step: each costs the recomputation of its tokens."""

    def __init__(self, host: Any, order: Order, settings: VllmSettings, counters: PluginCounters) -> None:
        self._host = host
        self._order = order
        self._settings = settings
        self._counters = counters
        self._blind_until = -1
        self._victim: Any = None
        self.active = False  # while we preempt

    def scored_late(self) -> None:
        """Say that a score came for a request that runs already."""
        self._blind_until = self._order.step + YOUNG

    def before_step(self) -> None:
        """Send the worst-ranked running request back where the first in the queue should have its place."""
        chosen = self._settings
        if not (chosen.preemption or (chosen.second_look and self._order.step <= self._blind_until)):
            return
        host = self._host
        request = self._first() if len(host.running) >= compat.slots(host) else None
        if request is None:
            return
        first = self._order.tickets.get(request.request_id)
        victim = max(host.running, key=self._place)
        worst = self._order.tickets.get(victim.request_id)
        if first is None or worst is None or not (first.place < worst.place):
            return
        reason = self._reason(worst, first, victim.num_output_tokens)
        if reason is None or not compat.can_preempt(host, victim) or not compat.can_admit(host, request):
            return
        host.running.remove(victim)
        worst.rank_preemptions += 1
        self._counters.add(reason)
        self._victim, self.active = victim, True
        try:
            compat.preempt(host, victim, time.monotonic())
        finally:
            self.active = False
        for queue in compat.queues(host):
            queue.remove_request(victim)

    def after_step(self) -> None:
        """Put the victim back into the queue; nothing where there is none, or it is gone meanwhile."""
        victim, self._victim = self._victim, None
        if victim is None or victim.request_id not in self._host.requests:
            return
        if not any(victim in queue for queue in compat.queues(self._host)) and not compat.is_running(victim):
            queue: RankedQueue[Any] = self._host.waiting
            queue.add_request(victim)

    def _first(self) -> Any:
        """Return who goes next of all queues, None where they are empty: 0.18 to 0.30 keep two."""
        heads = [queue.peek_request() for queue in compat.queues(self._host) if queue]
        return min(heads, key=self._place) if heads else None

    def _place(self, request: Any) -> tuple[Any, ...]:
        ticket = self._order.tickets.get(request.request_id)
        return ticket.place if ticket is not None else (1, 0.0, request.arrival_time, 0)

    def _reason(self, worst: Ticket, first: Ticket, attained: int) -> str | None:
        """Return the counter of what lets `first` take the place of `worst`, or None."""
        chosen = self._settings
        known = first.scored and worst.scored
        left = worst.predicted_len - attained
        young = worst.blind and attained <= YOUNG and worst.rank_preemptions == 0
        if chosen.second_look and young and known and left >= _SECOND_LOOK_GAIN * first.predicted_len:
            return "second_looks"
        gains = first.promoted or (known and left >= chosen.preemption_gain * first.predicted_len)
        if chosen.preemption and gains and worst.rank_preemptions < chosen.max_preemptions:
            return "rank_preemptions"
        return None
