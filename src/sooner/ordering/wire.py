"""The frames between an engine and the scorer process, over a unix stream socket.

An engine sends questions, and how long replies became; the scorer sends a greeting, answers, and how its
order stands. Senders and models go as hashes, never as names.
"""

from __future__ import annotations

import enum
import json
import math
import struct
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from sooner.chat import ChatRequest, Signals, Turn
from sooner.core import EngineError, Prediction
from sooner.learning.identity import Identity
from sooner.learning.shadow import Rivalry
from sooner.learning.watch import LiveStanding

VERSION = 6
"""Of the frames; where an engine and a scorer differ in it, the engine's requests stay unscored."""

_HEAD = struct.Struct("<BBIQ")  # version, kind, bytes that follow, number
# max_tokens (0: none), temperature (NaN: none), tools, structured; hashes of model and sender (0: none)
_SAID = struct.Struct("<IdH?QQ")
_TURN = struct.Struct("<BI")  # role, bytes of its text
_TEXT_SAYS = "dd"  # a ranker's score (NaN: none), predicted_len (NaN: none)
# length [tokens], ending, limit (0: none), the four hashes, what the text ranker said
_ENDED = struct.Struct("<dBI4Q" + _TEXT_SAYS)
_ANSWER = struct.Struct(
    "<BQ" + _TEXT_SAYS + "4Q" + _TEXT_SAYS
)  # kind, number, the answer, hashes, the text's
_STANDING = struct.Struct("<BBQI4dIQ?")  # kind, of what, hash, n, tau and gain with errors, alarms, seen, on
_RIVALRY = struct.Struct(
    "<B?QQ" + "I4d" * 3
)  # kind, promoted, seen, failures; both and better, as a standing
_TOKENS, _TEXT, _TURNS, _END, _PROMOTE = range(5)
_WHY = 8  # with a question's kind: not its score is wanted, but why it has that
_IS_ANSWER, _IS_STANDING, _IS_RIVALRY, _IS_REASONS = range(4)
_REASONS = struct.Struct("<BQI")  # kind, number, bytes of JSON that follow
_MOST_REASONS = 1 << 20
_SHAPES = {_IS_ANSWER: _ANSWER, _IS_STANDING: _STANDING, _IS_RIVALRY: _RIVALRY, _IS_REASONS: _REASONS}
GREETING = bytes((0xFF, VERSION))
"""What a scorer sends first; an older one sends nothing."""
_ROLES = ("system", "user", "assistant", "tool")
_LONGEST = 16 * 1024 * 1024
MAX_LETTERS_SENT = 2 * 1024 * 1024
"""Longer texts are sent as their beginnings and ends."""
MAX_TOKENS_SENT = 8192
"""A longer prompt is sent as its first and last halves of this many tokens."""


class Ending(enum.IntEnum):
    """How a reply ended. Only one that `STOP` ended is whole; the others say "at least so long"."""

    STOP = 0
    LIMIT = 1
    ABORTED = 2
    RUNNING = 3  # it has not ended


class Question(NamedTuple):
    """A request to score, the number its answer is to have, and hashes of its model and sender."""

    number: int
    request: ChatRequest
    model: int = 0
    sender: int = 0


class Why(NamedTuple):
    """The wish to know why a question has its answer."""

    question: Question


class ReasonsTold(NamedTuple):
    """Why the question of a number has its answer, as plain data."""

    number: int
    told: Mapping[str, Any]


class Placed(NamedTuple):
    """What a request is taken for: its groups, and what the text ranker said of it."""

    identity: Identity = Identity()
    text: Prediction | None = None


class Told(NamedTuple):
    """An answer: the prediction, None where there is none, and what the request was taken for."""

    number: int
    prediction: Prediction | None
    placed: Placed


class ReplyEnd(NamedTuple):
    """The length [tokens] of the reply to a question that was answered, and how it ended.

    It says again what the request was taken for, so that a scorer that died in between learns of it too.
    """

    number: int
    length: float
    ending: Ending
    placed: Placed
    limit: int | None = None


