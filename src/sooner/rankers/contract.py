"""The contract of every ranker: scikit-learn's `fit` and `predict`, and a saved form without pickle.

A ranker of your own subclasses `Ranker` and writes `_fit`, `_score`, `_state` and `_restore`; the
checks in `sooner.rankers.conformance` say whether it keeps the contract.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sooner.chat import EMPTY, Context
from sooner.core import DataError, NotFittedError, Prediction
from sooner.rankers import files
from sooner.rankers.calibration import Calibration
from sooner.rankers.seen import SeenPrompts

Floats: TypeAlias = NDArray[np.float64]
Progress: TypeAlias = Callable[[float, str], None]
"""Told the share of the work that is done, in [0, 1], and a few words."""


class State(NamedTuple):
    """What a ranker keeps on disk: arrays, small JSON settings, and whole files by name."""

    arrays: Mapping[str, NDArray[Any]] = {}
    settings: Mapping[str, Any] = {}
    files: Mapping[str, bytes] = {}


class OutOfFold(NamedTuple):
    """Scores (n,) of rows by a ranker that was not fitted on them, their lengths (n,) and conversations."""

    scores: Floats
    lengths: Floats
    groups: Sequence[str]


class Ranker(ABC):
    """Orders requests by expected reply length. Prompts are texts as `sooner.chat` cleans them."""

    name: ClassVar[str] = ""
    calibration_: Calibration | None = None
    out_of_fold_: OutOfFold | None = None  # known after `fit`, where there are such scores; not saved
    seen_: SeenPrompts | None = None  # None for rankers that were saved without
    training_: Mapping[str, Any] = {}  # facts for the manifest: rows, seed, tau between folds

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    @abstractmethod
    def _fit(self, rows: Rows, progress: Progress) -> Floats | None:
        """Learn from `rows`; return out-of-fold scores (n,), or None where there are none.

        A ranker that holds rows out instead of folding gives NaN for those it trained on.
        """

    @abstractmethod
    def _score(self, prompts: Sequence[str], context: Sequence[Context]) -> Floats:
        """Return scores (n,), larger = longer reply."""

    def _state(self) -> State:
        return State()

    def _restore(self, state: State) -> None:  # noqa: B027  # most rankers keep something, not all
        """Take back what `_state` gave. A KeyError or ValueError here becomes a RankerFileError."""

    def fit(
        self,
        prompts: Sequence[str],
        lengths: ArrayLike,
        *,
        context: Sequence[Context] | None = None,
        groups: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from prompts and their reply lengths (n,) [tokens]; returns self.

        `groups` names the conversation of each row: rows of one conversation share a fold. Raises
        DataError for columns of unlike length, no rows, or a length that is not finite and >= 0.
        """
        rows = Rows.checked(prompts, lengths, context, groups)
        unseen = self._fit(rows, progress or (lambda done, words: None))
        self.out_of_fold_ = None
        if unseen is None:
            self.calibration_ = Calibration.fit(self._score(rows.prompts, rows.context), rows.lengths)
        else:
            known = np.flatnonzero(~np.isnan(unseen))
            self.calibration_ = Calibration.fit(unseen[known], rows.lengths[known])
            self.out_of_fold_ = OutOfFold(unseen[known], rows.lengths[known], [rows.groups[i] for i in known])
        self.seen_ = SeenPrompts.of(rows.prompts, rows.context)
        self.training_ = {**self.training_, "rows": len(rows.prompts), "seed": self.seed}
        return self

    def predict(self, prompts: Sequence[str], *, context: Sequence[Context] | None = None) -> Floats:
        """Return scores (n,): ordinal, larger = longer reply; a score never exceeds that of `max_tokens`."""
        if self.calibration_ is None:
            raise NotFittedError(f"this {self.name!r} ranker was not fitted; call fit, or load a saved one")
        known = _aligned(prompts, context)
        return self._capped(self._score(prompts, known), known)

    def predict_len(self, prompts: Sequence[str], *, context: Sequence[Context] | None = None) -> Floats:
        """Return expected reply lengths (n,) [tokens], calibrated on out-of-fold scores."""
        known = _aligned(prompts, context)
        return self._lengths(self.predict(prompts, context=known), known)

    def predictions(
        self, prompts: Sequence[str], *, context: Sequence[Context] | None = None
    ) -> list[Prediction]:
        """Return score and expected length of each prompt, scoring once: what a scheduler calls."""
        known = _aligned(prompts, context)
        return self._told(self.predict(prompts, context=known), known)

    def _told(self, scores: Floats, context: Sequence[Context]) -> list[Prediction]:
        """Return scores (n,) with the lengths they stand for."""
        pairs = zip(scores.tolist(), self._lengths(scores, context).tolist(), strict=True)
        return [Prediction(*pair) for pair in pairs]

    def _capped(self, scores: Floats, context: Sequence[Context]) -> Floats:
        """Return scores (n,), none above that of its request's `max_tokens`."""
        assert self.calibration_ is not None  # of a fitted ranker
        scores = np.asarray(scores, dtype=np.float64)
        if any(request.max_tokens is not None for request in context):
            scores = np.minimum(scores, self.calibration_.score_at(_limits(context)))
        return scores

    def _lengths(self, scores: Floats, context: Sequence[Context]) -> Floats:
        assert self.calibration_ is not None  # predict raised before
        lengths: Floats = self.calibration_.expected(scores)
        if any(request.max_tokens is not None for request in context):
            lengths = np.minimum(lengths, _limits(context))
        return lengths

    def save(self, directory: str | Path) -> None:
        """Write the ranker as arrays and a manifest. Raises NotFittedError before `fit`."""
        if self.calibration_ is None:
            raise NotFittedError(f"this {self.name!r} ranker was not fitted; there is nothing to save")
        state = self._state()
        calibration = {f"calibration.{k}": v for k, v in self.calibration_.arrays().items()}
        seen = {} if self.seen_ is None else self.seen_.arrays()
        arrays = {**state.arrays, **calibration, **seen}
        files.write(
            Path(directory),
            arrays,
            state.files,
            {"ranker": self.name, "training": dict(self.training_), "settings": dict(state.settings)},
        )

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Return the saved ranker. Raises RankerFileError for a damaged file or another version's."""
        saved = files.read(Path(directory))
        if saved.manifest["ranker"] != cls.name:
            raise files.damaged(
                directory, f"it holds a {saved.manifest['ranker']!r} ranker, not {cls.name!r}"
            )
        ranker = cls()
        try:
            ranker.seen_ = SeenPrompts.taken_from(saved.arrays)
            own = {k: v for k, v in saved.arrays.items() if not k.startswith("calibration.")}
            ranker.calibration_ = Calibration.from_arrays(
                {k.removeprefix("calibration."): v for k, v in saved.arrays.items() if k not in own}
            )
            ranker._restore(State(own, saved.manifest["settings"], saved.files))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise files.damaged(directory, f"its contents do not fit together: {error!r}") from error
        ranker.training_ = saved.manifest["training"]
        ranker.seed = int(ranker.training_.get("seed", 0))
        return ranker


