"""The predictor of PARS (2025): pairs of replies, the longer one to score higher by a margin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sooner.core import ConfigError
from sooner.rankers import ranker
from sooner.rankers.contract import Floats
from sooner.rankers.papers.head import Paper

if TYPE_CHECKING:
    from sooner.rankers.neural.objectives import Objective, Schedule


@ranker("pars")
class Pars(Paper):
    """Margin ranking over the pairs of a batch, those whose lengths differ by less than `least` dropped."""

    cites = "PARS (arXiv 2510.03243), section 3"

    def __init__(self, *, least: float = 0.2, **common: Any) -> None:
        """`least` is the share of the longer reply by which the two of a pair must differ.

        `common` are the settings of `Paper`.
        """
        super().__init__(**common)
        if not 0 <= least < 1:
            raise ConfigError(f"least is {least}; allowed: at least 0 and below 1")
        self.least = least

    def _objective(self, lengths: Floats) -> tuple[int, Objective, Schedule]:
        from sooner.rankers.neural import objectives  # torch is needed from here on only

        return 1, objectives.margin(self.least), objectives.Schedule()

    def _read(self, outputs: NDArray[np.float64]) -> Floats:
        return outputs[:, 0]
