"""What ends a job: all samples, a random sample of them, the first that come, or a budget of seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sooner.core import ConfigError, UnknownName

GOALS = ("all", "sample", "first", "budget")
ORDERS = ("auto", "longest", "shortest", "arrival")
CONTROL = 0.05
"""Share of the prompts that are run to their end whatever the goal, where the goal selects."""

_POLICIES = {"longest": "longest", "shortest": "spw", "arrival": "fcfs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """When a job may stop. `n` [samples] is for `sample` and `first`, `seconds` for `budget`.

    `sample` draws at random before anything runs, so what is kept is unbiased; `first` and `budget` keep
    what comes first, which is short. For those a `control` share of the prompts, drawn at random, is run
    to its end: it gives the truth. `balanced` gives each tenth of the predicted lengths the same quota.
    """

    kind: str = "all"
    n: int | None = None
    seconds: float | None = None
    control: float = CONTROL
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.kind not in GOALS:
            raise UnknownName("goal", self.kind, GOALS)
        if self.kind in ("sample", "first") and (self.n is None or self.n < 1):
            raise ConfigError(f"{self.kind}={self.n}, allowed: at least 1 sample")
        if self.kind == "budget" and not (self.seconds and math.isfinite(self.seconds) and self.seconds > 0):
            raise ConfigError(f"budget={self.seconds}, allowed: above 0 [s]")
        if not 0 <= self.control < 1:
            raise ConfigError(f"control={self.control}, allowed: at least 0, below 1")
        if self.balanced and not self.selects:
            raise ConfigError(f"balanced with the goal {self.kind!r}, allowed: first or budget")

    @property
    def selects(self) -> bool:
        """Whether what is kept hangs on how long it takes."""
        return self.kind in ("first", "budget")

    def policy(self, order: str) -> str:
        """Return the policy that an order names: `auto` is what reaches this goal soonest.

        Raises UnknownName for another order.
        """
        if order not in ORDERS:
            raise UnknownName("order", order, ORDERS)
        if order == "auto":
            order = "shortest" if self.selects else "longest"
        return _POLICIES[order]

    def __str__(self) -> str:
        if self.kind == "all":
            return "all"
        return f"{self.kind} {self.n if self.kind != 'budget' else f'{self.seconds:g} s'}"
