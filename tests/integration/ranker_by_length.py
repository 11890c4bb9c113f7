"""A ranker of one's own, as `ranker: "module:name"` takes it: the longer the prompt, the longer the reply."""

from __future__ import annotations

from collections.abc import Sequence

from sooner.core import Prediction
from sooner.rankers import Context


class Ranker:
    """Scores a prompt by its length in characters; fails on one that says so, to be survived."""

    def predictions(self, prompts: Sequence[str], *, context: Sequence[Context]) -> list[Prediction]:
        """Return one prediction for each prompt."""
        if any("fail" in prompt for prompt in prompts):
            raise RuntimeError("on purpose")
        return [Prediction(float(len(prompt)), float(len(prompt))) for prompt in prompts]
