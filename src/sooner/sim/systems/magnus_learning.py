"""What Magnus learns: reply lengths, by its ranker's forests, and batch times, by nearest neighbours.

Magnus embeds instruction and user input with LaBSE. `HashedText` stands in for it: signed hashed
words and word pairs, which need no model file; any function from texts to vectors can take its place.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sooner.core import ConfigError, DataError, NotFittedError, UnknownName
from sooner.sim.static import Column, Counts

if TYPE_CHECKING:
    from sooner.rankers.papers.forests import Forests

Matrix = NDArray[np.float64]
Encoder = Callable[[Sequence[str]], Matrix]

VARIANTS = ("UILO", "RAFT", "INST", "USIN")
"""Features of the length predictor: user length only; the same with a forest per application; with the
instruction's semantics; with the user input's too, the full model."""
COMPRESSIONS = ("pca", "group-mean")
DIMENSIONS = 768


class HashedText:
    """A stand-in for LaBSE, named as such: 768 signed hashed counts of words and pairs, of unit length."""

    def __call__(self, texts: Sequence[str]) -> Matrix:
        """Return one vector a text, (n, 768)."""
        vectors = np.zeros((len(texts), DIMENSIONS))
        for row, text in enumerate(texts):
            words = text.split()
            keys = words + [f"{a} {b}" for a, b in pairwise(words)]
            places = np.array([_place(key) for key in keys], dtype=np.int64).reshape(-1, 2)
            np.add.at(vectors[row], places[:, 0], places[:, 1])
        norms = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return np.asarray(vectors / norms, dtype=np.float64)


@lru_cache(maxsize=1 << 16)
def _place(key: str) -> tuple[int, int]:
    code = zlib.crc32(key.encode())
    return code % DIMENSIONS, 1 if code & 1 << 31 else -1


class Compress:
    """Few numbers from an embedding: principal components of a sample, or means of groups of components."""

    def __init__(self, kind: str, size: int) -> None:
        if kind not in COMPRESSIONS:
            raise UnknownName("compression", kind, COMPRESSIONS)
        self.kind, self.size = kind, size
        self._axes: Matrix | None = None

    def fit(self, vectors: Matrix) -> Compress:
        """Learn from a sample (n, d); group means have nothing to learn but the sizes."""
        d = vectors.shape[1]
        if self.kind == "pca":
            centred = vectors - vectors.mean(axis=0)
            self._axes = np.linalg.eigh(centred.T @ centred)[1][:, : -self.size - 1 : -1]
        else:
            group = np.arange(d) * self.size // d
            self._axes = (group[:, None] == np.arange(self.size)) / np.bincount(group)
        return self

    def __call__(self, vectors: Matrix) -> Matrix:
        """Return (n, size). Raises NotFittedError before `fit`."""
        if self._axes is None:
            raise NotFittedError("the compression was asked before it was fitted")
        return np.asarray(vectors @ self._axes, dtype=np.float64)


class Prompts:
    """Requests as the predictor sees them: application, user length (n,) and both embeddings, compressed."""

    def __init__(
        self,
        app: Counts,
        user_len: Counts,
        instructions: Sequence[str],
        user_texts: Sequence[str],
        *,
        encoder: Encoder | None = None,
        compression: str = "pca",
        app_size: int = 4,
        user_size: int = 16,
        sample: int = 1000,
    ) -> None:
        """`instructions` is a text per application, `user_texts` one per request; a sample fits the axes."""
        if not app.shape == user_len.shape == (len(user_texts),):
            raise DataError(f"{app.shape} apps, {user_len.shape} lengths and {len(user_texts)} texts differ")
        encoder = encoder or HashedText()
        by_app, by_user = encoder(instructions), encoder(user_texts)
        self.app, self.user_len = app, user_len
        self.app_vector = Compress(compression, app_size).fit(by_app)(by_app)[app]
        self.user_vector = Compress(compression, user_size).fit(by_user[:sample])(by_user)

    def features(self, variant: str, rows: Counts) -> Matrix:
        """Return the features (n, d) of some requests for one of VARIANTS."""
        parts = [self.user_len[rows, None].astype(np.float64)]
        if variant in ("INST", "USIN"):
            parts.append(self.app_vector[rows])
        if variant == "USIN":
            parts.append(self.user_vector[rows])
        return np.concatenate(parts, axis=1)


class LengthPredictor:
    """A random forest (one per application for RAFT) on the features of a variant; squared error."""

    def __init__(
        self,
        prompts: Prompts,
        variant: str,
        *,
        limit: int,
        history: int = 0,
        trees: int = 12,
        seed: int = 0,
    ) -> None:
        """`history` prompts come before those to be served: row 0 is the first served, -1 the one before."""
        if variant not in VARIANTS:
            raise UnknownName("predictor variant", variant, VARIANTS)
        if limit < 1 or trees < 1:
            raise ConfigError(f"limit={limit!r}, trees={trees!r}, allowed: >= 1")
        self.prompts, self.variant, self.limit, self.history = prompts, variant, limit, history
        self.trees, self.seed = trees, seed
        self.rows: Counts = np.zeros(0, dtype=np.int64)
        self.lengths: Column = np.zeros(0)
        self._forests: Forests | None = None

    def learn(self, rows: Counts, lengths: Column) -> None:
        """Add finished requests and fit again on all there are."""
        from sooner.rankers.papers.forests import Forests  # which needs LightGBM

        self.rows = np.concatenate([self.rows, rows + self.history])
        self.lengths = np.concatenate([self.lengths, lengths])
        features = self.prompts.features(self.variant, self.rows)
        self._forests = Forests.grow(
            features, self.lengths, self._groups(self.rows), least=1, trees=self.trees, seed=self.seed
        )

    def predict(self, rows: Counts) -> Counts:
        """Return predicted lengths (n,) [tokens], in [1, limit]. Raises NotFittedError before `learn`."""
        if self._forests is None:
            raise NotFittedError("Magnus's predictor was asked before it was fitted")
        rows = rows + self.history
        predicted = self._forests.ask(self.prompts.features(self.variant, rows), self._groups(rows))
        return np.asarray(np.clip(np.rint(predicted), 1, self.limit), dtype=np.int64)

    def _groups(self, rows: Counts) -> NDArray[np.object_]:
        """The application that names each row's forest (n,); "" names the forest of all."""
        if self.variant != "RAFT":
            return np.full(rows.shape[0], "", dtype=object)
        return np.array([str(app) for app in self.prompts.app[rows]], dtype=object)


