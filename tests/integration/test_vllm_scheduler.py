"""vLLM's real scheduler with our order over it and a fake model under it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import vllm_harness as harness  # after the skip: it imports vLLM
from vllm.v1.core.sched.async_scheduler import AsyncScheduler as VllmAsync
from vllm.v1.core.sched.request_queue import RequestQueue

from sooner.core import Prediction, UnknownName
from sooner.ordering.queue import RankedQueue
from sooner.vllm import Scheduler
from sooner.vllm.scheduler import YOUNG

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(vllm|torch)[.].*"),  # not ours to mend
]

N = 60
LENGTHS = random.Random(0).choices(range(1, 61), k=N)
ASYNC = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return harness.tiny_model(tmp_path_factory.mktemp("model"))


class Bench:
    """Makes schedulers and shuts them down at the end."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.made: list[Any] = []

    def ours(self, sooner: dict[str, Any] | None = None, **engine: Any) -> Any:
        self.made.append(harness.scheduler(Scheduler, harness.vllm_config(self.model, sooner, **engine)))
        return self.made[-1]

    def builtin(self, **engine: Any) -> Any:
        self.made.append(harness.builtin(harness.vllm_config(self.model, **engine)))
        return self.made[-1]


@pytest.fixture
def bench(model: Path) -> Iterator[Bench]:
    bench = Bench(model)
    yield bench
    for scheduler in bench.made:
        scheduler.shutdown()


def drive(scheduler: Any, **extra: Any) -> harness.Runner:
    """Run N requests that arrive together; `extra` turns an index into a field of its request."""
    runner = harness.Runner(scheduler, 2 if isinstance(scheduler, VllmAsync) else 1)
    runner.add(
        harness.request(i, LENGTHS[i], arrival_time=i * 1e-3, **{name: of(i) for name, of in extra.items()})
        for i in range(N)
    )
    runner.run()
    assert runner.tokens == {str(i): LENGTHS[i] for i in range(N)}
    return runner


def told(i: int) -> dict[str, Any]:
    return {"sooner_predicted_len": LENGTHS[i]}


@ASYNC
def test_the_base_class_is_chosen_for_the_user(bench: Bench, asynchronous: bool) -> None:
    scheduler = bench.ours(asynchronous=asynchronous)
    assert isinstance(scheduler, Scheduler)
    assert isinstance(scheduler, VllmAsync) is asynchronous


def test_the_queue_is_a_request_queue_and_has_all_of_its_methods() -> None:
    assert issubclass(RankedQueue, RequestQueue)
    assert all(hasattr(RankedQueue, name) for name in RequestQueue.__abstractmethods__)


@ASYNC
@pytest.mark.parametrize("policy", ["aged", "ltr", "spjf", "fcfs", "hrrn", "sprpt", "boost", "edf"])
def test_a_constant_score_gives_exactly_fcfs(bench: Bench, policy: str, asynchronous: bool) -> None:
    plain = drive(bench.builtin(asynchronous=asynchronous))
    ours = drive(
        bench.ours({"policy": policy}, asynchronous=asynchronous), xargs=lambda i: {"sooner_score": 1}
    )
    assert ours.admitted == plain.admitted
    assert ours.finished == plain.finished


@ASYNC
def test_the_same_numbers_give_the_order_of_vllms_priority(bench: Bench, asynchronous: bool) -> None:
    builtin = drive(
        bench.builtin(policy="priority", asynchronous=asynchronous), priority=lambda i: LENGTHS[i]
    )
    for extra in ({"xargs": told}, {"priority": lambda i: LENGTHS[i]}):
        ours = drive(bench.ours({"policy": "ltr"}, asynchronous=asynchronous), **extra)
        assert ours.admitted == builtin.admitted
        assert ours.finished == builtin.finished


@ASYNC
def test_shortest_first_is_sooner_on_average(bench: Bench, asynchronous: bool) -> None:
    def mean(runner: harness.Runner) -> float:
        return sum(runner.finished.values()) / N

    plain = mean(drive(bench.builtin(asynchronous=asynchronous)))
    assert mean(drive(bench.ours({"policy": "sjf"}, asynchronous=asynchronous), xargs=told)) < 0.8 * plain


