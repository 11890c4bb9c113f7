"""Who wants to know why a request has its score, on an engine's side of the scorer."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

from sooner.ordering import wire
from sooner.ordering.submitted import Submitted

Deliver = Callable[[Mapping[str, Any]], None]

_MOST = 16
"""Questions for reasons under way; the oldest is given up."""


class Whys:
    """The client's side: what is asked, and who is told. `new` is filled by the host's thread."""

    def __init__(self) -> None:
        self._new: deque[tuple[Submitted, Deliver]] = deque(maxlen=_MOST)
        self._sent: OrderedDict[int, Deliver] = OrderedDict()
        self._number = 0

    def ask(self, asked: Submitted, deliver: Deliver) -> None:
        """Let a question be sent."""
        self._new.append((asked, deliver))

    def frames(self, groups: Callable[[Submitted], tuple[int, int]]) -> bytes:
        """Return the frames of what is new; `groups` returns the hashes of its model and sender."""
        made = []
        while self._new:
            asked, deliver = self._new.popleft()
            self._number += 1
            try:
                made.append(wire.ask(self._number, asked.request, *groups(asked), why=True))
            except (OverflowError, TypeError, ValueError):  # it has no score either
                continue
            self._sent[self._number] = deliver
            if len(self._sent) > _MOST:
                self._sent.popitem(last=False)
        return b"".join(made)

    def told(self, reasons: wire.ReasonsTold) -> None:
        """Hand reasons on to who asked."""
        deliver = self._sent.pop(reasons.number, None)
        if deliver is not None:
            deliver(reasons.told)
