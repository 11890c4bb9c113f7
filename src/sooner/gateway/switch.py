"""The switch: ordering off means order of arrival, at once, for all that wait; and who turned it is kept."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sooner import policies
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.page.remembered import RememberedPage

logger = logging.getLogger("sooner.gateway")

_REMEMBERED = 20
_NAME = "switch"


class SwitchTurn(NamedTuple):
    """One turn of the switch: when [Unix s], to what, and by whom."""

    when: float
    on: bool
    by: str


class OrderSwitch:
    """Holds what the settings' policy is; classes, fair shares and deadlines hold either way.

    It is where it was left, over a restart too, as far as `remembered` knows; else it is on.
    """

    def __init__(self, dispatcher: Dispatcher, remembered: RememberedPage) -> None:
        self._dispatcher = dispatcher
        self._remembered = remembered
        self._chosen = dispatcher.policy
        kept = remembered.get(_NAME)
        self.turns: deque[SwitchTurn] = deque(_turns(kept), maxlen=_REMEMBERED)
        self.on = kept.get("on") is not False
        if not self.on:
            dispatcher.choose(policies.get("fcfs"))
            who = self.turns[-1].by if self.turns else "somebody"
            logger.warning("ordering is off, as it was left by %r: order of arrival", who)

    @property
    def policy(self) -> str:
        """The order that the settings name, or that was promoted; it holds while the switch is on."""
        return self._chosen.name

    def take(self, policy: policies.Policy) -> None:
        """Let another policy hold while the switch is on."""
        self._chosen = policy
        if self.on:
            self._dispatcher.choose(policy)

    def turn(self, on: bool, by: str) -> None:
        """Turn it; a turn that changes nothing is not kept."""
        if on == self.on:
            return
        self.on = on
        self._dispatcher.choose(self._chosen if on else policies.get("fcfs"))
        self.turns.append(SwitchTurn(time.time(), on, by))
        self._remembered.put(_NAME, {"on": on, "turns": [turn._asdict() for turn in self.turns]})
        state = f"on: {self._chosen.name}" if on else "off: order of arrival"
        logger.warning("ordering was turned %s, by %r", state, by)


def _turns(kept: Mapping[str, Any]) -> Iterator[SwitchTurn]:
    """Yield the turns that a file holds; what is none is left out."""
    found = kept.get("turns")
    for one in found if isinstance(found, list) else ():
        when, on, by = map(one.get, SwitchTurn._fields) if isinstance(one, dict) else (None, None, None)
        if isinstance(when, float) and math.isfinite(when) and isinstance(on, bool) and isinstance(by, str):
            yield SwitchTurn(when, on, by)
