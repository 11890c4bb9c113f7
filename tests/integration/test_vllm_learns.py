"""Two applications' traffic through the real vLLM, nothing trained: the plugin learns who gets long ones."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from serving import serve

from sooner.learning import Learner
from sooner.learning.memory import LearnedFile

pytestmark = pytest.mark.engine

NAMES = ("the-sales-team", "the-research-team", "the-press-team")
SECRET = "word8 word9 word10"  # of the second one's prompts
STOP = "word77"


class LearningServer(NamedTuple):
    """A server whose plugin learns, with no ranker, and where it keeps that."""

    url: str
    folder: Path

    @property
    def trace(self) -> Path:
        return self.folder / "trace.jsonl"

    @property
    def kept(self) -> Path:
        return self.folder / "state.learned.npz"

    def lines(self) -> list[dict[str, Any]]:
        return (
            [json.loads(line) for line in self.trace.read_text().splitlines()] if self.trace.exists() else []
        )

    def metrics(self) -> str:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            return str(answer.read().decode())

    def metric(self, name: str) -> float:
        lines = self.metrics().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"sooner_{name}{{"))

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        data = json.dumps({"model": "tiny", **body}).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return dict(json.loads(answer.read()))

    def ask(self, app: int, tokens: int, tag: str = "") -> float:
        """Ask as an application; the reply ends by itself after `tokens`. Return when it came [s]."""
        reply = self.post(
            "/v1/completions", prompt=f"{words(app)} word{tokens + 100}", max_tokens=200, min_tokens=tokens,
            logit_bias={"2": 100}, vllm_xargs={"user": NAMES[app], "sooner_tag": tag or str(app)},
        )  # fmt: skip
        made = reply["usage"]["completion_tokens"]
        assert tokens <= made <= tokens + 1
        return time.monotonic()

    def ask_until_stopped(self, app: int, tokens: int, tag: str = "stopped") -> None:
        """Ask for a reply that a stop string ends after `tokens`; vLLM's front end finds it."""
        (token,) = self.post("/tokenize", prompt=STOP, add_special_tokens=False)["tokens"]
        reply = self.post(
            "/v1/completions", prompt=words(app), max_tokens=200, min_tokens=tokens, stop=[STOP],
            logit_bias={str(token): 100}, vllm_xargs={"user": NAMES[app], "sooner_tag": tag},
        )  # fmt: skip
        assert reply["choices"][0]["finish_reason"] == "stop"
        assert tokens <= reply["usage"]["completion_tokens"] <= tokens + 2


def words(app: int) -> str:
    """Return how an application's prompts begin."""
    return " ".join(f"word{8 * app + n}" for n in range(8))


@pytest.fixture(scope="module")
def served(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LearningServer]:
    folder = tmp_path_factory.mktemp("learns")
    settings = {
        "policy": "spjf", "ranker": "", "trace": str(folder / "trace.jsonl"),
        "state": str(folder / "state.json"),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOONER_CACHE", str(folder / "cache"))
        patch.setenv("SOONER_VLLM_METRICS_DIR", str(folder / "metrics"))
        with serve(tiny_model, settings=settings, max_num_seqs=2, log=folder / "log") as url:
            yield LearningServer(url, folder)


def eventually(true: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


def test_two_applications_are_told_apart_and_kill_9_of_the_scorer_forgets_nothing(
    served: LearningServer,
) -> None:
    rng = np.random.default_rng(0)

    def length(app: int) -> int:
        return round((3, 24)[app] * float(np.exp(0.2 * rng.standard_normal())))

    with ThreadPoolExecutor(12) as pool:
        for _ in range(6):
            apps = [0, 1] * 13
            list(pool.map(served.ask, apps, [length(app) for app in apps]))
        eventually(lambda: served.kept.exists() and LearnedFile(served.kept).read(Learner()).seen >= 156)

        before = len(served.lines())
        list(pool.map(served.ask, [0, 1] * 6, [3, 24] * 6))
        told = {app: [one["predicted_len"] for one in served.lines()[before:] if one["tag"] == str(app)
                      and one["scored"]] for app in range(2)}  # fmt: skip
        assert 1 < np.median(told[0]) < 10
        assert 3 * np.median(told[0]) < np.median(told[1]) < 150
        while served.metric("ranker_tau") < 0.2:  # the first, who were told nothing, leave the window
            list(pool.map(served.ask, [0, 1] * 13, [length(app) for app in [0, 1] * 13]))
        assert served.metric("drift_alarms_total") == 0

        for pid in scorers():
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: served.metric("scorer_restarts_total") >= 1)
        eventually(lambda: newly_told(served, 0) < 10)
        assert newly_told(served, 1) > 10


def test_a_reply_that_a_stop_string_ended_is_whole(served: LearningServer) -> None:
    """Taken for cut, each would say "at least 8", and what is expected would grow with every one."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(served.ask_until_stopped, [2] * 40, [8] * 40))
    eventually(lambda: sum(line["tag"] == "stopped" for line in served.lines()) == 40)
    ended = {line["status"] for line in served.lines() if line["tag"] == "stopped"}
    assert ended == {"FINISHED_ABORTED"}
    eventually(lambda: newly_told(served, 2) < 14)


def test_no_name_and_no_text_is_in_logs_traces_metrics_or_what_is_kept(served: LearningServer) -> None:
    files = [path for path in served.folder.rglob("*") if path.is_file()]
    assert {"log", "trace.jsonl", "trace.jsonl.steps", "state.learned.npz", "salt"} <= {
        path.name for path in files
    }
    assert any(path.parent.name == "metrics" and path.suffix == ".json" for path in files)
    seen = b"".join(path.read_bytes() for path in files) + served.metrics().encode()
    assert b"requests were learned from before" in seen  # the scorer's log is among it
    assert not [name for name in (*NAMES, SECRET) if name.encode() in seen]


def newly_told(served: LearningServer, app: int) -> float:
    """Return what is expected of a request that comes now; infinite where no score came in time."""
    tag = f"probe {time.monotonic()}"
    if app == 2:
        served.ask_until_stopped(app, 8, tag)
    else:
        served.ask(app, (3, 24)[app], tag)
    eventually(lambda: any(line["tag"] == tag for line in served.lines()))
    line = next(line for line in served.lines() if line["tag"] == tag)
    return float(line["predicted_len"]) if line["scored"] else float("inf")


def scorers() -> list[int]:
    """Return the scorer processes below this one, by their parents."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = (path / "stat").read_text().rpartition(")")[2].split()
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        parents[int(path.name)] = int(status[1])
        if b"sooner.ordering.scorer" in command:
            found.append(int(path.name))
    return [pid for pid in found if _below(pid, parents)]


def _below(pid: int, parents: dict[int, int]) -> bool:
    while pid > 1:
        pid = parents.get(pid, 0)
        if pid == os.getpid():
            return True
    return False
