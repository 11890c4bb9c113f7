"""Lengths to run the systems on, where the papers' own data cannot be shipped: lognormal stand-ins."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sooner.sim.static import Counts


class LogNormal(NamedTuple):
    """Lengths exp(N(mean, deviation)), rounded and clipped to [low, high] tokens."""

    mean: float
    deviation: float
    low: int
    high: int

    def draw(self, n: int, rng: np.random.Generator) -> Counts:
        """Return n lengths [tokens]."""
        drawn = np.round(np.exp(rng.normal(self.mean, self.deviation, n)))
        return np.clip(drawn, self.low, self.high).astype(np.int64)


SHAREGPT_PROMPT = LogNormal(4.6, 1.25, 4, 1024)
SHAREGPT_REPLY = LogNormal(4.9, 0.95, 1, 1024)
"""ShareGPT-like: prompts of median 99, replies of median 134 and mean 203 tokens."""
