"""The scores of waiting requests: asked for at arrival, taken in when they come."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

from sooner.core import Prediction
from sooner.gateway.settings import GatewaySettings
from sooner.gateway.visit import Visit
from sooner.ordering.client import ScorerClient
from sooner.ordering.counters import Counters


class WaitingScores:
    """Asks the scorer, where there is one and someone reads its answers; `waiting` is by request id."""

    def __init__(self, settings: GatewaySettings, waiting: Mapping[str, Visit], counters: Counters) -> None:
        self._waiting = waiting
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._scorer: ScorerClient | None = None
        if settings.ranker and (settings.chosen_policy.uses_predictions or settings.journal.url):
            self._scorer = ScorerClient(
                "", settings.ranker, "", self._deliver, counters, settings.scorer_timeout
            )

    def ask(self, request: Visit) -> None:
        """Ask for a request's score, unless its client brought one; returns at once."""
        asked = request.asked
        if self._scorer is not None and asked.request.readable and asked.given.score is None:
            self._scorer.submit(request.id, asked.request, request.tenant)

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