class Rows(NamedTuple):
    """Checked training rows: n texts, lengths (n,) [tokens], n contexts and n conversation names."""

    prompts: Sequence[str]
    lengths: Floats
    context: Sequence[Context]
    groups: Sequence[str]

    @classmethod
    def checked(
        cls,
        prompts: Sequence[str],
        lengths: ArrayLike,
        context: Sequence[Context] | None = None,
        groups: Sequence[str] | None = None,
    ) -> Self:
        """Return rows that fit together. Raises DataError that says which do not."""
        if isinstance(prompts, str):
            raise DataError("prompts is one string; allowed: a sequence of strings")
        column = np.asarray(lengths, dtype=np.float64)
        if len(prompts) == 0:
            raise DataError("no training rows; allowed: at least 1")
        if column.shape != (len(prompts),):
            raise DataError(
                f"{len(prompts)} prompts but lengths of shape {column.shape}; allowed: ({len(prompts)},)"
            )
        wrong = np.flatnonzero(~(np.isfinite(column) & (column >= 0)))
        if wrong.size:
            first = int(wrong[0])
            raise DataError(
                f"length {column[first]!r} in row {first} ({wrong.size} such); allowed: finite numbers >= 0"
            )
        names = [str(i) for i in range(len(prompts))] if groups is None else groups
        if len(names) != len(prompts):
            raise DataError(f"{len(prompts)} prompts but {len(names)} groups; allowed: one for each")
        return cls(prompts, column, _aligned(prompts, context), names)

    def folds(self, k: int, seed: int) -> NDArray[np.int64]:
        """Return a fold (n,) in [0, k) for each row; a conversation is never split."""
        _, conversation = np.unique(np.asarray(self.groups, dtype=object).astype(str), return_inverse=True)
        fold = np.random.default_rng(seed).permutation(int(conversation.max()) + 1) % k
        return np.asarray(fold[conversation], dtype=np.int64)

    def take(self, index: NDArray[np.int64]) -> Rows:
        """Return the rows at `index`."""
        return Rows(
            [self.prompts[i] for i in index],
            self.lengths[index],
            [self.context[i] for i in index],
            [self.groups[i] for i in index],
        )


def _limits(context: Sequence[Context]) -> Floats:
    """The most tokens (n,) that each reply may have; infinity where the client named none."""
    return np.array([math.inf if request.max_tokens is None else request.max_tokens for request in context])


def _aligned(prompts: Sequence[str], context: Sequence[Context] | None) -> Sequence[Context]:
    if context is None:
        return [EMPTY] * len(prompts)
    if len(context) != len(prompts):
        raise DataError(f"{len(prompts)} prompts but {len(context)} contexts; allowed: one for each")
    return context
