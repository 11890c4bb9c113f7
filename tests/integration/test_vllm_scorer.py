"""The scorer process and its client, without vLLM: answers, failures, death and restart."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sooner.chat import ChatRequest
from sooner.core import ConfigError, Prediction
from sooner.ordering.client import ScorerClient
from sooner.ordering.scoring import load_ranker
from sooner.vllm.counters import PluginCounters

RANKER = "ranker_by_length:Ranker"


class Caller:
    """A client and what was delivered to it."""

    def __init__(self, path: Path, ranker: str = RANKER, timeout: float = 120.0) -> None:
        self.answers: dict[str, Prediction] = {}
        self.counters = PluginCounters()
        self.client = ScorerClient(str(path), ranker, "", self.answers.__setitem__, self.counters, timeout)

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120.0
        while not true():
            assert time.monotonic() < deadline, (self.answers, self.counters.counts)
            time.sleep(0.02)


@pytest.fixture
def caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    caller = Caller(tmp_path / "scorer.sock")
    yield caller
    caller.client.close()


def test_it_scores_and_shares_survives_and_restarts(caller: Caller, tmp_path: Path) -> None:
    client = caller.client
    for i in range(100):
        client.submit(str(i), ChatRequest("x" * i))
    caller.until(lambda: len(caller.answers) == 100)
    assert caller.answers["7"] == Prediction(7.0, 7.0)

    client.submit("bad", ChatRequest("fail"))
    client.submit("ids", ChatRequest([1, 2, 3]))  # no tokenizer here, so no text
    client.submit("huge", ChatRequest([2**40]))
    client.submit("good", ChatRequest("xx"))
    caller.until(lambda: "good" in caller.answers)
    caller.until(lambda: caller.counters.counts["scorer_failures"] == 3)
    assert not {"bad", "ids", "huge"} & set(caller.answers)

    other = Caller(tmp_path / "scorer.sock")
    other.client.submit("theirs", ChatRequest("xxx"))
    other.until(lambda: "theirs" in other.answers)
    assert other.client.pid is None  # it found one listening
    other.client.close()

    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    client.submit("after", ChatRequest("xxxx"))
    caller.until(lambda: "after" in caller.answers)
    assert caller.counters.counts["scorer_restarts"] == 1


def test_a_ranker_that_cannot_be_loaded_delays_nobody(tmp_path: Path) -> None:
    caller = Caller(tmp_path / "scorer.sock", ranker=str(tmp_path / "none"), timeout=3.0)
    started = time.monotonic()
    caller.client.submit("0", ChatRequest("text"))
    assert time.monotonic() - started < 2.0
    caller.until(lambda: caller.counters.counts["scorer_timeouts"] == 1)
    caller.client.close()
    assert caller.answers == {}


def test_a_name_that_is_no_ranker_is_refused() -> None:
    with pytest.raises(ConfigError, match="'module:name'"):
        load_ranker("sooner.nothing:here")
