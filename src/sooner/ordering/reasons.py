"""Why a request has its score: what the scorer's process says when somebody wants to know."""

from __future__ import annotations

from typing import Any

from sooner.core import Prediction
from sooner.ordering import wire
from sooner.ordering.live import LiveLearner
from sooner.ordering.scoring import Scorer
from sooner.rankers.offers import Term

_TERMS = 12
"""Terms that are told, the largest; the others are one."""

_LETTERS = 80


def found(scorer: Scorer, live: LiveLearner | None, question: wire.Question) -> dict[str, Any]:
    """Return what the ranker's score is made of, and what was learned of the request's groups.

    Nothing is remembered of it, so that asking moves nobody.
    """
    read, terms = scorer.explained(question)
    told: dict[str, Any] = {"ranker": _ranker(read.text, terms), "learned": None}
    if live is not None:
        told["learned"] = live.why(question, read)
    return told


def _ranker(text: Prediction | None, terms: list[Term]) -> dict[str, Any] | None:
    if text is None:
        return None
    terms = sorted(terms, key=lambda term: -abs(term.amount))
    shown = [
        {"kind": term.kind, "text": term.text[:_LETTERS], "amount": round(term.amount, 4)}
        for term in terms[:_TERMS]
    ]
    if len(terms) > _TERMS:
        rest = sum(term.amount for term in terms[_TERMS:])
        shown.append({"kind": "rest", "text": f"{len(terms) - _TERMS} smaller", "amount": round(rest, 4)})
    return {"score": text.score, "predicted_len": text.predicted_len, "terms": shown}
