"""SSJF's six predictors as confusion with the truth: what each says of a reply of a given length.

The two classifiers are measured: the counts are of SSJF's own released predictions on 85,482
LMSYS requests to vicuna-13b (Apache-2.0; arXiv 2404.08509). The regressors and the ordinal variants
have no released predictions; they are noise of an assumed Kendall tau, and `UNCONFIRMED` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from sooner.core import UnknownName
from sooner.rankers.scaling import normal_quantiles
from sooner.sim.static import Column, Counts
from sooner.sim.systems.lengths import spoiled

PREDICTORS = ("reg-L1", "reg-MSE", "cls-3", "multi-5", "ordinal-L1", "ordinal-MSE")
LATENCY_S = 0.0078
"""Measured latency of one prediction at batch 1: 7.7 to 7.9 ms in the released CSVs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """Kendall tau with the true length of the predictors that nobody released predictions of."""

    reg_l1: float = 0.635
    reg_mse: float = 0.62
    ordinal_l1: float = 0.635
    ordinal_mse: float = 0.62


UNCONFIRMED = dict.fromkeys(
    ("reg_l1", "reg_mse", "ordinal_l1", "ordinal_mse"),
    "assumed, near the released 5-class predictor's tau of 0.635; no predictions of it were released",
)


class Jobs:
    """A draw of n jobs: their true lengths and, on the very same jobs, what every predictor says."""

    def __init__(self, n: int, rng: np.random.Generator, assumed: Assumed | None = None) -> None:
        """Draw lengths from the released distribution (mean 176.8, p50 140, at most 511 tokens)."""
        table, assumed = _released(), assumed or Assumed()
        self.length: Counts = rng.choice(512, size=n, p=table.share)
        noise, chance = rng.standard_normal(n), rng.random((2, n))
        truth = table.normal[self.length]
        self._said = {
            "reg-L1": spoiled(truth, assumed.reg_l1, noise),
            "reg-MSE": spoiled(truth, assumed.reg_mse, noise),
            "cls-3": _drawn(table.cls[self.length], chance[0]),
            "multi-5": _drawn(table.multi[self.length], chance[1]),
            "ordinal-L1": table.ordinal(spoiled(truth, assumed.ordinal_l1, noise)),
            "ordinal-MSE": table.ordinal(spoiled(truth, assumed.ordinal_mse, noise)),
            "random": rng.random(n),
        }

    def key(self, predictor: str) -> Column:
        """Return what a predictor, or the control `random`, says (n,): larger means longer, no unit."""
        if predictor not in self._said:
            raise UnknownName("SSJF predictor", predictor, self._said)
        return self._said[predictor]


def azure_gaps_s() -> Column:
    """Return the gaps between arrivals of the Azure 2023 conversation trace [s] (CC-BY 4.0, Microsoft)."""
    return np.asarray(_released().azure_gaps_ms / 1000.0, dtype=np.float64)


class _Table:
    def __init__(self) -> None:
        path = resources.files("sooner.sim.systems").joinpath("ssjf_vicuna13b.npz")
        with resources.as_file(path) as file, np.load(file) as arrays:
            cls, multi = (arrays[name].astype(np.float64) for name in ("cls", "multi"))
            self.azure_gaps_ms: Column = arrays["azure_gaps_ms"].astype(np.float64)
        seen = cls.sum(axis=1)
        self.share: Column = seen / seen.sum()
        middle = np.clip(np.cumsum(self.share) - self.share / 2, 1e-6, 1 - 1e-6)
        self.normal: Column = normal_quantiles(middle)
        self.cls, self.multi = (
            np.cumsum(table / np.maximum(seen, 1)[:, None], axis=1) for table in (cls, multi)
        )
        edges = np.searchsorted(np.cumsum(self.share), np.cumsum(multi.sum(axis=0) / multi.sum())[:-1])
        self._cuts: Column = self.normal[edges]

    def ordinal(self, score: Column) -> Column:
        """Round a score to the index of one of the five classes, as the ordinal variants do."""
        return np.asarray(np.searchsorted(self._cuts, score), dtype=np.float64)


@cache
def _released() -> _Table:
    return _Table()


def _drawn(cumulative: NDArray[np.float64], chance: Column) -> Column:
    """Draw a class per row from cumulative chances (n, classes)."""
    return np.asarray(np.sum(chance[:, None] > cumulative[:, :-1], axis=1), dtype=np.float64)
