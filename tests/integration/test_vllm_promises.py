"""What the plugin promises beside order, on vLLM's real scheduler: whom it asks of, and what it counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import vllm_harness as harness  # after the skip: it imports vLLM
from vllm.pooling_params import PoolingParams

from sooner.chat import ChatRequest
from sooner.core import RankerFileError
from sooner.vllm import Scheduler
from sooner.vllm import scores as asked_of

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(vllm|torch)[.].*"),  # not ours to mend
]


class Recorder:
    """A client that notes what is asked, and asks nobody."""

    def __init__(self, path: str, ranker: str, tokenizer: str, *rest: Any, **more: Any) -> None:
        self.ranker, self.tokenizer = ranker, tokenizer
        self.asked: dict[str, ChatRequest] = {}
        self.reports: dict[Any, Any] = {}
        self.shadow = None

    def submit(self, id: str, request: ChatRequest) -> None:
        self.asked[id] = request

    def ended(self, *told: Any) -> None:
        pass

    def groups(self, id: str) -> tuple[str, str]:
        return "", ""

    def close(self) -> None:
        pass


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes schedulers by the plugin's settings and the engine's, and shuts them down."""
    monkeypatch.setattr(asked_of, "ScorerClient", Recorder)
    model, schedulers = harness.tiny_model(tmp_path / "model"), []

    def make(sooner: dict[str, Any], engine_of: int | None = None, **engine: Any) -> Any:
        config = harness.vllm_config(model, sooner, **engine)
        if engine_of is not None:
            config.parallel_config.data_parallel_index = engine_of  # vLLM sets no size for a dense model
        schedulers.append(harness.scheduler(Scheduler, config))
        return schedulers[-1]

    yield make
    for scheduler in schedulers:
        counts = scheduler.counters.counts
        assert (counts["hook_errors"], counts["policy_errors"], counts["bypassed"]) == (0, 0, 0)
        scheduler.shutdown()


def test_without_a_tokenizer_no_scorer_runs_that_could_never_answer(made: Any) -> None:
    assert made({"ranker": "default"}).scores is None


def test_without_a_tokenizer_a_scorer_that_learns_has_no_ranker_to_load(made: Any) -> None:
    client = made({"ranker": "default", "learn": True}).scores.client
    assert (client.ranker, client.tokenizer) == ("", "")


@pytest.mark.parametrize("ranker", ["/nowhere/ranker", "defualt"])
def test_a_ranker_that_is_not_there_is_refused_before_anything_is_served(made: Any, ranker: str) -> None:
    with pytest.raises(RankerFileError, match=ranker):
        made({"ranker": ranker})


def test_prompts_that_get_no_reply_are_not_scored_by_its_length(made: Any) -> None:
    scheduler = made({"ranker": "default", "learn": True})
    pooled = harness.Request(
        request_id="pooled",
        prompt_token_ids=list(range(3, 40)),
        sampling_params=None,
        pooling_params=PoolingParams(task="embed"),
    )
    runner = harness.Runner(scheduler)
    runner.add([harness.request("asked", 3), pooled])
    assert list(scheduler.scores.client.asked) == ["asked"]
    assert scheduler.order.tickets["pooled"].predicted_len == 0.0
    scheduler.schedule()
    harness.abort(scheduler, "pooled")
    harness.abort(scheduler, "asked")
    assert not scheduler.order.tickets


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_reset_of_the_prefix_cache_is_no_lack_of_memory(made: Any, asynchronous: bool) -> None:
    scheduler = made({"policy": "ltr"}, caching=True, asynchronous=asynchronous)
    runner = harness.Runner(scheduler, 2 if asynchronous else 1)
    runner.add(harness.request(id, 20, hashed=True) for id in "abcd")
    runner.run(5)
    assert len(scheduler.running) == 4
    scheduler.reset_prefix_cache(reset_running_requests=True)
    assert not scheduler.running
    runner.run()
    assert scheduler.counters.counts["kv_preemptions"] == 0
    assert set(runner.finished) == set("abcd")


def test_engines_that_share_a_trace_write_a_file_each_whose_lines_name_them(
    made: Any, tmp_path: Path
) -> None:
    for engine in (0, 1):
        scheduler = made({"trace": str(tmp_path / "trace.jsonl")}, engine_of=engine)
        runner = harness.Runner(scheduler)
        runner.add([harness.request(f"of {engine}", 2)])
        runner.run()
    for engine, name in ((0, "trace.jsonl"), (1, "trace.engine1.jsonl")):
        (line,) = lines(tmp_path / name)
        assert (line["request_id"], line["engine"]) == (f"of {engine}", engine)
        assert {line["engine"] for line in lines(tmp_path / f"{name}.steps")} == {engine}
        assert json.loads((tmp_path / f"{name}.engine").read_text(encoding="utf-8"))["engine"] == engine


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
