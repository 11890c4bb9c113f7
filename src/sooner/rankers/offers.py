"""What a ranker may offer beyond the contract: reasons for a score, a refit, the scores of its parts.

Whoever wants one asks `isinstance(ranker, Explains)`; a ranker of your own needs to have the method only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sooner.chat import Context
from sooner.core import Prediction
from sooner.rankers.contract import Floats


class Term(NamedTuple):
    """What one thing adds to the score: its kind, what it is, and the amount."""

    kind: str
    text: str
    amount: float


class Indivisible(NamedTuple):
    """A part of the score that is no sum: only asking about pieces of the text can divide it.

    `amount` is what it adds for this prompt; `of` gives what it would add (n,) for other texts in the same
    context.
    """

    kind: str
    text: str
    amount: float
    of: Callable[[Sequence[str]], Floats]


@runtime_checkable
class Explains(Protocol):
    """A ranker that knows why: `sooner explain` shows its own terms in place of sampled ones."""

    def explain(self, prompt: str, context: Context) -> Sequence[Term | Indivisible]:
        """Return terms that sum to the score, `max_tokens` left aside; exact without an `Indivisible`."""


@runtime_checkable
class Refits(Protocol):
    """A ranker that can be fitted to one served model from a few of its finished requests."""

    def refit(
        self, prompts: Sequence[str], lengths: ArrayLike, *, context: Sequence[Context] | None = None
    ) -> Self:
        """Return a copy that orders replies of the model these lengths (n,) [tokens] came from."""


class Viewed(NamedTuple):
    """The predictions of n requests, and the vectors (n, d), of length about 1, that they were made from."""

    predictions: list[Prediction]
    vectors: NDArray[np.float32]


@runtime_checkable
class HasVectors(Protocol):
    """A ranker whose last layer reads vectors, so that a learner can fit one anew to what it serves."""

    def viewed(self, prompts: Sequence[str], context: Sequence[Context]) -> Viewed:
        """Return the predictions and what they were made from, at the cost of the predictions."""


@runtime_checkable
class HasParts(Protocol):
    """A ranker made of others, each of which orders requests by itself."""

    def part_scores(self, prompts: Sequence[str], context: Sequence[Context]) -> Mapping[str, Floats]:
        """Return the scores (n,) of each part, each in its own unit."""
