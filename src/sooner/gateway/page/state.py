"""Everything the page shows, as plain data: bounded, whatever waits, and reckoned once for all who look."""

from __future__ import annotations

import math
import time
from typing import Any

from sooner.gateway import shadow
from sooner.gateway.admission import standing
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.eta import Eta, next_in_turn
from sooner.gateway.page import why
from sooner.gateway.page.recent import OTHERS, Recent
from sooner.gateway.page.seen import TimeSeen
from sooner.gateway.page.worth import Worth
from sooner.gateway.switch import OrderSwitch
from sooner.gateway.visit import Visit
from sooner.ordering.wire import LiveReport

_TOTALS = ("requests", "finished", "client_gone", "upstream_errors")
ROWS = 40
"""Waiting requests, tenants and engines that are shown."""


def state(dispatcher: Dispatcher, recent: Recent, switch: OrderSwitch, worth: Worth) -> dict[str, Any]:
    """Return the state of now, and of the last hour and day."""
    seen = recent.window()
    counts = dispatcher.counters.counts
    return {
        "at": time.time(),
        "ordering": {
            "on": switch.on,
            "policy": switch.policy,
            "turns": [turn._asdict() for turn in reversed(switch.turns)],
        },
        "waiting": dispatcher.queued,
        "running": sum(backend.in_flight for backend in dispatcher.backends),
        "engines": _engines(dispatcher),
        "queue": _queue(dispatcher),
        "hour": _stretch(seen.hour),
        "day": _stretch(seen.day),
        "slo": {"ttft_s": recent.slo.ttft, "tpot_s": recent.slo.tpot},
        "total": {name: counts[name] for name in _TOTALS},
        "worth": {"off": worth.off, "answer": worth.answer},
        "tenants": _tenants(dispatcher, seen.tenants),
        "truth": {**seen.truth._asdict(), "groups": [group._asdict() for group in seen.truth.groups]},
        "shadow": shadow.state(dispatcher),
        "shadow_policy": shadow.policy_state(dispatcher),
        "learned": [_standing(report) for report in dispatcher.scores.standings[:ROWS]],
    }


def _stretch(seen: TimeSeen) -> dict[str, Any]:
    """Return the numbers of an hour or a day."""
    return {
        "length_s": seen.length,
        "requests": seen.requests,
        "in_time": seen.in_time,
        "cut": seen.cut,
        "failed": seen.failed,
        **{name: getattr(seen, name)._asdict() for name in ("wait", "ttft", "e2e")},
        "per_second": seen.per_second,
        "goodput": seen.goodput,
        "tokens_per_second": seen.tokens_per_second,
        "refused": seen.refused,
    }


def _standing(report: LiveReport) -> dict[str, Any]:
    """Return how the learned order stands, of all, of a model or of a sender."""
    found = report.standing
    measures = {"tau": found.tau, "tau_error": found.tau_error, "gain": found.gain}
    return {
        "of": report.scope.name.lower(),
        "group": f"{report.hash:016x}",
        "on": report.on,
        "seen": report.seen,
        "alarms": report.alarms,
        **{name: value if math.isfinite(value) else None for name, value in measures.items()},
    }


def _engines(dispatcher: Dispatcher) -> dict[str, Any]:
    now = time.monotonic()
    rows = [
        {
            "name": backend.name,
            "kind": backend.settings.kind,
            "state": "draining" if backend.draining else "up" if backend.accepts(now) else "down",
            "running": backend.in_flight,
            "limit": backend.limit,
            "waiting_inside": backend.waiting_inside,
            "kv": backend.kv,
        }
        for backend in dispatcher.backends[:ROWS]
    ]
    return {"rows": rows, "more": max(0, len(dispatcher.backends) - ROWS)}


def _queue(dispatcher: Dispatcher) -> dict[str, Any]:
    """Return the next to start, over all pools."""
    bounds, now = dispatcher.settings.queue, time.monotonic()
    first: list[tuple[int, Visit, float | None]] = []
    for pool in dispatcher.pools:
        if not len(pool.room):
            continue
        found = standing.first(pool.room.levels, pool.room.shares, ROWS)
        etas = Eta(pool, bounds, now).seconds(next_in_turn([visit for _, visit in found]))
        first += [(*entry, eta) for entry, eta in zip(found, etas, strict=True)]
    first.sort(key=lambda entry: (entry[0], entry[1].ticket.arrival_time))
    rows = [
        {
            "position": position,
            "id": visit.id,
            "tenant": visit.tenant,
            "waited_s": now - visit.ticket.arrival_time,
            "eta_s": eta,
            "prompt_tokens": visit.ticket.prompt_len,
            "reply_tokens": round(visit.ticket.predicted_len) if visit.ticket.scored else None,
            "reason": why.reason(visit, bounds, now - visit.ticket.arrival_time),
        }
        for position, visit, eta in first[:ROWS]
    ]
    return {"rows": rows, "more": max(0, dispatcher.queued - len(rows))}


def _tenants(dispatcher: Dispatcher, had: dict[str, Any]) -> dict[str, Any]:
    """Return what each tenant had of the last hour's work beside its fair share of it."""
    waiting: dict[str, int] = {}
    for pool in dispatcher.pools:
        for name, n in pool.room.by_tenant.items():
            waiting[name] = waiting.get(name, 0) + n
    names = {*had, *waiting}
    weight = dispatcher.shares.weight
    whole = sum(weight(name) for name in names if name != OTHERS) or 1.0
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "waiting": waiting.get(name, 0),
            "requests": had[name].requests if name in had else 0,
            "share": had[name].share if name in had else 0.0,
            "fair_share": None if name == OTHERS else weight(name) / whole,
            "mean_wait_s": had[name].mean_wait if name in had else None,
        }
        for name in names
    ]
    rows.sort(key=lambda row: (-row["share"], -row["waiting"], row["name"]))
    return {"rows": rows[:ROWS], "more": max(0, len(rows) - ROWS)}