@ASYNC
@pytest.mark.parametrize("policy", ["fcfs", "ltr", "hrrn", "sprpt", "las", "aged"])
def test_token_counts_are_right_when_the_cache_is_full(bench: Bench, policy: str, asynchronous: bool) -> None:
    scheduler = bench.ours({"policy": policy}, blocks=12, asynchronous=asynchronous)
    drive(scheduler, xargs=told)
    assert scheduler.counters.counts["kv_preemptions"] > 0
    assert scheduler.counters.counts["hook_errors"] == 0
    assert not scheduler.order.tickets


@ASYNC
def test_token_counts_are_right_when_rank_and_guard_preempt(bench: Bench, asynchronous: bool) -> None:
    sooner = {"policy": "ltr", "preemption": True, "starvation_guard": True, "starvation_threshold": 20}
    scheduler = bench.ours(sooner, asynchronous=asynchronous, blocks=14)
    runner = harness.Runner(scheduler, 2 if asynchronous else 1)
    for i in range(N):
        runner.add([harness.request(i, LENGTHS[i], arrival_time=i * 1e-3, xargs=told(i))])
        runner.run(3)
    runner.run()
    assert runner.tokens == {str(i): LENGTHS[i] for i in range(N)}
    assert scheduler.counters.counts["rank_preemptions"] > 0
    assert scheduler.counters.counts["promotions"] > 0


@ASYNC
@pytest.mark.parametrize("second_look", [True, False])
def test_a_score_that_comes_late_may_send_its_request_back(
    bench: Bench, second_look: bool, asynchronous: bool
) -> None:
    scheduler = bench.ours({"policy": "ltr", "second_look": second_look}, slots=2, asynchronous=asynchronous)
    runner = harness.Runner(scheduler, 2 if asynchronous else 1)
    lengths = {"long": 90, "longer": 99, "short": 5, "middle": 20}
    runner.add(harness.request(name, length) for name, length in lengths.items())
    runner.run(2)  # the first two run, for no score has come
    for name, length in lengths.items():
        scheduler._arrived.append((name, Prediction(float(length), float(length))))
    runner.run()
    assert runner.tokens == lengths
    assert scheduler.counters.counts["second_looks"] == (2 if second_look else 0)
    assert scheduler.counters.counts["kv_preemptions"] == scheduler.counters.counts["hook_errors"] == 0
    assert (max(runner.finished["short"], runner.finished["middle"]) < 50) is second_look


def test_a_second_look_comes_once_and_only_for_the_young(bench: Bench) -> None:
    scheduler = bench.ours({"policy": "ltr"}, slots=1)
    runner = harness.Runner(scheduler)
    runner.add([harness.request("old", 200), harness.request("short", 5)])
    runner.run(YOUNG + 2)
    for name, length in (("old", 200.0), ("short", 5.0)):
        scheduler._arrived.append((name, Prediction(length, length)))
    runner.run(2)
    runner.add([harness.request("told", 5, xargs={"sooner_predicted_len": 5})])
    runner.run()
    assert scheduler.counters.counts["second_looks"] == 0
    assert runner.finished["old"] < runner.finished["short"]


@pytest.mark.parametrize("kv_victims", [True, False])
def test_the_victim_of_a_full_cache_is_the_worst_ranked(bench: Bench, kv_victims: bool) -> None:
    scheduler = bench.ours({"policy": "ltr", "kv_victims": kv_victims}, blocks=9, slots=3)
    runner = harness.Runner(scheduler)
    for name, length in (("long", 70), ("middle", 60), ("short", 50)):
        runner.add([harness.request(name, length, xargs={"sooner_predicted_len": length})])
        runner.run(1)
    victims = []
    preempt = scheduler._preempt_request
    scheduler._preempt_request = lambda request, *rest, **more: (
        victims.append(request.request_id),
        preempt(request, *rest, **more),
    )
    runner.run()
    assert victims[0] == ("long" if kv_victims else "short")
    assert runner.tokens == {"long": 70, "middle": 60, "short": 50}


