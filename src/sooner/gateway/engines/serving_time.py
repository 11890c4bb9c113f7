"""How long an engine needs for a slice of a reply: SCLS's estimator (arXiv 2406.13511), learned as it serves.

T(N, L, m) = p1 N L + p2 N + p3 L + p4  +  m (d2 N + d4) + (d1 N + d3) (m L + m (m + 1) / 2): the prefill
of L tokens and m decoding steps, N requests running. The paper fits it to a profile made beforehand;
here the replies that came are the profile, and no coefficient falls below 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_KEEP = 256  # replies fitted to
_EVERY = 16  # replies between two fits
_SWEEPS = 50  # of coordinate descent


class ServingTime:
    """One engine's estimator; knows nothing until it has seen 16 replies."""

    def __init__(self) -> None:
        self._rows: NDArray[np.float64] = np.zeros((_KEEP, 8))
        self._seconds: NDArray[np.float64] = np.zeros(_KEEP)
        self._seen = 0
        self._weights: NDArray[np.float64] = np.zeros(8)

    @property
    def known(self) -> bool:
        """Whether it has been fitted."""
        return self._seen >= _EVERY

    def add(self, running: float, prompt_len: float, tokens: float, seconds: float) -> None:
        """Take in a reply: how many ran, itself included, the tokens before it and its own, its time."""
        at = self._seen % _KEEP
        self._rows[at] = _terms(running, prompt_len, tokens)
        self._seconds[at] = seconds
        self._seen += 1
        if self._seen % _EVERY == 0:
            self._fit()

    def seconds(self, running: float, prompt_len: float, tokens: float) -> float:
        """Return the estimate [s]."""
        return float(_terms(running, prompt_len, tokens) @ self._weights)

    def _fit(self) -> None:
        """Least squares with no negative coefficient, by coordinate descent from the last fit."""
        n = min(self._seen, _KEEP)
        rows, seconds = self._rows[:n], self._seconds[:n]
        scale = np.maximum(rows.max(axis=0), 1e-12)
        scaled = rows / scale
        square = scaled.T @ scaled + 1e-6 * n * np.eye(8)  # a little ridge: columns may be alike
        target = scaled.T @ seconds
        found = self._weights * scale
        for _ in range(_SWEEPS):
            for j in range(8):
                found[j] = max(0.0, found[j] + (target[j] - square[j] @ found) / square[j, j])
        self._weights = found / scale


def _terms(running: float, prompt_len: float, tokens: float) -> NDArray[np.float64]:
    cache = tokens * prompt_len + tokens * (tokens + 1) / 2  # tokens of the KV cache read by all steps
    return np.array([
        running * prompt_len, running, prompt_len, 1.0,
        tokens * running, tokens, cache * running, cache,
    ])  # fmt: skip
