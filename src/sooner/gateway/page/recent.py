"""What the last hour's requests saw: a ring of numbers, the newest in place of the oldest; and the day's."""

from __future__ import annotations

import math
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner import metrics
from sooner.gateway.admission.shares import charge
from sooner.gateway.delivery.context import Finished
from sooner.gateway.page.day import Day
from sooner.gateway.page.seen import Spread, TimeSeen
from sooner.gateway.page.settings import SloSettings

KEPT = 20_000
"""Requests that are kept; in an hour with more, the hour is the time of the last of these."""
HOUR = 3600.0
JUDGED = 1000
"""Latest predictions that are judged, at most."""
FEWEST = 20
MOST_TENANTS = 500
OTHERS = "(others)"
_WHEN, _WAIT, _TTFT, _TOTAL, _REPLY, _PREDICTED, _TENANT, _ENDED, _COST = range(9)
_CUT, _FAILED, _LATE, _IN_TIME = range(4)  # how a request ended; the last two came whole
_ROW = struct.Struct("9d")
_GROUPS = 4
_CHEAP, _EVERY = 2000, 10.0


class SizeGroup(NamedTuple):
    """Predictions of one size beside the truth [tokens], in the mean."""

    predicted: float
    real: float
    requests: int


class Truth(NamedTuple):
    """Whether the predictions are true: rank correlation, summed predictions over summed replies, by size."""

    judged: int
    tau: float | None
    ratio: float | None
    groups: tuple[SizeGroup, ...]


class Had(NamedTuple):
    """What a tenant had: requests, their part of all work done, and their mean wait [s]."""

    requests: int
    share: float
    mean_wait: float


class RecentlySeen(NamedTuple):
    """The last hour and day; what each tenant had of the hour; whether predictions are true."""

    hour: TimeSeen
    day: TimeSeen
    tenants: dict[str, Had]
    truth: Truth


