"""A small text encoder fine-tuned end to end: trained with torch, served as int8 ONNX without it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sooner.chat import Context
from sooner.core import DataError, MissingExtra, NotFittedError
from sooner.rankers import ranker
from sooner.rankers.calibration import Calibration
from sooner.rankers.contract import Floats, Progress, Ranker, Rows, State
from sooner.rankers.features import hashed as features
from sooner.rankers.features.replyform import FORMS, forms
from sooner.rankers.neural.recipe import DenseHead, NetworkRows, Recipe
from sooner.rankers.neural.wordpiece import Wordpieces
from sooner.rankers.refit import Refit
from sooner.rankers.scaling import Scaling

try:
    import onnxruntime
except ImportError as error:
    raise MissingExtra("onnxruntime", "train") from error


class Encoder:
    """An int8 ONNX graph from token ids to pooled vectors, on ONNX Runtime.

    A prompt is one call of the graph. Activations become int8 by the range of the whole input, so in a
    batch the others would change a prompt's vector: by 0.03 of the shipped score in the mean, by up to 0.22.
    On one thread that costs nothing over prompts as people write them, and 0.6 ms each for very short ones.
    """

    def __init__(self, graph: bytes, *, threads: int = 1) -> None:
        """Raises ValueError for bytes that are no such graph."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # one class of error for each kind of damage, with no base but Exception
            raise ValueError(f"not an ONNX graph: {error}") from error
        self.graph = graph
        self.width = int(self._session.get_outputs()[0].shape[1])

    def pool(self, pieces: Wordpieces, rows: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Return pooled vectors (n, width) of encoded prompts, each the same alone and among others."""
        pooled = np.empty((len(rows), self.width), dtype=np.float32)
        for place, row in zip(pooled, rows, strict=True):
            alone = pieces.batch([row])
            place[:] = self._session.run(None, {"ids": alone.ids, "mask": alone.mask})[0][0]
        return pooled


class Seen(NamedTuple):
    """What the network made of n requests: its scores (n,), and vectors (n, d) of length about 1.

    A vector is the encoder's pooled one beside the head's hidden layer, each standardised and half of it.
    """

    scores: Floats
    vectors: NDArray[np.float64]


@ranker("transformer")
class Transformer(Ranker):
    """A fine-tuned encoder with a head that also sees the request's numbers.

    Training holds out a share of the conversations: they choose the epoch and calibrate the ranker.
    """

    recipe: Recipe
    taus_: tuple[float, ...]
    refit_: Refit | None = None
    _replies: Sequence[str] | None = None

    def __init__(
        self,
        *,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        **recipe: Any,
    ) -> None:
        """`recipe` takes the fields of `sooner.rankers.neural.recipe.Recipe`.

        With a `checkpoint` folder, training that was broken off goes on after its last finished epoch.
        """
        super().__init__(seed=seed)
        self.recipe = Recipe(seed=seed, **recipe)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)

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
        """Learn as every ranker does; the texts of the replies, where known, are learned from as well.

        What form a reply has (code, lists, paragraphs) teaches the encoder more than its length alone;
        nothing of them is kept. Raises DataError as `Ranker.fit` does.
        """
        self._replies = replies
        self.refit_ = None
        try:
            return super().fit(prompts, lengths, context=context, groups=groups, progress=progress)
        finally:
            self._replies = None

    def _fit(self, rows: Rows, progress: Progress) -> Floats:
        return self.fit_rows(rows, progress, self._replies)

    def fit_rows(self, rows: Rows, progress: Progress, replies: Sequence[str] | None) -> Floats:
        """Fine-tune on checked rows; return out-of-fold scores (n,), NaN for the rows that were trained on.

        Where no row could be held out, all scores are of rows that were trained on.
        """
        from sooner.rankers.neural import finetune  # torch is needed from here on only

        if replies is not None and len(replies) != len(rows.prompts):
            raise DataError(f"{len(rows.prompts)} prompts but {len(replies)} replies; allowed: one for each")
        self._pieces = finetune.wordpieces(self.recipe)
        held_out = held_out_rows(rows, self.recipe)
        columns = plain_numbers(rows.prompts, rows.context)
        self._scaling = Scaling.of(columns[~held_out])
        examples = NetworkRows(
            [self._pieces.encode(prompt) for prompt in rows.prompts],
            self._scaling(columns),
            rows.lengths,
            _targets(replies, len(rows.prompts)),
            np.array([known.turn > 0 for known in rows.context]),
        )
        tuned = finetune.tune(
            self.recipe,
            self._pieces,
            examples.take(np.flatnonzero(~held_out)),
            examples.take(np.flatnonzero(held_out)),
            checkpoint=self.checkpoint,
            progress=progress,
        )
        self._encoder, self._head, self.taus_ = Encoder(tuned.graph), tuned.head, tuned.taus
        self.training_ = {"recipe": asdict(self.recipe), "validation_tau": _finite(tuned.taus)}
        fresh = np.flatnonzero(held_out if held_out.any() else ~held_out)
        part = examples.take(fresh)
        pooled = self._encoder.pool(self._pieces, part.ids)
        hidden = self._head.hidden(pooled, part.numbers)
        self._spread = Scaling.of(np.concatenate([pooled, hidden], axis=1))
        unseen = np.full(len(rows.prompts), np.nan)
        unseen[fresh] = _scores(self._head.outputs(hidden, part.numbers))
        return unseen

    def view(self, prompts: Sequence[str], context: Sequence[Context]) -> Seen:
        """Return what the network, as it was trained, makes of requests; raises NotFittedError before."""
        if not hasattr(self, "_encoder"):
            raise NotFittedError(f"this {self.name!r} ranker was not fitted; call fit, or load a saved one")
        if not prompts:
            return Seen(np.empty(0), np.empty((0, self._spread.mean.shape[0])))
        pooled = self._encoder.pool(self._pieces, [self._pieces.encode(prompt) for prompt in prompts])
        numbers = self._scaling(plain_numbers(prompts, context))
        hidden = self._head.hidden(pooled, numbers)
        vectors = self._spread(np.concatenate([pooled, hidden], axis=1))
        vectors[:, : self._encoder.width] /= math.sqrt(2 * self._encoder.width)
        vectors[:, self._encoder.width :] /= math.sqrt(2 * hidden.shape[1])
        return Seen(_scores(self._head.outputs(hidden, numbers)), vectors)

    def _score(self, prompts: Sequence[str], context: Sequence[Context]) -> Floats:
        seen = self.view(prompts, context)
        return seen.scores if self.refit_ is None else self.refit_(seen.scores, seen.vectors)

    def refit(
        self, prompts: Sequence[str], lengths: ArrayLike, *, context: Sequence[Context] | None = None
    ) -> Self:
        """Return this ranker with a new last layer, fitted to finished requests of one served model.

        50 to 500 requests are meant; the encoder stays as it is, so many served models share it. Raises
        DataError as `fit` does, and for fewer than two requests.
        """
        return refitted(self, Rows.checked(prompts, lengths, context))

    def _state(self) -> State:
        arrays: dict[str, NDArray[Any]] = {f"head.{k}": v for k, v in self._head._asdict().items()}
        arrays |= self._scaling.arrays("numbers") | self._spread.arrays("vectors")
        arrays |= {} if self.refit_ is None else self.refit_.arrays()
        definition = self._pieces.definition.encode("utf-8")
        settings = {
            "max_pieces": self._pieces.limit,
            "pad": self._pieces.pad,
            "numbers": list(features.NUMBERS),
        }
        return State(arrays, settings, {"model.onnx": self._encoder.graph, "tokenizer.json": definition})

    def _restore(self, state: State) -> None:
        arrays, settings = state.arrays, state.settings
        if settings["numbers"] != list(features.NUMBERS):
            raise ValueError(f"it was trained on other numbers: {settings['numbers']}")
        definition = state.files["tokenizer.json"].decode("utf-8")
        self._pieces = Wordpieces(definition, int(settings["max_pieces"]), int(settings["pad"]))
        self._encoder = Encoder(state.files["model.onnx"])
        self._head = DenseHead(*(arrays[f"head.{field}"] for field in DenseHead._fields))
        self._scaling = Scaling.from_arrays(arrays, "numbers")
        self._spread = Scaling.from_arrays(arrays, "vectors")
        if self._spread.mean.shape[0] != self._encoder.width + self._head.w1.shape[1]:
            raise ValueError(f"vectors scaled for {self._spread.mean.shape[0]} columns")
        self.refit_ = Refit.from_arrays(arrays)
        self.taus_ = ()
        self._check()

    def _check(self) -> None:
        """Score one prompt, so that parts which do not fit together are found now. Raises ValueError."""
        if not np.isfinite(self._score(["Hello"], [Context()])).all():
            raise ValueError("its weights hold NaN or infinity")


class _Refittable(Protocol):
    refit_: Refit | None
    calibration_: Calibration | None
    training_: Mapping[str, Any]

    def view(self, prompts: Sequence[str], context: Sequence[Context]) -> Seen:
        """Return scores and vectors as they were before any refit."""


_Kind = TypeVar("_Kind", bound=_Refittable)


def refitted(ranker: _Kind, rows: Rows) -> _Kind:
    """Return a copy of `ranker`, its encoder shared, with a last layer and calibration of its own."""
    seen = ranker.view(rows.prompts, rows.context)
    other = copy.copy(ranker)
    other.refit_, unseen = Refit.fit(seen.scores, seen.vectors, rows.lengths)
    other.calibration_ = Calibration.fit(unseen, rows.lengths)
    other.training_ = {**ranker.training_, "refit_rows": len(rows.prompts)}
    return other


def held_out_rows(rows: Rows, recipe: Recipe) -> NDArray[np.bool_]:
    """Return which rows (n,) train nothing: whole conversations, or none where two rows cannot be spared."""
    none = np.zeros(len(rows.prompts), dtype=np.bool_)
    if recipe.held_out == 0:
        return none
    held = rows.folds(max(2, round(1 / recipe.held_out)), recipe.seed) == 0
    return held if held.sum() >= 2 and (~held).sum() >= 2 else none


def _targets(replies: Sequence[str] | None, n: int) -> NDArray[np.float64]:
    if replies is None:
        return np.empty((n, 0))
    columns = np.array([forms(reply) for reply in replies], dtype=np.float64).reshape(-1, len(FORMS))
    return Scaling.of(columns)(columns)


def plain_numbers(prompts: Sequence[str], context: Sequence[Context]) -> NDArray[np.float64]:
    """Return the plain numbers of n requests as columns (n, len(features.NUMBERS))."""
    rows = [features.numbers(prompt, known) for prompt, known in zip(prompts, context, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(-1, len(features.NUMBERS))


def _scores(outputs: NDArray[np.float64]) -> Floats:
    """One output is the score; of several, which are logits of length classes, the mean class is."""
    if outputs.shape[1] == 1:
        return outputs[:, 0]
    likely = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    likely /= likely.sum(axis=1, keepdims=True)
    return np.asarray(likely @ np.arange(outputs.shape[1]), dtype=np.float64)


def _finite(taus: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(tau) else round(tau, 4) for tau in taus]