class TimeEstimator:
    """Batch seconds as the mean of the K nearest known batches, by size, length and predicted generation.

    Each feature is divided by its standard deviation over the batches it was seeded with.
    """

    def __init__(self, batches: Matrix, seconds: Column, neighbours: int = 5) -> None:
        """`batches` (n, 3) are (size, length, predicted generation) of profiled batches."""
        if batches.shape != (seconds.shape[0], 3) or not 1 <= neighbours <= seconds.shape[0]:
            raise DataError(
                f"batches {batches.shape} and {seconds.shape} seconds with {neighbours} neighbours;"
                " allowed: (n, 3), (n,) and 1 to n"
            )
        self.scale = np.maximum(batches.std(axis=0), 1e-9)
        self.known, self.seconds, self.neighbours = batches / self.scale, seconds, neighbours

    def learn(self, batches: Matrix, seconds: Column) -> None:
        """Add finished batches."""
        self.known = np.r_[self.known, batches.reshape(-1, 3) / self.scale]
        self.seconds = np.r_[self.seconds, seconds]

    def predict(self, batches: Matrix) -> Column:
        """Return the estimated seconds (n,) of batches (n, 3)."""
        gaps = ((batches[:, None, :] / self.scale - self.known[None]) ** 2).sum(axis=2)
        nearest = np.argpartition(gaps, self.neighbours - 1, axis=1)[:, : self.neighbours]
        return np.asarray(self.seconds[nearest].mean(axis=1), dtype=np.float64)
