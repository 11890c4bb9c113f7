"""A shadow in the plugin, by vLLM's real scheduler with a fake model: it watches, and moves nobody."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import vllm_harness as harness  # after the skip: it imports vLLM
from click.testing import CliRunner
from serving import write_tiny_model
from test_vllm_scheduler import Bench

from sooner.cli import root
from sooner.vllm import Scheduler
from sooner.vllm.counters import SHADOWS, Collector
from sooner.watch import tail

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(vllm|torch)[.].*"),  # not ours to mend
]


RANKER = "ranker_by_length:Ranker"
BURST = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return harness.tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def bench(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("SOONER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    (tmp_path / "metrics").mkdir()  # as the plugin in the API server makes it
    bench = Bench(model)
    yield bench
    for scheduler in bench.made:
        scheduler.shutdown()


def bursts(scheduler: Any, rounds: int, *, told: bool) -> harness.Runner:
    """Serve bursts of many lengths; each client says its own where `told`."""
    runner, rng = harness.Runner(scheduler), random.Random(0)
    for n in range(rounds):
        lengths = [rng.randint(1, 30) for _ in range(BURST)]
        runner.add(
            harness.request(
                f"{n}-{i}", length, arrival_time=n + i * 1e-3,
                xargs={"sooner_predicted_len": length} if told else None,
            )
            for i, length in enumerate(lengths)
        )  # fmt: skip
        runner.run()
    return runner


def exported(folder: Path, scheduler: Any) -> dict[str, float]:
    """Return what the API server's collector reads, by the names of `/metrics`, once the engine told all."""
    deadline = time.monotonic() + 120.0
    while True:
        found = {one.name: one.value for family in Collector(folder).collect() for one in family.samples}
        told = {f"sooner_{name}": value for name, value in scheduler._gauges().items()}
        if told.items() <= found.items():
            return found
        assert time.monotonic() < deadline, (told, found)
        time.sleep(0.05)


