"""The engine's side of the scorer: it starts the process, keeps it alive, and never makes anyone wait.

`submit` and the delivery of answers are the only things that touch the caller; all else happens in
one daemon thread. Only a window of questions is with the scorer; the others wait here, fairly among
tenants, and leave when they expire, so a scorer that stands still costs no memory and answers nothing stale.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from sooner.chat import ChatRequest
from sooner.core import EngineError, Prediction
from sooner.learning import Salt
from sooner.ordering import wire
from sooner.ordering.counters import Counters
from sooner.ordering.endings import Ended, Endings
from sooner.ordering.fair import FairQueue
from sooner.ordering.held import HeldFolder
from sooner.ordering.process import LEARNER, ScorerProcess, Stranger, check_peer
from sooner.ordering.submitted import NOTHING, Submitted
from sooner.ordering.tally import Tally
from sooner.ordering.whys import Deliver, Whys

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0  # seconds between two tries to reach or start the scorer
_MOST_WAITING, _MOST_BYTES = 20_000, 64 << 20
_WINDOW, _WINDOW_BYTES = 64, 1 << 20  # questions with the scorer at a time: two of its batches
_TRIES = 3  # times that a question is sent, to scorers that died
_SILENCE = 15.0  # seconds without an answer after which a scorer stands still
_LONGEST_SLEEP = 0.5  # seconds until expired questions and told endings are looked at


class Lost(EngineError, ConnectionError):
    """The scorer closed the connection."""


class Silent(EngineError, ConnectionError):
    """The scorer has questions and gives no answers."""


class ScorerClient:
    """Asks the scorer at `path` (or its own, where `path` is empty) and hands each answer to `deliver`.

    `deliver(id, prediction)` is called in the client's thread. Questions outlive a scorer that dies:
    they are asked again once it is back, until `timeout` [s] has passed. Where nobody listens at the
    socket, a scorer is started; a shared socket is served by whoever was first, of this user only. A scorer
    of ours that gives no answer for `silence` [s] is ended and started again.
    """

    def __init__(
        self,
        path: str,
        ranker: str,
        tokenizer: str,
        deliver: Callable[[str, Prediction], None],
        counters: Counters,
        timeout: float,
        silence: float = _SILENCE,
        learned: str | None = None,
        shadow: str = "",
    ) -> None:
        """`learned` is the file of the scorer's learner; "": in memory only, None: it does not learn.

        `shadow` names a second ranker, which is asked too and does not act until it is promoted.
        """
        self._own_folder = None if path else HeldFolder()
        self.path = Path(path) if self._own_folder is None else self._own_folder.path / "scorer.sock"
        self._process = ScorerProcess(self.path, ranker, tokenizer, timeout, learned, shadow)
        self._rankers = ranker, "" if shadow == LEARNER else shadow
        self._salt: Salt | None = None
        self._deliver = deliver
        self._endings: Endings | None = None if learned is None else Endings()
        self._whys = Whys()
        self._tally = Tally(counters, shadow)
        self._counters = counters
        self._timeout = timeout
        self._silence = silence
        self._pause = _FIRST_PAUSE
        self._new: deque[Submitted] = deque()
        self._waiting: FairQueue[str, Submitted] = FairQueue(most=_MOST_WAITING, most_cost=_MOST_BYTES)
        self._in_order: deque[Submitted] = deque()  # what waits or waited, the oldest first
        self._sent: dict[int, Submitted] = {}
        self._sent_bytes = 0
        self._heard = 0.0  # when the scorer last answered, or was first asked
        self._number = 0
        self._closing = False
        self._asleep = False
        self._meets = False  # a scorer that has not greeted yet
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="sooner-scorer", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Process id of the scorer that this client started, if it did."""
        return self._process.pid

    def submit(self, id: str, request: ChatRequest, tenant: str = "") -> None:
        """Ask for a score; returns at once. Beyond 20,000 questions those of who asks most are dropped.

        Without a `tenant` the request's own sender takes its turn.
        """
        if len(self._new) >= _MOST_WAITING:
            self._counters.warn("scorer_timeouts", "the scorer is far behind; requests stay unscored")
            return
        self._new.append(
            Submitted(id, request, tenant or request.signals.sender, time.monotonic() + self._timeout)
        )
        if self._asleep:
            self._asleep = False  # one bell is enough for all that come until it is heard
            self._ring()

    def explain(self, request: ChatRequest, tenant: str, deliver: Deliver) -> None:
        """Ask why a request has its score; `deliver(reasons)` is called in the client's thread, or never."""
        self._whys.ask(Submitted("", request, tenant or request.signals.sender, 0.0), deliver)
        self._ring()

    def ended(self, id: str, length: float, ending: wire.Ending) -> None:
        """Say how many tokens the reply to a question has and how it ended; returns at once.

        A reply that is still running may be told of again and again; one that never began has 0 tokens.
        It is handed on with the next question, or within half a second: nobody waits for it.
        """
        if self._endings is not None:
            self._endings.told.append(Ended(id, length, ending))

    def groups(self, id: str) -> tuple[str, str]:
        """Return the hashes of a request's sender and template as text, "" where there is none.

        They are known from its answer until its end is told.
        """
        placed = None if self._endings is None else self._endings.placed(id)
        if placed is None:
            return "", ""
        sender, template = placed.identity.sender, placed.identity.template
        return f"{sender:016x}" if sender else "", f"{template:016x}" if template else ""

    @property
    def reports(self) -> Mapping[tuple[wire.Scope, int], wire.LiveReport]:
        """How the order stands, as the scorer last told; empty before, or where it does not learn."""
        return {} if self._endings is None else self._endings.reports

    @property
    def shadow(self) -> wire.ShadowReport | None:
        """How the shadow stands, as the scorer last told; None before, or where there is none."""
        return None if self._endings is None else self._endings.shadow

    def promote(self, on: bool) -> None:
        """Wish that the shadow acts, or the settings' ranker again; `shadow` says when it is so."""
        if self._endings is not None:
            self._endings.promote(on)
            self._ring()

    def close(self) -> None:
        """Stop the thread and the scorer it started."""
        self._closing = True
        self._ring()
        self._thread.join(timeout=2)
        self._process.end()
        if self._own_folder is not None:
            self._own_folder.close()
        self._bell.close()
        self._ear.close()

    def _ring(self) -> None:
        try:
            self._bell.send(b"!")
        except OSError:  # full: it rings already
            return

    def _run(self) -> None:
        while not self._closing:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                    self._meets = False
                    connection.connect(str(self.path))
                    check_peer(connection)
                    self._converse(connection)
            except (FileNotFoundError, ConnectionRefusedError):
                self._start()
            except Silent as error:
                self._counters.warn("scorer_restarts", "the scorer stands still (%s); it is ended", error)
                self._process.end()
            except wire.OtherVersion as error:
                self._stays_unscored(str(error))
            except Stranger as error:
                self._counters.warn("scorer_failures", "%s", error)
                self._pause = _LONGEST_PAUSE
            except OSError as error:
                if self._meets and self._process.pid is None:
                    self._stays_unscored(f"the scorer does not greet; allowed: version {wire.VERSION}")
                elif not self._closing:
                    self._counters.logger.info("the scorer's connection ended: %r", error)
            except Exception as error:  # whatever it is, the engine goes on and we try again
                self._counters.warn("hook_errors", "the scorer's client failed: %r", error)
            if not self._closing:
                self._rest()

    def _stays_unscored(self, why: str) -> None:
        """Say that the scorer at the socket is of another version."""
        self._counters.warn("scorer_failures", "no scores come from %s: %s", self.path, why)
        self._pause = _LONGEST_PAUSE

    def _rest(self) -> None:
        """Pause before the next try, giving up what has waited too long."""
        end = time.monotonic() + self._pause
        while not self._closing and (left := end - time.monotonic()) > 0:
            time.sleep(min(0.1, left))
            self._take_new()
            self._expire()

    def _start(self) -> None:
        """Start the scorer unless one is loading; a quick death doubles the pause before the next try."""
        if self._process.loading:
            return
        if self._process.pid is not None:
            code = self._process.end()
            self._counters.warn("scorer_restarts", "the scorer ended (exit code %s); starting it again", code)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._process.start()

    def _converse(self, connection: socket.socket) -> None:
        """Exchange frames until the connection ends or the client closes."""
        connection.setblocking(False)
        answers = wire.Answers()
        self._meets = True
        out = bytearray(self._again())
        if self._endings is not None:
            self._endings.again()
        wanted = selectors.EVENT_READ
        self._heard = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._ear, selectors.EVENT_READ)
            selector.register(connection, wanted)
            while not self._closing:
                self._take_new()
                self._expire()
                out += self._next() + self._whys.frames(self._groups)
                if self._endings is not None:
                    out += self._endings.frames()
                if out:
                    with contextlib.suppress(BlockingIOError):
                        del out[: connection.send(out)]
                if bool(out) != bool(wanted & selectors.EVENT_WRITE):
                    wanted ^= selectors.EVENT_WRITE
                    selector.modify(connection, wanted)
                self._asleep = True
                ready = selector.select(0 if self._new else _LONGEST_SLEEP)
                self._asleep = False
                for key, events in ready:
                    if key.fileobj is self._ear:
                        self._ear.recv(4096)
                        continue
                    if events & selectors.EVENT_READ:
                        out += self._receive(connection, answers)
                        self._meets = not answers.greeted
                if self._sent and time.monotonic() - self._heard > self._silence:
                    raise Silent(f"{len(self._sent)} questions, no answer for {self._silence:.0f} s")

    def _receive(self, connection: socket.socket, answers: wire.Answers) -> bytes:
        """Take in what the scorer says; return the frames of replies that ended before it did."""
        data = connection.recv(1 << 16)
        if not data:
            raise Lost("the scorer closed the connection")
        frames = []
        for told in answers.feed(data):
            self._pause = _FIRST_PAUSE
            self._heard = time.monotonic()
            if not isinstance(told, wire.Told):
                self._hear(told)
                continue
            asked = self._back(told.number)
            if asked is None:
                continue
            if self._endings is not None:
                frames.append(self._endings.answered(asked.id, told.placed))
            if asked.gone:
                continue
            if told.prediction is None or (self._expects_text and told.placed.text is None):
                self._counters.warn("scorer_failures", "the ranker gave no score for a request")
            if told.prediction is not None:
                self._deliver(asked.id, told.prediction)
            asked.gone = True
        return b"".join(frames)

    def _hear(self, told: wire.LiveReport | wire.ShadowReport | wire.ReasonsTold) -> None:
        """Take in how the order and its shadow stand, and count what is counted of them."""
        if isinstance(told, wire.ReasonsTold):
            self._whys.told(told)
            return
        if self._endings is None:
            return
        self._endings.heard(told)
        self._tally.heard(told)

    def _take_new(self) -> None:
        """Take over what was submitted; who asks most loses what there is no room for."""
        while self._new:
            asked = self._new.popleft()
            self._in_order.append(asked)
            if self._endings is not None:
                self._endings.coming(asked.id, asked.request.signals.max_tokens)
            for dropped in self._waiting.put(asked.tenant, asked, asked.size):
                dropped.gone, dropped.request = True, NOTHING
                self._forget(dropped)
                self._counters.warn("scorer_timeouts", "the scorer is far behind; requests stay unscored")

    def _next(self) -> bytes:
        """Return the frames of the next questions, as far as the window has room."""
        frames = []
        while len(self._sent) < _WINDOW and self._sent_bytes < _WINDOW_BYTES:
            asked = self._waiting.get()
            if asked is None:
                break
            self._number += 1
            try:
                asked.frame = wire.ask(self._number, asked.request, *self._groups(asked))
                asked.request = NOTHING
            except (OverflowError, TypeError, ValueError) as error:
                self._counters.warn("scorer_failures", "a prompt cannot be sent to the scorer: %r", error)
                asked.gone = True
                self._forget(asked)
                continue
            if self._endings is not None:
                self._endings.sent(asked.id, self._number)
            if not self._sent:
                self._heard = time.monotonic()
            self._sent[self._number] = asked
            self._sent_bytes += len(asked.frame)
            asked.tries = 1
            frames.append(asked.frame)
        return b"".join(frames)

    def _again(self) -> bytes:
        """Return the frames of the questions that a lost scorer had, but for those that met several."""
        for number, asked in list(self._sent.items()):
            asked.tries += 1
            if asked.tries > _TRIES or asked.gone:
                self._back(number)
                self._forget(asked)
                if not asked.gone:
                    self._counters.warn("scorer_failures", "a prompt met %d scorers that ended", _TRIES)
        return b"".join(asked.frame for asked in self._sent.values())

    def _back(self, number: int) -> Submitted | None:
        """Take a question out of the window, whatever became of it."""
        asked = self._sent.pop(number, None)
        if asked is not None:
            self._sent_bytes -= len(asked.frame)
            asked.frame = b""
        return asked

    @property
    def _expects_text(self) -> bool:
        """Whether the order that acts has a ranker, whose word comes with what a request was taken for."""
        promoted = self.shadow is not None and self.shadow.promoted
        return self._endings is not None and bool(self._rankers[promoted])

    def _forget(self, asked: Submitted) -> None:
        """Learn nothing of a request that is never answered."""
        if self._endings is not None:
            self._endings.gone(asked.id)

    def _groups(self, asked: Submitted) -> tuple[int, int]:
        """Return the hashes of a request's model and sender; names are not sent."""
        if self._endings is None:
            return 0, 0
        if self._salt is None:
            self._salt = Salt.of_installation()
        said = asked.request.signals
        return self._salt.of(said.model), self._salt.sender(asked.tenant, said.sender)

    def _expire(self) -> None:
        """Give up what has waited too long. What the scorer has stays in the window until it answers."""
        now = time.monotonic()
        while self._in_order and (self._in_order[0].gone or self._in_order[0].expires <= now):
            asked = self._in_order.popleft()
            if asked.gone:
                continue
            asked.gone = True
            if not asked.tries:
                asked.request = NOTHING
                self._waiting.drop_oldest(asked.tenant)
                self._forget(asked)
            self._counters.warn("scorer_timeouts", "a request got no score within %.1f s", self._timeout)
