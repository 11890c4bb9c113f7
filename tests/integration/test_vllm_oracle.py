"""vLLM's own scheduler as the oracle: the same random load through it and through ours differs in order only.

Each seed is a small load with aborts, adapters, grammars that compile, pauses, full KV memory, KV from afar,
streaming sessions, shared prefixes, prompts in pieces, resets, scores that come late, and all of it at once.
In both every request ends with the same tokens, and nothing is left behind. Ours ends also where vLLM's own
does not.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import vllm_harness as harness  # after the skip: it imports vLLM

from sooner import policies
from sooner.core import Prediction
from sooner.ordering.order import TELLS
from sooner.vllm import Scheduler, compat

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(vllm|torch)[.].*"),  # not ours to mend
]

SEEDS = 2_000
BATCHES = 20
MORE = 4
"""Tokens of the reply to each further input of a session."""
REDONE = ("second_looks", "rank_preemptions", "kv_preemptions", "kv_released")
"""Counters of what is computed once more."""
STICKS = (0, 21)
"""Up to here a few loads end in neither: a reset with a step in flight, KV from afar that fills memory."""
SHAPES = [
    (slots, blocks, late, remote)
    for slots in (1, 2, 4)
    for blocks in (8, 12, 200)
    for late in (False, True)
    for remote in (False, True)
]
ORDERS = [
    name
    for name in policies.names()
    if policies.get(name).reads <= TELLS  # the others are refused at start
]


@dataclass
class Job:
    """One request of a load: when it comes, how long it is, and what stands in its way."""

    id: str
    step: int
    prompt_len: int
    output_len: int
    lora: int
    grammar_at: int  # the step at which its grammar is there; -1: it has none
    abort_at: int
    told: float | None
    scored_after: int
    loads: int  # steps until its prompt's KV is here from elsewhere; 0: it is computed
    inputs: int  # how often more input follows, as in a streaming session


@dataclass
class Load:
    """A load, made from a seed alone."""

    seed: int
    jobs: list[Job] = field(default_factory=list)
    pauses: dict[int, str] = field(default_factory=dict)
    sooner: dict[str, Any] = field(default_factory=dict)
    max_loras: int = 0
    budget: int = 8192  # tokens a step: with few, prompts are computed in pieces
    caching: bool = False  # of prompts' KV; all prompts here begin alike
    reset_at: int = -1  # the step at which all that run give their KV back, as after new weights; -1: none

    @classmethod
    def of(cls, seed: int, blocks: int) -> Load:
        rng = random.Random(seed)
        load = cls(seed)
        longest = min(60, (blocks - 2) * harness.BLOCK // 2)
        adapters = rng.random() < 0.4
        load.max_loras = rng.randint(1, 2) if adapters else 0
        for i in range(rng.randint(2, 12)):
            inputs = rng.randint(1, 3) if rng.random() < 0.15 else 0
            if not compat.loses_sessions():  # older ones empty a session that is preempted in flight
                inputs = 0
            room = longest - 15 if inputs else longest  # a session's further turns must fit as well
            load.jobs.append(
                Job(
                    id=str(i),
                    step=rng.choice((0, 0, 0, 1, 3, 8, 20)),
                    prompt_len=rng.randint(1, room),
                    output_len=rng.randint(1, rng.choice((6, 20, room))),
                    lora=rng.randint(0, 3) if adapters else 0,
                    grammar_at=rng.randint(1, 30) if rng.random() < 0.2 else -1,
                    abort_at=rng.randint(1, 30) if rng.random() < 0.1 else -1,
                    told=rng.choice((None, rng.uniform(1, 100))),
                    scored_after=rng.randint(0, 12),
                    loads=rng.choice((0, 1, 5, 15)),
                    inputs=inputs,
                )
            )
        if rng.random() < 0.3:
            start = rng.randint(1, 15)
            load.pauses = {
                start: rng.choice(("PAUSED_NEW", "PAUSED_ALL")),
                start + rng.randint(1, 10): "UNPAUSED",
            }
        load.sooner = {
            "policy": rng.choice(ORDERS),
            "second_look": rng.random() < 0.8,
            "kv_victims": rng.random() < 0.8,
            "preemption": rng.random() < 0.4,
            "starvation_guard": rng.random() < 0.3,
            "starvation_threshold": rng.randint(1, 20),
        }
        load.budget = rng.choice((8192, 8192, 8192, 24, 40))
        load.caching = rng.random() < 0.3
        load.reset_at = rng.randint(1, 20) if rng.random() < 0.15 else -1
        return load


class Stuck(Exception):
    """Nothing runs and nothing will."""


def served(load: Load, scheduler: Any, ours: bool) -> tuple[harness.Runner, int]:
    """Serve a load; return the runner and the steps it took. Raises Stuck."""
    if load.max_loras:
        scheduler.lora_config = SimpleNamespace(max_loras=load.max_loras)
    runner = harness.Runner(scheduler, 2 if scheduler.vllm_config.scheduler_config.async_scheduling else 1)
    if runner.connector is not None:
        runner.connector.remote = {job.id: job.loads for job in load.jobs if job.loads}
    inputs = {job.id: job.inputs for job in load.jobs}
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    compiling: dict[str, Any] = {}
    last = max(max(job.step, job.grammar_at, job.abort_at) for job in load.jobs)
    last = max([last, *load.pauses])
    step = idle = 0
    while step <= last or scheduler.requests or runner.busy:
        for job in load.jobs:
            if job.step == step:
                runner.add([made(job, compiling, load.caching)])
            if job.id in compiling and job.grammar_at <= step:
                compiled(compiling.pop(job.id))
            if job.abort_at == step and job.id in scheduler.requests:
                harness.abort(scheduler, job.id)
            if ours and job.told is None and job.step + job.scored_after == step:
                scheduler._arrived.append((job.id, Prediction(float(job.output_len), float(job.output_len))))
        if step in load.pauses and hasattr(scheduler, "set_pause_state"):
            scheduler.set_pause_state(type(scheduler._pause_state)[load.pauses[step]])
        if step == load.reset_at:
            with contextlib.suppress(RuntimeError):  # of vLLM's own, where one that waits holds KV
                scheduler.reset_prefix_cache(reset_running_requests=True)
        for id, left in inputs.items():
            if left >= 0 and runner.awaits_input(id):
                runner.add([more(id, last=left == 0)])
                inputs[id] = left - 1
        runner.once()
        step += 1
        idle = 0 if scheduler.running or runner.busy or step <= last else idle + 1
        if idle > 60 or step > 3_000:
            raise Stuck(f"seed {load.seed}: {len(scheduler.requests)} requests wait for ever")
    assert not scheduler.requests
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == free
    return runner, step


def made(job: Job, compiling: dict[str, Any], hashed: bool) -> Any:
    request = harness.request(
        job.id,
        job.output_len,
        arrival_time=float(job.step),
        prompt_len=job.prompt_len,
        xargs=None if job.told is None else {"sooner_predicted_len": job.told},
        resumable=job.inputs > 0,
        hashed=hashed,
    )
    if job.lora:
        request.lora_request = SimpleNamespace(
            lora_int_id=job.lora, lora_name=str(job.lora), name=str(job.lora), lora_path=str(job.lora)
        )
    if job.grammar_at >= 0:
        request.status = harness.waiting_for_grammar()
        request.structured_output_request = SimpleNamespace(grammar=None)
        compiling[job.id] = request
    return request


def more(id: str, *, last: bool) -> Any:
    """The next input of a streaming session, or the word that there is none."""
    return harness.request(id, MORE, arrival_time=30.0, prompt_len=5, resumable=not last)


def compiled(request: Any) -> None:
    """The grammar of a request is there; without a model nothing walks it."""
    request.structured_output_request = None
    if request.status == harness.waiting_for_grammar():
        request.status = harness.RequestStatus.WAITING


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int, bool, bool], Any]:
    model = harness.tiny_model(tmp_path_factory.mktemp("oracle"))
    return {
        shape: harness.vllm_config(
            model, slots=shape[0], blocks=shape[1], asynchronous=shape[2], connector=shape[3]
        )
        for shape in SHAPES
    }


def compared(config: Any, load: Load, shape: Any) -> bool:
    """Serve a load with both; return False where vLLM's own never ends: ours does, with every token."""
    told = f"seed {load.seed}, {shape}, {load.sooner}"
    whole = {job.id: job.output_len + MORE * job.inputs for job in load.jobs if job.abort_at < 0}
    config.scheduler_config.max_num_batched_tokens = load.budget
    config.cache_config.enable_prefix_caching = load.caching
    scheduler, ours, our_steps = ended(config, load, load.sooner)
    _, stock, stock_steps = ended(config, load, None)
    if ours is None and stock is None and (compat.version() or compat.CEILING) <= STICKS:
        return False  # a fault of vLLM's own
    assert ours is not None, f"{told}: requests wait for ever"
    assert {id: ours.tokens[id] for id in whole} == whole, told
    assert not scheduler.order.tickets, told
    counts = scheduler.counters.counts
    assert (counts["hook_errors"], counts["policy_errors"], counts["bypassed"]) == (0, 0, 0), told
    if stock is None:  # what waits holds all of the memory between it
        return False
    assert {id: stock.tokens[id] for id in whole} == whole, told
    redone = sum(counts[name] for name in REDONE)
    assert our_steps <= 2 * stock_steps + 20 + 10 * redone, told
    return True