class Scope(enum.IntEnum):
    """What a standing is of."""

    ALL = 0
    MODEL = 1
    SENDER = 2


class LiveReport(NamedTuple):
    """How the order stands, of all or of the group of a `hash`; `alarms` and `seen` since learning began."""

    scope: Scope
    hash: int
    standing: LiveStanding
    alarms: int
    seen: int
    on: bool


class Promote(NamedTuple):
    """The wish that the shadow acts, or that the ranker of the settings does again."""

    on: bool


class ShadowReport(NamedTuple):
    """How the shadow stands beside the order that acts, on replies `seen` by both.

    `promoted`: it is the settings' shadow that acts, and its shadow is what was there before. `failures` are
    requests of which the shadow could not say anything.
    """

    promoted: bool
    seen: int
    now: Rivalry
    failures: int = 0


Heard: TypeAlias = Told | LiveReport | ShadowReport | ReasonsTold


class OtherVersion(EngineError, ValueError):
    """A peer whose frames are of another version."""


UNPLACED = Placed()


def ask(number: int, request: ChatRequest, model: int = 0, sender: int = 0, *, why: bool = False) -> bytes:
    """Return the frame that asks for a score, or `why` it is so.

    Raises OverflowError for a token id outside 32 bits.
    """
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
    settings = _SAID.pack(limit, temperature, tools, said.structured, model, sender)
    return _HEAD.pack(VERSION, kind | _WHY * why, len(settings) + len(body), number) + settings + body


def end(ended: ReplyEnd) -> bytes:
    """Return the frame that says how long a reply is, and how it ended."""
    identity, text = ended.placed
    limit = min(ended.limit or 0, 2**32 - 1)
    body = _ENDED.pack(ended.length, ended.ending, limit, *identity, *_numbers(text))
    return _HEAD.pack(VERSION, _END, len(body), ended.number) + body


def answer(number: int, prediction: Prediction | None, placed: Placed = UNPLACED) -> bytes:
    """Return the frame that answers; None says that no score could be given."""
    identity, text = placed
    return _ANSWER.pack(_IS_ANSWER, number, *_numbers(prediction), *identity, *_numbers(text))


def reasons(told: ReasonsTold) -> bytes:
    """Return the frame that says why."""
    body = json.dumps(told.told).encode()
    return _REASONS.pack(_IS_REASONS, told.number, len(body)) + body


def report(told: LiveReport) -> bytes:
    """Return the frame that says how the order stands."""
    now = told.standing
    return _STANDING.pack(
        _IS_STANDING, told.scope, told.hash, now.n, *now[1:], told.alarms, told.seen, told.on
    )


def promote(told: Promote) -> bytes:
    """Return the frame that says which of two orders is to act."""
    return _HEAD.pack(VERSION, _PROMOTE, 0, told.on)


def shadow_report(told: ShadowReport) -> bytes:
    """Return the frame that says how the shadow stands."""
    numbers = [number for standing in told.now for number in standing]
    return _RIVALRY.pack(_IS_RIVALRY, told.promoted, told.seen, told.failures, *numbers)


