"""A ranker that needs time in proportion to the text, as long ones do: 10 ms and 1 ms a kilobyte."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sooner.core import Prediction


class Ranker:
    def predictions(self, prompts: Sequence[str], *, context: object = None) -> list[Prediction]:
        time.sleep(sum(0.01 + len(prompt) / 1e6 for prompt in prompts))
        return [Prediction(float(len(prompt)), None) for prompt in prompts]
