"""The second policy that a gateway's settings name, and beside whom a request waits."""

from __future__ import annotations

from pathlib import Path

from sooner.gateway.settings import GatewaySettings
from sooner.gateway.visit import Visit
from sooner.ordering.counters import Counters
from sooner.ordering.policy_shadow import PolicyShadow
from sooner.ordering.shadow import Promotion


def of(settings: GatewaySettings, counters: Counters) -> PolicyShadow:
    """Return what compares the policies that the settings name, kept beside what is learned."""
    if not settings.shadow_policy:
        return PolicyShadow(settings.chosen_policy, None, Promotion(None, {}), counters)
    kept = settings.learned_file
    path = Path(f"{kept}.promoted-policy") if kept else None
    promotion = Promotion(path, {"policy": settings.policy, "shadow": settings.shadow_policy})
    return PolicyShadow(settings.chosen_policy, settings.shadowing_policy, promotion, counters)


def beside(request: Visit) -> tuple[int, int, str]:
    """Return what those have in common whom a policy orders: engines, class and tenant."""
    return id(request.pool), request.level, request.tenant
