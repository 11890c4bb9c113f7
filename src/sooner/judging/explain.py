"""Why a ranker gave a prompt its score: terms that add up to it, exactly where the ranker is a sum.

A ranker that `Explains` gives its own terms: linear ones, those of trees (TreeSHAP), the columns of a stack.
What it cannot divide, such as what an encoder makes of a text, is divided among pieces of the text by
sampled Shapley values (Castro et al., 2009): for random orders of the pieces, what each adds when it joins
those before it. In every order these sum to the difference from the empty prompt, so their means do as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.chat import EMPTY, Context
from sooner.core import NotFittedError
from sooner.rankers.contract import Floats, Ranker
from sooner.rankers.offers import Explains, Indivisible, Term

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Quantiles of the reply's length that an explanation gives."""

_PIECES = 12
_ORDERS = 8  # random orders, each also backwards
_PIECE = re.compile(r"[^\n.?!;]*[\n.?!;]+\s*|[^\n.?!;]+")
_WORD = re.compile(r"\S+\s*")


class Explanation(NamedTuple):
    """A score, the terms that sum to it, and the lengths [tokens] it stands for.

    `exact` says whether every term is the ranker's own; otherwise some are sampled.
    """

    score: float
    terms: list[Term]
    exact: bool
    predicted_len: float
    quantiles: dict[str, float]

    @property
    def as_json(self) -> dict[str, Any]:
        """The explanation as plain values, largest terms first."""
        terms = sorted(self.terms, key=lambda term: -abs(term.amount))
        return {**self._asdict(), "terms": [term._asdict() for term in terms]}


def explain(
    ranker: Ranker, prompt: str, context: Context = EMPTY, *, seed: int = 0, sampled: bool = True
) -> Explanation:
    """Return why `ranker` scores `prompt` as it does. Raises NotFittedError before `fit`.

    Without `sampled`, what only sampling could divide stays one term.
    """
    if ranker.calibration_ is None:
        raise NotFittedError(f"this {ranker.name!r} ranker was not fitted; call fit, or load a saved one")
    made = ranker.predictions([prompt], context=[context])[0]
    terms, exact = _terms(ranker, prompt, context, seed, sampled)
    free = float(ranker._score([prompt], [context])[0])
    if abs(made.score - free) > 1e-9:
        terms.append(Term("limit", f"max_tokens {context.max_tokens}", made.score - free))
    bounds = ranker.calibration_.quantiles([made.score], LEVELS)[0]
    if context.max_tokens is not None:
        bounds = np.minimum(bounds, context.max_tokens)
    quantiles = {str(level): float(bound) for level, bound in zip(LEVELS, bounds, strict=True)}
    return Explanation(made.score, terms, exact, float(made.predicted_len or 0.0), quantiles)


def _terms(
    ranker: Ranker, prompt: str, context: Context, seed: int, sampled: bool
) -> tuple[list[Term], bool]:
    """The ranker's own terms where it knows them, what it cannot divide divided by sampling; and if exact."""
    if isinstance(ranker, Explains):
        found = ranker.explain(prompt, context)
    else:
        score = float(ranker._score([prompt], [context])[0])
        whole = Indivisible(
            "text" if sampled else "score",
            ranker.name,
            score,
            lambda texts: ranker._score(texts, [context] * len(texts)),
        )
        found = [whole]
    terms: list[Term] = []
    for part in found:
        if isinstance(part, Term):
            terms.append(part)
        elif not sampled:
            terms.append(Term(part.kind, part.text, part.amount))
        else:
            terms += _divided(part, prompt, seed)
    return terms, not any(isinstance(part, Indivisible) for part in found)


def _divided(whole: Indivisible, prompt: str, seed: int) -> list[Term]:
    """Pieces of the text in place of the whole, and what rounding leaves of its amount."""
    terms = shapley(whole.of, prompt, seed, kind=whole.kind)
    left = whole.amount - sum(term.amount for term in terms)
    return terms if abs(left) < 1e-9 else [*terms, Term("level", f"rounding of the {whole.kind}", left)]


def pieces(prompt: str, most: int = _PIECES) -> list[str]:
    """Return at most `most` pieces that join to the prompt: words, else sentences, else equal parts."""
    for pattern in (_WORD, _PIECE):
        found = pattern.findall(prompt)
        if 0 < len(found) <= most and "".join(found) == prompt:
            return found
    found = _WORD.findall(prompt)
    if "".join(found) != prompt or len(found) <= most:  # white space at the front, or nothing else
        size = max(-(-len(prompt) // most), 1)
        return [prompt[at : at + size] for at in range(0, len(prompt), size)]
    return ["".join(part) for part in np.array_split(np.array(found, dtype=object), most)]


def shapley(
    score: Callable[[Sequence[str]], Floats], prompt: str, seed: int, *, kind: str = "text"
) -> list[Term]:
    """Return what pieces of the text add to the score; with that of the empty prompt they sum to it."""
    parts = pieces(prompt)
    k = len(parts)
    empty = float(score([""])[0])
    level = Term("level", "of the empty prompt", empty)
    if k == 0:
        return [level]
    rng = np.random.default_rng(seed)
    orders = [order for _ in range(_ORDERS) for order in _both_ways(rng.permutation(k))]
    asked: dict[tuple[bool, ...], int] = {}
    for order in orders:
        for size in range(k + 1):
            asked.setdefault(_chosen(order[:size], k), len(asked))
    texts = ["".join(part for part, there in zip(parts, key, strict=True) if there) for key in asked]
    values = np.asarray(score(texts), dtype=np.float64)
    added = np.zeros(k)
    for order in orders:
        line = values[[asked[_chosen(order[:size], k)] for size in range(k + 1)]]
        added[order] += np.diff(line)
    amounts = (added / len(orders)).tolist()
    whole, nothing = asked[(True,) * k], asked[(False,) * k]
    rest = float(values[whole]) - float(values[nothing]) - sum(amounts)  # rounding
    return [
        level._replace(amount=float(values[nothing]) + rest),
        *(
            Term(kind, part.strip() or repr(part), amount)
            for part, amount in zip(parts, amounts, strict=True)
        ),
    ]


def _both_ways(order: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return order, order[::-1]


def _chosen(order: NDArray[np.int64], k: int) -> tuple[bool, ...]:
    there = np.zeros(k, dtype=bool)
    there[order] = True
    return tuple(there.tolist())
