"""What the papers' predictors share: a head on an encoding, trained on nine tenths of the conversations.

The papers fine-tune OPT or BERT on a GPU; here the encoder is kept as it was pre-trained, so that a
baseline trains in a minute on a CPU. Labels, losses and epochs are theirs; learning rates are a head's.
`docs/baselines.md` says what each paper did and what is done here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sooner.core import NotFittedError
from sooner.rankers import encoding
from sooner.rankers.context import Context
from sooner.rankers.contract import Floats, Progress, Ranker, Rows, State
from sooner.rankers.layers import Layers
from sooner.rankers.scaling import Scaling

if TYPE_CHECKING:
    from sooner.rankers.objectives import Loss, Schedule

LONGEST = 8192
"""Replies are cut here by vllm-ltr's labels [tokens]."""

_HELD_OUT = 10  # one conversation in so many calibrates and is not trained on


class Paper(Ranker):
    """A ranker that sees a prompt's text only, through an encoder that is not trained.

    `encoder` is a Hugging Face encoder by name or folder, or "hashed" for topics of hashed words.
    """

    cites: ClassVar[str] = ""

    def __init__(self, *, seed: int = 0, encoder: str | encoding.Encoding = encoding.DEFAULT_ENCODER) -> None:
        super().__init__(seed=seed)
        self.encoder = encoder

    @abstractmethod
    def _objective(self, lengths: Floats) -> tuple[int, Loss, Schedule]:
        """Return the width of the output, the loss and the schedule for training lengths (n,) [tokens]."""

    @abstractmethod
    def _read(self, outputs: NDArray[np.float64]) -> Floats:
        """Return scores (n,) of outputs (n, width), larger = longer reply."""

    def _fit(self, rows: Rows, progress: Progress) -> Floats:
        from sooner.rankers import objectives  # torch is needed from here on only

        progress(0.0, "encoding prompts")
        self._encoding = encoding.start(self.encoder, rows.prompts, seed=self.seed)
        vectors = self._encoding(rows.prompts)
        held_out = rows.folds(_HELD_OUT, self.seed) == 0
        if held_out.sum() < 2 or (~held_out).sum() < 2:
            held_out[:] = False
        self._scaling = Scaling.of(vectors[~held_out])
        x = self._scaling(vectors)
        width, loss, schedule = self._objective(rows.lengths[~held_out])
        self._layers = objectives.train(
            x[~held_out],
            rows.lengths[~held_out],
            width,
            loss,
            schedule,
            seed=self.seed,
            progress=lambda done, words: progress(0.5 + 0.5 * done, words),
        )
        self.training_ = {"encoder": self._encoding.name, "encoder_trained": False, **schedule._asdict()}
        honest = np.full(len(rows.prompts), np.nan)
        fresh = held_out if held_out.any() else ~held_out
        honest[fresh] = self._read(self._layers(x[fresh]))
        return honest

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
            {name: one for name, one in state.arrays.items() if name.startswith(("weight.", "bias."))}
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
