"""Who may come in: what cannot be served in time, or is over its tenant's limits, is refused at once."""

from __future__ import annotations

from sooner.gateway.admission.limits import Limits
from sooner.gateway.admission.refusals import DeadlineMissed, NoEngineUp, OverLimit, RoomFull, WaitTooLong
from sooner.gateway.settings import GatewaySettings
from sooner.gateway.visit import Visit

_KEPT_FREE = 9.0  # a tenant may hold at most this many times the room that is left


class Gate:
    """Refuses at arrival. Lives as long as the gateway; `take` brings new bounds."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.limits = Limits(settings.tenants)
        self._settings = settings
        self._tenants = {tenant.name: tenant for tenant in settings.tenants}

    def take(self, settings: GatewaySettings) -> None:
        """Take new bounds."""
        if settings.tenants != self._settings.tenants:
            self.limits.take(settings.tenants)
        self._settings = settings
        self._tenants = {tenant.name: tenant for tenant in settings.tenants}

    def may_ask(self, tenant: str, now: float) -> None:
        """Raise OverLimit where nothing that a tenant asks for now would be served, whatever it is."""
        wait = self.limits.early(tenant, now)
        if wait:
            raise OverLimit(f"tenant {tenant!r} is over its limit", wait)

    def admit(self, request: Visit, now: float, *, at_once: bool) -> None:
        """Let a request in, one that is served `at_once` or that has to wait. Raises TurnedAway."""
        if not any(backend.healthy for backend in request.pool.backends):
            raise NoEngineUp("no engine for this model is up", 5.0)
        if not at_once:
            self._may_wait(request, now)
        request.admitted = request.tokens
        wait = self.limits.admit(request.tenant, request.tokens, now)
        if wait:
            raise OverLimit(f"tenant {request.tenant!r} is over its limit", wait)

    def _may_wait(self, request: Visit, now: float) -> None:
        pool, bounds = request.pool, self._settings.queue
        room = pool.room
        wait = pool.seconds(room.ahead(request.tenant, request.level))
        left = bounds.max_waiting - len(room)
        if left <= 0:
            raise RoomFull(f"{len(room)} requests wait already", wait)
        part = min(self.part_of(request.tenant) * bounds.max_waiting, _KEPT_FREE * left)
        if room.by_tenant.get(request.tenant, 0) >= part:
            raise RoomFull(f"tenant {request.tenant!r} fills its part of the queue", wait)
        if wait is not None and wait > bounds.max_wait * pool.promise:
            told = f"the wait would be {wait:.0f} s, allowed: {bounds.max_wait:.0f} s"
            raise WaitTooLong(told, wait)
        if request.ticket.deadline - request.service < now:
            raise DeadlineMissed("the deadline is out of reach")

    def part_of(self, tenant: str) -> float:
        """Return the part in (0, 1] of what requests wait in that a tenant may fill."""
        found = self._tenants.get(tenant)
        if found is not None:
            return found.queue_share
        return 0.5 if self._settings.keys else 1.0
