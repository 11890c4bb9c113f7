"""What a host counts of what its scorer tells: drift, and what a shadow failed at."""

from __future__ import annotations

from sooner.ordering import wire
from sooner.ordering.counters import Counters

_ALONE = 3
"""Reports of the order that acts in a row, with none of its shadow, after which there is none."""


class Tally:
    """Adds to a host's counts; both grow in the scorer's process, and begin anew with it."""

    def __init__(self, counters: Counters, shadow: str) -> None:
        """`shadow` is what the settings name, "" for none."""
        self._counters = counters
        self._shadow = shadow
        self._failures = 0
        self._alone = 0

    def heard(self, told: wire.LiveReport | wire.ShadowReport) -> None:
        """Take in a report."""
        if isinstance(told, wire.ShadowReport):
            self._alone = 0
            new = told.failures - self._failures if told.failures >= self._failures else told.failures
            self._failures = told.failures
            if new and self._shadow:
                self._counters.warn(
                    "shadow_failures", "the shadow %r gave no word for a request", self._shadow
                )
                self._counters.add("shadow_failures", new - 1)
        elif told.scope is wire.Scope.ALL:
            counts = self._counters.counts
            if "drift_alarms" in counts:
                counts["drift_alarms"] = max(counts["drift_alarms"], told.alarms)
            self._alone += 1
            if self._shadow and self._alone == _ALONE:
                words = "nothing is compared: the shadow %r cannot be loaded, or the scorer knows none"
                self._counters.warn("shadow_failures", words, self._shadow)
