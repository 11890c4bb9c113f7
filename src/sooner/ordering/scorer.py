"""The scorer process: a ranker behind a unix socket, in small batches, away from the engine's loop.

    python -m sooner.ordering.scorer --socket PATH [--ranker DIR] [--tokenizer MODEL]

It serves until its standard input closes, which happens when whoever started it dies. Text comes
from token ids by the model's own tokenizer; torch is never imported.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import selectors
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sooner import rankers
from sooner.learning import Salt
from sooner.ordering import reasons, wire
from sooner.ordering.fair import FairQueue
from sooner.ordering.live import LiveLearner
from sooner.ordering.process import Stranger, check_peer
from sooner.ordering.scoring import Scorer, load_ranker, load_tokenizer
from sooner.ordering.shadow import Answered, Shadow, beside

logger = logging.getLogger("sooner.scorer")

BATCH = 32
BATCH_WAIT = 0.003  # seconds a batch waits for more
_MOST_WAITING, _MOST_BYTES = 10_000, 64 << 20  # of all engines
_MOST_OF_ONE = 1000  # questions of an engine; ours keep to 64, so one with more is none of ours
_MOST_ENDINGS = 50_000  # replies that wait to be learned of; the oldest are lost
_MOST_VERSIONS = 16
_MOST_WHYS = 64
_EXPIRE = 60.0
_KEEP_EVERY = 0.4


class QueuedQuestion(NamedTuple):
    """A question and the connection that wants the answer."""

    question: wire.Question
    connection: socket.socket
    expires: float


class ToldEnd(NamedTuple):
    """What became of a question, or a wish, and whose word it is; None: who says so is gone."""

    end: wire.ReplyEnd | wire.Promote | None
    connection: socket.socket


class ScorerServer:
    """Accepts engines of this user on a unix socket; one thread reads, one scores.

    Engines take turns by the tokens they ask about; a question that waited for `timeout` [s] is answered with
    no score, for whoever asked has given it up.
    """

    def __init__(
        self,
        scorer: Scorer,
        path: Path,
        timeout: float = _EXPIRE,
        live: LiveLearner | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        """`shadow` watches what `scorer` and `live` answer, or has changed places with them before."""
        self._scorer = scorer
        self._live = live
        self._shadow = shadow
        if shadow is not None and shadow.promotion.on:
            self._change_places(shadow)
        self._endings: deque[ToldEnd] = deque(maxlen=_MOST_ENDINGS)
        self._told_versions: set[str] = set()
        self._timeout = timeout
        self._jobs: FairQueue[socket.socket, QueuedQuestion] = FairQueue(
            most=_MOST_WAITING, most_cost=_MOST_BYTES
        )
        self._dropped: list[QueuedQuestion] = []  # for want of room; whoever asked is told so
        self._whys: deque[tuple[wire.Why, socket.socket]] = deque(maxlen=_MOST_WHYS)
        self._changed = threading.Condition()
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)  # the socket is this user's from its first moment
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(before)
        self._listener.listen(64)

    def serve(self) -> None:
        """Serve until the process ends."""
        threading.Thread(target=self._work, daemon=True).start()
        selector = selectors.DefaultSelector()
        selector.register(self._listener, selectors.EVENT_READ)
        streams: dict[socket.socket, wire.Questions] = {}
        while True:
            for key, _ in selector.select():
                connection: socket.socket = key.fileobj  # type: ignore[assignment]  # only sockets are registered
                if connection is self._listener:
                    accepted = self._accepted()
                    if accepted is not None:
                        streams[accepted] = wire.Questions()
                        selector.register(accepted, selectors.EVENT_READ)
                elif not self._read(connection, streams[connection]):
                    selector.unregister(connection)
                    del streams[connection]
                    with self._changed:
                        self._jobs.leave(connection)
                        self._endings.append(ToldEnd(None, connection))
                        self._changed.notify()
                    connection.close()

    def _accepted(self) -> socket.socket | None:
        """The engine that wants to connect, None where it is another user's."""
        connection, _ = self._listener.accept()
        try:
            check_peer(connection)
        except Stranger as error:
            logger.warning("a connection is refused: %s", error)
            connection.close()
            return None
        connection.settimeout(5.0)  # an engine that stops reading is dropped, not waited for
        try:
            connection.sendall(wire.GREETING)
        except OSError:
            connection.close()
            return None
        return connection

    def _read(self, connection: socket.socket, stream: wire.Questions) -> bool:
        try:
            data = connection.recv(1 << 18)
            expires = time.monotonic() + self._timeout
            for frame in stream.feed(data):
                if isinstance(frame, wire.Question):
                    self._take(QueuedQuestion(frame, connection, expires))
                elif isinstance(frame, wire.Why):
                    with self._changed:
                        self._whys.append((frame, connection))
                        self._changed.notify()
                else:
                    self._end(ToldEnd(frame, connection))
        except wire.OtherVersion as error:
            if str(error) not in self._told_versions and len(self._told_versions) < _MOST_VERSIONS:
                self._told_versions.add(str(error))  # once: such an engine tries again and again
                logger.warning("an engine of another version stays unscored: %s", error)
            return False
        except (OSError, ValueError) as error:
            logger.warning("a connection is closed: %r", error)
            return False
        return bool(data)

    def _take(self, job: QueuedQuestion) -> None:
        """Let a question wait. Raises ValueError for an engine that asks far more than ours would."""
        with self._changed:
            if self._jobs.held_by(job.connection) >= _MOST_OF_ONE:
                raise ValueError(f"more than {_MOST_OF_ONE} questions at a time")
            self._dropped += self._jobs.put(job.connection, job, job.question.request.prompt_len)
            self._changed.notify()

    def _end(self, told: ToldEnd) -> None:
        """Let the thread that answers learn of a reply."""
        if self._live is not None:
            with self._changed:
                self._endings.append(told)
                self._changed.notify()

    def _work(self) -> None:
        while True:
            jobs, dropped, endings = self._batch()
            peers = {job.connection for job in jobs} | {told.connection for told in endings if told.end}
            self._learn(endings)
            answers, answered = self._answers(jobs)
            for job in dropped:
                answers[job.connection] = answers.get(job.connection, b"") + wire.answer(
                    job.question.number, None
                )
            if self._live is not None:
                for live in self._learners:
                    live.tick()
                told = self._reports(self._live, endings) if peers else b""
                answers.update({peer: answers.get(peer, b"") + told for peer in peers if told})
            for connection, frames in answers.items():
                try:
                    connection.sendall(frames)
                except OSError as error:
                    logger.warning("an answer was not wanted any more: %r", error)
            if self._shadow is not None and answered and not self._jobs:  # nobody waits for what it does
                self._shadow.follow(answered)
            if self._whys:  # one a round, after all that wait for a score
                self._explain(*self._whys.popleft())

    def _explain(self, why: wire.Why, connection: socket.socket) -> None:
        """Say why a question has its answer."""
        try:
            told = reasons.found(self._scorer, self._live, why.question)
            connection.sendall(wire.reasons(wire.ReasonsTold(why.question.number, told)))
        except Exception as error:  # nobody goes without a score for it
            logger.warning("no reasons: %r", error)

    @property
    def _learners(self) -> list[LiveLearner]:
        both = (self._live, None if self._shadow is None else self._shadow.live)
        return [live for live in both if live is not None]

    def _reports(self, live: LiveLearner, endings: Sequence[ToldEnd]) -> bytes:
        """Return the frames that say how the order stands, and its shadow, where it is time or one asked."""
        reports = live.reports()
        asked = any(isinstance(told.end, wire.Promote) for told in endings)
        frames = list(map(wire.report, reports))
        if self._shadow is not None and (reports or asked):
            frames.append(wire.shadow_report(self._shadow.report))
        return b"".join(frames)

    def _learn(self, endings: Sequence[ToldEnd]) -> None:
        for end, connection in endings:
            if isinstance(end, wire.Promote):
                self._promote(end.on)
                continue
            if end is None:
                for live in (self._live, self._shadow):
                    if live is not None:
                        live.left(connection)
                continue
            if self._live is not None:
                self._live.ended(connection, end)
            if self._shadow is not None:
                self._shadow.ended(connection, end)

    def _promote(self, on: bool) -> None:
        """Let the shadow act, or the settings' ranker again; a wish for what is already so is no turn."""
        shadow = self._shadow
        if shadow is not None and shadow.promotion.on != on:
            self._change_places(shadow)
            shadow.promotion.turn(on)
            logger.warning("the %s acts from now on", "shadow" if on else "ranker of the settings")

    def _change_places(self, shadow: Shadow) -> None:
        assert self._live is not None  # a shadow learns beside one that does
        self._scorer, self._live = shadow.change_places(self._scorer, self._live)

    def _answers(self, jobs: Sequence[QueuedQuestion]) -> tuple[dict[socket.socket, bytes], list[Answered]]:
        """Return the frames that answer, by who asked, and what a shadow may follow."""
        answers: dict[socket.socket, bytes] = {}
        answered: list[Answered] = []
        read = self._scorer.score([job.question for job in jobs]) if jobs else []
        for (question, connection, _), one in zip(jobs, read, strict=True):
            prediction, placed = one.text, wire.UNPLACED
            if self._live is not None:
                prediction, placed = self._live.answer(connection, question, one)
                answered.append(Answered(question, connection, prediction.score))
            frame = wire.answer(question.number, prediction, placed)
            answers[connection] = answers.get(connection, b"") + frame
        return answers, answered

    def _batch(self) -> tuple[list[QueuedQuestion], list[QueuedQuestion], list[ToldEnd]]:
        """The next questions, those given up, and what became of earlier ones.

        A batch is full, or what came within `BATCH_WAIT` of its first, whatever is told meanwhile; empty
        where what was learned is to be kept.
        """
        jobs: list[QueuedQuestion] = []
        until = 0.0
        keep = any(live.unsaved for live in self._learners)
        with self._changed:
            dropped, self._dropped = self._dropped, []
            while len(jobs) < BATCH:
                idle = not (dropped or self._endings or self._whys)
                job, now = self._jobs.get(), time.monotonic()
                if job is not None:
                    until = until or now + BATCH_WAIT
                    (jobs if job.expires > now else dropped).append(job)
                elif jobs:
                    if not self._changed.wait(until - now):
                        break
                elif not idle or not self._changed.wait(_KEEP_EVERY if keep else None):
                    break
            endings = list(self._endings)
            self._endings.clear()
        return jobs, dropped, endings


