"""Lengths to run the systems on, where the papers' own data cannot be shipped, and noise upon them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sooner.sim.static import Column, Counts


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

LLAMA3_SHAREGPT_REPLY = LogNormal(5.9, 1.2, 5, 2048)
"""Llama-3's replies to ShareGPT prompts, assumed: about twice LMSYS's tokens."""
LMSYS_PROMPT = LogNormal(3.6, 1.1, 4, 1024)
LLAMA3_LMSYS_REPLY = LogNormal(5.2, 1.45, 2, 1600)
"""Llama-3-8B's replies to LMSYS prompts: near the deciles of 120 published lengths (median 246, mean 366)."""


def spoiled(normal: Column, tau: float, noise: Column) -> Column:
    """Return normal scores whose Kendall tau with `normal` is `tau`: r = sin(pi tau / 2)."""
    r = math.sin(math.pi * tau / 2)
    return r * normal + math.sqrt(1 - r * r) * noise
