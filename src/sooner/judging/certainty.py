"""How sure a Kendall's tau is: its standard error, and an interval that few requests make wide.

Conversations are drawn with replacement (bootstrap), since requests of one are alike. From a handful of
them every draw looks the same, so the error is never taken below that of independent requests (Fieller,
Hartley and Pearson, 1957: the variance of atanh(tau) is 0.437 / (n - 4)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.metrics import kendall_tau
from sooner.rankers.contract import Floats

LEAST = 30
"""Conversations, and requests, below which nothing is recommended."""

_DRAWS = 200
_MANY = 5000  # requests, from which a quarter of the draws suffices
_FEW_DEGREES = {1: 12.706, 2: 4.303, 3: 3.182}
_ALMOST_ONE = 0.999  # atanh has no value at 1


class Certainty(NamedTuple):
    """A tau, its standard error, its 95 % interval, and the conversations these come from.

    The error is NaN, and the interval all of [-1, 1], for one conversation or fewer than five requests.
    """

    tau: float
    se: float
    low: float
    high: float
    conversations: int

    @property
    def enough(self) -> bool:
        """Whether so many conversations were seen that a recommendation can rest on them."""
        return self.conversations >= LEAST

    @property
    def above_zero(self) -> bool:
        """Whether the order is better than a random one beyond doubt."""
        return self.low > 0


def certainty(scores: Floats, lengths: Floats, groups: Sequence[str], *, seed: int = 0) -> Certainty:
    """Return how sure the tau of scores (n,) with lengths (n,) is; `groups` (n,) names conversations."""
    tau = kendall_tau(scores, lengths)
    _, conversation = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    members = _members(conversation)
    n, count = scores.shape[0], len(members)
    if count < 2 or n < 5:
        return Certainty(tau, math.nan, -1.0, 1.0, count)
    rng = np.random.default_rng(seed)
    taus = []
    for _ in range(_DRAWS if n <= _MANY else _DRAWS // 4):
        chosen = np.concatenate([members[i] for i in rng.integers(0, count, count)])
        if chosen.shape[0] > 1:
            taus.append(kendall_tau(scores[chosen], lengths[chosen]))
    least = math.sqrt(0.437 / (n - 4))
    spread = max(float(np.std(np.arctanh(np.clip(taus, -_ALMOST_ONE, _ALMOST_ONE)), ddof=1)), least)
    middle = math.atanh(min(max(tau, -_ALMOST_ONE), _ALMOST_ONE))
    reach = _students_t(count - 1) * spread
    se = max(float(np.std(taus, ddof=1)), least * (1 - tau * tau))
    return Certainty(tau, se, math.tanh(middle - reach), math.tanh(middle + reach), count)


def tau_error(scores: Floats, lengths: Floats, groups: Sequence[str], *, seed: int = 0) -> float:
    """Return the standard error of Kendall's tau; see `certainty`."""
    return certainty(scores, lengths, groups, seed=seed).se


def _students_t(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, to 1 % (from 4 degrees of freedom on Cornish and Fisher, 1938)."""
    if degrees < 4:
        return _FEW_DEGREES[degrees]
    z, v = 1.959964, float(degrees)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3


def _members(group: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