def _end_with_parent(last_words: list[Callable[[], None]]) -> None:
    while os.read(0, 1024):
        pass
    try:
        for say in last_words:
            say()
    finally:
        os._exit(0)


def main() -> None:
    """Run the scorer; exits at once where another already serves the socket."""
    parser = argparse.ArgumentParser(prog="python -m sooner.ordering.scorer", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--ranker", default=rankers.DEFAULT, help="empty: none, the learner answers")
    parser.add_argument("--tokenizer", default="")
    parser.add_argument("--timeout", type=float, default=_EXPIRE, help="seconds after which nobody waits")
    parser.add_argument("--learn", action="store_true", help="learn from how replies end")
    parser.add_argument("--learned", default="", help="file in which that is kept, empty: none")
    parser.add_argument("--shadow", default="", help="a second ranker, which watches and learns too")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    last_words: list[Callable[[], None]] = []
    threading.Thread(target=_end_with_parent, args=(last_words,), daemon=True).start()
    lock = os.open(
        f"{options.socket}.lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600
    )  # held until the end
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("another scorer serves %s", options.socket)
        return
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    ranker = load_ranker(options.ranker) if options.ranker else None
    scorer = Scorer(ranker, tokenizer)
    live: LiveLearner | None = None
    shadow: Shadow | None = None
    if options.learn:
        learned = Path(options.learned) if options.learned else None
        salt = Salt.of_installation()
        live = LiveLearner(learned, salt, scorer.probe)
        last_words.append(live.close)
        if options.shadow:
            shadow = beside(options.shadow, options.ranker, tokenizer, learned, salt)
        if shadow is not None:
            last_words.append(shadow.live.close)
    ScorerServer(scorer, options.socket, options.timeout, live, shadow).serve()


if __name__ == "__main__":
    main()
