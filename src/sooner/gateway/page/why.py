"""Why a request stands where it stands: the parts of its work, its boost, who goes before, in plain words."""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping
from typing import Any

from sooner.gateway.admission.standing import Before
from sooner.gateway.admission.standing import before as before_of
from sooner.gateway.eta import Eta, in_turn
from sooner.gateway.page.words import count, plain, seconds
from sooner.gateway.scores import WaitingScores
from sooner.gateway.settings import QueueSettings
from sooner.gateway.visit import Visit
from sooner.work import work

_NEAREST = 3


def standing(visit: Visit, bounds: QueueSettings) -> dict[str, Any]:
    """Return what `GET /sooner/v1/requests/{id}` says of a request that waits or runs."""
    ticket = visit.ticket
    waited = time.monotonic() - ticket.arrival_time
    found: dict[str, Any] = {
        "id": visit.id,
        "state": "waiting" if visit.queued else "running",
        "waited_ms": round(waited * 1000, 1),
        "predicted_tokens": round(ticket.predicted_len) if visit.scored else None,
        "policy": visit.pool.order.policy.name,
        "work": parts(visit),
        "boost_s": boost(visit),
        "reason": reason(visit, bounds, waited),
    }
    if not visit.queued:
        return found | {"words": f"It runs. {_of_its_work(visit)}"}
    before = before_of(visit.pool.room.levels, visit)
    position = before.position
    (eta,) = Eta(visit.pool, bounds, time.monotonic()).seconds([in_turn(visit)])
    found |= {
        "position": position,
        "eta_ms": None if eta is None else round(eta * 1000),
        "before": {
            "own": before.own, "own_that_came_later": before.later, "other_tenants": before.others,
            "better_classes": before.better,
            "next": [_neighbour(other) for other in _nearest(visit)],
        },
    }  # fmt: skip
    return found | {"words": _words(visit, bounds, before, position, eta, waited)}


async def told(visit: Visit, bounds: QueueSettings, scores: WaitingScores) -> dict[str, Any]:
    """Return the same, with the ranker's terms and what was learned of its groups where the scorer tells."""
    reasons = await scores.reasons(visit) if visit.scored else {}
    found = standing(visit, bounds)
    ranker, learned = reasons.get("ranker"), reasons.get("learned")
    more = [words for words in (_of_terms(ranker), _of_groups(learned)) if words]
    return {**found, "ranker": ranker, "learned": learned, "words": " ".join([found["words"], *more])}


def _of_terms(ranker: Mapping[str, Any] | None) -> str:
    """Return what makes a ranker expect a longer reply, and what a shorter one."""
    if not ranker or not ranker["terms"]:
        return ""
    told = [
        f"{words} for {', '.join(shown)}"
        for words, sign in (("longer", 1.0), ("shorter", -1.0))
        if (shown := [_term(term) for term in ranker["terms"] if term["amount"] * sign > 0][:3])
    ]
    return f"The ranker takes its reply to be {'; '.join(told)}." if told else ""


def _term(term: Mapping[str, Any]) -> str:
    return f"{term['kind']} {plain(' '.join(term['text'].split()))!r} ({term['amount']:+.2f})"


def _of_groups(learned: Mapping[str, Any] | None) -> str:
    """Return what earlier replies of its kind were like."""
    if not learned or not learned["groups"]:
        return ""
    said = [
        f"{count(group['replies'])} {_OF.get(group['of'], group['of'])}: about"
        f" {count(group['usual_tokens'])} tokens"
        for group in learned["groups"]
        if group["replies"]
    ]
    if not said:
        return ""
    off = "" if learned["on"] else " What was learned does not act: it is switched off."
    return f"Replies so far: {'; '.join(said)}.{off}"


_OF = {
    "all": "of all requests",
    "model": "of its model",
    "sender": "of its sender",
    "template": "of its sender with this system prompt",
    "opening": "that began like it",
}


