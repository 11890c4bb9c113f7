"""A second policy: scored on who waits, without acting; and its promotion."""

from __future__ import annotations

import random
from collections.abc import Hashable
from typing import NamedTuple

from sooner.core import ConfigError
from sooner.learning.pairs import Met, PairWatch
from sooner.ordering.counters import Counters
from sooner.ordering.order import Order
from sooner.ordering.shadow import Promotion
from sooner.ordering.standings import rivalry_gauges
from sooner.ordering.ticket import Ticket
from sooner.policies import Policy
from sooner.policies.plain import scalar_key
from sooner.work import work


class Sitter(NamedTuple):
    """Somebody who waits."""

    id: str
    ticket: Ticket


class Seats:
    """Who waits, in no order: any of them is drawn in one step."""

    def __init__(self) -> None:
        self._all: list[Sitter] = []
        self._at: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, id: str) -> bool:
        return id in self._at

    def add(self, sitter: Sitter) -> None:
        """Let somebody sit down."""
        self._at[sitter.id] = len(self._all)
        self._all.append(sitter)

    def remove(self, id: str) -> Sitter:
        """Let somebody go and return them; the last one takes the empty seat."""
        at, last = self._at.pop(id), self._all.pop()
        if at == len(self._all):
            return last
        gone, self._all[at] = self._all[at], last
        self._at[last.id] = at
        return gone

    def draw(self, rng: random.Random) -> Sitter:
        """Return anybody."""
        return self._all[rng.randrange(len(self._all))]


class PolicyShadow:
    """Draws, at each start, one of those who wait on, and asks both policies who of the two should be first.

    Only requests that wait `beside` one another are compared, those of which a policy says who goes first.
    One drawn pair stands for all of its start. What either policy promised is held against the work that
    both requests turn out to be. Without a `shadow` nothing is compared.
    """

    def __init__(
        self, acting: Policy, shadow: Policy | None, promotion: Promotion, counters: Counters
    ) -> None:
        self.acting, self.shadow = acting, shadow
        self.promotion = promotion
        self.pairs = PairWatch()
        self._counters = counters
        self._rng = random.Random(0)
        self._seats: dict[Hashable, Seats] = {}
        self._beside: dict[str, Hashable] = {}
        self._compares = shadow is not None
        if promotion.on and shadow is not None:
            self.acting, self.shadow = shadow, acting
        self._keys = [scalar_key(policy) for policy in (self.acting, self.shadow) if policy is not None]

    def waits(self, id: str, ticket: Ticket, beside: Hashable = None) -> None:
        """Say that a request has to wait."""
        if self._compares and id not in self._beside:
            self._beside[id] = beside
            self._seats.setdefault(beside, Seats()).add(Sitter(id, ticket))

    def started(self, id: str, order: Order, now: float) -> None:
        """Say that a request goes to an engine: it is held against one of those that wait on."""
        if id not in self._beside:
            return
        seats = self._seats[self._beside[id]]
        sitter = self._gone(id)
        if not len(seats):
            return
        first, second = sorted((sitter, seats.draw(self._rng)), key=lambda one: one.ticket.sequence)
        views = [order.view(one.ticket, one.ticket.attained) for one in (first, second)]
        try:
            swaps = [bool(key(views[1], now) < key(views[0], now)) for key in self._keys]
        except Exception as error:  # a policy of the user's: the order that acts goes on
            self._compares = False
            self._seats.clear()
            self._beside.clear()
            told = "the policy that watches cannot be compared any more: %r"
            self._counters.warn("shadow_failures", told, error)
            return
        self.pairs.met(Met(first.id, second.id, float(len(seats)), *swaps))

    def finished(self, id: str, ticket: Ticket, order: Order, output_len: int) -> None:
        """Say how long a whole reply is [tokens]."""
        if self._compares:
            whole = work(order.pace, ticket.prompt_len, ticket.cached_len, float(output_len))
            self.pairs.finished(id, float(whole))

    def left(self, id: str) -> None:
        """Say that a request is gone, however it ended."""
        if id in self._beside:
            self._gone(id)
        self.pairs.dropped(id)

    def gauges(self) -> dict[str, float]:
        """Return how both stand, by the names of `/metrics`; nothing where none watches."""
        if self.shadow is None:
            return {}
        return {
            "shadow_policy_promoted": float(self.promotion.on),
            "shadow_policy_compared_pairs": float(self.pairs.seen),
            **rivalry_gauges("shadow_policy", self.pairs.now),
        }

    def change_places(self) -> Policy:
        """Let the shadow act from now on; return it. Raises ConfigError where there is none."""
        if self.shadow is None:
            raise ConfigError("no policy watches, allowed: one as shadow_policy in the settings")
        self.acting, self.shadow = self.shadow, self.acting
        self._keys = self._keys[::-1]
        self.pairs.change_places()
        self.promotion.turn(not self.promotion.on)
        return self.acting

    def _gone(self, id: str) -> Sitter:
        """Let a request leave its seat."""
        beside = self._beside.pop(id)
        seats = self._seats[beside]
        sitter = seats.remove(id)
        if not len(seats):
            del self._seats[beside]
        return sitter
