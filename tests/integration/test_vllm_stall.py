"""Where requests that wait hold the KV memory that the first in the queue wants: somebody goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import vllm_harness as harness  # after the skip: it imports vLLM

from sooner.vllm import Scheduler, compat

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(vllm|torch)[.].*"),  # not ours to mend
    pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"]),
]

SESSION_BLOCKS = 3
"""Blocks of seven that a session of 40 tokens and their reply holds between two inputs."""


@pytest.fixture
def runner(tmp_path: Path, asynchronous: bool) -> Iterator[harness.Runner]:
    """Sessions "a" and "b", which hold three of seven blocks each and wait for input; "a" ranks first."""
    config = harness.vllm_config(
        harness.tiny_model(tmp_path), {"policy": "spjf"}, blocks=8, asynchronous=asynchronous
    )
    scheduler = harness.scheduler(Scheduler, config)
    runner = harness.Runner(scheduler, 2 if asynchronous else 1)
    runner.add(asked("a", 40, length=1, more=True))
    runner.add(asked("b", 40, length=100, more=True))
    until(runner, lambda: runner.awaits_input("a") and runner.awaits_input("b"))
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 7 - 2 * SESSION_BLOCKS
    yield runner
    assert not scheduler.requests
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 7
    counts = scheduler.counters.counts
    assert (counts["hook_errors"], counts["policy_errors"], counts["bypassed"]) == (0, 0, 0)
    scheduler.shutdown()


def asked(id: str, prompt_len: int, *, length: int = 1, more: bool = False) -> list[Any]:
    """A request of 4 tokens, or the next input of a session."""
    told = {"sooner_predicted_len": length}
    return [harness.request(id, 4, prompt_len=prompt_len, xargs=told, resumable=more)]


def until(runner: harness.Runner, true: Callable[[], bool]) -> None:
    for _ in range(60):
        if true():
            return
        runner.once()
    raise AssertionError("nobody goes on")


def served(runner: harness.Runner, first: str, second: str) -> None:
    """Both sessions answer their second input, one after the other, and end."""
    for id in (first, second):
        until(runner, lambda id=id: runner.tokens[id] == 8)  # type: ignore[misc]  # bound at once
        if id == first:
            assert runner.tokens[second] == 4
        until(runner, lambda id=id: runner.awaits_input(id))  # type: ignore[misc]  # as above
        runner.add(asked(id, 1))
    until(runner, lambda: not runner.scheduler.requests)


def test_who_fits_goes_on_before_a_first_that_does_not(runner: harness.Runner) -> None:
    runner.add(asked("a", 40, more=True))
    runner.add(asked("b", 4, more=True))
    served(runner, "b", "a")
    assert runner.scheduler.counters.counts["kv_released"] == 0


def test_where_nobody_fits_the_worst_ranked_gives_its_memory_back(runner: harness.Runner) -> None:
    runner.add(asked("a", 40, more=True))
    runner.add(asked("b", 40, more=True))
    served(runner, "a", "b")
    assert runner.scheduler.counters.counts["kv_released"] == 1


def test_a_small_one_does_not_wait_for_a_large_one_that_waits_for_a_session(runner: harness.Runner) -> None:
    runner.add(asked("large", 30, length=1))
    runner.add(asked("small", 8, length=100))
    until(runner, lambda: "small" in runner.finished)  # who sent it goes on with the sessions then
    assert "large" not in runner.finished
    for id in ("a", "b"):
        runner.add(asked(id, 1))
    until(runner, lambda: not runner.scheduler.requests)
    assert runner.tokens == {"a": 4, "b": 4, "large": 4, "small": 4}


@pytest.mark.skipif(not compat.loses_sessions(), reason="sessions are mended from vLLM 0.31 on")
def test_a_session_whose_memory_was_taken_in_flight_keeps_its_place_and_its_context(
    runner: harness.Runner, asynchronous: bool
) -> None:
    scheduler = runner.scheduler
    runner.add(asked("a", 4, more=True))
    until(runner, lambda: runner.tokens["a"] == 7)  # its last token is in flight
    session = scheduler.requests["a"]
    scheduler.running.remove(session)
    scheduler._preempt_request(session, 0.0)  # as vLLM does where memory is full
    until(runner, lambda: runner.tokens["a"] == 8 and runner.awaits_input("a"))
    context = list(session.all_token_ids)
    runner.add(asked("a", 5, more=True))
    assert list(session.all_token_ids)[: len(context) - 1] == context[:-1]  # vLLM leaves the last sampled out
    assert session.num_tokens == len(context) - 1 + 5 == session.num_prompt_tokens
    until(runner, lambda: runner.tokens["a"] == 12 and runner.awaits_input("a"))
    for id in ("a", "b"):
        runner.add(asked(id, 1))
    until(runner, lambda: not scheduler.requests)


def test_a_session_waits_anew_from_its_next_input_on(runner: harness.Runner) -> None:
    scheduler = runner.scheduler
    runner.add([harness.request("a", 4, prompt_len=2, arrival_time=50.0, resumable=True)])
    ticket = scheduler.order.tickets["a"]
    assert (ticket.arrival_time, ticket.prompt_len) == (50.0, scheduler.requests["a"].num_prompt_tokens)
    until(runner, lambda: runner.awaits_input("a"))
    for id in ("a", "b"):
        runner.add(asked(id, 1))
    until(runner, lambda: not scheduler.requests)


def test_who_run_into_full_memory_together_do_not_lose_it_together(
    tmp_path: Path, asynchronous: bool
) -> None:
    model = harness.tiny_model(tmp_path)
    config = harness.vllm_config(model, blocks=9, asynchronous=asynchronous, connector=True)
    scheduler = harness.scheduler(Scheduler, config)
    runner = harness.Runner(scheduler, 2 if asynchronous else 1)
    runner.add(harness.request(id, 60, prompt_len=harness.BLOCK) for id in "ab")
    until(runner, lambda: runner.tokens == {"a": 48, "b": 48})  # both hold four of eight blocks, all full
    until(runner, lambda: "a" in runner.finished)
    until(runner, lambda: "b" in runner.finished)
    assert scheduler.counters.counts["kv_preemptions"] == 1
    scheduler.shutdown()