def test_a_late_score_moves_a_waiting_request(bench: Bench) -> None:
    scheduler = bench.ours({"policy": "ltr"}, slots=1)
    runner = harness.Runner(scheduler)
    runner.add(harness.request(i, 3, arrival_time=float(i)) for i in range(4))
    runner.run(1)
    scheduler._arrived.extend([("3", Prediction(-1.0)), ("gone", Prediction(0.0))])
    runner.run()
    assert runner.admitted == ["0", "3", "1", "2"]
    assert scheduler.counters.counts["scored"] == 1


def test_the_guard_lets_a_long_request_through(bench: Bench) -> None:
    def last(sooner: dict[str, Any]) -> int:
        runner = harness.Runner(bench.ours({"policy": "ltr", **sooner}, slots=1))
        runner.add([harness.request("long", 5, xargs={"sooner_score": 1000})])
        for i in range(40):  # short ones keep coming a little faster than they are served
            runner.add([harness.request(i, 5, arrival_time=float(i), xargs={"sooner_score": 1})])
            runner.run(4)
        return runner.run().finished["long"]

    assert last({}) == 41 * 5
    assert last({"starvation_guard": True, "starvation_threshold": 20}) <= 20 + 5 + 5


def test_ten_thousand_malformed_values_change_nothing(bench: Bench) -> None:
    scheduler = bench.ours({"policy": "aged"}, slots=64, blocks=20_000)
    runner = harness.Runner(scheduler)
    wrong = ["abc", float("nan"), float("inf"), True, [1], {"a": 1}, -1e300, 2**63, "", None]
    names = ["sooner_score", "sooner_predicted_len", "sooner_deadline_ms"]
    runner.add(
        harness.request(i, 1, arrival_time=i * 1e-3, prompt_len=2, xargs={names[i % 3]: wrong[i % 10]})
        for i in range(10_000)
    )
    runner.run()
    assert runner.admitted == [str(i) for i in range(10_000)]
    assert scheduler.counters.counts["malformed_client_values"] == 10_000
    assert scheduler.counters.counts["hook_errors"] == 0


def test_whatever_of_ours_fails_the_engine_serves_on_in_order_of_arrival(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = bench.ours({"policy": "ltr"})

    def broken(*arguments: Any) -> None:
        raise RuntimeError("on purpose")

    for name in ("arrive", "begin_step", "admitted", "preempted", "leave"):
        monkeypatch.setattr(scheduler.order, name, broken)
    runner = drive(scheduler, xargs=told)
    assert runner.admitted == [str(i) for i in range(N)]
    assert scheduler.counters.counts["hook_errors"] > N


def test_aborted_requests_leave_nothing_behind(bench: Bench) -> None:
    scheduler = bench.ours({"policy": "aged", "starvation_guard": True})
    runner = harness.Runner(scheduler)
    runner.add(harness.request(i, 20, arrival_time=float(i)) for i in range(20))
    runner.run(2)
    for i in range(0, 20, 2):
        harness.abort(scheduler, str(i))
    runner.run()
    assert sorted(runner.finished, key=int) == [str(i) for i in range(1, 20, 2)]
    assert not scheduler.order.tickets
    assert not scheduler.order.guard


def test_the_trace_tells_the_life_of_each_request(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "trace.jsonl"
    runner = drive(
        bench.ours({"policy": "ltr", "trace": str(path)}, blocks=12),
        xargs=lambda i: {**told(i), "sooner_tag": f"tag {i}"},
    )
    lines = {line["request_id"]: line for line in map(json.loads, path.read_text().splitlines())}
    assert len(lines) == N
    for i in range(N):
        line = lines[str(i)]
        assert line["tag"] == f"tag {i}"
        assert line["output_tokens"] == line["predicted_len"] == line["score"] == line["key"] == LENGTHS[i]
        assert line["finish_step"] == runner.finished[str(i)]
        assert 0 == line["arrival_step"] < line["first_scheduled_step"] <= line["first_token_step"]
        assert line["first_token_step"] <= line["finish_step"]
        assert line["preemptions"] > 0 or line["finish_step"] == line["first_scheduled_step"] + LENGTHS[i] - 1
    steps = [json.loads(line) for line in Path(f"{path}.steps").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, runner.step + 1))
    assert steps[0]["waiting"] == N - 4


def test_a_wrong_setting_is_refused_at_start(bench: Bench) -> None:
    with pytest.raises(UnknownName, match="did you mean 'policy'"):
        bench.ours({"polcy": "ltr"})