def test_a_second_policy_is_compared_on_who_waits_and_moves_nobody(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trace, metrics = tmp_path / "trace.jsonl", tmp_path / "metrics"
    settings = {"policy": "fcfs", "shadow_policy": "spjf", "trace": str(trace), "metrics_dir": str(metrics)}
    scheduler = bench.ours(settings, slots=2)
    runner = bursts(scheduler, 16, told=True)
    assert runner.admitted == bursts(bench.ours({"policy": "fcfs"}, slots=2), 16, told=True).admitted

    told = exported(metrics, scheduler)
    names = {name for name in SHADOWS if name.startswith("shadow_policy_")}
    assert {f"sooner_{name}" for name in names} <= set(told)
    assert told["sooner_shadow_policy_acting_expected_gain"] == 0.0
    assert told["sooner_shadow_policy_expected_gain"] > 0.2
    assert told["sooner_shadow_policy_compared_pairs"] >= 200
    assert "sooner_shadow_tau" not in told  # no second ranker is named
    assert told["sooner_shadow_failures_total"] == told["sooner_hook_errors_total"] == 0

    lines = [json.loads(line) for line in Path(f"{trace}.shadow").read_text().splitlines()]
    assert (lines[-1]["policy"], lines[-1]["shadow"]) == ("fcfs", "spjf")
    assert lines[-1]["shadow_policy_compared_pairs"] > lines[0]["shadow_policy_compared_pairs"]
    seen = CliRunner().invoke(root, ["watch", str(trace), "--count", "1", "--json"])
    assert json.loads(seen.stdout)["shadow_policy_expected_gain"] > 0.2
    better = [message for message in caplog.messages if "orders better than 'fcfs'" in message]
    assert len(better) == 1
    assert "policy 'spjf'" in better[0]
    assert "name it as policy at the next start" in better[0]


def test_a_policy_that_fails_in_the_shadow_hurts_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = bench.ours({"policy": "ltr", "shadow_policy": "spjf"}, slots=2)
    expected = bursts(bench.ours({"policy": "ltr"}, slots=2), 3, told=True).admitted

    def broken(*arguments: Any) -> float:
        raise RuntimeError("on purpose")

    scheduler.order._watch._keys[1] = broken
    assert bursts(scheduler, 3, told=True).admitted == expected
    assert scheduler.counters.counts["shadow_failures"] == 1  # then nothing is compared any more
    monkeypatch.setattr(scheduler.order._watch, "waits", broken)
    monkeypatch.setattr(scheduler.order._watch, "left", broken)
    assert len(bursts(scheduler, 1, told=True).finished) == BURST
    assert scheduler.counters.counts["shadow_failures"] == 1 + 2 * BURST
    assert scheduler.counters.counts["hook_errors"] == 0


def test_where_no_shadow_is_named_nothing_is_watched(bench: Bench, tmp_path: Path) -> None:
    trace, metrics = tmp_path / "trace.jsonl", tmp_path / "metrics"
    scheduler = bench.ours({"policy": "boost", "trace": str(trace), "metrics_dir": str(metrics)})
    bursts(scheduler, 1, told=True)
    assert type(scheduler.order).__name__ == "Order"
    assert not [name for name in exported(metrics, scheduler) if "shadow_" in name and "failures" not in name]
    assert not Path(f"{trace}.shadow").exists()


def test_a_second_ranker_is_compared_by_the_scorer_and_moves_nobody(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trace, metrics = tmp_path / "trace.jsonl", tmp_path / "metrics"
    scheduler = reading(bench, shadow=RANKER, trace=str(trace), metrics_dir=str(metrics))
    asked_until(scheduler, lambda: "orders better than 'learner'" in caplog.text)
    assert f"in the shadow, ranker '{RANKER}' orders better" in caplog.text
    found = exported(metrics, scheduler)
    assert found["sooner_shadow_promoted"] == 0.0
    assert found["sooner_shadow_compared_requests"] >= 100
    assert found["sooner_shadow_tau"] > found["sooner_shadow_acting_tau"]
    assert found["sooner_shadow_better_expected_gain"] > 0.0
    assert found["sooner_shadow_failures_total"] == found["sooner_hook_errors_total"] == 0
    line = json.loads(Path(f"{trace}.shadow").read_text().splitlines()[-1])
    assert (line["ranker"], line["shadow"]) == ("learner", RANKER)
    assert tail.look(trace)["shadow_expected_gain"] == line["shadow_expected_gain"]


def test_a_ranker_that_cannot_watch_is_told_of_and_hurts_nobody(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = reading(bench, shadow="no_such_module:Ranker")
    asked_until(scheduler, lambda: scheduler.counters.counts["shadow_failures"] == 1)
    assert "nothing is compared: the shadow 'no_such_module:Ranker' cannot be loaded" in caplog.text
    assert scheduler.counters.counts["scored"] >= BURST
    assert scheduler.counters.counts["scorer_failures"] == scheduler.counters.counts["hook_errors"] == 0

    deaf = bench.ours({"learn": True, "shadow": RANKER})  # vLLM runs without a tokenizer
    assert deaf.counters.counts["shadow_failures"] == 1


def reading(bench: Bench, **sooner: Any) -> Any:
    """Return a scheduler with a tokenizer, which learns and has no ranker."""
    settings = {"policy": "spjf", "learn": True, "scorer_timeout": 120.0, **sooner}
    config = harness.vllm_config(bench.model, settings, slots=2)
    config.model_config.skip_tokenizer_init = False
    config.model_config.tokenizer = str(write_tiny_model(bench.model.parent / "tokenizer"))
    bench.made.append(harness.scheduler(Scheduler, config))
    return bench.made[-1]


def asked_until(scheduler: Any, true: Callable[[], bool]) -> None:
    """Serve bursts, each scored before it runs, in which a longer prompt has a longer reply."""
    rng, burst = random.Random(0), 0
    deadline = time.monotonic() + 120.0
    while not true():
        burst += 1
        runner = harness.Runner(scheduler)  # it ends a run of thousands of steps
        sizes = [rng.randint(2, 60) for _ in range(BURST)]
        runner.add(
            harness.request(f"{burst}-{i}", size, prompt_len=size, offset=rng.randrange(500))
            for i, size in enumerate(sizes)
        )
        while len(scheduler._arrived) < BURST:
            assert time.monotonic() < deadline, scheduler.counters.counts
            time.sleep(0.01)
        scheduler.scores._swept = 0.0  # what is looked at every two seconds is looked at now
        runner.run()
