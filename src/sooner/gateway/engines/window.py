"""How many requests an engine is given at once, so that its own queue stays shallow and ours orders."""

from __future__ import annotations

import math
from collections import deque

COUNT_EVERY = 0.5  # seconds between two counts of an engine's waiting requests

_TOLERANCE = 2.0  # a first token may take this many times the best before it counts as queueing
_FORGET = 1.00001  # for each first byte: an engine that became slower is believed after some 10,000
_ALIKE = 10  # first bytes of which all have to be late: one may be, by a prompt that was not in the cache
_STILL = 2  # counts after which those who wait do so for a place
_BACK = 0.8  # of what was good before: below this the bound doubles


class Window:
    """The bound on requests in flight: fixed, or found between `least` and `most`.

    Where the engine says how many wait inside it (`counted`), the bound grows while none do. Where
    they stay, for two counts and two steps in which no more run, it falls to those that run; one that
    came within the last step waits for no place, only for that step to end. After a fall it comes
    back quickly to what was good before. Without a count the time to the first byte decides (the
    gradient rule of Netflix's concurrency-limits): the bound shrinks by the factor by which that
    exceeds twice the best of prompts about as long.
    """

    def __init__(self, fixed: int, least: int, most: int, start: int = 16) -> None:
        self._fixed = fixed
        self._least = least
        self._most = most
        self._limit = float(min(max(start, least), most))
        self._probing = True  # until the first sign of queueing
        self._best: dict[int, float] = {}  # quickest first byte [s] by the prompt's length in powers of two
        self._late: deque[float] = deque(maxlen=_ALIKE)  # the last first bytes over the best
        self._running = 0.0  # the most that ran since none waited there
        self._still = 0  # counts since that rose
        self._good = 0.0  # the most that ran while none waited there, slowly forgotten
        self.counted = False
        self.step_time = 0.0  # of the engine under load [s]; 0: unknown

    @property
    def limit(self) -> int:
        """The bound now."""
        return self._fixed or int(self._limit)

    @property
    def potential(self) -> int:
        """The bound that may be found: while it is being found the most, later what was good before."""
        if self._fixed:
            return self._fixed
        if self._probing and (self.counted or self._best):  # where nothing is measured nothing grows
            return self._most
        return max(self.limit, int(_BACK * self._good))

    def step(self, seconds: float) -> None:
        """Take in how long a step took in a reply that ended, from its tokens' times [s]."""
        self.step_time += (0.1 if self.step_time else 1.0) * (seconds - self.step_time)

    def engine(self, waiting: float, in_flight: int, hungry: bool) -> None:
        """Take in the engine's own count of waiting requests, new ones aside; `hungry`: more wait here."""
        spare = max(1.0, 0.05 * self._limit)
        running = in_flight - waiting
        if waiting <= spare:
            self._running, self._still = running, 0
            self._good = max(0.999 * self._good, running)
            if hungry and in_flight >= int(self._limit):
                fast = self._probing or self._limit < _BACK * self._good
                self._set(self._limit * 2 if fast else self._limit + max(1.0, 0.1 * self._limit))
        elif running > self._running:  # it still prefills a burst, and has room
            self._running, self._still = running, 0
        else:
            self._still += 1
            if self._still >= max(_STILL, 2 * self.step_time / COUNT_EVERY):
                self._probing = False
                if in_flight >= int(self._limit):
                    self._good *= 0.9
                self._set(max(self._limit / 2, min(self._limit, running + spare)))

    def latency(self, first_byte: float, prompt_len: int, in_flight: int, hungry: bool) -> None:
        """Take in the time to a first byte [s]; it moves the bound where the engine does not count.

        It is compared with that of prompts about as long (in tokens), for prefill takes its time too.
        """
        alike, first_byte = prompt_len.bit_length(), max(first_byte, 1e-4)
        best = self._best[alike] = min(self._best.get(alike, math.inf) * _FORGET, first_byte)
        self._late.append(first_byte / best)
        if self.counted:
            return
        gradient = min(1.0, max(0.5, _TOLERANCE / min(self._late)))
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

    def tripped(self, now: float) -> bool:
        """Return whether no request should go there now."""
        return now < self.until
