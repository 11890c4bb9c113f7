"""Prompts as vectors of one size, for rankers that learn no more than a head on them.

Two kinds: a text encoder kept as it was pre-trained, or as a ranker of ours trained it (`Frozen`), and
words hashed and turned by an SVD (`Hashed`), which needs neither torch nor a download.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sooner.core import ConfigError
from sooner.rankers import shipped
from sooner.rankers.contract import State
from sooner.rankers.features.topics import Topics
from sooner.rankers.files import MANIFEST
from sooner.rankers.neural.recipe import DEFAULT_ENCODER, Recipe
from sooner.rankers.neural.wordpiece import Wordpieces

__all__ = ["DEFAULT_ENCODER", "HASHED", "Encoding", "Frozen", "Hashed", "Remembered", "restore", "start"]

HASHED = "hashed"
"""The name that `start` takes for topics of hashed words instead of an encoder."""

_TOPICS = 128


class Encoding(Protocol):
    """Anything that turns n prompts into vectors (n, d)."""

    name: str

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """Return vectors (n, d)."""

    def state(self) -> State:
        """Return what `restore` needs."""


class Hashed:
    """Topics of hashed words, learned from the training prompts."""

    name = HASHED

    def __init__(self, topics: Topics) -> None:
        self.topics = topics

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """Return vectors (n, d)."""
        return self.topics(prompts)

    def state(self) -> State:
        """Return what `restore` needs."""
        return State(self.topics.arrays(), {"encoder": self.name})


class Frozen:
    """An encoder that stays as it is, as int8 ONNX: its first position beside the mean over positions."""

    def __init__(self, name: str, graph: bytes, pieces: Wordpieces) -> None:
        """Raises ValueError for a graph that cannot be run."""
        from sooner.rankers.transformer import Encoder  # ONNX Runtime is needed from here on only

        self.name = name
        self._pieces = pieces
        self._encoder = Encoder(graph)

    @classmethod
    def named(cls, name: str, *, max_pieces: int = 128) -> Frozen:
        """Return the Hugging Face encoder `name` (a folder or a hub's name). Needs torch and transformers.

        Raises ConfigError when it cannot be opened.
        """
        from sooner.rankers.neural import finetune

        recipe = Recipe(encoder=name, max_pieces=max_pieces)
        pieces = finetune.wordpieces(recipe)
        return cls(name, finetune.export(quietly_opened(recipe).eval(), pieces), pieces)

    @classmethod
    def trained(cls, place: str) -> Frozen:
        """Return the encoder of the `transformer` or `blend` in folder `place` ("default": the shipped one).

        Raises ConfigError for a ranker without one, RankerFileError for a folder that cannot be read.
        """
        from sooner import rankers
        from sooner.rankers.transformer import Transformer

        ranker = rankers.load(place)
        inner = getattr(ranker, "transformer", ranker)
        if not isinstance(inner, Transformer):
            raise ConfigError(f"{place!r} holds a {ranker.name!r} ranker; allowed: transformer or blend")
        return cls(place, inner._encoder.graph, inner._pieces)

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """Return vectors (n, d)."""
        if not prompts:
            return np.empty((0, self._encoder.width))
        rows = [self._pieces.encode(prompt) for prompt in prompts]
        return self._encoder.pool(self._pieces, rows).astype(np.float64)

    def state(self) -> State:
        """Return what `restore` needs."""
        settings = {"encoder": self.name, "max_pieces": self._pieces.limit, "pad": self._pieces.pad}
        definition = self._pieces.definition.encode("utf-8")
        return State({}, settings, {"model.onnx": self._encoder.graph, "tokenizer.json": definition})


def quietly_opened(recipe: Recipe) -> Any:
    """Return the recipe's `finetune.Network`, without the bars that transformers shows while it loads."""
    from transformers.utils import logging

    from sooner.rankers.neural import finetune

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return finetune.Network(recipe, 0, 0)
    finally:
        if shown:
            logging.enable_progress_bar()


class Remembered:
    """An encoding that keeps each prompt's vector: for training many heads on the same rows."""

    def __init__(self, inner: Encoding) -> None:
        self.name = inner.name
        self._inner = inner
        self._known: dict[str, NDArray[np.float64]] = {}

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """Return vectors (n, d)."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new or not prompts:
            made = self._inner(new)
            if not prompts:
                return made
            self._known.update(zip(new, made, strict=True))
        return np.stack([self._known[prompt] for prompt in prompts])

    def state(self) -> State:
        """Return what `restore` needs: nothing of what is remembered."""
        return self._inner.state()


def start(encoder: str | Encoding, prompts: Sequence[str], *, seed: int) -> Encoding:
    """Return the encoding called `encoder` (itself where it is one), `HASHED` learned from `prompts`.

    The folder of a trained `transformer` or `blend`, and "default", name the encoder in it.
    """
    if not isinstance(encoder, str):
        return encoder
    if encoder == HASHED:
        return Hashed(Topics.fit(prompts, _TOPICS, seed=seed))
    return Frozen.trained(encoder) if trained(encoder) else Frozen.named(encoder)


def trained(encoder: str) -> bool:
    """Whether `encoder` names a ranker of ours whose encoder is meant."""
    return encoder == shipped.DEFAULT or (Path(encoder) / MANIFEST).is_file()


def restore(state: State) -> Encoding:
    """Return what was saved. Raises KeyError or ValueError for parts that do not fit together."""
    settings: Any = state.settings
    if settings["encoder"] == HASHED:
        return Hashed(Topics.from_arrays(state.arrays))
    definition = state.files["tokenizer.json"].decode("utf-8")
    pieces = Wordpieces(definition, int(settings["max_pieces"]), int(settings["pad"]))
    return Frozen(settings["encoder"], state.files["model.onnx"], pieces)
