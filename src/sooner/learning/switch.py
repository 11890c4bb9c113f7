"""The switch: where an order is worth nothing, arrival order; back when it is worth something."""

from __future__ import annotations

from sooner.learning.watch import LiveStanding

_OFF, _ON = 1.5, 3.0
"""Standard errors by which the gain must be above zero to stay on, and to come back: the hysteresis."""


class Switch:
    """Open (off) once the gain's lower bound is not above zero; `turns` counts how often it moved."""

    def __init__(self) -> None:
        self.on = True
        self.turns = 0

    def see(self, now: LiveStanding) -> bool:
        """Take in how the order stands; return whether the switch moved."""
        if now.n == 0 or (now.gain == 0.0 and now.gain_error == 0.0):  # all were told the same: no order
            return False
        bound = now.gain - (_OFF if self.on else _ON) * now.gain_error
        moved = self.on != (bound > 0.0)
        if moved:
            self.on = not self.on
            self.turns += 1
        return moved
