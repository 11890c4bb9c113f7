"""The scorer's process as its client sees it: started, watched, ended; and whose socket it is."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from sooner.core import ConfigError, EngineError

_STARTING = 300.0  # seconds a new scorer may take to load, on a busy machine, before it is started again

_ENDING = 3.0  # seconds that a scorer which learns may take to end

LEARNER = "learner"
"""The name of a shadow without a ranker: what is learned of senders and templates, alone."""


def check_shadow(where: str, shadow: str, ranker: str, *, learn: bool) -> None:
    """Raise ConfigError where a `shadow` is the `ranker` itself, or nothing is learned."""
    if shadow and (not learn or shadow == (ranker or LEARNER)):
        told = "another than ranker, and with learn = true"
        raise ConfigError(f"{where}.shadow={shadow!r}, allowed: {told}")


class Stranger(EngineError, ConnectionError):
    """The socket is served by another user of this machine."""


class ScorerProcess:
    """At most one scorer, which ends when this process does.

    It is started with `-P`: a module that lies in the working folder is never taken for one of Python's.
    """

    def __init__(
        self,
        path: Path,
        ranker: str,
        tokenizer: str,
        timeout: float,
        learned: str | None = None,
        shadow: str = "",
    ) -> None:
        """`learned` is the file in which a learner is kept; "": in memory only, None: it does not learn."""
        self._command = [sys.executable, "-P", "-m", "sooner.ordering.scorer", "--socket", str(path)]
        self._command += ["--ranker", ranker, "--tokenizer", tokenizer, "--timeout", str(timeout)]
        self._learns = learned is not None
        if learned is not None:
            self._command += ["--learn", "--learned", learned, "--shadow", shadow]
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    @property
    def pid(self) -> int | None:
        """Process id of the scorer that was started here, if one was."""
        return None if self._process is None else self._process.pid

    @property
    def loading(self) -> bool:
        """Whether it runs, and may still need time before it listens."""
        running = self._process is not None and self._process.poll() is None
        return running and time.monotonic() - self._started < _STARTING

    def start(self) -> None:
        """Start a scorer; it ends by itself where another already serves the socket."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
        )
        self._started = time.monotonic()

    def end(self) -> int | None:
        """End the scorer that was started here, a stopped one too; return its exit code."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        if process.stdin is not None:
            process.stdin.close()
        if self._learns:  # it keeps what it learned since
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=_ENDING)
        process.kill()
        return process.wait()


def check_peer(connection: socket.socket) -> None:
    """Raise Stranger unless who is at the other end is this user or root."""
    known = getattr(socket, "SO_PEERCRED", None)
    if known is None:  # not Linux: the socket's own permissions are all there is
        return
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, known, size))
    if uid not in (0, os.geteuid()):
        raise Stranger(f"process {pid} of user {uid} is at the scorer's socket; allowed: {os.geteuid()}")
