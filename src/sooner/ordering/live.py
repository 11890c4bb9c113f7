"""The learner as the scorer's process holds it: one for all engines that ask, kept in a file."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from sooner.chat import Conversation
from sooner.core import Prediction
from sooner.learning import Identity, Learner, Salt
from sooner.learning.last_layer import Vector
from sooner.learning.memory import LearnedFile
from sooner.learning.watch import LiveStanding, Watch
from sooner.ordering.scoring import ReadQuestion
from sooner.ordering.wire import Ending, LiveReport, Placed, Question, ReplyEnd, Scope

logger = logging.getLogger("sooner.scorer")

_TOLD_EVERY, _SENDERS_EVERY = 1.0, 10.0  # seconds between two reports
_MOST_TOLD = 16  # models, and senders, of a report


class LiveLearner:
    """Answers questions and learns how their replies ended. `path` is the file it is kept in, None: none.

    `probe` is the ranker's vector of one fixed prompt, None where it has none: what was learned of vectors
    is of one ranker.

    A question is known by who asked it and its number. One thread answers; another may `close`.
    """

    def __init__(self, path: Path | None, salt: Salt | None = None, probe: Vector | None = None) -> None:
        self._salt = Salt.of_installation() if salt is None else salt
        self._file = None if path is None else LearnedFile(path)
        self.learner = Learner() if self._file is None else self._file.read(Learner())
        self.learner.layer.bind(probe)
        self.unsaved = False
        self._lock = threading.Lock()
        self._tell = self._tell_senders = 0.0

    def answer(self, who: Hashable, question: Question, read: ReadQuestion) -> tuple[Prediction, Placed]:
        """Return what is expected of a request, and what it was taken for."""
        placed = Placed(self._identity(question, read.conversation), _usable(read.text))
        limit = question.request.signals.max_tokens
        with self._lock:
            found = self.learner.predict(
                (who, question.number), placed.identity, placed.text, limit=limit, vector=read.vector
            )
        return found, placed

    def why(self, question: Question, read: ReadQuestion) -> dict[str, Any]:
        """Return what the groups of a request say of it, as plain data."""
        identity = self._identity(question, read.conversation)
        with self._lock:
            said = self.learner.why(identity)
            on, seen = self.learner.on(identity), self.learner.seen
        return {"on": on, "replies": seen, "groups": [group._asdict() for group in said]}

    def ended(self, who: Hashable, told: ReplyEnd, *, anew: bool = True) -> None:
        """Learn how a reply ended, or that it has not.

        `anew`: one that was never asked about here is taken for what it says it was taken for.
        """
        key = (who, told.number)
        with self._lock:
            if told.ending is Ending.RUNNING:
                self.learner.running(key, told.length)
                return
            whole = told.ending is Ending.STOP
            if told.length < 1.0 and not whole:
                self.learner.dropped(key)  # nothing came of it, which says nothing
                return
            if not self.learner.knows(key):  # another scorer was asked, which has died
                if not anew:
                    return
                self.learner.predict(key, *told.placed, limit=told.limit)
            self.learner.finished(key, told.length, whole=whole)
            self.unsaved = True

    def left(self, who: Hashable) -> None:
        """Forget the requests under way of an engine that is gone."""
        with self._lock:
            for key in [key for key in self.learner.under_way() if isinstance(key, tuple) and key[0] == who]:
                self.learner.dropped(key)

    def tick(self) -> None:
        """Keep what was learned; called after each round and at least once a second while `unsaved`."""
        if self.unsaved and self._file is not None and self._file.due:
            self.unsaved = False
            with self._lock:
                self._file.write(self.learner)

    def close(self) -> None:
        """Keep what was learned since."""
        if self._file is not None and self.unsaved:
            with self._lock:
                self._file.close(self.learner)

    def reports(self) -> list[LiveReport]:
        """Return how the order stands, where it is time to tell."""
        now = time.monotonic()
        if now < self._tell:
            return []
        self._tell = now + _TOLD_EVERY
        return list(self._reports(now))

    def _reports(self, now: float) -> Iterator[LiveReport]:
        learner = self.learner

        def told(scope: Scope, hash: int, standing: LiveStanding, alarms: int, on: bool) -> LiveReport:
            return LiveReport(scope, hash, standing, alarms, learner.seen, on)

        yield told(Scope.ALL, 0, learner.watch.now, learner.alarms, learner.switch.on)
        for name, model in list(learner.models.items())[-_MOST_TOLD:]:
            on = learner.switch.on and model.switch.on
            yield told(Scope.MODEL, name, model.watch.now, model.drift.alarms, on)
        if now < self._tell_senders:
            return
        self._tell_senders = now + _SENDERS_EVERY
        watches: list[tuple[int, Watch]] = list(learner.senders.items())[-_MOST_TOLD:]
        for name, watch in watches:
            watch.look()
            if watch.now.n:
                yield told(Scope.SENDER, name, watch.now, 0, learner.switch.on)

    def _identity(self, question: Question, seen: Conversation | None) -> Identity:
        prompt, said = question.request
        if seen is not None:
            template, opening = self._salt.template(seen.context), self._salt.opening(*seen)
        elif question.request.tokenized:
            template, opening = self._salt.blocks(prompt, said)  # type: ignore[arg-type]  # `tokenized` says so
        else:
            template = opening = 0
        return Identity(question.model, question.sender, template, opening)


def _usable(text: Prediction | None) -> Prediction | None:
    """Return a ranker's word where it is finite."""
    if text is None or not math.isfinite(text.score):
        return None
    length = text.predicted_len
    return text if length is None or (math.isfinite(length) and length >= 0) else Prediction(text.score)