def ended(config: Any, load: Load, sooner: dict[str, Any] | None) -> tuple[Any, harness.Runner | None, int]:
    """Serve a load with ours or, without settings, with vLLM's own; no runner where it never ends."""
    config.additional_config = {"sooner": {"ranker": "", "learn": False, "state": "", **(sooner or {})}}
    made = harness.builtin(config) if sooner is None else harness.scheduler(Scheduler, config)
    try:
        return made, *served(load, made, ours=sooner is not None)
    except Stuck:
        return made, None, 0
    finally:
        made.shutdown()


@pytest.mark.parametrize("batch", range(BATCHES))
def test_loads_differ_from_vllms_own_in_order_only(configs: dict[Any, Any], batch: int) -> None:
    seeds = range(batch, SEEDS, BATCHES)
    shapes = {seed: SHAPES[seed % len(SHAPES)] for seed in seeds}
    same = [compared(configs[shape], Load.of(seed, shape[1]), shape) for seed, shape in shapes.items()]
    assert same.count(False) <= len(same) / 20  # with KV from afar or sessions, and hardly any memory


def test_the_loads_contain_what_they_promise() -> None:
    loads = [Load.of(seed, SHAPES[seed % len(SHAPES)][1]) for seed in range(SEEDS)]
    assert sum(bool(load.pauses) for load in loads) > 400
    assert sum(load.max_loras > 0 for load in loads) > 600
    assert sum(any(job.grammar_at >= 0 for job in load.jobs) for load in loads) > 1000
    assert sum(any(job.abort_at >= 0 for job in load.jobs) for load in loads) > 700
    assert {load.sooner["policy"] for load in loads} == set(ORDERS)
    assert compat.FLOOR < compat.CEILING
