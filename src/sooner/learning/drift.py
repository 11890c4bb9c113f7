"""Has what is served changed? Two-sided CUSUMs (Page, 1954) on what the errors of predictions look like.

Watched are the error, its square (are replies more spread?) and the error times the prediction (does the
order still tell long from short?), each in deviations from its own long-run mean, so that no law of the
errors is taken for granted. The threshold is chosen for a mean time between false alarms by Siegmund's
approximation (1985, "Sequential analysis", section 2.6): (exp(2 k b) - 2 k b - 1) / (2 k^2) requests for each
sum, b = threshold + 1.166.
"""

from __future__ import annotations

import math

USUAL_RUN = 300_000.0
"""Stationary requests between two false alarms, in the mean, all sums together."""

_SLACKS = ((0, 0.25), (0, 0.1), (1, 0.25), (2, 0.2))
"""What is watched, and half the shift that is looked for, in standard deviations."""

_SMALL, _STEADY = 0.2, 1000
"""A smaller shift is looked for only once so many requests have shown what is usual."""

_FLAT, _FLOOR = 0.2, 0.5
"""Predictions (log lengths) and products that vary less than this say nothing of an order."""

_LARGEST = 3.0
_MEMORY = 3000.0
_FIRST = 100
"""Requests on which the long-run means are found before anything is told."""


def threshold(run: float, slack: float) -> float:
    """Return the threshold of a one-sided sum for `run` requests between its false alarms."""
    wanted = 2.0 * run * slack * slack
    low, high = 0.0, 400.0
    for _ in range(60):
        middle = (low + high) / 2
        power = 2.0 * slack * (middle + 1.166)
        low, high = (middle, high) if math.exp(min(power, 700.0)) - power - 1.0 < wanted else (low, middle)
    return high


class Drift:
    """Sums of what chance does not explain; `alarms` counts how often one was too large."""

    def __init__(self, run: float = USUAL_RUN) -> None:
        sums = 2 * len(_SLACKS)
        self._thresholds = [threshold(run * sums, slack) for _, slack in _SLACKS]
        self.alarms = 0
        self.restart()

    def restart(self) -> None:
        """Begin anew: what was usual before is usual no more."""
        self._seen = 0
        self._middle, self._spread = 0.0, 1.0
        self._mean = [0.0, 0.0, 0.0]
        self._square = [1.0, 1.0, 1.0]
        self._above = [0.0] * len(_SLACKS)
        self._below = [0.0] * len(_SLACKS)

    def state(self) -> list[float]:
        """Return what is kept of it."""
        return [
            self.alarms, self._seen, self._middle, self._spread,
            *self._mean, *self._square, *self._above, *self._below,
        ]  # fmt: skip

    def load(self, kept: list[float]) -> None:
        """Take over what `state` gave. Raises ValueError for another number of numbers."""
        alarms, seen, self._middle, self._spread, *rest = kept
        self.alarms, self._seen = int(alarms), int(seen)
        n = len(_SLACKS)
        if len(rest) != 6 + 2 * n:
            raise ValueError(f"{len(rest)} numbers of a drift's state; allowed: {6 + 2 * n}")
        self._mean, self._square = rest[:3], rest[3:6]
        self._above, self._below = rest[6 : 6 + n], rest[6 + n :]

    def add(self, error: float, predicted: float) -> bool:
        """Take in an error and how far the prediction was from the mean; return whether there is an alarm."""
        self._seen += 1
        share = 1.0 / min(self._seen, _MEMORY)
        predicted -= self._middle
        self._middle += share * predicted
        self._spread += share * (predicted * predicted - self._spread)
        predicted /= max(math.sqrt(self._spread), _FLAT)
        deviations = []
        for at, value in enumerate((error, error * error, error * predicted)):
            apart = value - self._mean[at]
            self._mean[at] += share * apart
            self._square[at] += share * (apart * apart - self._square[at])
            deviation = apart / math.sqrt(max(self._square[at], _FLOOR))
            deviations.append(min(max(deviation, -_LARGEST), _LARGEST))
        if self._seen < _FIRST:
            return False
        worst = 0.0
        for at, (which, slack) in enumerate(_SLACKS):
            if slack < _SMALL and self._seen < _STEADY:
                continue
            deviation = deviations[which]
            self._above[at] = max(0.0, self._above[at] + deviation - slack)
            self._below[at] = max(0.0, self._below[at] - deviation - slack)
            worst = max(worst, max(self._above[at], self._below[at]) / self._thresholds[at])
        if worst <= 1.0:
            return False
        self.alarms += 1
        self.restart()
        return True
