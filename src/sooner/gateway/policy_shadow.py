"""A second policy in the gateway: scored on who waits, without acting; and its promotion."""

from __future__ import annotations

import logging
import random
from pathlib import Path

from sooner.core import ConfigError
from sooner.gateway.settings import GatewaySettings
from sooner.gateway.visit import Visit
from sooner.learning.pairs import Met, PairWatch
from sooner.ordering.shadow import Promotion
from sooner.ordering.standings import rivalry_gauges
from sooner.policies import Policy
from sooner.policies.plain import scalar_key
from sooner.work import work

logger = logging.getLogger("sooner.gateway")


class Seats:
    """Who waits, in no order: any of them is drawn in one step."""

    def __init__(self) -> None:
        self._all: list[Visit] = []
        self._at: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, request: Visit) -> bool:
        return request.id in self._at

    def add(self, request: Visit) -> None:
        """Let somebody sit down."""
        self._at[request.id] = len(self._all)
        self._all.append(request)

    def remove(self, request: Visit) -> None:
        """Let somebody go; the last one takes the empty seat."""
        at, last = self._at.pop(request.id), self._all.pop()
        if last is not request:
            self._all[at] = last
            self._at[last.id] = at

    def draw(self, rng: random.Random) -> Visit:
        """Return anybody."""
        return self._all[rng.randrange(len(self._all))]


class PolicyShadow:
    """Draws, at each start, one of those who wait on, and asks both policies who of the two should be first.

    A policy orders a tenant's requests of a class, so only these are compared. One drawn pair stands for all
    of its start. What either policy promised is held against the work that both requests turn out to be.
    Without a `shadow` nothing is compared.
    """

    def __init__(self, acting: Policy, shadow: Policy | None, promotion: Promotion) -> None:
        self.acting, self.shadow = acting, shadow
        self.promotion = promotion
        self.pairs = PairWatch()
        self._rng = random.Random(0)
        self._seats: dict[tuple[int, int, str], Seats] = {}
        self._compares = shadow is not None
        if promotion.on and shadow is not None:
            self.acting, self.shadow = shadow, acting
        self._keys = [scalar_key(policy) for policy in (self.acting, self.shadow) if policy is not None]

    @classmethod
    def of(cls, settings: GatewaySettings) -> PolicyShadow:
        """Return the one that the settings name, kept beside what is learned."""
        if not settings.shadow_policy:
            return cls(settings.chosen_policy, None, Promotion(None, {}))
        kept = settings.learned_file
        path = Path(f"{kept}.promoted-policy") if kept else None
        between = {"policy": settings.policy, "shadow": settings.shadow_policy}
        return cls(settings.chosen_policy, settings.shadowing_policy, Promotion(path, between))

    def waits(self, request: Visit) -> None:
        """Say that a request has to wait."""
        if self._compares:
            self._seats.setdefault(_beside(request), Seats()).add(request)

    def started(self, request: Visit, now: float) -> None:
        """Say that a request goes to an engine: it is held against one of those that wait on."""
        seats = self._gone(request)
        if seats is None:
            return
        other = seats.draw(self._rng)
        first, second = sorted((request, other), key=lambda one: one.ticket.sequence)
        order = request.pool.order
        views = [order.view(one.ticket, one.ticket.attained) for one in (first, second)]
        try:
            swaps = [bool(key(views[1], now) < key(views[0], now)) for key in self._keys]
        except Exception as error:  # a policy of the user's: the order that acts goes on
            self._compares = False
            self._seats.clear()
            logger.warning("the policy that watches cannot be compared any more: %r", error)
            return
        self.pairs.met(Met(first.id, second.id, float(len(seats)), *swaps))

    def finished(self, request: Visit, output_len: int) -> None:
        """Say how long a whole reply is [tokens]."""
        if not self._compares:
            return
        ticket, pace = request.ticket, request.pool.order.pace
        self.pairs.finished(
            request.id, float(work(pace, ticket.prompt_len, ticket.cached_len, float(output_len)))
        )

    def left(self, request: Visit) -> None:
        """Say that a request is gone, however it ended."""
        self._gone(request)
        self.pairs.dropped(request.id)

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

    def _gone(self, request: Visit) -> Seats | None:
        """Let a request leave its seat; return the seats where it had one and others still sit."""
        beside = _beside(request)
        seats = self._seats.get(beside)
        if seats is None or request not in seats:
            return None
        seats.remove(request)
        if not len(seats):
            del self._seats[beside]
            return None
        return seats


def _beside(request: Visit) -> tuple[int, int, str]:
    return id(request.pool), request.level, request.tenant
