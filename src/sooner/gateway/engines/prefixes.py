"""What an engine's prefix cache may hold: hashes of the beginnings that were sent there, and no text."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from sooner.chat import ChatRequest

MOST = 16_384
"""Beginnings that are remembered of an engine; about two megabytes."""
_FIRST, _GROWTH = 256, 1.25  # letters of the shortest beginning; each is so much longer than the last
_LONGEST = 128 * 1024


def _bounds() -> Iterator[int]:
    at = float(_FIRST)
    while at <= _LONGEST:
        yield int(at)
        at *= _GROWTH


_BOUNDS = tuple(_bounds())


class Beginnings(NamedTuple):
    """A prompt's beginnings of growing length: a hash of each, and its part of the prompt, in (0, 1]."""

    hashes: tuple[int, ...] = ()
    parts: tuple[float, ...] = ()


NONE = Beginnings()


def beginnings(request: ChatRequest, model: str) -> Beginnings:
    """Return the beginnings of a request's prompt; equal where prompts of a model begin alike."""
    prompt = request.opening(_LONGEST) or (request.prompt if request.tokenized else "")
    size = len(prompt)
    ends = _BOUNDS[: bisect_left(_BOUNDS, size)]
    if not size:
        return NONE
    seed, hashes = hash(model), []
    for start, end in pairwise((0, *ends, size)):
        piece = prompt[start:end]
        seed = hash((seed, piece if isinstance(piece, str) else tuple(piece)))
        hashes.append(seed)
    return Beginnings(tuple(hashes), tuple(end / size for end in (*ends, size)))


class SentBeginnings:
    """The beginnings that went to one engine, the latest kept: as many, and of as many tokens, as fit."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._tokens: OrderedDict[int, float] = OrderedDict()  # of each beginning beyond the one before
        self._held = 0.0
        self.capacity: float | None = None  # tokens that the engine's cache holds; None: unknown

    def part(self, of: Beginnings) -> float:
        """Return the part of a prompt that the engine should hold, in [0, 1]."""
        known = self._tokens
        if not of.hashes or of.hashes[0] not in known:  # the ends are forgotten first
            return 0.0
        for hashed, part in zip(reversed(of.hashes), reversed(of.parts), strict=True):
            if hashed in known:
                return part
        return 0.0

    def sent(self, of: Beginnings, prompt_len: float) -> None:
        """Say that a prompt of `prompt_len` tokens goes there."""
        known = self._tokens
        steps = [after - before for before, after in pairwise((0.0, *of.parts))]
        for hashed, step in zip(reversed(of.hashes), reversed(steps), strict=True):  # the ends go first
            self._held += step * prompt_len - known.pop(hashed, 0.0)
            known[hashed] = step * prompt_len
        while len(known) > self._most or (self.capacity is not None and self._held > self.capacity and known):
            self._held -= known.popitem(last=False)[1]

    def forget(self) -> None:
        """Begin anew: the engine was started again."""
        self._tokens.clear()
        self._held = 0.0
