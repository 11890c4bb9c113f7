"""The light ranker: ridge regression of the length's rank on hashed text and plain numbers; NumPy only.

On ShareGPT first turns it reaches about three quarters of a fine-tuned encoder's Kendall tau at a
hundredth of its cost; with the lengths of earlier replies as context it matches it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sooner.chat import Context
from sooner.metrics import kendall_tau
from sooner.rankers import ranker
from sooner.rankers.contract import Floats, Progress, Ranker, Rows, State
from sooner.rankers.features import hashed as features
from sooner.rankers.offers import Term
from sooner.rankers.ridge import Design, Weights, solve
from sooner.rankers.scaling import normal_scores

DAMPINGS = (30.0, 100.0, 300.0, 1000.0)
"""Strengths of the ridge that are tried; with a prior also three and ten times as strong as the last."""

_FOLDS = 5
_DENSE = 3.0  # plain numbers are spread by this many standard deviations: they are damped less than words
_PRIOR = 10.0  # and the prior's own score hardly at all
_FARTHEST = 4.0  # standard deviations beyond which a plain number counts no more


@ranker("lexical")
class Lexical(Ranker):
    """Hashed words, pairs, character n-grams, places and context numbers; ridge on normal scores.

    `prior` is another fitted `Lexical`, say the shipped one: the weights are then drawn toward its
    weights, scaled as the data says, instead of toward zero. That is worth most on a few hundred to a
    few thousand rows. `damping` fixes the strength of the ridge, which folds choose otherwise.
    """

    hashed_: NDArray[np.float32]
    dense_: Floats
    intercept_: float
    mean_: Floats
    spread_: Floats

    def __init__(self, *, seed: int = 0, prior: Ranker | None = None, damping: float | None = None) -> None:
        super().__init__(seed=seed)
        prior = getattr(prior, "lexical", prior)  # that of a blend
        if prior is not None and not isinstance(prior, Lexical):
            raise TypeError(f"prior is a {type(prior).__name__}; allowed: a fitted Lexical, or a Blend")
        self.prior = prior
        self.damping = damping

    def _fit(self, rows: Rows, progress: Progress) -> Floats | None:
        progress(0.0, "reading prompts")
        raw = Design.of(rows.prompts, rows.context)
        target = normal_scores(rows.lengths)
        self._scale(raw.dense)
        design = raw.with_dense(self._dense_columns(raw.dense))
        if self.prior is not None:
            design = design.with_dense(np.c_[design.dense, _PRIOR * self._prior_part(raw)])
        design, used = design.compact()
        unseen, damping = self._out_of_fold(design, target, rows, progress)
        progress(0.9, "fitting all rows")
        center = float(target.mean())
        weights = solve(design, target - center, damping)
        hashed = np.zeros(1 << features.BITS)
        hashed[used] = weights.hashed
        self._keep(weights._replace(hashed=hashed), center)
        self.training_ = {"damping": damping}
        if unseen is not None:
            self.training_ = {
                "damping": damping,
                "kendall_tau_out_of_fold": round(kendall_tau(unseen, target), 4),
            }
        progress(1.0, "done")
        return unseen

    def apart(self, rows: Rows) -> Lexical:
        """Return a ranker as strong as this one, fitted on `rows` only: others are out of fold."""
        other = Lexical(seed=self.seed, prior=self.prior, damping=self.training_["damping"])
        other._fit(rows._replace(groups=[""] * len(rows.groups)), lambda done, words: None)  # of no folds
        return other

    def _out_of_fold(
        self, design: Design, target: Floats, rows: Rows, progress: Progress
    ) -> tuple[Floats | None, float]:
        """Out-of-fold scores (n,) and the damping the first fold liked best."""
        k = min(_FOLDS, len(set(rows.groups)))
        tried: tuple[float, ...] = DAMPINGS
        if self.prior is not None:
            tried = (*DAMPINGS, 3 * DAMPINGS[-1], 10 * DAMPINGS[-1])
        if self.damping is not None:
            tried = (self.damping,)
        if k < 2:
            return None, tried[-1]
        fold = rows.folds(k, self.seed)
        scores = np.zeros_like(target)
        damping = tried[-1]
        for number in range(k):
            inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            train, test, center = design.take(inside), design.take(outside), float(target[inside].mean())
            if number == 0 and len(tried) > 1:
                error, weights = np.inf, None
                for candidate in sorted(tried, reverse=True):
                    weights = solve(train, target[inside] - center, candidate, weights)
                    misses = float(np.mean((test.times(weights) + center - target[outside]) ** 2))
                    if misses < error:
                        error, damping, best = misses, candidate, weights
            else:
                best = solve(train, target[inside] - center, damping)
            scores[outside] = test.times(best) + center
            progress(0.1 + 0.8 * (number + 1) / k, f"fold {number + 1} of {k}")
        return scores, damping

    def _scale(self, dense: NDArray[np.float32]) -> None:
        if self.prior is not None:
            self.mean_, self.spread_ = self.prior.mean_, self.prior.spread_
            return
        self.mean_ = dense.mean(axis=0, dtype=np.float64)
        spread = dense.std(axis=0, dtype=np.float64)
        self.spread_ = np.where(spread > 1e-6, spread, 1.0)

    def _dense_columns(self, dense: NDArray[np.floating]) -> Floats:
        z = (dense - self.mean_) / self.spread_
        return np.asarray(_DENSE * np.minimum(np.maximum(z, -_FARTHEST), _FARTHEST), dtype=np.float64)

    def _prior_part(self, raw: Design) -> Floats:
        """The prior's score (n,) without its intercept."""
        assert self.prior is not None
        weights = Weights(self.prior.hashed_.astype(np.float64), self.prior.dense_)
        return raw.with_dense(self._dense_columns(raw.dense)).times(weights)

    def _keep(self, weights: Weights, center: float) -> None:
        hashed, dense = weights.hashed, weights.dense
        if self.prior is not None:
            hashed = hashed + _PRIOR * dense[-1] * self.prior.hashed_
            dense = dense[:-1] + _PRIOR * dense[-1] * self.prior.dense_
        self.hashed_ = hashed.astype(np.float16).astype(np.float32)
        self.dense_ = dense.astype(np.float32).astype(np.float64)
        self.intercept_ = float(np.float32(center))
        self.mean_ = self.mean_.astype(np.float32).astype(np.float64)
        self.spread_ = self.spread_.astype(np.float32).astype(np.float64)

    def _score(self, prompts: Sequence[str], context: Sequence[Context]) -> Floats:
        scores = np.empty(len(prompts))
        plain = np.array(
            [features.numbers(prompt, known) for prompt, known in zip(prompts, context, strict=True)]
        ).reshape(len(prompts), len(features.NUMBERS))
        for row, (prompt, known) in enumerate(zip(prompts, context, strict=True)):
            place, value = features.hashed(prompt, known)
            scores[row] = self.hashed_[place] @ value
        return np.asarray(
            self.intercept_ + scores + self._dense_columns(plain) @ self.dense_, dtype=np.float64
        )

    def explain(self, prompt: str, context: Context) -> list[Term]:
        """Return the terms of the sum: its intercept, each hashed feature, each plain number."""
        terms = [Term("level", "of all prompts", float(self.intercept_))]
        terms += [
            Term(found.kind, found.text, float(self.hashed_[found.place]) * found.value)
            for found in features.named(prompt, context)
        ]
        plain = self._dense_columns(np.array([features.numbers(prompt, context)]))[0] * self.dense_
        return terms + [Term("number", *pair) for pair in zip(features.NUMBERS, plain.tolist(), strict=True)]

    def _state(self) -> State:
        dense = np.stack([self.dense_, self.mean_, self.spread_]).astype(np.float32)
        return State(
            {
                "hashed": self.hashed_.astype(np.float16),
                "dense": dense,
                "intercept": np.array([self.intercept_], dtype=np.float32),
            },
            {"bits": features.BITS, "numbers": list(features.NUMBERS)},
        )

    def _restore(self, state: State) -> None:
        if state.settings["bits"] != features.BITS or state.settings["numbers"] != list(features.NUMBERS):
            raise ValueError("its features are not those of this version; train it again")
        self.hashed_ = state.arrays["hashed"].astype(np.float32)
        self.dense_, self.mean_, self.spread_ = state.arrays["dense"].astype(np.float64)
        self.intercept_ = float(state.arrays["intercept"][0])
        if self.hashed_.shape != (1 << features.BITS,) or self.dense_.shape != (len(features.NUMBERS),):
            raise ValueError(f"weights of shapes {self.hashed_.shape} and {self.dense_.shape}")
