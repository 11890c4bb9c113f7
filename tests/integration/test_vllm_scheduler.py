"""vLLM's real scheduler with our order over it and a fake model under it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import vllm_harness as harness  # after the skip: it imports vLLM
from vllm.v1.core.sched.async_scheduler import AsyncScheduler as VllmAsync
from vllm.v1.core.sched.request_queue import RequestQueue

from sooner.core import Prediction, RankerFileError, UnknownName
from sooner.ordering.queue import RankedQueue
from sooner.vllm import Scheduler, compat
from sooner.vllm.displacement import YOUNG

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(vllm|torch)[.].*"),  # not ours to mend
]

N = 60
LENGTHS = random.Random(0).choices(range(1, 61), k=N)
SENDS_BACK = pytest.mark.skipif(
    not compat.displaces(compat.version()), reason="running requests stay where they are on this version"
)
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
    assert hasattr(RankedQueue, "__reversed__")  # of vLLM 0.12 and 0.13


def test_all_queues_of_this_version_are_ours(bench: Bench) -> None:
    found = [queue for queue in vars(bench.ours()).values() if isinstance(queue, RequestQueue)]
    assert found
    assert all(isinstance(queue, RankedQueue) for queue in found)


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


@SENDS_BACK
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


@SENDS_BACK
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


def preempted(scheduler: Any) -> list[str]:
    """Return the list that whoever is preempted from now on is written to."""
    victims: list[str] = []
    preempt = scheduler._preempt_request
    scheduler._preempt_request = lambda request, *rest, **more: (
        victims.append(request.request_id),
        preempt(request, *rest, **more),
    )
    return victims


@pytest.mark.parametrize("kv_victims", [True, False])
def test_the_victim_of_a_full_cache_is_the_worst_ranked(bench: Bench, kv_victims: bool) -> None:
    scheduler = bench.ours({"policy": "ltr", "kv_victims": kv_victims}, blocks=9, slots=3)
    runner = harness.Runner(scheduler)
    for name, length in (("long", 70), ("middle", 60), ("short", 50)):
        runner.add([harness.request(name, length, xargs={"sooner_predicted_len": length})])
        runner.run(1)
    victims = preempted(scheduler)
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


def spoiled(kind: str, scheduler: Any) -> None:
    """Break one thing of ours in the middle of a run, as a fault of our own would."""

    def broken(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("on purpose")

    queue = scheduler.waiting
    if kind in ("peek_request", "pop_request", "prepend_requests", "__bool__"):
        spoilt = type("Spoilt", (RankedQueue,), {kind: broken})
        scheduler.waiting.__class__ = spoilt
    elif kind == "heap":
        queue._heap = [[None], *queue._heap]
    elif kind == "entries":
        queue._heap.clear()
    elif kind == "gone":
        del scheduler.order
    elif kind == "running":
        scheduler._rank_running = lambda anew: scheduler.running.sort(key=lambda one: one.missing)


@ASYNC
@pytest.mark.parametrize(
    "kind",
    ["peek_request", "pop_request", "prepend_requests", "__bool__", "heap", "entries", "gone",
     "running"],
)  # fmt: skip
def test_whatever_of_ours_breaks_every_request_is_served_whole(
    bench: Bench, kind: str, asynchronous: bool
) -> None:
    scheduler = bench.ours({"policy": "boost"}, asynchronous=asynchronous)
    runner = harness.Runner(scheduler, 2 if asynchronous else 1)
    runner.add(harness.request(i, LENGTHS[i], arrival_time=i * 1e-3, xargs=told(i)) for i in range(N))
    runner.run(5)
    spoiled(kind, scheduler)
    runner.run()
    assert runner.tokens == {str(i): LENGTHS[i] for i in range(N)}
    assert set(runner.finished) == {str(i) for i in range(N)}


@ASYNC
@pytest.mark.parametrize("fault", [lambda _: 1 / 0, lambda _: True], ids=["raises", "is always full"])
def test_a_memory_that_is_misread_stops_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: Any, asynchronous: bool
) -> None:
    monkeypatch.setattr("sooner.vllm.memory.preempts_in_vain", fault)
    runner = harness.Runner(bench.ours(asynchronous=asynchronous), 2 if asynchronous else 1)
    runner.add(harness.request(i, 5) for i in range(8))
    runner.run()
    assert runner.tokens == {str(i): 5 for i in range(8)}


def test_after_stepping_aside_the_order_is_that_of_arrival(bench: Bench) -> None:
    scheduler = bench.ours({"policy": "spjf"}, slots=1)
    runner = harness.Runner(scheduler)
    runner.add(
        harness.request(i, 20 - i, arrival_time=float(i), xargs={"sooner_predicted_len": 20 - i})
        for i in range(10)
    )
    runner.run(1)
    spoiled("pop_request", scheduler)
    runner.run()
    assert runner.admitted == ["9", *(str(i) for i in range(9))]
    assert scheduler.counters.counts["bypassed"] == 1
    assert not isinstance(scheduler.waiting, RankedQueue)


@pytest.mark.parametrize("why", ["memory", "pause"])
def test_where_nothing_runs_for_long_vllms_own_order_is_put_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr("sooner.vllm.stall.STALLED", 0.0)
    scheduler = bench.ours({"policy": "ltr"}, blocks=20)
    runner = harness.Runner(scheduler)
    pool = scheduler.kv_cache_manager.block_pool
    held = pool.get_new_blocks(pool.get_num_free_blocks()) if why == "memory" else []
    if why == "pause":
        scheduler.set_pause_state(type(scheduler._pause_state).PAUSED_NEW)
    runner.add([harness.request("long", 9), harness.request("short", 5)])
    runner.run(3)
    assert not scheduler.running
    assert scheduler.counters.counts["bypassed"] == (why == "memory")
    assert isinstance(scheduler.waiting, RankedQueue) == (why == "pause")
    pool.free_blocks(held)
    if why == "pause":
        scheduler.set_pause_state(type(scheduler._pause_state).UNPAUSED)
    runner.run()
    assert runner.tokens == {"long": 9, "short": 5}


BLOCKED = {
    "grammar": lambda request: setattr(request, "status", harness.waiting_for_grammar()),
    "remote KV": lambda request: setattr(request, "status", harness.RequestStatus.WAITING_FOR_REMOTE_KVS),
    "more input": lambda request: setattr(request, "status", harness.RequestStatus.WAITING_FOR_STREAMING_REQ),
}


@pytest.mark.parametrize("why", [*BLOCKED, "pause", "KV", "LoRA"])
def test_nobody_is_sent_back_for_a_head_that_cannot_run(bench: Bench, why: str) -> None:
    scheduler = bench.ours({"policy": "ltr"}, slots=2, blocks=40 if why == "KV" else 10_000)
    runner = harness.Runner(scheduler)
    runner.add([harness.request("long", 90), harness.request("longer", 99)])
    runner.run(2)
    prompt = 600 if why == "KV" else 10
    head = harness.request("short", 5, prompt_len=prompt)
    runner.add([head])
    if why in BLOCKED:
        BLOCKED[why](head)
        scheduler._handle_blocked_waiting_request = lambda request: False
    elif why == "pause":
        scheduler.set_pause_state(type(scheduler._pause_state).PAUSED_NEW)
    elif why == "LoRA":
        head.lora_request = SimpleNamespace(lora_int_id=7, name="a")
        for one in scheduler.running:
            one.lora_request = SimpleNamespace(lora_int_id=1, name="b")
        scheduler.lora_config = SimpleNamespace(max_loras=1)
    for name, length in (("long", 90.0), ("longer", 99.0), ("short", 5.0)):
        scheduler._arrived.append((name, Prediction(length, length)))
    runner.run(3)
    assert scheduler.counters.counts["second_looks"] == 0
    assert {one.request_id for one in scheduler.running} == {"long", "longer"}
    assert scheduler.counters.counts["bypassed"] == scheduler.counters.counts["hook_errors"] == 0


@SENDS_BACK
def test_a_head_whose_grammar_came_while_all_slots_were_taken_goes_first(bench: Bench) -> None:
    scheduler = bench.ours({"policy": "ltr"}, slots=2)
    runner = harness.Runner(scheduler)
    runner.add([harness.request("long", 90), harness.request("longer", 99)])
    runner.run(2)
    head = harness.request("short", 5)
    head.status = harness.waiting_for_grammar()
    head.structured_output_request = SimpleNamespace(grammar=None)
    runner.add([head])
    for name, length in (("long", 90.0), ("longer", 99.0), ("short", 5.0)):
        scheduler._arrived.append((name, Prediction(length, length)))
    runner.run(2)
    assert scheduler.counters.counts["second_looks"] == 0
    head.structured_output_request = SimpleNamespace(grammar="compiled")
    output = scheduler.schedule()
    assert scheduler.counters.counts["second_looks"] == 1
    assert set(output.num_scheduled_tokens) == {"long", "short"}


@ASYNC
def test_who_once_could_not_run_passes_nobody_who_ranks_before(bench: Bench, asynchronous: bool) -> None:
    scheduler = bench.ours({"policy": "ltr"}, slots=1, asynchronous=asynchronous)
    runner = harness.Runner(scheduler, 2 if asynchronous else 1)
    late = harness.request("late", 50, xargs={"sooner_predicted_len": 50})
    late.status = harness.waiting_for_grammar()
    late.structured_output_request = SimpleNamespace(grammar=None)
    runner.add([harness.request("running", 9, xargs={"sooner_predicted_len": 9}), late])
    runner.run(3)
    late.structured_output_request = None
    late.status = harness.RequestStatus.WAITING  # it stays where vLLM keeps those that could not run
    runner.add([harness.request("short", 5, xargs={"sooner_predicted_len": 5})])
    runner.run()
    assert runner.admitted == ["running", "short", "late"]


@SENDS_BACK
@pytest.mark.parametrize("session", [False, True])
def test_a_streaming_session_is_never_sent_back(bench: Bench, session: bool) -> None:
    scheduler = bench.ours({"policy": "ltr"}, slots=1)
    runner = harness.Runner(scheduler)
    runner.add([harness.request("long", 90), harness.request("short", 5)])
    runner.run(2)
    scheduler.running[0].resumable = session
    for name, length in (("long", 90.0), ("short", 5.0)):
        scheduler._arrived.append((name, Prediction(length, length)))
    runner.run(2)
    assert scheduler.counters.counts["second_looks"] == (not session)
    assert [request.request_id for request in scheduler.running] == (["long"] if session else ["short"])


@SENDS_BACK
def test_a_victim_never_runs_again_in_the_same_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = bench.ours({"policy": "ltr"}, slots=1)
    runner = harness.Runner(scheduler)
    runner.add([harness.request("long", 90), harness.request("short", 5)])
    runner.run(2)
    monkeypatch.setattr(compat, "can_admit", lambda *_: True)  # and then vLLM skips it all the same
    scheduler.waiting.peek_request().status = harness.RequestStatus.WAITING_FOR_REMOTE_KVS
    scheduler._handle_blocked_waiting_request = lambda request: False
    for name, length in (("long", 90.0), ("short", 5.0)):
        scheduler._arrived.append((name, Prediction(length, length)))
    output = scheduler.schedule()
    assert scheduler.counters.counts["second_looks"] == 1
    assert output.total_num_scheduled_tokens == 0
    assert {one.request_id for queue in compat.queues(scheduler) for one in queue} == {"long", "short"}


@SENDS_BACK
@pytest.mark.parametrize("delivered", [False, True], ids=["kept here", "handed off"])
def test_a_victim_is_sent_back_by_vllms_own_flags_and_reported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, delivered: bool
) -> None:
    scheduler = bench.ours({"policy": "ltr"}, slots=1, asynchronous=True)
    scheduler.requires_kv_delivery = delivered
    runner = harness.Runner(scheduler, 2)
    runner.add([harness.request("long", 90), harness.request("short", 5)])
    runner.run(3)
    preempt, flags = scheduler._preempt_request, []
    monkeypatch.setattr(
        scheduler, "_preempt_request", lambda *rest, **more: (flags.append(more), preempt(*rest, **more))
    )
    outputs, schedule = [], scheduler.schedule
    monkeypatch.setattr(scheduler, "schedule", lambda: outputs.append(schedule()) or outputs[-1])
    for name, length in (("long", 90.0), ("short", 5.0)):
        scheduler._arrived.append((name, Prediction(length, length)))
    runner.run()
    assert runner.tokens == {"long": 90, "short": 5}
    assert flags == [{"drop_stale_output": delivered}]
    assert [output.preempted_req_ids for output in outputs if output.preempted_req_ids] == [{"long"}]
    resumed = [
        {*output.scheduled_cached_reqs.all_token_ids, *(one.req_id for one in output.scheduled_new_reqs)}
        for output in outputs
    ]
    assert sum("long" in ids for ids in resumed) == 1


def test_keys_that_change_with_time_are_read_anew_only_where_somebody_is_admitted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = bench.ours({"policy": "hrrn"}, slots=2)
    runner = harness.Runner(scheduler)
    runner.add(harness.request(i, 6, xargs=told(i)) for i in range(N))
    runner.run(1)
    refresh, read = scheduler.order.refresh, []
    monkeypatch.setattr(
        scheduler.order,
        "refresh",
        lambda tickets, attained: (read.append(len(tickets)), refresh(tickets, attained)),
    )
    runner.run(5)
    assert max(read) == 2  # who runs
    read.clear()
    runner.run(1)
    assert [n for n in read if n > 2] == [N - 2]  # once


def test_under_vllms_priority_policy_victims_are_ours(bench: Bench) -> None:
    scheduler = bench.ours({"policy": "ltr"}, blocks=9, slots=3, policy="priority")
    runner = harness.Runner(scheduler)
    for name, length in (("long", 70), ("middle", 60), ("short", 50)):
        runner.add([harness.request(name, length, priority=length)])
        runner.run(1)
    victims = preempted(scheduler)
    runner.run()
    assert victims[0] == "long"
    assert runner.tokens == {"long": 70, "middle": 60, "short": 50}


@ASYNC
def test_documents_wait_for_questions_though_their_replies_are_short(
    bench: Bench, asynchronous: bool
) -> None:
    def waited(policy: str) -> float:
        scheduler = bench.ours({"policy": policy}, slots=2, asynchronous=asynchronous)
        scheduler._timer.learner.step = lambda step, waiting: None  # no model runs: its steps say nothing
        runner = harness.Runner(scheduler, 2 if asynchronous else 1)
        for i in range(40):
            document = i % 4 == 0
            runner.add(
                [harness.request(
                    i, 4 if document else 8, arrival_time=i * 1e-3, prompt_len=1800 if document else 10,
                    xargs={"sooner_predicted_len": 4 if document else 8},
                )]
            )  # fmt: skip
        runner.run()
        return sum(runner.finished[str(i)] for i in range(0, 40, 4)) / 10

    assert waited("spjf") < waited("boost")
    assert waited("spw") > 1.5 * waited("spjf")


def test_what_the_prefix_cache_holds_is_not_work(bench: Bench) -> None:
    scheduler = bench.ours({"policy": "boost"}, slots=2, caching=True)
    runner = harness.Runner(scheduler)
    runner.add([harness.request("first", 3, prompt_len=800, hashed=True)])
    runner.run()
    runner.add([harness.request(name, 200, hashed=True) for name in ("a", "b")])
    runner.run(1)
    queries = scheduler.kv_cache_manager.prefix_cache_stats.queries
    runner.add([harness.request("again", 3, prompt_len=800, hashed=True)])
    runner.add([harness.request("other", 3, prompt_len=800, offset=9, hashed=True)])
    again, other = (scheduler.order.tickets[name] for name in ("again", "other"))
    assert again.cached_len == 784  # 49 whole blocks of 16
    assert other.cached_len == 0
    assert again.work < 0.2 * other.work
    assert scheduler.kv_cache_manager.prefix_cache_stats.queries == queries
    runner.run()


@pytest.mark.parametrize("kept", [0, 1_500, 1_999, 5_000, 19_999])
def test_a_long_prompt_is_looked_up_in_few_steps(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    scheduler = bench.ours(caching=True)
    coordinator = scheduler.kv_cache_manager.coordinator
    long = harness.request("long", 1, prompt_len=20_000 * harness.BLOCK, hashed=True)
    there = set(long.block_hashes[:kept])
    looked: list[int] = []

    def look(hashes: list[Any], most: int) -> tuple[tuple[list[Any]], int]:
        found = 0
        while found < min(len(hashes), most // harness.BLOCK) and hashes[found] in there:
            found += 1
        looked.append(found)
        return ([],), found * harness.BLOCK

    monkeypatch.setattr(coordinator, "find_longest_cache_hit", look)
    assert compat.cached_tokens(scheduler, long) == kept * harness.BLOCK
    assert sum(looked) <= 1_024
    short = harness.request("short", 1, prompt_len=200, hashed=True)
    assert compat.cached_tokens(scheduler, short) == min(kept, 12) * harness.BLOCK


def test_what_is_usual_is_kept_over_a_restart(bench: Bench, tmp_path: Path) -> None:
    state = str(tmp_path / "state.json")
    first = bench.ours({"policy": "boost", "state": state}, slots=1)
    runner = harness.Runner(first)
    runner.add(harness.request(i, 3, xargs=told(i)) for i in range(N))
    runner.run()
    usual = first.order.usual.wait
    assert usual > 1e-3
    first.shutdown()
    bench.made.remove(first)
    again = bench.ours({"policy": "boost", "state": state}, slots=1)
    assert again.order.usual.wait == usual


def test_a_missing_ranker_is_refused_at_start(bench: Bench) -> None:
    with pytest.raises(RankerFileError, match="nowhere"):
        bench.ours({"ranker": "/nowhere/ranker"})


def test_a_version_that_nobody_read_is_served_in_order_of_arrival(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat, "version", lambda: (0, 99))
    scheduler = bench.ours({"policy": "ltr"})
    assert not isinstance(scheduler.waiting, RankedQueue)
    assert drive(scheduler, xargs=told).admitted == [str(i) for i in range(N)]


@pytest.mark.parametrize("minor", [18, 20, 22, 23, 24, 26])
def test_on_older_versions_running_requests_stay(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, minor: int
) -> None:
    monkeypatch.setattr(compat, "version", lambda: (0, minor))
    scheduler = bench.ours({"policy": "ltr", "preemption": True})
    assert not scheduler.settings.second_look
    assert not scheduler.settings.preemption
    assert isinstance(scheduler.waiting, RankedQueue)


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
