"""The predictor of vllm-ltr, "Efficient LLM Scheduling by Learning to Rank" (NeurIPS 2024): ListMLE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sooner.rankers import ranker
from sooner.rankers.contract import Floats
from sooner.rankers.papers.head import Paper

if TYPE_CHECKING:
    from sooner.rankers.neural.objectives import Objective, Schedule


@ranker("ltr")
class LearningToRank(Paper):
    """vllm-ltr's rule: label `8192 // 10 - min(8192, length) // 10`, ListMLE over batches of 32, 5 epochs.

    A score grows with the expected length here, so it is minus the paper's.
    """

    cites = "vllm-ltr (arXiv 2408.15792), section 4 and its train/trainer.py"

    def __init__(self, *, group: int = 10, batch: int = 32, **common: Any) -> None:
        """`group` [tokens] is the width of a label, `batch` the list's length (in their blog 64).

        `common` are the settings of `Paper`.
        """
        super().__init__(**common)
        self.group = group
        self.batch = batch

    def _objective(self, lengths: Floats) -> tuple[int, Objective, Schedule]:
        from sooner.rankers.neural import objectives  # torch is needed from here on only

        return 1, objectives.list_mle(self.group), objectives.Schedule(batch=self.batch)

    def _read(self, outputs: NDArray[np.float64]) -> Floats:
        return -outputs[:, 0]
