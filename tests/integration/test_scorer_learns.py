"""The scorer learns from how replies end: with and without a ranker, over kill -9, beside older peers."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sooner.chat import ChatRequest
from sooner.chat.signals import Signals
from sooner.core import Prediction
from sooner.learning import Learner
from sooner.learning.memory import LearnedFile
from sooner.ordering import wire
from sooner.ordering.client import ScorerClient
from sooner.ordering.wire import Ending, Scope
from sooner.vllm.counters import PluginCounters

SHORT, LONG = Signals(model="m", sender="alice@example.org"), Signals(model="m", sender="bob@example.org")


class LearningCaller:
    """A client whose scorer learns, and what was delivered to it."""

    def __init__(self, folder: Path, ranker: str = "", learned: str | None = None) -> None:
        self.answers: dict[str, Prediction] = {}
        self.counters = PluginCounters()
        self.file = folder / "learned.npz"
        self.client = ScorerClient(
            str(folder / "scorer.sock"), ranker, "", self.answers.__setitem__, self.counters, 120.0,
            learned=str(self.file) if learned is None else learned,
        )  # fmt: skip
        self.asked = 0

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120.0
        while not true():
            assert time.monotonic() < deadline, (len(self.answers), self.counters.counts)
            time.sleep(0.01)

    def ask(self, signals: Signals, prompt: str = "hello") -> str:
        self.asked += 1
        id = str(self.asked)
        self.client.submit(id, ChatRequest(prompt, signals))
        return id

    def serve(self, rounds: int, short: float = 10.0, long: float = 900.0) -> None:
        """Serve requests of both senders to their ends, and wait until the scorer knows."""
        before = self.seen()
        rng = np.random.default_rng(self.asked)
        ids = [(self.ask(one), mean) for _ in range(rounds) for one, mean in ((SHORT, short), (LONG, long))]
        for id, mean in ids:
            self.until(lambda id=id: id in self.answers)
            self.client.ended(id, round(mean * float(np.exp(0.3 * rng.standard_normal()))), Ending.STOP)
        self.until(lambda: self.probed() >= before + len(ids))

    def probed(self) -> int:
        """Ask once more, so that the scorer has a reason to tell how it stands."""
        self.client.ended(self.ask(SHORT), 0, Ending.ABORTED)
        time.sleep(0.05)
        return self.seen()

    def seen(self) -> int:
        told = self.client.reports.get((Scope.ALL, 0))
        return 0 if told is None else told.seen

    def expected(self, signals: Signals) -> float:
        id = self.ask(signals)
        self.until(lambda: id in self.answers)
        self.client.ended(id, 0, Ending.ABORTED)
        length = self.answers[id].predicted_len
        assert length is not None
        return length


@pytest.fixture
def caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LearningCaller]:
    monkeypatch.setenv("SOONER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    caller = LearningCaller(tmp_path)
    yield caller
    caller.client.close()


def test_it_learns_senders_without_a_ranker_and_forgets_nothing_by_kill_9(caller: LearningCaller) -> None:
    for _ in range(8):
        caller.serve(15)
    short, long = caller.expected(SHORT), caller.expected(LONG)
    assert 5 < short < 30
    assert 450 < long < 1800
    assert caller.client.reports[Scope.ALL, 0].standing.tau > 0.4
    caller.until(lambda: caller.file.exists() and LearnedFile(caller.file).read(Learner()).seen >= 240)

    under_way = [caller.ask(LONG) for _ in range(20)]
    caller.until(lambda: under_way[-1] in caller.answers)
    assert caller.client.pid is not None
    os.kill(caller.client.pid, signal.SIGKILL)
    caller.until(lambda: caller.counters.counts["scorer_restarts"] == 1)
    for id in under_way:  # a scorer that never heard of them learns of them too
        caller.client.ended(id, 900, Ending.STOP)
    assert caller.expected(SHORT) == pytest.approx(short, rel=0.25)
    assert caller.expected(LONG) == pytest.approx(long, rel=0.25)
    caller.until(lambda: caller.probed() == 260)


def test_who_ends_at_once_is_learned_of_and_nothing_is_kept_of_it(caller: LearningCaller) -> None:
    for _ in range(50):
        caller.client.ended(caller.ask(SHORT), 10, Ending.STOP)  # before its answer came
    caller.until(lambda: caller.probed() >= 50)
    endings = caller.client._endings
    assert endings is not None
    caller.until(lambda: len(endings) == 0)


def test_an_end_is_a_last_word_and_no_name_is_written(caller: LearningCaller, tmp_path: Path) -> None:
    caller.serve(20)
    caller.client.close()
    assert LearnedFile(caller.file).read(Learner()).seen == 40
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(name in data for data in kept for name in (b"alice", b"bob", b"example", b"hello"))
    assert caller.file.stat().st_mode & 0o077 == 0


def test_a_ranker_s_own_order_stands_until_something_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOONER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    caller = LearningCaller(tmp_path, "ranker_by_length:Ranker", learned="")
    lengths = [40, 3, 200, 7, 90, 41]
    ids = [caller.ask(SHORT, "x" * n) for n in lengths]
    bad = caller.ask(SHORT, "fail")
    caller.until(lambda: len(caller.answers) == len(ids) + 1)
    assert [caller.answers[id].predicted_len for id in ids] == pytest.approx(lengths, rel=1e-6)
    scores = [caller.answers[id].score for id in ids]
    assert np.argsort(scores).tolist() == np.argsort(lengths).tolist()
    assert bad in caller.answers  # the learner answers where the ranker fails, which is counted
    assert caller.counters.counts["scorer_failures"] == 1
    caller.client.close()
    assert not list(tmp_path.glob("*.npz"))


def test_two_engines_share_one_learner(caller: LearningCaller, tmp_path: Path) -> None:
    caller.serve(60)
    other = LearningCaller(tmp_path)
    assert other.expected(LONG) == pytest.approx(caller.expected(LONG), rel=0.1)
    assert other.client.pid is None
    other.client.close()


def test_a_scorer_of_another_version_is_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An older scorer greets nobody and closes at the first frame that it cannot read."""
    path = tmp_path / "scorer.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(8)

        def old() -> None:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(1)[0] == wire.VERSION

        thread = threading.Thread(target=old)
        thread.start()
        caller = LearningCaller(tmp_path)
        caller.ask(SHORT)
        caller.until(lambda: caller.counters.counts["scorer_failures"] == 1)
        caller.client.close()
        thread.join()
    assert [line for line in caplog.messages if f"allowed: version {wire.VERSION}" in line]
    assert not caller.answers


def test_an_engine_of_another_version_is_told_of_once(caller: LearningCaller) -> None:
    caller.expected(SHORT)
    for _ in range(5):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(60)
            connection.connect(str(caller.client.path))
            connection.sendall(bytes((3, 0, 0, 0)))
            while connection.recv(4096):  # the greeting, then the end
                pass
    assert caller.expected(LONG) > 0
