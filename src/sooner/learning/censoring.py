"""Replies that are not whole: cut at a limit, aborted, or still running say "at least so long".

They enter as what they would be in the mean (Buckley and James, 1979, "Linear regression with censored
data"): the expectation of a normal law beyond the bound, for log lengths are near normal in a group.
"""

from __future__ import annotations

import math
from typing import NamedTuple

_ROOT = math.sqrt(2.0)
_DENSITY = 1.0 / math.sqrt(2.0 * math.pi)


class Beyond(NamedTuple):
    """Mean of what lies beyond a bound, and its mean square about the law's own mean."""

    mean: float
    square: float


def beyond(bound: float, mean: float, sd: float) -> Beyond:
    """Return the moments of a normal law, given that it is at least `bound`."""
    at = (bound - mean) / sd
    if at > 8.0:
        return Beyond(bound + sd / at, (bound - mean) ** 2 + sd * sd)
    rate = _DENSITY * math.exp(-at * at / 2.0) / (0.5 * math.erfc(at / _ROOT))
    return Beyond(mean + sd * rate, sd * sd * (1.0 + at * rate))
