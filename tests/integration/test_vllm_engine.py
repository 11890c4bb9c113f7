"""`vllm serve` with our scheduler on a tiny random model: what clients and accidents may do to it."""

from __future__ import annotations

import json
import math
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from serving import serve

pytestmark = pytest.mark.engine


class Served(NamedTuple):
    """A server with our scheduler, and the trace it writes."""

    url: str
    trace: Path


@pytest.fixture(scope="module")
def served(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    trace = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    settings = {"policy": "ltr", "ranker": "ranker_by_length:Ranker", "learn": False, "trace": str(trace)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        with serve(tiny_model, settings=settings, max_num_seqs=2) as url:
            yield Served(url, trace)


def post(url: str, **body: Any) -> int:
    """Send a completion; return the HTTP status."""
    text = json.dumps({"model": "tiny", "max_tokens": 4, "ignore_eos": True, **body})
    request = urllib.request.Request(
        f"{url}/v1/completions", text.encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def metric(url: str, name: str) -> float:
    """Return a counter of ours from `/metrics`."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"sooner_{name}"))


def eventually(true: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)


def test_requests_are_scored_and_counted(served: Served) -> None:
    before = metric(served.url, "scored_total")
    eventually(
        lambda: post(served.url, prompt="word1 word2") == 200 and metric(served.url, "scored_total") > before
    )
    lines = [json.loads(line) for line in served.trace.read_text().splitlines()]
    scored = next(line for line in lines if line["scored"])
    assert scored["score"] == len("word1 word2")
    assert scored["output_tokens"] == 4


def test_short_ones_overtake_long_ones(served: Served) -> None:
    with ThreadPoolExecutor(40) as pool:
        ahead = {"sooner_predicted_len": 1}  # two run at once, so that all others are there in time
        blockers = [
            pool.submit(post, served.url, prompt="word1", max_tokens=1000, vllm_xargs=ahead) for _ in range(8)
        ]
        time.sleep(0.5)
        waiting = [
            pool.submit(
                post,
                served.url,
                prompt="word2",
                vllm_xargs={"sooner_predicted_len": 100 - i, "sooner_tag": f"order-{i}"},
            )
            for i in range(20)
        ]
        assert all(one.result() == 200 for one in [*blockers, *waiting])
    lines = [json.loads(line) for line in served.trace.read_text().splitlines()]
    first = {line["tag"]: line["first_scheduled_step"] for line in lines if line["tag"].startswith("order-")}
    steps = [first[f"order-{i}"] for i in range(20)]
    assert len(steps) == 20
    assert steps == sorted(steps, reverse=True)


def test_malformed_values_are_ignored_and_counted(served: Served) -> None:
    wrong: list[Any] = ["abc", "", -5, 1e300, [1.5, 2], ["a"], math.nan, math.inf, 2**70]
    names = ("sooner_score", "sooner_predicted_len", "sooner_deadline_ms")
    before = metric(served.url, "malformed_client_values_total")
    bodies = [{names[i % 3]: wrong[i % len(wrong)]} for i in range(90)]
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda extra: post(served.url, prompt="w", vllm_xargs=extra), bodies))
    assert set(statuses) <= {200, 400}  # vLLM itself refuses some of them
    assert statuses.count(200) >= 45
    assert post(served.url, prompt="word3") == 200
    eventually(lambda: metric(served.url, "malformed_client_values_total") - before >= 30, 10)


def test_the_engine_outlives_its_scorer(served: Served) -> None:
    for pid in scorers():
        os.kill(pid, signal.SIGKILL)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda i: post(served.url, prompt=f"word{i}"), range(24))) == {200}
    before = metric(served.url, "scored_total")
    eventually(
        lambda: post(served.url, prompt="word1") == 200 and metric(served.url, "scored_total") > before
    )
    assert metric(served.url, "scorer_restarts_total") >= 1


def scorers() -> list[int]:
    """Return the scorer processes that our server started, by our own ranker's name."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"sooner.ordering.scorer" in command and b"ranker_by_length:Ranker" in command:
                found.append(int(entry.name))
    return found
