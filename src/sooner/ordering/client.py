"""The engine's side of the scorer: it starts the process, keeps it alive, and never makes anyone wait.

`submit` and the delivery of answers are the only things that touch the caller; all else happens in
one daemon thread.
"""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sooner.chat import ChatRequest
from sooner.core import Prediction
from sooner.ordering import wire
from sooner.ordering.counters import Counters

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0  # seconds between two tries to reach or start the scorer
_STARTING = 300.0  # seconds a new scorer may take to load, on a busy machine, before it is started again
_MOST_PENDING = 20_000


class Pending(NamedTuple):
    """A question under way."""

    id: str
    frame: bytes
    expires: float


class Lost(ConnectionError):
    """The scorer closed the connection."""


class ScorerClient:
    """Asks the scorer at `path` (or its own, where `path` is empty) and hands each answer to `deliver`.

    `deliver(id, prediction)` is called in the client's thread. Questions outlive a scorer that dies:
    they are asked again once it is back, until `timeout` [s] has passed. Where nobody listens at the
    socket, `command` is started; a shared socket is served by whoever was first.
    """

    def __init__(
        self,
        path: str,
        ranker: str,
        tokenizer: str,
        deliver: Callable[[str, Prediction], None],
        counters: Counters,
        timeout: float,
    ) -> None:
        self._own_folder = None if path else tempfile.mkdtemp(prefix="sooner-")
        self.path = Path(path) if path else Path(self._own_folder or "", "scorer.sock")
        self._command = [sys.executable, "-m", "sooner.ordering.scorer", "--socket", str(self.path)]
        self._command += ["--ranker", ranker, "--tokenizer", tokenizer]
        self._deliver = deliver
        self._counters = counters
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._starts = 0
        self._pause = _FIRST_PAUSE
        self._asked: deque[tuple[str, ChatRequest]] = deque()
        self._pending: dict[int, Pending] = {}
        self._number = 0
        self._closing = False
        self._asleep = False
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="sooner-scorer", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Process id of the scorer that this client started, if it did."""
        return None if self._process is None else self._process.pid

    def submit(self, id: str, request: ChatRequest) -> None:
        """Ask for a score; returns at once. Beyond 20,000 unanswered questions new ones are dropped."""
        if len(self._asked) + len(self._pending) >= _MOST_PENDING:
            self._counters.warn("scorer_timeouts", "the scorer is far behind; requests stay unscored")
            return
        self._asked.append((id, request))
        if self._asleep:
            self._ring()

    def close(self) -> None:
        """Stop the thread and the scorer it started."""
        self._closing = True
        self._ring()
        self._thread.join(timeout=2)
        self._end_process()
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)
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
                    connection.connect(str(self.path))
                    self._converse(connection)
            except (FileNotFoundError, ConnectionRefusedError):
                self._start()
            except OSError as error:
                if not self._closing:
                    self._counters.logger.info("the scorer's connection ended: %r", error)
            except Exception as error:  # whatever it is, the engine goes on and we try again
                self._counters.warn("hook_errors", "the scorer's client failed: %r", error)
            if not self._closing:
                self._rest()

    def _rest(self) -> None:
        """Pause before the next try, giving up what has waited too long."""
        end = time.monotonic() + self._pause
        while not self._closing and (left := end - time.monotonic()) > 0:
            time.sleep(min(0.1, left))
            self._frame_new()
            self._expire()

    def _start(self) -> None:
        """Start the scorer unless one is loading; a quick death doubles the pause before the next try."""
        running = self._process is not None and self._process.poll() is None
        if running and time.monotonic() - self._started < _STARTING:
            return
        if self._process is not None:
            code = self._end_process()
            self._counters.warn("scorer_restarts", "the scorer ended (exit code %s); starting it again", code)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
        )
        self._started = time.monotonic()

    def _end_process(self) -> int | None:
        """End the scorer that this client started, if it did; return its exit code."""
        if self._process is None:
            return None
        self._process.kill()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return self._process.wait()

    def _converse(self, connection: socket.socket) -> None:
        """Exchange frames until the connection ends or the client closes."""
        connection.setblocking(False)
        answers = wire.Answers()
        out = bytearray(b"".join(pending.frame for pending in self._pending.values()))
        with selectors.DefaultSelector() as selector:
            selector.register(self._ear, selectors.EVENT_READ)
            selector.register(connection, selectors.EVENT_READ)
            while not self._closing:
                out += self._frame_new()
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if out else 0)
                selector.modify(connection, wanted)
                self._asleep = True
                ready = selector.select(0 if self._asked else 0.5)
                self._asleep = False
                for key, events in ready:
                    if key.fileobj is self._ear:
                        self._ear.recv(4096)
                        continue
                    if events & selectors.EVENT_WRITE:
                        del out[: connection.send(out)]
                    if events & selectors.EVENT_READ:
                        self._receive(connection, answers)
                self._expire()

    def _receive(self, connection: socket.socket, answers: wire.Answers) -> None:
        data = connection.recv(1 << 16)
        if not data:
            raise Lost("the scorer closed the connection")
        self._pause = _FIRST_PAUSE
        for number, prediction in answers.feed(data):
            pending = self._pending.pop(number, None)
            if pending is None:
                continue
            if prediction is None:
                self._counters.warn("scorer_failures", "the ranker gave no score for a request")
            else:
                self._deliver(pending.id, prediction)

    def _frame_new(self) -> bytes:
        """Take over what was submitted and return its frames."""
        frames = []
        while self._asked:
            id, request = self._asked.popleft()
            self._number += 1
            try:
                frame = wire.ask(self._number, request)
            except (OverflowError, TypeError) as error:
                self._counters.warn("scorer_failures", "a prompt cannot be sent to the scorer: %r", error)
                continue
            self._pending[self._number] = Pending(id, frame, time.monotonic() + self._timeout)
            frames.append(frame)
        return b"".join(frames)

    def _expire(self) -> None:
        now = time.monotonic()
        while self._pending:
            number = next(iter(self._pending))  # the oldest
            if self._pending[number].expires > now:
                return
            del self._pending[number]
            self._counters.warn("scorer_timeouts", "a request got no score within %.1f s", self._timeout)
