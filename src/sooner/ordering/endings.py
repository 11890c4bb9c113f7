"""What an engine's side of the scorer keeps for learning: what was asked about, and how that ended."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import NamedTuple

from sooner.ordering import wire

_MOST = 50_000
"""Requests, and endings that wait for the scorer; the oldest are forgotten."""

_MOST_REPORTS = 128


class Ended(NamedTuple):
    """How many tokens a reply has, and how it ended."""

    id: str
    length: float
    ending: wire.Ending


@dataclass(slots=True)
class AskedAbout:
    """A question: its number, what it was taken for once it was answered, and a reply that was faster."""

    limit: int | None
    number: int = 0
    placed: wire.Placed | None = None
    ended: Ended | None = None


class Endings:
    """Questions by request id from when they are asked until their replies have ended.

    `told` is filled by the host's thread; all else happens in the client's.
    """

    def __init__(self) -> None:
        self.told: deque[Ended] = deque(maxlen=_MOST)
        self.reports: dict[tuple[wire.Scope, int], wire.LiveReport] = {}
        self.shadow: wire.ShadowReport | None = None
        self._wish: wire.Promote | None = None
        self._wished = False
        self._asked: OrderedDict[str, AskedAbout] = OrderedDict()

    def __len__(self) -> int:
        return len(self._asked)

    def coming(self, id: str, limit: int | None) -> None:
        """Say that a question is going to be asked."""
        self._asked[id] = AskedAbout(limit)
        if len(self._asked) > _MOST:
            self._asked.popitem(last=False)

    def sent(self, id: str, number: int) -> None:
        """Say which number a question has."""
        asked = self._asked.get(id)
        if asked is not None:
            asked.number = number

    def gone(self, id: str) -> None:
        """Say that a question is never answered: nothing can be learned of its reply."""
        self._asked.pop(id, None)

    def answered(self, id: str, placed: wire.Placed) -> bytes:
        """Take in what a request was taken for; return the frame of its reply, if that has ended already."""
        asked = self._asked.get(id)
        if asked is None:
            return b""
        asked.placed = placed
        return b"" if asked.ended is None else self._frame(asked.ended)

    def placed(self, id: str) -> wire.Placed | None:
        """Return what a request was taken for, None while that is not known. Any thread may ask."""
        asked = self._asked.get(id)
        return None if asked is None else asked.placed

    def promote(self, on: bool) -> None:
        """Wish that the shadow acts, or not; any thread may. It is said again to a scorer that comes anew."""
        self._wish, self._wished = wire.Promote(on), False

    def again(self) -> None:
        """Say that the scorer is a new one."""
        self._wished = False

    def frames(self) -> bytes:
        """Return the frames of what was told since."""
        frames = []
        if self._wish is not None and not self._wished:
            self._wished = True
            frames.append(wire.promote(self._wish))
        while self.told:
            frames.append(self._frame(self.told.popleft()))
        return b"".join(frames)

    def heard(self, report: wire.LiveReport | wire.ShadowReport) -> None:
        """Take in how the order stands, or its shadow; a bounded number of groups, the latest told of."""
        if isinstance(report, wire.ShadowReport):
            self.shadow = report
            return
        key = (report.scope, report.hash)
        kept = {other: told for other, told in self.reports.items() if other != key}
        for other in list(kept)[: len(kept) + 1 - _MOST_REPORTS]:
            del kept[other]
        self.reports = {**kept, key: report}  # a new one: others read it from their threads

    def _frame(self, ended: Ended) -> bytes:
        asked = self._asked.get(ended.id)
        if asked is None:
            return b""
        if asked.placed is None:
            asked.ended = ended
            return b""
        if ended.ending is not wire.Ending.RUNNING:
            del self._asked[ended.id]
        return wire.end(wire.ReplyEnd(asked.number, ended.length, ended.ending, asked.placed, asked.limit))