class Recent:
    """Takes in each finished request in a microsecond or two; all else is reckoned when somebody looks."""

    def __init__(
        self, counts: Mapping[str, int], slo: SloSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.slo = slo
        self._clock = clock
        self._counts = counts
        self._began = clock()
        self._rows = bytearray(KEPT * _ROW.size)  # written row by row, for which numpy is slow
        self._ring = np.frombuffer(self._rows).reshape(KEPT, 9)
        self._added = 0
        self._seen: RecentlySeen | None = None
        self._at = 0.0
        self._tenants: dict[str, int] = {}
        self._refused: deque[tuple[float, dict[str, int]]] = deque([(self._began, self._now_refused())], 61)
        self._day = Day(self._began, self._now_refused())

    def add(self, record: Finished) -> bool:
        """Take in a finished request; return whether it was in time."""
        tenant = self._tenants.get(record.tenant)
        if tenant is None:
            tenant = self._number(record.tenant)
        now, predicted = self._clock(), record.predicted_len
        whole = 200 <= record.status < 300
        first = record.wait + record.first_byte if record.asked.stream else None
        in_time = whole and self.slo.in_time(first, record.total, record.output_len)
        ttft = math.nan if first is None else first
        ended = _IN_TIME if in_time else _LATE if whole else _FAILED if record.status else _CUT
        _ROW.pack_into(
            self._rows, self._added % KEPT * _ROW.size, now, record.wait, ttft, record.total,
            record.output_len, math.nan if predicted is None else predicted, tenant, ended,
            charge(record.prompt_len, record.output_len),
        )  # fmt: skip
        self._added += 1
        times = record.wait, ttft, record.total
        self._day.add(times, record.output_len, whole=whole, in_time=in_time, cut=not record.status)
        return in_time

    def tick(self) -> None:
        """Keep what was refused by now, once a minute; called more often, it does nothing."""
        now = self._clock()
        if now - self._refused[-1][0] >= 60.0:
            self._refused.append((now, self._now_refused()))
            self._day.tick(now, self._refused[-1][1])

    def _number(self, tenant: str) -> int:
        name = tenant if len(self._tenants) < MOST_TENANTS else OTHERS
        return self._tenants.setdefault(name, len(self._tenants))

    def _now_refused(self) -> dict[str, int]:
        return {name: n for name, n in self._counts.items() if name.startswith("refused_")}

    def window(self) -> RecentlySeen:
        """Return the numbers of now; where many make them dear, they are up to ten seconds old."""
        now = self._clock()
        if self._seen is None or self._added < _CHEAP or now - self._at >= _EVERY:
            self._seen, self._at = self._reckoned(now), now
        return self._seen

    def _reckoned(self, now: float) -> RecentlySeen:
        rows = self._ring[: min(self._added, KEPT)]
        rows = rows[rows[:, _WHEN] >= now - HOUR]
        length = min(now - self._began, HOUR)
        if self._added > KEPT and rows.shape[0] == KEPT:
            length = min(length, now - float(rows[:, _WHEN].min()))
        whole = rows[rows[:, _ENDED] >= _LATE]
        then = next(
            counts for when, counts in self._refused if when >= now - HOUR or when == self._refused[-1][0]
        )
        refused = self._now_refused()
        ended = np.bincount(rows[:, _ENDED].astype(np.int64), minlength=4)
        wait, ttft, e2e = (_spread(whole[:, column]) for column in (_WAIT, _TTFT, _TOTAL))
        hour = TimeSeen(
            max(length, 1.0), whole.shape[0], int(ended[_IN_TIME]), int(ended[_CUT]), int(ended[_FAILED]),
            wait, ttft, e2e, float(whole[:, _REPLY].sum()),
            {name: n - then[name] for name, n in refused.items()},
        )  # fmt: skip
        return RecentlySeen(hour, self._day.window(now, refused), self._had(rows), _truth(self._latest()))

    def _had(self, rows: NDArray[np.float64]) -> dict[str, Had]:
        if not rows.shape[0]:
            return {}
        who = rows[:, _TENANT].astype(np.int64)
        n = np.bincount(who, minlength=len(self._tenants))
        cost = np.bincount(who, rows[:, _COST], minlength=len(self._tenants))
        wait = np.bincount(who, rows[:, _WAIT], minlength=len(self._tenants))
        total = max(float(cost.sum()), 1e-9)
        return {
            name: Had(int(n[at]), float(cost[at]) / total, float(wait[at] / n[at]))
            for name, at in self._tenants.items()
            if n[at]
        }

    def _latest(self) -> NDArray[np.float64]:
        """Return the latest rows that were predicted and came to their end."""
        newest = (self._added - 1 - np.arange(min(self._added, KEPT, 4 * JUDGED))) % KEPT
        rows = self._ring[newest]
        judged = np.isfinite(rows[:, _PREDICTED]) & (rows[:, _ENDED] >= _LATE)
        return np.asarray(rows[judged][:JUDGED])


def _spread(column: NDArray[np.float64]) -> Spread:
    column = column[np.isfinite(column)]
    return Spread(*np.percentile(column, (50, 90, 99)).tolist()) if column.size else Spread(None, None, None)


def _truth(rows: NDArray[np.float64]) -> Truth:
    predicted, real = rows[:, _PREDICTED], rows[:, _REPLY]
    if rows.shape[0] < FEWEST:
        return Truth(rows.shape[0], None, None, ())
    tau: Any = metrics.kendall_tau(predicted, real) if np.ptp(predicted) and np.ptp(real) else None
    order = np.array_split(np.argsort(predicted, kind="stable"), _GROUPS)
    groups = tuple(SizeGroup(float(predicted[at].mean()), float(real[at].mean()), at.size) for at in order)
    return Truth(rows.shape[0], tau, float(predicted.sum() / max(real.sum(), 1.0)), groups)
