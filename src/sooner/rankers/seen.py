"""Which prompts a ranker was trained on, in 32 KB: so that judging it on its own rows is noticed.

Kept are the smallest of the prompts' 64-bit hashes (a bottom-k sketch: Cohen and Kaplan, 2007). No text
can be read from them, though whoever guesses a prompt can check the guess.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sooner.chat import Context

_KEPT = 4096
_NAME = "seen.hashes"


class SeenPrompts(NamedTuple):
    """Hashes (k,) of training prompts, ascending; all of them where they are fewer than 4,096."""

    hashes: NDArray[np.uint64]

    @classmethod
    def of(cls, prompts: Sequence[str], context: Sequence[Context]) -> Self:
        """Return the sketch of training prompts, each in its context."""
        return cls(np.unique(_hashed(prompts, context))[:_KEPT])

    def share(self, prompts: Sequence[str], context: Sequence[Context]) -> float:
        """Return about which share of `prompts` was trained on, in [0, 1]; 0 where that cannot be told."""
        asked = _hashed(prompts, context)
        if len(self.hashes) == _KEPT:  # larger hashes were not kept, so nothing is known of them
            asked = asked[asked <= self.hashes[-1]]
        return float(np.isin(asked, self.hashes).mean()) if len(asked) else 0.0

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is saved."""
        return {_NAME: self.hashes}

    @classmethod
    def taken_from(cls, arrays: dict[str, NDArray[Any]]) -> Self | None:
        """Take what was saved out of `arrays`; None where nothing was, as in older rankers."""
        hashes = arrays.pop(_NAME, None)
        return None if hashes is None else cls(hashes.astype(np.uint64))


def _hashed(prompts: Sequence[str], context: Sequence[Context]) -> NDArray[np.uint64]:
    """Hashes (n,) of prompts, each with its turn, its earlier replies and its system prompt."""
    texts = [
        f"{known.turn}\0{known.reply_lens}\0{known.system}\0{prompt}"
        for prompt, known in zip(prompts, context, strict=True)
    ]
    digests = [
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
