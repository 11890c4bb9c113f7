"""The scores of waiting requests: asked for at arrival, taken in when they come."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sooner.core import Prediction
from sooner.gateway.settings import GatewaySettings
from sooner.gateway.visit import Visit
from sooner.ordering.client import ScorerClient
from sooner.ordering.counters import Counters
from sooner.ordering.standings import gauges, shadow_gauges
from sooner.ordering.wire import Ending, LiveReport, Scope, ShadowReport

_RUNNING_EVERY = 2.0  # seconds between two words on replies that still run
_RUNNING_FROM = 64  # tokens
_REASONS_WITHIN = 2.0  # seconds


class WaitingScores:
    """Asks the scorer, where there is one and someone reads its answers; `waiting` is by request id."""

    def __init__(self, settings: GatewaySettings, waiting: Mapping[str, Visit], counters: Counters) -> None:
        self._waiting = waiting
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._scorer: ScorerClient | None = None
        self._swept = 0.0
        wanted = settings.chosen_policy.uses_predictions or settings.journal.url
        if (settings.ranker or settings.learn) and wanted:
            self._scorer = ScorerClient(
                "", settings.ranker, "", self._deliver, counters, settings.scorer_timeout,
                learned=settings.learned_file, shadow=settings.shadow,
            )  # fmt: skip

    def ask(self, request: Visit) -> None:
        """Ask for a request's score, unless its client brought one; returns at once."""
        asked = request.asked
        if self._scorer is not None and asked.request.readable and asked.given.score is None:
            self._scorer.submit(request.id, asked.request, request.tenant)

    async def reasons(self, request: Visit) -> Mapping[str, Any]:
        """Return why a request has its score, see `ordering.reasons`; empty where nobody can say in time."""
        asked = request.asked.request
        if self._scorer is None or not asked.readable:
            return {}
        told: asyncio.Future[Mapping[str, Any]] = self._loop.create_future()

        def settle(reasons: Mapping[str, Any]) -> None:
            if not told.done():
                told.set_result(reasons)

        def deliver(reasons: Mapping[str, Any]) -> None:
            self._loop.call_soon_threadsafe(settle, reasons)

        self._scorer.explain(asked, request.tenant, deliver)
        try:
            async with asyncio.timeout(_REASONS_WITHIN):
                return await told
        except TimeoutError:
            return {}

    def groups(self, id: str) -> tuple[str, str]:
        """Return the hashes of a request's sender and template, "" where there is none."""
        return ("", "") if self._scorer is None else self._scorer.groups(id)

    def ended(self, id: str, length: int, ending: Ending) -> None:
        """Let the learner know how long a reply is, and how it ended; returns at once."""
        if self._scorer is not None:
            self._scorer.ended(id, length, ending)

    def sweep(self, now: float) -> None:
        """Every few seconds, tell of the long replies that still run: the others are known by then."""
        if self._scorer is None or now - self._swept < _RUNNING_EVERY:
            return
        self._swept = now
        for request in self._waiting.values():
            if not request.queued and request.made >= max(_RUNNING_FROM, request.ticket.predicted_len):
                self._scorer.ended(request.id, request.made, Ending.RUNNING)

    def gauges(self) -> Mapping[str, float]:
        """Return how the learned order stands, by the names of `/metrics`; empty until it is known."""
        return {**gauges(self._reports()), **shadow_gauges(self.shadow)}

    @property
    def standings(self) -> Sequence[LiveReport]:
        """How the learned order stands, of all and then by model and by sender."""
        known = [told for told in self._reports().values() if told.standing.n]
        return sorted(known, key=lambda told: told.scope is not Scope.ALL)

    @property
    def shadow(self) -> ShadowReport | None:
        """How the shadow stands, None where there is none or nothing is known of it yet."""
        return None if self._scorer is None else self._scorer.shadow

    def promote(self, on: bool) -> None:
        """Wish that the shadow acts, or the settings' ranker again; returns at once."""
        if self._scorer is not None:
            self._scorer.promote(on)

    def _reports(self) -> Mapping[tuple[Scope, int], LiveReport]:
        return {} if self._scorer is None else self._scorer.reports

    def close(self) -> None:
        """Stop the scorer."""
        if self._scorer is not None:
            self._scorer.close()

    def _deliver(self, id: str, prediction: Prediction) -> None:
        self._loop.call_soon_threadsafe(self._take, id, prediction)

    def _take(self, id: str, prediction: Prediction) -> None:
        request = self._waiting.get(id)
        if request is None:
            return
        request.scored = True
        if request.trace is not None:
            request.trace.scored(request.ticket.arrival_time, prediction.predicted_len)
        if prediction.predicted_len is not None:
            if not math.isfinite(prediction.predicted_len):
                return
            length = request.asked.claim.total(prediction.predicted_len)
            prediction = prediction._replace(predicted_len=length)
        if request.pool.order.predicted(id, prediction, 0):
            request.expect()
            if request.queued:
                self._counters.add("scored")
                request.pool.room.moved(request)
