"""A ranker's last layer, fitted anew to what its word and the groups leave unsaid of the replies that come.

A ranker that shows the vectors it scores from was trained on other models' replies. What this traffic's are
beyond that is a line over the vectors: `rankers.refit`, in closed form, from the last few hundred replies.
The vectors are kept in memory only, and never written: they stand for texts.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sooner.chat import EMPTY
from sooner.core import Prediction
from sooner.rankers.offers import HasVectors
from sooner.rankers.refit import Refit

Vector: TypeAlias = NDArray[np.floating[Any]]

ROWS = 512
"""Replies that a layer is fitted to: the last ones."""

EVERY = 8000
"""Replies between two layers at most: 50 to 100 ms each, so about 10 us a reply."""

_FIRST = 64  # replies before the first layer
_MOST_PENDING = 2048  # vectors of requests under way
_LARGEST = 2.0  # log lengths: no layer says more
_PROBE = "Tell me of the harbour, its ships and its gulls, in 3 short lines."
_SAME = 0.01  # machines differ by less in a vector of length about 1


def probe(ranker: object) -> Vector | None:
    """Return a ranker's vector (d,) of one fixed prompt, by which others are told; None: it has none."""
    return ranker.viewed([_PROBE], [EMPTY]).vectors[0] if isinstance(ranker, HasVectors) else None


class _Row(NamedTuple):
    score: float
    vector: Vector
    apart: float


class LastLayer:
    """What the layer adds to a prediction [log length]; 0 until it was fitted."""

    def __init__(self) -> None:
        self._pending: OrderedDict[object, tuple[float, Vector]] = OrderedDict()
        self._rows: deque[_Row] = deque(maxlen=ROWS)
        self._refit: Refit | None = None
        self._weights: Vector = np.zeros(0, dtype=np.float32)
        self._scale = 0.0
        self._seen, self._next = 0, _FIRST
        self._probe: Vector | None = None

    def bind(self, probe: Vector | None) -> None:
        """Say which ranker it is of, by its `probe`; another's layer is forgotten."""
        was, self._probe = self._probe, probe
        if was is not None and (probe is None or was.shape != probe.shape or abs(was - probe).max() > _SAME):
            self.forget()

    def said(self, key: object, text: Prediction | None, vector: Vector | None) -> float:
        """Return what it adds for request `key`, whose vector (d,) is remembered until `ended`."""
        if text is None or vector is None:
            return 0.0
        self._pending[key] = text.score, vector
        if len(self._pending) > _MOST_PENDING:
            self._pending.popitem(last=False)
        if self._refit is None:
            return 0.0
        level, slope, _ = self._refit
        found = self._scale * (level + slope * text.score + float(vector @ self._weights))
        return min(max(found, -_LARGEST), _LARGEST)

    def ended(self, key: object, apart: float | None) -> None:
        """Take in how far a reply was from what all but this layer said; None: nothing is known of it."""
        known = self._pending.pop(key, None)
        if known is None or apart is None:
            return
        self._rows.append(_Row(*known, apart))
        self._seen += 1
        if self._seen >= self._next:
            self._fit()

    def forget(self) -> None:
        """Begin anew: replies are not as they were."""
        self._rows.clear()
        self._refit = None
        self._seen, self._next = 0, _FIRST

    def _fit(self) -> None:
        """Fit to the rows there are; the next time when twice as many have come, and then now and then."""
        self._next = self._seen + min(self._seen, EVERY)
        apart = np.array([row.apart for row in self._rows])
        scores = np.array([row.score for row in self._rows])
        vectors = np.stack([row.vector for row in self._rows]).astype(np.float64)
        self._refit, _ = Refit.fit(scores, vectors, apart)
        self._weights = self._refit.weights.astype(np.float32)
        self._scale = float(apart.std())

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what is saved: the layer, not what it was fitted to."""
        if self._refit is None or self._probe is None:
            return {}
        return {**self._refit.arrays(), "refit.scale": np.array([self._scale]), "refit.probe": self._probe}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what was saved; a new layer then waits for as many replies. Raises ValueError."""
        self._refit = Refit.from_arrays(arrays)
        if self._refit is not None:
            (self._scale,) = arrays["refit.scale"].tolist()
            self._probe = arrays["refit.probe"]
            if self._probe.shape != self._refit.weights.shape:
                raise ValueError(
                    f"a layer of {self._refit.weights.shape} weights, {self._probe.shape} vectors"
                )
            self._weights = self._refit.weights.astype(np.float32)
            self._next = ROWS
