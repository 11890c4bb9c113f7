"""The predictors of SSJF (AIOps 2024): regression, classes by percentile, and the index of the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sooner.core import ConfigError, UnknownName
from sooner.rankers import ranker
from sooner.rankers.contract import Floats, State
from sooner.rankers.papers.head import Classifier

PERCENTILES = {
    "regression": (),
    "classes3": (50.0, 99.0),
    "classes5": (25.0, 50.0, 75.0, 99.0),
    "ordinal3": (50.0, 99.0),
    "ordinal5": (25.0, 50.0, 75.0, 99.0),
}
"""Percentiles of the training lengths that are the edges of each task's classes."""

if TYPE_CHECKING:
    from sooner.rankers.neural.objectives import Objective, Schedule


@ranker("ssjf")
class SSJF(Classifier):
    """One of SSJF's tasks: `regression`, `classes3` (named binary there), `classes5`, `ordinal3`, `ordinal5`.

    `distance` is `l1` or `mse`, for the tasks with one output. The head has two layers of 128; classes
    count by one over their size. Theirs keeps replies below 512 tokens only; here all are kept.
    """

    cites = "SSJF (arXiv 2404.08509), section 3 and its released predictor"

    def __init__(self, *, task: str = "classes5", distance: str = "mse", **common: Any) -> None:
        """`common` are the settings of `Paper`."""
        super().__init__(**common)
        if task not in PERCENTILES:
            raise UnknownName("task", task, PERCENTILES)
        if distance not in ("l1", "mse"):
            raise ConfigError(f"distance is {distance!r}; allowed: 'l1' or 'mse'")
        self.task = task
        self.distance = distance

    def _objective(self, lengths: Floats) -> tuple[int, Objective, Schedule]:
        from sooner.rankers.neural import objectives  # torch is needed from here on only

        schedule = objectives.Schedule(hidden=(128, 128), batch=16, epochs=6)
        self.edges_ = np.unique(np.percentile(lengths, PERCENTILES[self.task]))
        if self.task == "regression":
            self.scale_ = max(float(lengths.mean()), 1.0)
            return 1, objectives.scalar(self.distance, None, self.scale_), schedule
        if self.task.startswith("ordinal"):
            return 1, objectives.scalar(self.distance, self.edges_), schedule
        held = np.bincount(self.classes(lengths), minlength=len(self.edges_) + 1)
        weights = np.where(held > 0, 1.0 / np.maximum(held, 1), 0.0)
        return len(held), objectives.classes(self.edges_, weights), schedule

    def predict_class(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Return the predicted class (n,): the likeliest one, or the one output rounded to a class."""
        outputs = self.outputs(prompts)
        if self.task == "regression":
            raise ConfigError("the regression task predicts no class")
        return np.asarray(self._class(outputs), dtype=np.int64)

    def _class(self, outputs: NDArray[np.float64]) -> NDArray[np.int64]:
        if self.task.startswith("ordinal"):
            return np.clip(np.rint(outputs[:, 0]), 0, len(self.edges_)).astype(np.int64)
        return np.asarray(np.argmax(outputs, axis=1), dtype=np.int64)

    def _read(self, outputs: NDArray[np.float64]) -> Floats:
        return outputs[:, 0] if self.task == "regression" else self._class(outputs).astype(np.float64)

    def _kept(self) -> dict[str, object]:
        return {**super()._kept(), "task": self.task}

    def _restore(self, state: State) -> None:
        super()._restore(state)
        self.task = state.settings["task"]
        if self.task not in PERCENTILES:
            raise ValueError(f"task {self.task!r}")
