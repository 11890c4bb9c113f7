"""A request's size: the engine seconds that its prompt and its expected reply take, and what is usual.

Orders by reply length leave out the prompt, orders by prompt the reply; engines spend time on both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sooner.core import ConfigError, Number

WAIT_MEMORY = 2000
WORK_MEMORY = 5000
"""Arrivals over which the usual wait and the usual work are remembered: hours of light traffic."""

WAIT_FLOOR = 1e-3
WORK_FLOOR = 1e-9
"""Floors [s], so that policies may divide; with so short a wait any order is the order of arrival."""

STEADY = 1.1
"""What is usual is told anew once it moved by this factor, for then all that wait must be placed anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast an engine works: the four coefficients of one iteration, and how many share it.

    An iteration takes `iteration_s + prefill_token_s * prompt tokens + decode_seq_s * decoding requests
    + context_token_s * tokens they hold` seconds; `batch` requests usually share `iteration_s`. The
    defaults are between an 8B model on a data-centre GPU and a small one on a CPU in their ratios.
    """

    iteration_s: float = 10e-3
    prefill_token_s: float = 50e-6
    decode_seq_s: float = 20e-6
    context_token_s: float = 0.07e-6
    batch: float = 32.0

    def __post_init__(self) -> None:
        for name in ("iteration_s", "prefill_token_s", "decode_seq_s", "context_token_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"pace: {name}={value!r}, allowed: a finite number >= 0 [s]")
        if not (math.isfinite(self.batch) and self.batch >= 1):
            raise ConfigError(f"pace: batch={self.batch!r}, allowed: a finite number >= 1 [requests]")


def work(
    pace: Pace, prompt_len: Number, cached_len: Number, reply_len: Number, batch: Number | None = None
) -> Number:
    """Return the engine seconds of requests: prompts [tokens] less what is cached, and replies [tokens].

    A reply token costs its part of the iteration, its sequence, and the context read for it, which is
    the prompt and, in the mean, half the reply. `batch` replaces the pace's own.
    """
    share = pace.iteration_s / (pace.batch if batch is None else batch)
    token = share + pace.decode_seq_s + pace.context_token_s * (prompt_len + 0.5 * reply_len)
    return pace.prefill_token_s * (prompt_len - cached_len) + reply_len * token


class Usual:
    """What a host has learned of waits and work over thousands of requests; see `View`.

    The usual wait is the root mean square of the work that waits when a request arrives: what waits
    is about what arrival order would have it wait, whatever the order is, so the order does not feed
    back into it; and squares make it the wait of the times when there is one, not of the calm between.
    The usual work is the mean work weighted by itself, so that half of all work is in larger requests.
    Both are plain means over the first thousands, then fade exponentially.
    """

    __slots__ = ("arrivals", "square_wait", "square_work", "wait", "weighed", "work", "work_mean")

    def __init__(self) -> None:
        self.arrivals = 0
        self.square_wait = 0.0
        self.weighed = 0
        self.work_mean = 0.0
        self.square_work = 0.0
        self.wait = WAIT_FLOOR
        self.work = WORK_FLOOR

    def arrive(self, waiting: float) -> None:
        """Take in that a request arrived and found `waiting` [s] of work waiting."""
        self.arrivals = n = self.arrivals + 1
        self.square_wait += (waiting * waiting - self.square_wait) / (n if n < WAIT_MEMORY else WAIT_MEMORY)

    def weigh(self, work: float) -> None:
        """Take in the expected work [s] of a request."""
        self.weighed = n = self.weighed + 1
        memory = n if n < WORK_MEMORY else WORK_MEMORY
        self.work_mean += (work - self.work_mean) / memory
        self.square_work += (work * work - self.square_work) / memory

    def scale(self, factor: float) -> None:
        """Count all that was learned in units `factor` times as large: work is reckoned at another pace."""
        self.square_wait *= factor * factor
        self.work_mean *= factor
        self.square_work *= factor * factor

    def tell(self) -> bool:
        """Set `wait` and `work` [s] anew where they moved; return whether they did: then place all anew."""
        wait = max(math.sqrt(self.square_wait), WAIT_FLOOR)
        work = max(self.square_work / self.work_mean, WORK_FLOOR) if self.work_mean > 0.0 else WORK_FLOOR
        steady = self.wait <= wait * STEADY and wait <= self.wait * STEADY
        if steady and self.work <= work * STEADY and work <= self.work * STEADY:
            return False
        self.wait, self.work = wait, work
        return True

    def state(self) -> dict[str, float]:
        """Return what `restore` takes, for keeping over a restart."""
        return {name: getattr(self, name) for name in self.__slots__}

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Take a kept state; one that makes no sense is left alone, and False is returned."""
        values = [state.get(name) for name in self.__slots__]
        if not all(type(v) in (int, float) and math.isfinite(v) and v >= 0 for v in values if v is not None):
            return False
        if None in values or state["wait"] < WAIT_FLOOR or state["work"] < WORK_FLOOR:
            return False
        for name in self.__slots__:
            setattr(self, name, int(state[name]) if name in ("arrivals", "weighed") else float(state[name]))
        return True
