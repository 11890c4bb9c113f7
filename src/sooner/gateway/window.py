"""How many requests an engine is given at once, so that its own queue stays shallow and ours orders."""

from __future__ import annotations

import math

_TOLERANCE = 2.0  # a first token may take this many times the best before it counts as queueing
_STILL = 2  # counts, a second together, after which those who wait do so for a place: no step lasts so long
_FORGET = 1.00001  # for each first byte: an engine that became slower is believed after some 10,000


class Window:
    """The bound on requests in flight: fixed, or found between `least` and `most`.

    Where the engine says how many wait inside it, the bound grows while none do and falls by those
    that do; one that came less than the quickest first byte ago waits for no place, only for the step
    that runs. Where it does not, the time to the first byte decides (the gradient rule of Netflix's
    concurrency-limits): the bound shrinks by the factor by which that exceeds twice the best.
    """

    def __init__(self, fixed: int, least: int, most: int, start: int = 16) -> None:
        self._fixed = fixed
        self._least = least
        self._most = most
        self._limit = float(min(max(start, least), most))
        self._probing = True  # until the first sign of queueing
        self._best: dict[int, float] = {}  # quickest first byte [s] by the prompt's length in powers of two
        self._counted = False  # whether the engine says how many wait
        self._running = 0.0  # the most that ran since none waited there
        self._still = 0  # counts since that rose

    @property
    def limit(self) -> int:
        """The bound now."""
        return self._fixed or int(self._limit)

    @property
    def quickest(self) -> float:
        """The quickest first byte that was seen [s], slowly forgotten; 0: none."""
        return min(self._best.values(), default=0.0)

    @property
    def growing(self) -> bool:
        """Whether no sign of queueing was seen yet, so that the bound is less than the engine can take."""
        return not self._fixed and self._probing and self._limit < self._most

    def engine(self, waiting: float, in_flight: int, hungry: bool) -> None:
        """Take in the engine's own count of waiting requests, new ones aside; `hungry`: more wait here."""
        self._counted = True
        spare = max(1.0, 0.05 * self._limit)
        running = in_flight - waiting
        if waiting <= spare:
            self._running, self._still = running, 0
            if hungry and in_flight >= int(self._limit):
                self._set(self._limit * 2 if self._probing else self._limit + max(1.0, 0.1 * self._limit))
        elif running > self._running:  # it still prefills a burst, and has room
            self._running, self._still = running, 0
        else:
            self._still += 1
            if self._still >= _STILL:
                self._probing = False
                self._set(min(self._limit, running + spare))

    def latency(self, first_byte: float, prompt_len: int, in_flight: int, hungry: bool) -> None:
        """Take in the time to a first byte [s]; it moves the bound where the engine does not count.

        It is compared with that of prompts about as long (in tokens), for prefill takes its time too.
        """
        alike, first_byte = prompt_len.bit_length(), max(first_byte, 1e-4)
        best = self._best[alike] = min(self._best.get(alike, math.inf) * _FORGET, first_byte)
        if self._counted:
            return
        gradient = min(1.0, max(0.5, _TOLERANCE * best / first_byte))
        if gradient == 1.0 and not (hungry and in_flight >= int(self._limit)):
            return  # no queueing, and no need for more
        if gradient < 1.0:
            self._probing = False
        target = self._limit * gradient + (math.sqrt(self._limit) if gradient == 1.0 else 0.0)
        self._set(self._limit + 0.2 * (target - self._limit))

    def _set(self, limit: float) -> None:
        self._limit = min(max(limit, self._least), self._most)


class Breaker:
    """Keeps away from an engine that fails: after `failures` in a row, for a time that doubles."""

    def __init__(self, failures: int = 3, pause: float = 1.0, longest: float = 30.0) -> None:
        self._allowed = failures
        self._first = pause
        self._longest = longest
        self._pause = pause
        self._failed = 0
        self.until = 0.0

    def ok(self) -> None:
        """Say that the engine answered."""
        self._failed = 0
        self._pause = self._first
        self.until = 0.0

    def failed(self, now: float, *, at_once: bool = False) -> None:
        """Say that it did not; `at_once` skips the counting, where nothing listens at all."""
        self._failed += 1
        if self._failed >= self._allowed or at_once:
            self.until = now + self._pause
            self._pause = min(2 * self._pause, self._longest)

    def open(self, now: float) -> bool:
        """Return whether no request should go there now."""
        return now < self.until
