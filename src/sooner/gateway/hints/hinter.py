"""What is said of one request: read, predicted, and written in the target's own words."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sooner import chat, rankers
from sooner.chat import ChatRequest
from sooner.core import Prediction
from sooner.gateway.engines.kinds import with_priority
from sooner.gateway.hints.lateness import TYPICAL_REPLY
from sooner.gateway.hints.settings import HintSettings
from sooner.gateway.hints.targets import Moment, target
from sooner.ordering.client import ScorerClient
from sooner.ordering.counters import Counters
from sooner.rankers import shipped
from sooner.rankers.contract import Ranker
from sooner.rankers.files import read_manifest

logger = logging.getLogger("sooner.hint")

COUNTERS = {
    "requests": "Requests to a generating endpoint",
    "hinted": "Requests that went on with a hint",
    "neutral": "Hints without a score: by the prompt and a reply of the usual length",
    "unchanged": "Requests that could not be read, and went on as they came",
    "refused": "Requests that were no HTTP/1.1, or too large",
    "unread": "Messages of Envoy that could not be read, or were of an unknown kind",
    "no_backend": "Requests that no backend could be reached for",
    "scored": "Scores that came in time",
    "scorer_timeouts": "Scores that did not come in time",
    "scorer_failures": "Scores that the ranker could not give",
    "scorer_restarts": "Times the scorer process was started again",
    "hook_errors": "Exceptions that were caught",
}
GENERATING = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/responses"))
_LONGEST_TEXT = 8 * 1024  # letters that a ranker is shown: of a longer prompt its two ends
_IN_HERE = "lexical"  # the ranker that takes a fifth of a millisecond, and needs no process of its own


def generates(method: str, path: str) -> bool:
    """Return whether a request is one that gets a hint."""
    return method == "POST" and path in GENERATING


class Hint(NamedTuple):
    """What is put into a request: a header line, or a body that is written anew; the header it replaces."""

    header: bytes
    body: bytes
    drop: bytes


class Hinter:
    """Makes hints; keeps nothing of a request. Lives in one event loop.

    A light ranker is asked in here, any other one in the scorer's process, for no longer than `patience`.
    """

    def __init__(self, settings: HintSettings) -> None:
        self.settings = settings
        self.target = target(settings.target)
        self.counters = Counters(COUNTERS, logger)
        self._lateness = settings.lateness()
        self._drop = self.target.header.encode()
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, asyncio.Future[Prediction]] = {}
        self._count = 0
        self._ranker: Ranker | None = None
        self._scorer: ScorerClient | None = None
        if settings.ranker and self._lateness.policy.uses_predictions:
            self._take_ranker(settings)

    def _take_ranker(self, settings: HintSettings) -> None:
        place = shipped.folder(settings.ranker) or Path(settings.ranker)
        if (":" not in settings.ranker or place.exists()) and read_manifest(place)["ranker"] == _IN_HERE:
            self._ranker = rankers.load(place)
        else:
            self._scorer = ScorerClient(
                "", settings.ranker, "", self._deliver, self.counters, settings.scorer_timeout
            )

    def close(self) -> None:
        """Stop the scorer."""
        if self._scorer is not None:
            self._scorer.close()

    @property
    def waits(self) -> bool:
        """Whether a hint may take longer than the call: then ask for it with `later`."""
        return self._scorer is not None

    def now(self, body: bytes) -> Hint | None:
        """Return the hint of a request whose JSON body is `body`; None where it goes on as it came."""
        arrival = time.time()
        try:
            parsed, asked = _read(body)
            return self._written(parsed, body, arrival, asked.prompt_len, self._predicted(asked))
        except Exception as error:
            self._gave_up(error)
            return None

    async def later(self, body: bytes) -> Hint | None:
        """Return what `now` does, with the score of the scorer's process."""
        arrival = time.time()
        try:
            parsed, asked = _read(body)
            return self._written(parsed, body, arrival, asked.prompt_len, await self._asked(asked))
        except Exception as error:
            self._gave_up(error)
            return None

    def _gave_up(self, error: Exception) -> None:
        if not isinstance(error, ValueError | RecursionError):
            self.counters.warn("hook_errors", "a request goes on as it came: %r", error)
        self.counters.add("unchanged")

    def _written(
        self, parsed: Mapping[str, Any], body: bytes, arrival: float, prompt_len: int, predicted: float | None
    ) -> Hint:
        if predicted is None:
            if self._lateness.policy.uses_predictions:
                self.counters.add("neutral")
            predicted = TYPICAL_REPLY
        late = self._lateness.of(prompt_len, predicted)
        value = self.target.value(Moment(arrival, late, self._lateness.least, self._lateness.most))
        self.counters.add("hinted")
        if self.target.header:
            return Hint(f"{self.target.header}: {value}".encode(), body, self._drop)
        if self.target.field in parsed:  # its own would win: the last of two equal names does
            parsed = {name: kept for name, kept in parsed.items() if name != self.target.field}
            body = json.dumps(parsed, ensure_ascii=False, separators=(",", ":")).encode(
                "utf-8", "surrogatepass"
            )
        return Hint(b"", b"".join(with_priority(body, json.loads(value))), b"")

    def _predicted(self, asked: ChatRequest) -> float | None:
        """Return the reply's expected length [tokens], None where nobody says."""
        if self._ranker is None or not asked.readable:
            return None
        talk = asked.cut(_LONGEST_TEXT).conversation()
        try:
            said = self._ranker.predictions([talk.prompt], context=[talk.context])[0]
        except Exception as error:
            self.counters.warn("scorer_failures", "the ranker failed: %r", error)
            return None
        self.counters.add("scored")
        return said.predicted_len

    async def _asked(self, asked: ChatRequest) -> float | None:
        if self._scorer is None or not asked.readable:
            return None
        self._count += 1
        id = str(self._count)
        self._waiting[id] = self._loop.create_future()
        self._scorer.submit(id, asked.cut(_LONGEST_TEXT))
        try:
            said = await asyncio.wait_for(self._waiting[id], self.settings.patience)
        except TimeoutError:
            self.counters.warn("scorer_timeouts", "no score within %.2f s", self.settings.patience)
            return None
        finally:
            del self._waiting[id]
        self.counters.add("scored")
        return said.predicted_len

    def _deliver(self, id: str, prediction: Prediction) -> None:
        self._loop.call_soon_threadsafe(self._settle, id, prediction)

    def _settle(self, id: str, prediction: Prediction) -> None:
        future = self._waiting.get(id)
        if future is not None and not future.done():
            future.set_result(prediction)


def _read(body: bytes) -> tuple[dict[str, Any], ChatRequest]:
    """Return a request's JSON and what it asks. Raises ValueError where it is no object."""
    parsed = json.loads(body.decode("utf-8"))
    if not isinstance(parsed, dict):
        raise ValueError(f"the body is a JSON {type(parsed).__name__}")
    if not parsed:
        raise ValueError("the body is empty")
    return parsed, chat.of_body(parsed)
