"""What the papers' predictors share: a head on an encoding, trained on nine tenths of the conversations.

The papers fine-tune OPT or BERT on a GPU. Here the encoder is kept as it was pre-trained unless `tuned` is
set, so that a baseline trains in a minute on a CPU. Labels, losses and epochs are theirs; rates are not.
`docs/baselines.md` says what each paper did and what is done here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sooner.chat import Context
from sooner.core import ConfigError, NotFittedError
from sooner.rankers.contract import Floats, Progress, Ranker, Rows, State
from sooner.rankers.neural import encoding
from sooner.rankers.neural.layers import Layers
from sooner.rankers.scaling import Scaling

if TYPE_CHECKING:
    from sooner.rankers.neural.objectives import Objective, Schedule

LONGEST = 8192
"""Replies are cut here by vllm-ltr's labels [tokens]."""

_HELD_OUT = 10  # one conversation in so many calibrates and is not trained on


class Paper(Ranker):
    """A ranker that sees a prompt's text only, through an encoder that is not trained.

    `encoder` is a Hugging Face encoder by name or folder, or "hashed" for topics of hashed words. With
    `tuned` its layers are trained too, on prompts of at most `max_pieces` wordpieces.
    """

    cites: ClassVar[str] = ""

    def __init__(
        self,
        *,
        seed: int = 0,
        encoder: str | encoding.Encoding = encoding.DEFAULT_ENCODER,
        tuned: bool = False,
        max_pieces: int = 128,
        epochs: int | None = None,
        encoder_learning_rate: float | None = None,
    ) -> None:
        """`epochs` are the paper's where None, and the encoder's rate that of `Schedule`."""
        super().__init__(seed=seed)
        if tuned and (not isinstance(encoder, str) or encoder == encoding.HASHED):
            raise ConfigError("tuned=True needs an encoder by name; hashed words have nothing to train")
        if epochs is not None and epochs < 1:
            raise ConfigError(f"epochs is {epochs}; allowed: at least 1")
        self.encoder = encoder
        self.tuned = tuned
        self.max_pieces = max_pieces
        self.epochs = epochs
        self.encoder_learning_rate = encoder_learning_rate

    @abstractmethod
    def _objective(self, lengths: Floats) -> tuple[int, Objective, Schedule]:
        """Return the width of the output, the loss and the schedule for training lengths (n,) [tokens]."""

    @abstractmethod
    def _read(self, outputs: NDArray[np.float64]) -> Floats:
        """Return scores (n,) of outputs (n, width), larger = longer reply."""

    def _fit(self, rows: Rows, progress: Progress) -> Floats | None:
        held_out = rows.folds(_HELD_OUT, self.seed) == 0
        if held_out.sum() < 2 or (~held_out).sum() < 2:
            held_out[:] = False
        known, fresh = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        train = self._tune if self.tuned else self._train
        schedule = train(rows.take(known), progress)
        self.training_ = {"encoder": self._encoding.name, "encoder_trained": self.tuned, **schedule._asdict()}
        if not fresh.size:
            return None
        unseen = np.full(len(rows.prompts), np.nan)
        unseen[fresh] = self._read(self.outputs([rows.prompts[i] for i in fresh]))
        return unseen

    def _train(self, rows: Rows, progress: Progress) -> Schedule:
        """Train a head on the encoding's vectors."""
        from sooner.rankers.neural import heads  # torch is needed from here on only

        progress(0.0, "encoding prompts")
        self._encoding = encoding.start(self.encoder, rows.prompts, seed=self.seed)
        vectors = self._encoding(rows.prompts)
        self._scaling = Scaling.of(vectors)
        width, loss, schedule = self._scheduled(rows.lengths)
        self._layers = heads.train(
            self._scaling(vectors),
            rows.lengths,
            width,
            loss,
            schedule,
            seed=self.seed,
            progress=lambda done, words: progress(0.5 + 0.5 * done, words),
        )
        return schedule

    def _tune(self, rows: Rows, progress: Progress) -> Schedule:
        """Train the encoder with the head."""
        from sooner.rankers.neural import heads  # torch is needed from here on only

        width, loss, schedule = self._scheduled(rows.lengths)
        assert isinstance(self.encoder, str)  # checked when it was made
        made = heads.tune(
            self.encoder,
            rows.prompts,
            rows.lengths,
            width,
            loss,
            schedule,
            max_pieces=self.max_pieces,
            seed=self.seed,
            progress=progress,
        )
        self._encoding, self._layers = encoding.Frozen(self.encoder, made.graph, made.pieces), made.layers
        size = made.layers.weights[0].shape[0]
        self._scaling = Scaling(np.zeros(size, dtype=np.float32), np.ones(size, dtype=np.float32))
        return schedule

    def _scheduled(self, lengths: Floats) -> tuple[int, Objective, Schedule]:
        width, loss, schedule = self._objective(lengths)
        if self.epochs is not None:
            schedule = schedule._replace(epochs=self.epochs)
        if self.encoder_learning_rate is not None:
            schedule = schedule._replace(encoder_learning_rate=self.encoder_learning_rate)
        return width, loss, schedule

    def outputs(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """Return the network's outputs (n, width). Raises NotFittedError before `fit`."""
        if not hasattr(self, "_layers"):
            raise NotFittedError(f"this {self.name!r} ranker was not fitted; call fit, or load a saved one")
        made: NDArray[np.float64] = self._layers(self._scaling(self._encoding(prompts)))
        return made

    def _score(self, prompts: Sequence[str], context: Sequence[Context]) -> Floats:
        return self._read(self.outputs(prompts))

    def _state(self) -> State:
        encoder = self._encoding.state()
        arrays = {**encoder.arrays, **self._scaling.arrays("vectors"), **self._layers.arrays()}
        return State(arrays, {**encoder.settings, **self._kept()}, encoder.files)

    def _kept(self) -> dict[str, Any]:
        """Settings that `_restore` needs beside the encoder's."""
        return {}

    def _restore(self, state: State) -> None:
        self._encoding = encoding.restore(state)
        self._scaling = Scaling.from_arrays(state.arrays, "vectors")
        self._layers = Layers.from_arrays(
            {name: array for name, array in state.arrays.items() if name.startswith(("weight.", "bias."))}
        )
        if self._layers.weights[0].shape[0] != self._scaling.mean.shape[0]:
            raise ValueError(f"{self._scaling.mean.shape[0]} numbers for {self._layers.weights[0].shape}")


class Classifier(Paper):
    """A paper's ranker that sorts replies into classes of length; its score is the likeliest class."""

    edges_: NDArray[np.float64]  # (classes - 1,) [tokens]; a class is the number of edges at or below

    def classes(self, lengths: ArrayLike) -> NDArray[np.int64]:
        """Return the true class (n,) of each length (n,) [tokens]."""
        return np.searchsorted(self.edges_, np.asarray(lengths, dtype=np.float64), side="right")

    def predict_class(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Return the predicted class (n,), 0 the shortest. Raises NotFittedError before `fit`."""
        return np.asarray(np.argmax(self.outputs(prompts), axis=1), dtype=np.int64)

    def accuracy(self, prompts: Sequence[str], lengths: ArrayLike) -> float:
        """Return the share of prompts whose class is the predicted one."""
        return float(np.mean(self.predict_class(prompts) == self.classes(lengths)))

    def _read(self, outputs: NDArray[np.float64]) -> Floats:
        return np.asarray(np.argmax(outputs, axis=1), dtype=np.float64)

    def _kept(self) -> dict[str, Any]:
        return {"edges": self.edges_.tolist()}

    def _restore(self, state: State) -> None:
        super()._restore(state)
        self.edges_ = np.asarray(state.settings["edges"], dtype=np.float64)