def parts(visit: Visit) -> dict[str, float | int]:
    """Return what a request is expected to cost the engine, part by part: tokens, and seconds of its work."""
    ticket, pace = visit.ticket, visit.pool.order.pace
    prompt = float(work(pace, ticket.prompt_len, ticket.cached_len, 0.0))
    whole = float(work(pace, ticket.prompt_len, ticket.cached_len, ticket.reply_len))
    return {
        "prompt_tokens": ticket.prompt_len,
        "cached_tokens": int(ticket.cached_len),
        "reply_tokens": round(ticket.reply_len),
        "prompt_s": round(prompt, 4),
        "reply_s": round(whole - prompt, 4),
        "total_s": round(whole, 4),
    }


def boost(visit: Visit) -> float | None:
    """Return by how many seconds a request is taken to have come earlier; None in orders without a boost."""
    if visit.pool.order.policy.name != "boost":
        return None
    return round(-(visit.ticket.key - visit.ticket.arrival_time), 3) + 0.0


def reason(visit: Visit, bounds: QueueSettings, waited: float) -> str:
    """Return the reason for its place among its tenant's, in a few words."""
    if not visit.queued:
        return "runs"
    if visit.urgent:
        return "its deadline is near"
    if waited >= bounds.overdue:
        return f"waited {seconds(waited)}: one of every {bounds.overdue_every} starts is the oldest's"
    if visit.pool.order.policy.name == "fcfs":
        return "by arrival"
    given = boost(visit)
    expected = f"work of {seconds(parts(visit)['total_s'])}"
    if not visit.ticket.scored:
        expected += " (not scored)"
    if given is None:
        return f"{visit.pool.order.policy.name}, {expected}"
    return f"{expected}: {seconds(abs(given))} {'before' if given >= 0 else 'after'} its arrival"


def _nearest(visit: Visit) -> list[Visit]:
    """Return who of its own tenant goes right before it, the nearest first."""
    place = visit.place
    own = visit.pool.room.levels[visit.level][visit.tenant].requests()
    before = (other for other in own if other.place < place)
    return heapq.nlargest(_NEAREST, before, key=lambda other: other.place)


def _neighbour(other: Visit) -> dict[str, Any]:
    return {"id": other.id, "work_s": parts(other)["total_s"], "boost_s": boost(other)}


def _of_its_work(visit: Visit) -> str:
    told = parts(visit)
    cached = f", {count(told['cached_tokens'])} of them cached" if told["cached_tokens"] else ""
    reply = f"a reply of about {count(told['reply_tokens'])} tokens"
    return (
        f"It is expected to take {seconds(told['total_s'])} of the engine: {seconds(told['prompt_s'])} for a"
        f" prompt of {count(told['prompt_tokens'])} tokens{cached}, {seconds(told['reply_s'])} for {reply}"
        f"{'' if visit.ticket.scored else ' (a guess: no score has come)'}."
    )


def _words(
    visit: Visit, bounds: QueueSettings, before: Before, position: int, eta: float | None,
    waited: float,
) -> str:  # fmt: skip
    """Return an answer that a support engineer can forward."""
    told = [
        f"It has waited {seconds(waited)} and is number {count(position)} of {count(len(visit.pool.room))}."
    ]
    told.append("When it starts is not known yet." if eta is None else f"It starts in about {seconds(eta)}.")
    told.append(_of_its_work(visit))
    if visit.pool.order.policy.name == "fcfs":
        told.append("Requests go in order of arrival.")
    else:
        told.append(f"Its place: {reason(visit, bounds, waited)}.")
    ahead = [
        f"{count(n)} {words}"
        for n, words in (
            (before.own - before.later, "of its tenant's that came earlier"),
            (before.later, "of its tenant's that came later, as they are smaller or more urgent"),
            (before.others, "of other tenants, whose turn comes between"),
            (before.better, "of a class that goes first"),
        )
        if n
    ]
    told.append(f"Before it go: {'; '.join(ahead)}." if ahead else "Nobody goes before it.")
    told.append(
        f"Nobody waits for ever: after {seconds(bounds.overdue)} one of every {bounds.overdue_every} starts"
        " of its tenant goes to the oldest."
    )
    return " ".join(told)
