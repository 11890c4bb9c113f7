"""The default ranker: a fine-tuned encoder, the lexical ranker, and the request's context in one sum."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sooner.chat import EMPTY, Context
from sooner.metrics import kendall_tau
from sooner.rankers import ranker
from sooner.rankers.contract import Floats, Progress, Ranker, Rows, State
from sooner.rankers.features import hashed as features
from sooner.rankers.features import history
from sooner.rankers.features.history import History
from sooner.rankers.lexical import Lexical
from sooner.rankers.offers import Indivisible, Term, Viewed
from sooner.rankers.refit import Refit
from sooner.rankers.scaling import Scaling
from sooner.rankers.stack import PARTS, Stack
from sooner.rankers.transformer import Seen, Transformer, plain_numbers, refitted

_SIGNS = re.compile("turn|repl|system|max_tokens|temperature|tools|structure")
_CONTEXT = [i for i, name in enumerate(features.NUMBERS) if _SIGNS.search(name)]
"""The plain numbers that come from the context of a request and not from its text."""

_FOLDS = 5


@ranker("blend")
class Blend(Ranker):
    """Transformer plus lexical plus context, stacked on conversations that the transformer did not train on.

    The context is its plain numbers, and by how much earlier replies were longer than the lexical part
    would have expected (`sooner.rankers.features.history`).

    The lexical scores of those rows are out-of-fold, so no weight is flattered by a part's own training
    rows. After the stack is known the lexical part is fitted on all rows; the transformer is not, since
    that would double the cost.

    With a fitted `Blend` as `prior` nothing is fine-tuned, and torch is not needed: the prior's encoder
    and stack are kept, the lexical part is drawn toward the prior's, and a last layer is fitted to the
    encoder's vectors and the parts. That takes seconds, and suits a few hundred to a few thousand rows of
    another served model. A `Lexical` as prior serves the lexical part alone.
    """

    refit_: Refit | None = None
    _history: History | None = None
    _replies: Sequence[str] | None = None

    def __init__(
        self,
        *,
        seed: int = 0,
        prior: Ranker | None = None,
        checkpoint: str | Path | None = None,
        **recipe: Any,
    ) -> None:
        """The rest are the settings of `Transformer`. Raises TypeError for another prior."""
        super().__init__(seed=seed)
        self.transformer = Transformer(seed=seed, checkpoint=checkpoint, **recipe)
        self.lexical = Lexical(seed=seed, prior=prior)
        self.prior = prior if isinstance(prior, Blend) else None

    def fit(
        self,
        prompts: Sequence[str],
        lengths: ArrayLike,
        *,
        context: Sequence[Context] | None = None,
        groups: Sequence[str] | None = None,
        progress: Progress | None = None,
        replies: Sequence[str] | None = None,
    ) -> Self:
        """Learn as every ranker does; `replies` are what `Transformer.fit` does with them."""
        self._replies = replies
        self.refit_ = None
        try:
            return super().fit(prompts, lengths, context=context, groups=groups, progress=progress)
        finally:
            self._replies = None

    def _fit(self, rows: Rows, progress: Progress) -> Floats:
        lexical = self.lexical._fit(rows, lambda done, words: progress(0.1 * done, f"lexical: {words}"))
        if lexical is None:  # one conversation: nothing is out of fold
            lexical = self.lexical._score(rows.prompts, rows.context)
        if self.prior is not None:
            return self._follow(self.prior, rows, lexical)
        transformer = self.transformer.fit_rows(
            rows, lambda done, words: progress(0.1 + 0.9 * done, words), self._replies
        )
        fresh = np.flatnonzero(~np.isnan(transformer))
        plain = plain_numbers(rows.prompts, rows.context)[:, _CONTEXT]
        self._history = History.of(rows.context)
        told = self._history([rows.context[i] for i in fresh], self._without(rows, fresh)._score)
        columns = np.column_stack([np.column_stack([transformer, lexical, plain])[fresh], told])
        lengths = rows.lengths[fresh]
        self._stack = Stack.fit(columns, lengths)
        unseen = np.full(len(rows.prompts), np.nan)
        unseen[fresh] = _crossed(columns, lengths, rows.take(fresh).folds(_FOLDS, self.seed))
        parts = {"transformer": transformer[fresh], "lexical": lexical[fresh], "blend": unseen[fresh]}
        self.training_ = {
            **self.transformer.training_,
            "held_out_rows": len(fresh),
            "held_out_tau": {name: _tau(scores, lengths) for name, scores in parts.items()},
        }
        return unseen

    def _without(self, rows: Rows, fresh: NDArray[np.int64]) -> Lexical:
        """The lexical part as it is without rows `fresh`; itself where these are all, or have no past."""
        rest = np.setdiff1d(np.arange(len(rows.prompts)), fresh)
        if not rest.size or not any(rows.context[i].asked for i in fresh):
            return self.lexical
        return self.lexical.apart(rows.take(rest))

    def _follow(self, prior: Blend, rows: Rows, lexical: Floats) -> Floats:
        """Take the prior's encoder and stack; fit a last layer, given out-of-fold lexical scores (n,)."""
        self.transformer, self._stack, self._history = prior.transformer, prior._stack, prior._history
        columns, vectors = self._columns(rows.prompts, rows.context)
        columns[:, PARTS.index("lexical")] = lexical
        if len(rows.prompts) < 2:
            return self._stack(columns)
        own = self._vectors(columns, vectors)
        self.refit_, unseen = Refit.fit(self._stack(columns), own, rows.lengths)
        self.training_ = {"prior": dict(prior.training_), "kendall_tau_left_out": _tau(unseen, rows.lengths)}
        return unseen

    def view(self, prompts: Sequence[str], context: Sequence[Context]) -> Seen:
        """Return the scores (n,) before any refit, and the vectors (n, d) of the encoder and the parts.

        Raises NotFittedError before `fit`.
        """
        columns, vectors = self._columns(prompts, context)
        return Seen(self._stack(columns), self._vectors(columns, vectors))

    def viewed(self, prompts: Sequence[str], context: Sequence[Context]) -> Viewed:
        """Return the predictions, and the vectors (n, d) that a last layer reads, in one pass."""
        seen = self.view(prompts, context)
        scores = self._capped(self._last(seen), context)
        return Viewed(self._told(scores, context), seen.vectors.astype(np.float32))

    def parts(self, prompts: Sequence[str], *, context: Sequence[Context] | None = None) -> dict[str, Floats]:
        """Return what each part adds to the scores; columns (n,) that sum to `predict`'s.

        The sum is exact but for the cut at `max_tokens`. After a refit "served model" is what it changed.
        Raises NotFittedError before `fit`.
        """
        known = [EMPTY] * len(prompts) if context is None else context
        columns, vectors = self._columns(prompts, known)
        terms = self._stack.terms(columns)
        names = (*PARTS, *(features.NUMBERS[i] for i in _CONTEXT), *history.NUMBERS)[: terms.shape[1]]
        added = {"level": np.full(len(prompts), self._stack.level), **dict(zip(names, terms.T, strict=True))}
        if self.refit_ is not None:
            shipped = self._stack(columns)
            added["served model"] = self.refit_(shipped, self._vectors(columns, vectors)) - shipped
        return added

    def part_scores(self, prompts: Sequence[str], context: Sequence[Context]) -> dict[str, Floats]:
        """Return the scores (n,) of the two rankers in the blend, each in its own unit."""
        columns, _ = self._columns(prompts, context)
        return {name: columns[:, i] for i, name in enumerate(PARTS)}

    def explain(self, prompt: str, context: Context) -> list[Term | Indivisible]:
        """Return the stack's columns: the lexical part's own terms, and the encoder's as a whole."""
        terms: list[Term | Indivisible] = []
        for name, column in self.parts([prompt], context=[context]).items():
            amount = float(column[0])
            if name == "lexical":
                terms += self._stack.spread(1, self.lexical.explain(prompt, context), amount)
            elif name == "transformer":
                terms.append(Indivisible(name, "all of the text", amount, self._encoded_in(context)))
            else:
                plain = name in features.NUMBERS or name in history.NUMBERS
                terms.append(Term("context" if plain else name, name, amount))
        return terms

    def _encoded_in(self, context: Context) -> Callable[[Sequence[str]], Floats]:
        """What the encoder's column adds to the scores of other texts in this context."""
        return lambda texts: self.parts(texts, context=[context] * len(texts))["transformer"]

    def _vectors(self, columns: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([vectors, self._stack.scaling(columns)])

    def _columns(
        self, prompts: Sequence[str], context: Sequence[Context]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        seen = self.transformer.view(prompts, context)
        lexical = self.lexical._score(prompts, context)
        columns = [seen.scores, lexical, plain_numbers(prompts, context)[:, _CONTEXT]]
        if self._history is not None:
            columns.append(self._history(context, self.lexical._score))
        return np.column_stack(columns), seen.vectors

    def _score(self, prompts: Sequence[str], context: Sequence[Context]) -> Floats:
        return self._last(self.view(prompts, context))

    def _last(self, seen: Seen) -> Floats:
        return seen.scores if self.refit_ is None else self.refit_(seen.scores, seen.vectors)

    def refit(
        self, prompts: Sequence[str], lengths: ArrayLike, *, context: Sequence[Context] | None = None
    ) -> Self:
        """Return this ranker with a new last layer for one served model, as `Transformer.refit` does."""
        return refitted(self, Rows.checked(prompts, lengths, context))

    def _state(self) -> State:
        own: dict[str, NDArray[Any]] = {
            "stack.weights": self._stack.weights,
            "stack.level": np.array([self._stack.level]),
            **self._stack.scaling.arrays("stack"),
            **({} if self._history is None else self._history.arrays()),
            **({} if self.refit_ is None else self.refit_.arrays()),
        }
        transformer, lexical = self.transformer._state(), self.lexical._state()
        arrays = own | _prefixed("transformer.", transformer.arrays) | _prefixed("lexical.", lexical.arrays)
        settings = {"transformer": transformer.settings, "lexical": lexical.settings}
        return State(arrays, settings, transformer.files)

    def _restore(self, state: State) -> None:
        arrays = state.arrays
        weights = arrays["stack.weights"].astype(np.float64)
        self._stack = Stack(Scaling.from_arrays(arrays, "stack"), weights, float(arrays["stack.level"][0]))
        self._history = History.from_arrays(arrays)
        past = 0 if self._history is None else len(history.NUMBERS)
        if weights.shape != (len(PARTS) + len(_CONTEXT) + past,):
            raise ValueError(f"stack weights of shape {weights.shape}")
        self.lexical._restore(State(_within("lexical.", arrays), state.settings["lexical"], {}))
        self.transformer._restore(
            State(_within("transformer.", arrays), state.settings["transformer"], state.files)
        )
        self.refit_ = Refit.from_arrays(arrays)


def _tau(scores: Floats, lengths: Floats) -> float | None:
    return round(kendall_tau(scores, lengths), 4) if len(scores) > 1 else None


def _crossed(
    columns: NDArray[np.float64], lengths: NDArray[np.float64], fold: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return scores (n,) of stacks that were each fitted without the row's own fold."""
    scores = np.empty(len(lengths))
    for number in np.unique(fold):
        outside = fold == number
        inside = outside if outside.all() else ~outside
        scores[outside] = Stack.fit(columns[inside], lengths[inside])(columns[outside])
    return scores


def _prefixed(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def _within(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
