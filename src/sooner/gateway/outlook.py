"""What is told of the queue in `/metrics`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sooner.gateway.engines.backend import Backend
from sooner.gateway.settings import QueueSettings
from sooner.gateway.visit import Pool


def gauges(
    pools: Sequence[Pool], backends: Sequence[Backend], bounds: QueueSettings, now: float
) -> Mapping[str, float]:
    """Return the gauges by name."""
    found: dict[str, float] = {
        "waiting": sum(len(pool.room) for pool in pools),
        "running": sum(backend.in_flight for backend in backends),
        "overdue": sum(sum(pool.room.overdue(now).values()) for pool in pools),
        "waiting_work_seconds": sum(pool.room.work for pool in pools),
        "pressure_seconds_per_token": max((pool.order.pressure for pool in pools), default=0.0),
        "mean_predicted_len_tokens": max((pool.order.mean_predicted_len for pool in pools), default=0.0),
        "usual_wait_seconds": max((pool.order.usual.wait for pool in pools), default=0.0),
        "usual_work_seconds": max((pool.order.usual.work for pool in pools), default=0.0),
    }
    bound = _bound(pools, bounds, now)
    if bound is not None:
        found["wait_bound_seconds"] = bound
    return found


def _bound(pools: Sequence[Pool], bounds: QueueSettings, now: float) -> float | None:
    """Return the most a request that came now would wait: overdue, then its share of the starts."""
    known = [pool for pool in pools if pool.capacity and pool.service.value]
    if not known:
        return None
    longest = max(pool.room.bound(now) * pool.service.value / pool.capacity for pool in known)
    return min(bounds.max_wait, bounds.overdue + longest)
