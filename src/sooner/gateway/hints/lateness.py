"""When a request should count as arrived: its arrival and a number of seconds, the same on every machine."""

from __future__ import annotations

import math

from sooner.core import ConfigError, View
from sooner.ordering.order import TELLS
from sooner.policies import Host, Policy
from sooner.policies.plain import scalar_key
from sooner.work import Pace, work

HOST = Host("the hinter", TELLS - {"deadline", "level"})

_FAR = 1e6  # tokens and seconds, beyond any prompt, reply and shift of the clock
TYPICAL_REPLY = 150.0
"""Tokens that a reply is taken to have where nobody says."""

_TYPICAL = (500.0, TYPICAL_REPLY)  # prompt and reply [tokens] of which the policy is asked what it is


class Lateness:
    """A policy as seconds after arrival: `key = arrival_time + of(...)`.

    Nothing is learned and nothing is shared: `usual_wait` and `usual_work` [s] are what every instance is
    told. `least` and `most` bound what `of` returns. Raises ConfigError for a policy whose key is no time.
    """

    def __init__(self, policy: Policy, pace: Pace, usual_wait: float, usual_work: float) -> None:
        for name, value in (("usual_wait", usual_wait), ("usual_work", usual_work)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}={value!r}, allowed: a finite number > 0 [s]")
        self.policy = HOST.bind(policy)
        self._key = scalar_key(self.policy)
        self._pace = pace
        self._usual = (usual_wait, usual_work)
        self.least, self.most = -math.inf, math.inf
        late, later = self._late(0.0, *_TYPICAL), self._late(_FAR, *_TYPICAL)
        if not (policy.static and math.isfinite(late) and abs(late - later) < 1e-3):
            raise ConfigError(
                f"policy {policy.name!r} gives no time to a request, which another's queue could keep;"
                " allowed: one whose key is the arrival and a number, such as boost, aged, fcfs"
            )
        ends = [self._late(0.0, prompt, reply) for prompt in (1.0, _FAR) for reply in (1.0, _FAR)]
        self.least, self.most = min(ends), max(ends)

    def of(self, prompt_len: float, predicted_len: float) -> float:
        """Return how late [s] a request is beside one of the same moment; below 0: early."""
        return min(max(self._late(0.0, prompt_len, predicted_len), self.least), self.most)

    def _late(self, arrival_time: float, prompt_len: float, predicted_len: float) -> float:
        usual_wait, usual_work = self._usual
        view = View(
            arrival_time,
            prompt_len=prompt_len,
            predicted_len=predicted_len,
            score=predicted_len,
            pressure=usual_wait / _TYPICAL[1],
            work=float(work(self._pace, prompt_len, 0.0, predicted_len)),
            usual_wait=usual_wait,
            usual_work=usual_work,
        )
        return float(self._key(view, arrival_time)) - arrival_time
