"""The frames between an engine and the scorer process, over a unix stream socket."""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sooner.core import Prediction

_ASK = struct.Struct("<IQBI")  # bytes that follow, number, kind, max_tokens (0: none)
_ANSWER = struct.Struct("<Qdd")  # number, score (NaN: no answer), predicted_len (NaN: none)
_TOKENS, _TEXT = 0, 1
_LONGEST = 64 * 1024 * 1024
MAX_TOKENS_SENT = 8192
"""A longer prompt is sent as its first and last halves of this many tokens."""


class Question(NamedTuple):
    """One prompt to score, as token ids or as text."""

    number: int
    prompt: array[int] | str
    max_tokens: int


def ask(number: int, prompt: Sequence[int] | str, max_tokens: int = 0) -> bytes:
    """Return the frame that asks for a score. Raises OverflowError for a token id outside 32 bits."""
    if isinstance(prompt, str):
        kind, body = _TEXT, prompt.encode("utf-8", "replace")
    else:
        half = MAX_TOKENS_SENT // 2
        ids = array("I", prompt if len(prompt) <= MAX_TOKENS_SENT else [*prompt[:half], *prompt[-half:]])
        if sys.byteorder != "little":
            ids.byteswap()
        kind, body = _TOKENS, ids.tobytes()
    return _ASK.pack(len(body), number, kind, min(max(max_tokens, 0), 2**32 - 1)) + body


def answer(number: int, prediction: Prediction | None) -> bytes:
    """Return the frame that answers; None says that no score could be given."""
    if prediction is None:
        return _ANSWER.pack(number, math.nan, math.nan)
    length = math.nan if prediction.predicted_len is None else prediction.predicted_len
    return _ANSWER.pack(number, prediction.score, length)


class Questions:
    """Cuts a byte stream into questions."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Question]:
        """Yield every question that is complete. Raises ValueError for what is not our protocol."""
        self._buffer += data
        while len(self._buffer) >= _ASK.size:
            size, number, kind, max_tokens = _ASK.unpack_from(self._buffer)
            if size > _LONGEST or kind not in (_TOKENS, _TEXT):
                raise ValueError(f"a frame of kind {kind} and {size} bytes; allowed: kinds 0 and 1")
            if len(self._buffer) < _ASK.size + size:
                return
            body = bytes(self._buffer[_ASK.size : _ASK.size + size])
            del self._buffer[: _ASK.size + size]
            prompt = body.decode("utf-8", "replace") if kind == _TEXT else _ids(body)
            yield Question(number, prompt, max_tokens)


class Answers:
    """Cuts a byte stream into answers."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, Prediction | None]]:
        """Yield (number, prediction), None where the scorer gave nothing finite."""
        self._buffer += data
        while len(self._buffer) >= _ANSWER.size:
            number, score, length = _ANSWER.unpack_from(self._buffer)
            del self._buffer[: _ANSWER.size]
            good = math.isfinite(score) and not (math.isinf(length) or length < 0)
            yield number, Prediction(score, None if math.isnan(length) else length) if good else None


def _ids(body: bytes) -> array[int]:
    ids = array("I")
    ids.frombytes(body)
    if sys.byteorder != "little":
        ids.byteswap()
    return ids
