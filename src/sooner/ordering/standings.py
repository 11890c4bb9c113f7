"""How the learned order stands, by the names under which every host publishes it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sooner.learning.shadow import Rivalry
from sooner.ordering.wire import LiveReport, Scope, ShadowReport


def gauges(reports: Mapping[tuple[Scope, int], LiveReport]) -> dict[str, float]:
    """Return the gauges by name; what is not known yet is left out."""
    told = reports.get((Scope.ALL, 0))
    if told is None:
        return {}
    now = told.standing
    found = {"ranker_on": float(told.on), "ranker_learned_requests": float(told.seen)}
    known = {
        "ranker_tau": now.tau,
        "ranker_tau_error": now.tau_error,
        "ranker_expected_gain": now.gain,
        "ranker_expected_gain_error": now.gain_error,
    }
    return {**found, **{name: value for name, value in known.items() if math.isfinite(value)}}


def shadow_gauges(told: ShadowReport | None) -> dict[str, float]:
    """Return the gauges of a shadow by name; what is not known yet is left out."""
    if told is None:
        return {}
    return {
        "shadow_promoted": float(told.promoted),
        "shadow_compared_requests": float(told.seen),
        **rivalry_gauges("shadow", told.now),
    }


def rivalry_gauges(shadow: str, now: Rivalry) -> dict[str, float]:
    """Return how two orders stand, under the name of the one that watches; what is not known is left out."""
    found: dict[str, float] = {}
    for name, one in {
        f"{shadow}_acting": now.acting,
        shadow: now.shadow,
        f"{shadow}_better": now.better,
    }.items():
        found |= {f"{name}_tau": one.tau, f"{name}_tau_error": one.tau_error}
        found |= {f"{name}_expected_gain": one.gain, f"{name}_expected_gain_error": one.gain_error}
    return {name: value for name, value in found.items() if math.isfinite(value)}