class Questions:
    """Cuts a byte stream into questions, what became of them, and wishes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Question | Why | ReplyEnd | Promote]:
        """Yield all that is complete. Raises ValueError for what is not our protocol."""
        self._buffer += data
        while self._buffer:
            if self._buffer[0] != VERSION:
                raise OtherVersion(f"a frame of version {self._buffer[0]}; allowed: version {VERSION}")
            if len(self._buffer) < _HEAD.size:
                return
            _, kind, size, number = _HEAD.unpack_from(self._buffer)
            if not _least(kind) <= size <= _LONGEST:
                raise ValueError(f"a frame of kind {kind} and {size} bytes; allowed: kinds 0 to {_PROMOTE}")
            if len(self._buffer) < _HEAD.size + size:
                return
            body = bytes(self._buffer[_HEAD.size : _HEAD.size + size])
            del self._buffer[: _HEAD.size + size]
            if kind == _PROMOTE:
                yield Promote(bool(number))
            elif kind & _WHY:
                yield Why(_question(number, kind & ~_WHY, body))
            else:
                yield _ended(number, body) if kind == _END else _question(number, kind, body)


class Answers:
    """Cuts a byte stream into a greeting, answers and standings."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.greeted = False

    def feed(self, data: bytes) -> Iterator[Heard]:
        """Yield what was said; a prediction is None where the scorer gave nothing finite.

        Raises OtherVersion for a scorer that speaks otherwise.
        """
        self._buffer += data
        while self._buffer:
            if not self.greeted:
                if len(self._buffer) < len(GREETING):
                    return
                if not self._buffer.startswith(GREETING):
                    raise OtherVersion(f"a scorer of another version; allowed: version {VERSION}")
                del self._buffer[: len(GREETING)]
                self.greeted = True
                continue
            shape = _SHAPES.get(self._buffer[0], _ANSWER)
            if len(self._buffer) < shape.size:
                return
            values = shape.unpack_from(self._buffer)
            if shape is _REASONS:
                found = self._reasons(*values[1:])
                if found is None:
                    return
                yield found
                continue
            del self._buffer[: shape.size]
            if shape is _ANSWER:
                _, number, score, length, *hashes, text_score, text_length = values
                placed = Placed(Identity(*hashes), _prediction(text_score, text_length))
                yield Told(number, _prediction(score, length), placed)
            elif shape is _RIVALRY:
                _, promoted, seen, failures, *numbers = values
                rivals = (LiveStanding(*numbers[at : at + 5]) for at in (0, 5, 10))
                yield ShadowReport(promoted, seen, Rivalry(*rivals), failures)
            else:
                _, scope, hash, n, *now, alarms, seen, on = values
                yield LiveReport(Scope(scope), hash, LiveStanding(n, *now), alarms, seen, on)

    def _reasons(self, number: int, size: int) -> ReasonsTold | None:
        """Return reasons that are complete. Raises ValueError for what is too long, or no JSON."""
        if size > _MOST_REASONS:
            raise ValueError(f"reasons of {size} bytes; allowed: {_MOST_REASONS}")
        end = _REASONS.size + size
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_REASONS.size : end])
        del self._buffer[:end]
        return ReasonsTold(number, json.loads(body))


def _numbers(prediction: Prediction | None) -> tuple[float, float]:
    if prediction is None:
        return math.nan, math.nan
    return prediction.score, math.nan if prediction.predicted_len is None else prediction.predicted_len


def _prediction(score: float, length: float) -> Prediction | None:
    if not math.isfinite(score) or math.isinf(length) or length < 0:
        return None
    return Prediction(score, None if math.isnan(length) else length)


def _least(kind: int) -> float:
    """Return how many bytes a frame of a kind has at least."""
    if kind & ~_WHY in (_TOKENS, _TEXT, _TURNS):
        return _SAID.size
    return {_END: _ENDED.size, _PROMOTE: 0}.get(kind, math.inf)


def _question(number: int, kind: int, body: bytes) -> Question:
    limit, temperature, tools, structured, model, sender = _SAID.unpack_from(body)
    known = None if math.isnan(temperature) else temperature
    signals = Signals(limit or None, known, tools, structured)
    return Question(number, ChatRequest(_prompt(kind, body[_SAID.size :]), signals), model, sender)


def _ended(number: int, body: bytes) -> ReplyEnd:
    """Return what became of a reply. Raises ValueError for what cannot be."""
    length, ending, limit, *hashes, score, text_length = _ENDED.unpack_from(body)
    if not 0.0 <= length < math.inf:
        raise ValueError(f"a reply of {length} tokens; allowed: finite numbers >= 0")
    placed = Placed(Identity(*hashes), _prediction(score, text_length))
    return ReplyEnd(number, length, Ending(ending), placed, limit or None)


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
