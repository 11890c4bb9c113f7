"""Text to token ids for an encoder: the beginning and the end of a prompt, within a limit.

Needs the `tokenizers` library, and neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import MissingExtra

try:
    from tokenizers import Tokenizer
except ImportError as error:
    raise MissingExtra("tokenizers", "train") from error

_CHARS_PER_PIECE = 12
"""Characters read for each piece kept: three times English, so that 1 MB is not all cut to pieces."""


class Padded(NamedTuple):
    """Padded ids and mask (n, longest), int64: what an encoder takes."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]


class Wordpieces:
    """A tokenizer that keeps at most `limit` ids of a prompt: half from its beginning, half from its end.

    Instructions stand at either end of a prompt and pasted material between them.
    """

    def __init__(self, definition: str, limit: int, pad: int = 0) -> None:
        """`definition` is the text of a `tokenizer.json`. Raises ValueError when it is not one."""
        try:
            self._tokenizer = Tokenizer.from_str(definition)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"not a tokenizer.json: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.definition = definition
        self.limit = limit
        self.pad = pad
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        dressed = self._tokenizer.encode("a").ids
        at = next((i for i in range(len(dressed)) if dressed[i : i + len(bare)] == bare), 0)
        self._prefix, self._suffix = dressed[:at], dressed[at + len(bare) :]

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the ids (m,) of one prompt, special tokens included; 1 <= m <= limit."""
        reach = self.limit * _CHARS_PER_PIECE
        if len(text) > 2 * reach:
            text = text[:reach] + " " + text[-reach:]
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode("utf-8")
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        room = self.limit - len(self._prefix) - len(self._suffix)
        if len(ids) > room:
            head = (room + 1) // 2
            ids = ids[:head] + ids[len(ids) - (room - head) :]
        whole = self._prefix + ids + self._suffix
        return np.array(whole or [self.pad], dtype=np.int64)

    def batch(self, rows: Sequence[NDArray[np.int64]]) -> Padded:
        """Return encoded prompts as one rectangle."""
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), self.pad, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return Padded(ids, mask)
