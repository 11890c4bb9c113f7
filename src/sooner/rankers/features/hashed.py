"""Text and context as features of a linear model: hashed words, pairs, character n-grams and places,
and a short column of numbers. NumPy and zlib only; about a tenth of a millisecond a prompt.

A long prompt counts by its head and its tail, so a megabyte costs no more than a page.
"""

from __future__ import annotations

import itertools
import math
import re
import string
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.chat import Context

BITS = 18
"""Hashed features fall into 2 ** BITS places."""

_HEAD, _TAIL = 1200, 600  # characters that words are read from
_EDGE = 400  # bytes at either end that character n-grams are read from
_SYSTEM = 400  # characters of a system prompt
_PLACES = 4  # words at either end that are marked with their place

_WORD = re.compile(r"\w+|[^\w\s]")
_COUNTED = re.compile(
    r"\b(\d{1,5})[ -]?(?:(words?)|sentences?|paragraphs?|bullet|points?|items?|lines?|steps?|tips|ideas"
    r"|examples|pages?|characters|chars|questions|ways|reasons|titles|names|tweets)\b",
    re.IGNORECASE,
)

_DIGIT = re.compile(r"\d")
_CAPITALS, _DIGITS = string.ascii_uppercase.encode(), string.digits.encode()

_GROUPS = (
    "word",
    "pair",
    "chars4",
    "chars5",
    "first",
    "last",
    "opening",
    "last line",
    "shape",
    "context",
    "system",
)
_TOTAL = np.array([5.0, 5.0, 5.0, 5.0, 0, 0, 0, 0, 0, 0, 3.0])
"""Length of a group's part of the feature vector, however many features it holds; 0: one for each."""
_SALT = np.array([zlib.crc32(group.encode()) for group in _GROUPS], dtype=np.uint32)

NUMBERS = (
    "prompt characters (log)",
    "prompt characters (log, squared)",
    "prompt words (log)",
    "lines (log)",
    "ends with ?",
    "holds ?",
    "ends with :",
    "ends with .",
    "starts in lower case",
    "holds ```",
    "braces and semicolons (log)",
    "share of other scripts",
    "share of capitals",
    "share of digits",
    "characters a word",
    "words asked for (log)",
    "asks for a number of words",
    "items asked for (log)",
    "asks for a number of items",
    "turn (log)",
    "has earlier replies",
    "last reply (log tokens)",
    "mean earlier reply (log tokens)",
    "longest earlier reply (log tokens)",
    "shortest earlier reply (log tokens)",
    "has a system prompt",
    "max_tokens known",
    "max_tokens (log)",
    "temperature known",
    "temperature",
    "tools (log)",
    "asks for a structure",
)
"""Names of the plain numbers, in the order of the columns `numbers` returns."""


class SparseRow(NamedTuple):
    """Features of one request: places (m,) in [0, 2 ** BITS) and their values (m,)."""

    place: NDArray[np.int64]
    value: NDArray[np.float32]


class Named(NamedTuple):
    """One hashed feature for people: its kind, the words or letters it stands for, its place and value."""

    kind: str
    text: str
    place: int
    value: float


def hashed(prompt: str, context: Context) -> SparseRow:
    """Return the hashed features of one request."""
    keys = np.sort(_keys(_parts(prompt, context)))
    fresh = np.empty(keys.shape[0], dtype=bool)
    fresh[0] = True  # there is always a key: the prompt's length
    np.not_equal(keys[1:], keys[:-1], out=fresh[1:])
    unique = keys[fresh]
    return SparseRow((unique & _MASK).astype(np.int64), _values(unique))


def named(prompt: str, context: Context) -> list[Named]:
    """Return the features of `hashed` with what they stand for; the same places and values, slower."""
    parts = _parts(prompt, context)
    keys = _keys(parts)
    unique, first = np.unique(keys, return_index=True)
    labels = _labels(parts)
    values = _values(unique)
    return [
        Named(_GROUPS[int(key >> _SHIFT)], labels[at], int(key & _MASK), float(value))
        for key, at, value in zip(unique, first.tolist(), values, strict=True)
    ]


def numbers(prompt: str, context: Context) -> list[float]:
    """Return the plain numbers of one request, as `NUMBERS` names them; all finite and small."""
    size = len(prompt)
    shown = _ends(prompt, _HEAD, _TAIL)
    words = len(shown.split())
    head = shown[:500]
    end = prompt[-80:].rstrip()[-1:]
    asked_words, asked_items = 0, 0
    for found in _COUNTED.finditer(shown) if _DIGIT.search(shown) else ():
        number = int(found[1])
        if found[2]:
            asked_words = max(asked_words, number)
        else:
            asked_items = max(asked_items, number)
    log_size = math.log1p(size)
    replies = context.reply_lens or (0.0,)
    limit, temperature = context.max_tokens, context.temperature
    return [
        log_size,
        log_size * log_size / 10,
        math.log1p(words * size / max(len(shown), 1)),
        math.log1p(shown.count("\n")),
        float(end in ("?", "\uff1f")),
        float("?" in shown),
        float(end == ":"),
        float(end == "."),
        float(prompt[:1].islower()),
        float("```" in shown),
        math.log1p(shown.count("{") + shown.count(";")),
        *_shares(head),
        min(len(shown) / max(words, 1), 15.0),
        math.log1p(asked_words),
        float(asked_words > 0),
        math.log1p(asked_items),
        float(asked_items > 0),
        math.log1p(context.turn),
        float(context.turn > 0),
        math.log1p(replies[-1]),
        math.log1p(math.fsum(replies) / len(replies)),
        math.log1p(max(replies)),
        math.log1p(min(replies)),
        float(bool(context.system)),
        float(limit is not None),
        0.0 if limit is None else math.log1p(max(limit, 0)),
        float(temperature is not None),
        0.0 if temperature is None else float(min(max(temperature, 0.0), 5.0)),
        math.log1p(context.tools),
        float(context.structured),
    ]


