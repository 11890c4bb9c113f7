"""What a prompt is about, in a few dozen numbers: hashed words and pairs, weighted and turned by an SVD.

Latent semantic analysis (Deerwester et al., 1990). Learned from prompts alone, without their replies,
so nothing of a reply's length leaks into it.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sooner.core import MissingExtra

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

BITS = 14
"""Words and pairs fall into 2 ** BITS places."""

_HEAD, _TAIL = 2000, 1000  # characters of a prompt that are read
_WORD = re.compile(r"\w+|[^\w\s]")


class Topics(NamedTuple):
    """Weights of the places (2 ** BITS,) and directions (2 ** BITS, k), zeros where nothing was learned."""

    weight: NDArray[np.float32]
    direction: NDArray[np.float32]

    @classmethod
    def fit(cls, prompts: Sequence[str], count: int, *, seed: int = 0) -> Self:
        """Return at most `count` directions learned from prompts; scikit-learn finds them."""
        try:
            from sklearn.utils.extmath import randomized_svd
        except ImportError as error:
            raise MissingExtra("scikit-learn", "train") from error
        seen = [places(prompt) for prompt in prompts]
        held = np.bincount(np.concatenate(seen), minlength=1 << BITS)
        weight = np.log((1 + len(prompts)) / (1 + held)).astype(np.float32)
        table = _table(seen, weight)
        k = min(count, len(prompts) - 1, int((held > 0).sum()) - 1)
        if k < 1 or table.nnz == 0:
            return cls(weight, np.zeros((1 << BITS, 1), dtype=np.float32))  # one number, always 0
        _, _, directions = randomized_svd(table, k, n_iter=4, random_state=seed)
        kept = directions.T.astype(np.float16).astype(np.float32)
        return cls(weight, np.ascontiguousarray(kept))

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """Return the numbers of n prompts (n, k)."""
        rows = np.zeros((len(prompts), self.direction.shape[1]))
        for row, prompt in zip(rows, prompts, strict=True):
            place = places(prompt)
            value = self.weight[place]
            size = float(np.sqrt(value @ value))
            if size > 0:
                row[:] = (value / size) @ self.direction[place]
        return rows

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is saved."""
        return {"topics.weight": self.weight, "topics.direction": self.direction.astype(np.float16)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Return what was saved. Raises ValueError for arrays of other shapes."""
        weight, direction = arrays["topics.weight"], arrays["topics.direction"].astype(np.float32)
        if weight.shape != (1 << BITS,) or direction.ndim != 2 or direction.shape[0] != 1 << BITS:
            raise ValueError(f"topics of shapes {weight.shape} and {direction.shape}")
        return cls(weight, direction)


def places(prompt: str) -> NDArray[np.int64]:
    """Return the places (m,) of a prompt's words and pairs, each once, m >= 1."""
    shown = prompt if len(prompt) <= _HEAD + _TAIL else f"{prompt[:_HEAD]}\n{prompt[-_TAIL:]}"
    words = _WORD.findall(shown.lower())
    texts = {"", *words, *(f"{a} {b}" for a, b in itertools.pairwise(words))}
    codes = {zlib.crc32(text.encode("utf-8", "replace")) % (1 << BITS) for text in texts}
    return np.array(sorted(codes), dtype=np.int64)


def _table(places: Sequence[NDArray[np.int64]], weight: NDArray[np.float32]) -> csr_matrix:
    """Weighted rows of length 1, one a prompt."""
    from scipy.sparse import csr_matrix

    values = [weight[place] for place in places]
    sizes = [max(float(np.sqrt(value @ value)), 1e-12) for value in values]
    return csr_matrix(
        (
            np.concatenate([value / size for value, size in zip(values, sizes, strict=True)]),
            np.concatenate(places),
            np.cumsum([0, *(len(place) for place in places)]),
        ),
        shape=(len(places), 1 << BITS),
    )
