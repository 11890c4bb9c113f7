"""How many requests an engine is given at once, so that its own queue stays shallow and ours orders."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from sooner.gateway.engines.first_bytes import ENOUGH, FirstBytes
from sooner.gateway.engines.votes import Votes, group

COUNT_EVERY = 0.5  # seconds between two counts of an engine's waiting requests

_TOLERANCE = 2.0  # a first token may take this many times the usual before it counts as queueing
_LIGHT = 0.4  # of the bound: with no more in flight a reply says what is usual; below 1 / _TOLERANCE
_AGAIN = 300.0  # seconds under load after which what is usual is measured again, with so few in flight
_FIRST = 30.0  # the same, for the first time
_LONGEST = 20.0  # seconds that this takes at most
_STILL = 2  # counts after which those who wait do so for a place
_BACK = 0.8  # of what was good before: below this the bound doubles


class Window:
    """The bound on requests in flight: fixed, told by the engine, or found between `least` and `most`.

    Where the engine says how many wait inside it (`counted`), the bound grows while none do. Where
    they stay, for two counts and two steps in which no more run, it falls to those that run; one that
    came within the last step waits for no place, only for that step to end. After a fall it comes
    back quickly to what was good before. Without a count the time to the first byte decides (the
    gradient rule of Netflix's concurrency-limits): the bound shrinks by the factor by which that
    exceeds twice the usual, as the middle of several tenants has it. What is usual is seen while little
    is in flight; under lasting load the bound is lowered for some replies now and then to see it again,
    as Envoy's adaptive concurrency does.
    """

    def __init__(
        self, fixed: int, least: int, most: int, start: int = 16, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fixed = fixed
        self._least = least
        self._most = most
        self._limit = float(min(max(start, least), most))
        self._clock = clock
        self._probing = True  # until the first sign of queueing
        self._first_bytes = FirstBytes()
        self._seen = False  # any first byte
        self._lights = 0  # replies since `_due` was set that say what is usual
        self._due = clock() + _FIRST  # when what is usual is measured again
        self._low_until: float | None = None  # while it is
        self._running = 0.0  # the most that ran since none waited there
        self._still = 0  # counts since that rose
        self._good = 0.0  # the most that ran while none waited there, slowly forgotten
        self._steps: dict[int, float] = {}  # [s] by group of tenants
        self._step_votes = Votes()
        self._step = 0.0  # what was said last
        self.counted = False
        self.slots = 0  # how many the engine says it runs at once; 0: it does not say

    @property
    def limit(self) -> int:
        """The bound now."""
        if self._fixed:
            return self._fixed
        if self.slots:
            return min(max(self.slots, self._least), self._most)
        return self._low if self._low_until is not None else int(self._limit)

    @property
    def _low(self) -> int:
        """How many may be in flight with a reply that says what is usual."""
        return max(self._least, int(_LIGHT * self._limit), 1)

    @property
    def potential(self) -> int:
        """The bound that may be found: while it is being found the most, later what was good before."""
        if self._fixed or self.slots:
            return self.limit
        if self._probing and (self.counted or self._seen):  # where nothing is measured nothing grows
            return self._most
        return max(int(self._limit), int(_BACK * self._good))

    @property
    def step_time(self) -> float:
        """How long a step of the engine lasts under load [s]; 0: unknown."""
        middle = self._step_votes.middle(self._clock())
        return middle.value if middle is not None else self._step

    def restarted(self) -> None:
        """Say that the engine is another: what is usual there has to be seen again."""
        self._first_bytes.forget()
        self._lights, self._low_until, self._due = 0, None, self._clock() + _FIRST

    def step(self, seconds: float, tenant: str = "") -> None:
        """Take in how long a step took in a reply that ended, from its tokens' times [s]."""
        of = group(tenant)
        known = self._steps.get(of, 0.0)
        self._steps[of] = known = known + (0.1 if known else 1.0) * (seconds - known)
        self._step_votes.say(of, known, self._clock())
        self._step = known

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

    def latency(
        self, first_byte: float, prompt_len: int, in_flight: int, hungry: bool, tenant: str = "",
        beside: int | None = None,
    ) -> None:  # fmt: skip
        """Take in the time to a first byte [s]; it moves the bound where the engine does not count.

        `in_flight` are there now, `beside` were when it was sent, itself included.
        """
        now = self._clock()
        light = (in_flight if beside is None else beside) <= self._low
        self._seen = True
        self._first_bytes.add(first_byte, prompt_len, tenant, now, light=light)
        if self.counted or self._measures(light, hungry, now):
            return
        late = self._first_bytes.late(tenant, now)
        if late is None:
            return
        gradient = min(1.0, max(0.5, _TOLERANCE / late))
        if gradient == 1.0 and not (hungry and in_flight >= int(self._limit)):
            return  # no queueing, and no need for more
        if gradient < 1.0:
            self._probing = False
        target = self._limit * gradient + (math.sqrt(self._limit) if gradient == 1.0 else 0.0)
        self._set(self._limit + 0.2 * (target - self._limit))

    def _measures(self, light: bool, hungry: bool, now: float) -> bool:
        """Return whether the bound is lowered now, so that what is usual can be seen."""
        self._lights += light
        if self._lights >= ENOUGH or (self._low_until is not None and now >= self._low_until):
            self._lights, self._low_until, self._due = 0, None, now + _AGAIN
        elif self._low_until is None and hungry and now >= self._due:
            self._lights, self._low_until = 0, now + _LONGEST
        return self._low_until is not None

    def _set(self, limit: float) -> None:
        self._limit = min(max(limit, self._least), self._most)