def _shares(head: str) -> tuple[float, float, float]:
    """Which share of letters is of other scripts, is a capital, is a digit."""
    letters = max(len(head), 1)
    if head.isascii():
        raw = head.encode()
        capitals = len(raw) - len(raw.translate(None, _CAPITALS))
        return 0.0, capitals / letters, (len(raw) - len(raw.translate(None, _DIGITS))) / letters
    others = sum(letter > "\x7f" for letter in head)
    return others / letters, sum(map(str.isupper, head)) / letters, sum(map(str.isdigit, head)) / letters


_MASK = np.uint32((1 << BITS) - 1)
_SHIFT = np.uint32(BITS)


class _Parts(NamedTuple):
    words: list[str]
    letters: NDArray[np.uint32]
    last_line: list[str]
    shape: list[str]
    context: list[str]
    system: list[str]


def _parts(prompt: str, context: Context) -> _Parts:
    shown = _ends(prompt, _HEAD, _TAIL).lower()
    raw = shown.encode("utf-8", "surrogatepass")
    if len(raw) > 2 * _EDGE:
        raw = raw[:_EDGE] + b"\n" + raw[-_EDGE:]
    line = shown[-_TAIL:].rstrip().rpartition("\n")[2]
    shape = [
        f"{int(4 * math.log1p(len(prompt)))} quarter-logs of length",
        f"{min(shown.count(chr(10)), 20)} lines",
    ]
    known = [f"turn {min(context.turn, 12)}"]
    if context.reply_lens:
        last, mean = context.reply_lens[-1], math.fsum(context.reply_lens) / len(context.reply_lens)
        known += [f"last reply {int(3 * math.log1p(last))}", f"mean reply {int(3 * math.log1p(mean))}"]
    return _Parts(
        _WORD.findall(shown),
        np.frombuffer(b" " + raw + b" ", dtype=np.uint8).astype(np.uint32),
        [found[0] for found in itertools.islice(_WORD.finditer(line), 3)],
        shape,
        known,
        _WORD.findall(context.system[:_SYSTEM].lower()),
    )


def _keys(parts: _Parts) -> NDArray[np.uint32]:
    """One key for each occurrence: the group's number above, the place below; groups in order."""
    word, line, shape, known, system = map(
        _crc, (parts.words, parts.last_line, parts.shape, parts.context, parts.system)
    )
    place = np.arange(1, _PLACES + 1, dtype=np.uint32) * np.uint32(0x9E3779B1)
    four = _grams(parts.letters, 4)
    columns = [
        word,
        word[:-1] * np.uint32(31) + word[1:],
        four,
        four[:-1] * np.uint32(257) + parts.letters[4 : 3 + four.shape[0]],
        word[:_PLACES] + place[: word.shape[0]],
        word[::-1][:_PLACES] + place[: word.shape[0]],
        np.cumsum(word[:3] * _ODD[: word.shape[0]], dtype=np.uint32),
        line + place[: line.shape[0]],
        shape,
        known,
        system,
    ]
    group = np.repeat(_GROUP, [column.shape[0] for column in columns])
    mixed = (np.concatenate(columns) ^ _SALT[group]) * np.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x85EBCA77)
    keys: NDArray[np.uint32] = (group << _SHIFT) | (mixed >> np.uint32(32 - BITS))
    return keys


_GROUP = np.arange(len(_GROUPS), dtype=np.uint32)
_ODD = np.array([1, 31, 961], dtype=np.uint32)


def _labels(parts: _Parts) -> list[str]:
    """What each key of `_keys` stands for."""
    words, letters = parts.words, parts.letters.astype(np.uint8).tobytes()
    grams = [
        letters[i : i + n].decode("utf-8", "replace")
        for n in (4, 5)
        for i in range(max(len(letters) - n + 1, 0))
    ]
    return [
        *words,
        *(f"{a} {b}" for a, b in itertools.pairwise(words)),
        *grams,
        *(f"{word} (word {i + 1})" for i, word in enumerate(words[:_PLACES])),
        *(f"{word} (word {-i - 1})" for i, word in enumerate(words[::-1][:_PLACES])),
        *(" ".join(words[: i + 1]) for i in range(min(len(words), 3))),
        *(f"{word} (word {i + 1} of the last line)" for i, word in enumerate(parts.last_line)),
        *parts.shape,
        *parts.context,
        *parts.system,
    ]


def _values(unique: NDArray[np.uint32]) -> NDArray[np.float32]:
    group = (unique >> _SHIFT).astype(np.int64)
    held = np.bincount(group, minlength=len(_GROUPS))
    scale = np.where(_TOTAL > 0, _TOTAL / np.sqrt(np.maximum(held, 1)), 1.0)
    return np.asarray(scale[group], dtype=np.float32)


def _crc(words: Sequence[str]) -> NDArray[np.uint32]:
    """Return a number for each word; none of them holds a line's end."""
    if not words:
        return np.empty(0, dtype=np.uint32)
    raw = "\n".join(words).encode("utf-8", "surrogatepass").split(b"\n")
    return np.fromiter(map(zlib.crc32, raw), dtype=np.uint32, count=len(raw))


def _grams(letters: NDArray[np.uint32], n: int) -> NDArray[np.uint32]:
    count = max(letters.shape[0] - n + 1, 0)
    code = letters[:count]
    for shift in range(1, n):
        code = code * np.uint32(257) + letters[shift : shift + count]
    return code


def _ends(text: str, head: int, tail: int) -> str:
    return text if len(text) <= head + tail else f"{text[:head]}\n{text[-tail:]}"
