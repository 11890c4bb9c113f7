"""The scorer among unfriendly tenants, stopped, planted beside, and answered for by a stranger."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sooner.chat import ChatRequest
from sooner.core import Prediction
from sooner.ordering import wire
from sooner.ordering.client import ScorerClient
from sooner.vllm.counters import PluginCounters


class Caller:
    """A client, and what was delivered to it and when."""

    def __init__(self, path: Path | str, ranker: str, timeout: float = 60.0, silence: float = 15.0) -> None:
        self.answers: dict[str, float] = {}
        self.counters = PluginCounters()
        self.client = ScorerClient(str(path), ranker, "", self.take, self.counters, timeout, silence)

    def take(self, id: str, prediction: Prediction) -> None:
        self.answers[id] = time.monotonic()

    def until(self, true: Callable[[], bool], seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, (len(self.answers), self.counters.counts)
            time.sleep(0.02)


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]]))
    caller = Caller(tmp_path / "scorer.sock", "ranker_slow:Ranker", silence=2.0)
    caller.client.submit("first", ChatRequest("x"))
    caller.until(lambda: "first" in caller.answers)
    yield caller
    caller.client.close()


def test_a_tenant_with_giant_prompts_waits_behind_itself(slow: Caller) -> None:
    for i in range(300):
        slow.client.submit(f"giant {i}", ChatRequest("x" * 100_000), "greedy")
    time.sleep(0.2)
    start = time.monotonic()
    for i in range(20):
        slow.client.submit(f"small {i}", ChatRequest("hello"), f"tenant {i}")
    slow.until(lambda: all(f"small {i}" in slow.answers for i in range(20)), seconds=30)
    took = time.monotonic() - start
    giants = sum(name.startswith("giant") for name in slow.answers)
    assert giants < 150, f"{giants} giant prompts came first, in {took:.1f} s"


def test_a_stopped_scorer_costs_no_memory_and_is_replaced(slow: Caller) -> None:
    assert slow.client.pid is not None
    stopped = slow.client.pid
    os.kill(stopped, signal.SIGSTOP)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = "y" * 20_000
    for i in range(50_000):
        slow.client.submit(f"while stopped {i}", ChatRequest(text), "greedy")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 64, f"{grown:.0f} MB"
    slow.until(lambda: slow.counters.counts["scorer_restarts"] >= 1, seconds=30)
    slow.client.submit("after", ChatRequest("z"), "other")
    slow.until(lambda: "after" in slow.answers, seconds=60)
    assert slow.client.pid != stopped


def test_questions_expire_before_they_are_sent(tmp_path: Path) -> None:
    caller = Caller(tmp_path / "nobody.sock", str(tmp_path / "no-ranker"), timeout=0.3)
    for i in range(500):
        caller.client.submit(str(i), ChatRequest("a" * 100), f"t{i % 7}")
    caller.until(lambda: caller.counters.counts["scorer_timeouts"] == 500)
    assert len(caller.client._waiting) == 0
    assert not caller.client._in_order
    caller.client.close()


def test_a_scorer_drops_what_nobody_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]]))
    path = tmp_path / "scorer.sock"
    program = [sys.executable, "-P", "-m", "sooner.ordering.scorer", "--socket", str(path)]
    program += ["--ranker", "ranker_slow:Ranker", "--timeout", "0.5"]
    with subprocess.Popen(program, stdin=subprocess.PIPE) as scorer:
        try:
            deadline = time.monotonic() + 60
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(10)
                connection.connect(str(path))
                frames = b"".join(wire.ask(i, ChatRequest("x" * 100_000)) for i in range(100))
                connection.sendall(frames)  # 11 s of work
                answers, found, given_up = wire.Answers(), 0, 0
                connection.settimeout(6)
                try:
                    while found + given_up < 100:
                        for told in answers.feed(connection.recv(4096)):
                            found += told.prediction is not None
                            given_up += told.prediction is None
                except TimeoutError:
                    pass
            assert 0 < found <= 64
            assert found + given_up == 100
        finally:
            scorer.kill()


def test_a_planted_module_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "selectors.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('!')\n")
    (tmp_path / "numpy.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('!')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]]))
    caller = Caller("", "ranker_by_length:Ranker")
    caller.client.submit("a", ChatRequest("xyz"))
    caller.until(lambda: "a" in caller.answers)
    caller.client.close()
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a while")
def test_a_stranger_at_the_socket_is_told_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    path = tmp_path / "scorer.sock"
    program = (
        "import os, socket, sys, time\n"
        "os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        f"s.bind({str(path)!r})\n"
        "s.listen()\n"
        "print('ready', flush=True)\n"
        "c, _ = s.accept()\n"
        "print(len(c.recv(1000)), flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "ready\n"
        caller = Caller(path, "ranker_by_length:Ranker")
        caller.client.submit("secret", ChatRequest("a secret"))
        assert stranger.stdout.readline() == "0\n"
        caller.until(lambda: caller.counters.counts["scorer_failures"] >= 1)
        caller.client.close()
        assert caller.answers == {}
