"""What a ranker has learned, seen over many prompts: the mean of each term that explains them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sooner.chat import Context
from sooner.judging.explain import explain
from sooner.rankers.contract import Ranker

_SAMPLED_ROWS = 30  # prompts, where each costs hundreds of scores
_FEWEST = 3  # prompts that a term must stand in to be told


class LearnedWord(NamedTuple):
    """One term: its kind and text, the prompts that have it, and the mean amount there."""

    kind: str
    text: str
    prompts: int
    mean: float


class Overall(NamedTuple):
    """The terms over `rows` prompts: each kind's share of all that moves scores, and the strongest terms."""

    rows: int
    exact: bool
    shares: dict[str, float]
    longer: list[LearnedWord]
    shorter: list[LearnedWord]

    @property
    def as_json(self) -> dict[str, Any]:
        """The view as plain values."""
        plain = {name: [term._asdict() for term in getattr(self, name)] for name in ("longer", "shorter")}
        return {**self._asdict(), **plain}


def learned(
    ranker: Ranker,
    prompts: Sequence[str],
    context: Sequence[Context],
    *,
    rows: int = 300,
    top: int = 40,
    seed: int = 0,
) -> Overall:
    """Return the terms over at most `rows` of the prompts, drawn at random.

    Terms of a kind are weighed by mean times the root of the prompts that have them, so that a word of
    one prompt does not lead. Where terms are sampled, 30 prompts are looked at, and pieces of their
    texts seldom repeat: then the shares by kind say the most. Raises NotFittedError before `fit`.
    """
    exact = not prompts or explain(ranker, "", sampled=False).exact
    most = rows if exact else min(rows, _SAMPLED_ROWS)
    pick = np.random.default_rng(seed).permutation(len(prompts))[:most]
    amounts: dict[tuple[str, str], list[float]] = {}
    moved: dict[str, float] = {}
    for at in pick.tolist():
        for term in explain(ranker, prompts[at], context[at], seed=seed).terms:
            if term.kind != "level":
                amounts.setdefault((term.kind, term.text), []).append(term.amount)
                moved[term.kind] = moved.get(term.kind, 0.0) + abs(term.amount)
    total = sum(moved.values()) or 1.0
    least = _FEWEST if exact else 1
    known = [
        LearnedWord(kind, text, len(found), float(np.mean(found)))
        for (kind, text), found in amounts.items()
        if len(found) >= least
    ]
    known.sort(key=lambda term: -term.mean * np.sqrt(term.prompts))
    return Overall(
        len(pick),
        exact,
        {kind: amount / total for kind, amount in sorted(moved.items(), key=lambda pair: -pair[1])},
        [term for term in known[:top] if term.mean > 0],
        [term for term in known[::-1][:top] if term.mean < 0],
    )
