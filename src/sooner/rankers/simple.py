"""Rankers to compare with: the length of the prompt, and no opinion at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sooner.chat import Context, estimate_tokens
from sooner.rankers import ranker
from sooner.rankers.contract import Floats, Progress, Ranker, Rows
from sooner.rankers.offers import Term


@ranker("prompt_length")
class PromptLength(Ranker):
    """The longer the prompt, the longer the reply: the score is the logarithm of the prompt's tokens."""

    def _fit(self, rows: Rows, progress: Progress) -> None:
        """Nothing to learn but the calibration."""

    def _score(self, prompts: Sequence[str], context: Sequence[Context]) -> Floats:
        return np.log1p(np.array([estimate_tokens(prompt) for prompt in prompts], dtype=np.float64))

    def explain(self, prompt: str, context: Context) -> list[Term]:
        """Return the score as its one term."""
        return [Term("score", self.name, float(self._score([prompt], [context])[0]))]


@ranker("constant")
class Constant(Ranker):
    """The same score for every prompt, so every policy that follows it is first come, first served."""

    def _fit(self, rows: Rows, progress: Progress) -> None:
        """Nothing to learn but the mean length."""

    def _score(self, prompts: Sequence[str], context: Sequence[Context]) -> Floats:
        return np.zeros(len(prompts))

    def explain(self, prompt: str, context: Context) -> list[Term]:
        """Return the score as its one term."""
        return [Term("score", self.name, float(self._score([prompt], [context])[0]))]

    def predict(self, prompts: Sequence[str], *, context: Sequence[Context] | None = None) -> Floats:
        """Return zeros (n,), whatever the client's limits. Raises NotFittedError before `fit`."""
        return super().predict(prompts)
