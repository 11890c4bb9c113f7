"""The frames between an engine and the scorer process, over a unix stream socket."""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sooner.chat import ChatRequest, Signals, Turn
from sooner.core import Prediction

VERSION = 2
"""Of the frames; where an engine and a scorer differ in it, the engine's requests stay unscored."""

# version, kind, bytes that follow, number; then the signals: max_tokens (0: none), temperature (NaN: none),
# tools, structured
_ASK = struct.Struct("<BBIQIdH?")
_TURN = struct.Struct("<BI")  # role, bytes of its text
_ANSWER = struct.Struct("<Qdd")  # number, score (NaN: no answer), predicted_len (NaN: none)
_TOKENS, _TEXT, _TURNS = range(3)
_ROLES = ("system", "user", "assistant", "tool")
_LONGEST = 16 * 1024 * 1024
MAX_LETTERS_SENT = 2 * 1024 * 1024
"""Longer texts are sent as their beginnings and ends."""
MAX_TOKENS_SENT = 8192
"""A longer prompt is sent as its first and last halves of this many tokens."""


class Question(NamedTuple):
    """A request to score, and the number its answer is to have."""

    number: int
    request: ChatRequest


def ask(number: int, request: ChatRequest) -> bytes:
    """Return the frame that asks for a score. Raises OverflowError for a token id outside 32 bits."""
    request = request.cut(MAX_LETTERS_SENT)
    prompt, said = request
    if isinstance(prompt, str):
        kind, body = _TEXT, prompt.encode("utf-8", "replace")
    elif request.tokenized:
        kind, body = _TOKENS, _packed_ids(prompt)  # type: ignore[arg-type]  # `tokenized` says so
    else:
        kind, body = _TURNS, b"".join(map(_packed_turn, prompt))  # type: ignore[arg-type]  # only turns are left
    temperature = math.nan if said.temperature is None else said.temperature
    limit, tools = min(said.max_tokens or 0, 2**32 - 1), min(said.tools, 2**16 - 1)
    return _ASK.pack(VERSION, kind, len(body), number, limit, temperature, tools, said.structured) + body


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
        while self._buffer:
            if self._buffer[0] != VERSION:
                raise ValueError(f"a frame of version {self._buffer[0]}; allowed: version {VERSION}")
            if len(self._buffer) < _ASK.size:
                return
            _, kind, size, number, limit, temperature, tools, structured = _ASK.unpack_from(self._buffer)
            if size > _LONGEST or kind > _TURNS:
                raise ValueError(f"a frame of kind {kind} and {size} bytes; allowed: kinds 0 to {_TURNS}")
            if len(self._buffer) < _ASK.size + size:
                return
            body = bytes(self._buffer[_ASK.size : _ASK.size + size])
            del self._buffer[: _ASK.size + size]
            known = None if math.isnan(temperature) else temperature
            yield Question(
                number, ChatRequest(_prompt(kind, body), Signals(limit or None, known, tools, structured))
            )


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


def _packed_ids(prompt: Sequence[int]) -> bytes:
    half = MAX_TOKENS_SENT // 2
    ids = array("I", prompt if len(prompt) <= MAX_TOKENS_SENT else [*prompt[:half], *prompt[-half:]])
    if sys.byteorder != "little":
        ids.byteswap()
    return ids.tobytes()


def _packed_turn(turn: Turn) -> bytes:
    text = turn.text.encode("utf-8", "replace")
    return _TURN.pack(_ROLES.index(turn.role), len(text)) + text


def _prompt(kind: int, body: bytes) -> Sequence[int] | str | tuple[Turn, ...]:
    """Return the prompt in a frame's body. Raises ValueError where turns do not fill it."""
    if kind == _TEXT:
        return body.decode("utf-8", "replace")
    return _ids(body) if kind == _TOKENS else tuple(_turns(body))


def _turns(body: bytes) -> Iterator[Turn]:
    at = 0
    while at < len(body):
        if len(body) - at < _TURN.size:
            raise ValueError("a frame's last turn is cut")
        role, size = _TURN.unpack_from(body, at)
        at += _TURN.size
        if role >= len(_ROLES) or size > len(body) - at:
            raise ValueError(f"a turn of role {role} and {size} bytes; allowed: 0 to 3, within its frame")
        yield Turn(_ROLES[role], body[at : at + size].decode("utf-8", "replace"))
        at += size


def _ids(body: bytes) -> array[int]:
    ids = array("I")
    ids.frombytes(body)
    if sys.byteorder != "little":
        ids.byteswap()
    return ids
