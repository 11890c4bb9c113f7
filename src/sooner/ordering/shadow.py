"""A second ranker in the scorer's process, with a learner of its own: asked too, and nobody waits for it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sooner.chat import Detokenize
from sooner.learning import Salt
from sooner.learning.shadow import ShadowWatch
from sooner.ordering.live import LiveLearner
from sooner.ordering.process import LEARNER
from sooner.ordering.scoring import Scorer, load_ranker
from sooner.ordering.wire import Ending, Question, ReplyEnd, ShadowReport

logger = logging.getLogger("sooner.scorer")


class Answered(NamedTuple):
    """A question, who asked it, and the score that it was answered with."""

    question: Question
    who: Hashable
    score: float


class Promotion:
    """Whether the shadow acts, in place of what the settings name; kept in a file if there is one.

    It is `between` these two: where the settings name others, it is forgotten.
    """

    def __init__(self, path: Path | None, between: Mapping[str, str]) -> None:
        self._path = path
        self._between = dict(between)
        self.on = self._read()

    def _read(self) -> bool:
        if self._path is None:
            return False
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("whether the shadow was promoted cannot be read: %s", error)
            return False
        if kept != self._between:
            logger.warning("a promotion is forgotten, for the settings name others now")
            return False
        return True

    def turn(self, on: bool) -> None:
        """Say whether the shadow acts, and keep that whole or not at all."""
        self.on = on
        if self._path is None:
            return
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not on:
                self._path.unlink(missing_ok=True)
                return
            with open(os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as file:
                json.dump(self._between, file)
            draft.replace(self._path)
        except OSError as error:
            logger.warning("a promotion cannot be kept over the next start: %s", error)


class Shadow:
    """Scores what was answered, learns of the replies, and says how it stands beside the order that acts."""

    def __init__(self, scorer: Scorer, live: LiveLearner, promotion: Promotion) -> None:
        self.scorer = scorer
        self.live = live
        self.promotion = promotion
        self.failures = 0
        self._watch = ShadowWatch()

    def follow(self, answered: Sequence[Answered]) -> None:
        """Say what it would have answered."""
        before = self.scorer.failures
        self._safely(self._follow, answered)
        self.failures += self.scorer.failures - before

    def _follow(self, answered: Sequence[Answered]) -> None:
        read = self.scorer.score([one.question for one in answered])
        for (question, who, score), one in zip(answered, read, strict=True):
            found, _ = self.live.answer(who, question, one)
            self._watch.placed((who, question.number), score, found.score)

    def ended(self, who: Hashable, told: ReplyEnd) -> None:
        """Learn how a reply ended that it was asked about."""
        self._safely(self._ended, who, told)

    def _safely(self, hook: Callable[..., None], *arguments: Any) -> None:
        """Do our part; what it raises is counted, and the order that acts goes on."""
        try:
            hook(*arguments)
        except Exception as error:
            self.failures += 1
            logger.warning("the shadow failed: %r", error)

    def _ended(self, who: Hashable, told: ReplyEnd) -> None:
        if told.ending is not Ending.RUNNING:
            key = (who, told.number)
            if told.ending is Ending.STOP:
                self._watch.finished(key, told.length)
            else:
                self._watch.dropped(key)
        self.live.ended(who, told, anew=False)

    def left(self, who: Hashable) -> None:
        """Forget the requests under way of an engine that is gone."""
        self._watch.left(who)
        self.live.left(who)

    def change_places(self, scorer: Scorer, live: LiveLearner) -> tuple[Scorer, LiveLearner]:
        """Take the place of the order that acts; return what acts from now on."""
        acting = self.scorer, self.live
        self.scorer, self.live = scorer, live
        self._watch.change_places()
        return acting

    @property
    def report(self) -> ShadowReport:
        """How both stand."""
        return ShadowReport(self.promotion.on, self._watch.seen, self._watch.now, self.failures)


def beside(
    name: str, ranker: str, detokenize: Detokenize | None, learned: Path | None, salt: Salt
) -> Shadow | None:
    """Return the shadow of a `ranker`, kept beside the file `learned`; None where it cannot be loaded."""
    try:
        own = None if name == LEARNER else load_ranker(name)
    except Exception as error:  # whatever it is, the order that acts goes on
        logger.warning("the shadow %r cannot be loaded, and nothing is compared: %r", name, error)
        return None
    promotion = Promotion(_next_to(learned, "promoted"), {"ranker": ranker, "shadow": name})
    scorer = Scorer(own, detokenize)
    return Shadow(scorer, LiveLearner(_next_to(learned, "shadow"), salt, scorer.probe), promotion)


def _next_to(path: Path | None, ending: str) -> Path | None:
    return None if path is None else path.with_name(f"{path.name}.{ending}")
