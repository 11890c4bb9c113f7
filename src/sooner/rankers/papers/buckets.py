"""The classifiers that vllm-ltr compares itself with: which bucket of lengths will the reply fall into?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sooner.core import ConfigError
from sooner.rankers import ranker
from sooner.rankers.contract import Floats
from sooner.rankers.papers.head import LONGEST, Classifier

if TYPE_CHECKING:
    from sooner.rankers.neural.objectives import Objective, Schedule


@ranker("buckets")
class Buckets(Classifier):
    """Buckets of `size` tokens up to 8192, cross-entropy, the likeliest bucket as the score.

    vllm-ltr's sizes are 820 ("10 buckets"), 100, 10 and 1. Replies of one bucket tie.
    """

    cites = "vllm-ltr (arXiv 2408.15792), table 3: classification"

    def __init__(self, *, size: int = 820, **common: Any) -> None:
        """`common` are the settings of `Paper`."""
        super().__init__(**common)
        if not 1 <= size <= LONGEST:
            raise ConfigError(f"size is {size}; allowed: 1 to {LONGEST} tokens")
        self.size = size

    def _objective(self, lengths: Floats) -> tuple[int, Objective, Schedule]:
        from sooner.rankers.neural import objectives  # torch is needed from here on only

        self.edges_ = np.arange(self.size, LONGEST + 1, self.size, dtype=np.float64)
        return len(self.edges_) + 1, objectives.classes(self.edges_), objectives.Schedule()
