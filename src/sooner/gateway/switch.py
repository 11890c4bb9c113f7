"""The switch: ordering off means order of arrival, at once, for all that wait; and who turned it is kept."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import NamedTuple

from sooner import policies
from sooner.gateway.dispatch import Dispatcher

logger = logging.getLogger("sooner.gateway")

_REMEMBERED = 20


class SwitchTurn(NamedTuple):
    """One turn of the switch: when [Unix s], to what, and by whom."""

    when: float
    on: bool
    by: str


class OrderSwitch:
    """Holds what the settings' policy is; classes, fair shares and deadlines hold either way.

    It is on after each start: a restart serves as its settings say.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._chosen = dispatcher.policy
        self.on = True
        self.turns: deque[SwitchTurn] = deque(maxlen=_REMEMBERED)

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
        state = f"on: {self._chosen.name}" if on else "off: order of arrival"
        logger.warning("ordering was turned %s, by %r", state, by)
