"""vLLM's own scheduler as the oracle: the same random load through it and through ours differs in order only.

Each seed is a small load with aborts, adapters, grammars that compile, pauses, full KV memory, scores that
come late, and all of it at once. In both every request ends with the same tokens, and nothing is left behind.
"""

from __future__ import annotations

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
SHAPES = [(slots, blocks, late) for slots in (1, 2, 4) for blocks in (8, 12, 200) for late in (False, True)]
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


@dataclass
class Load:
    """A load, made from a seed alone."""

    seed: int
    jobs: list[Job] = field(default_factory=list)
    pauses: dict[int, str] = field(default_factory=dict)
    sooner: dict[str, Any] = field(default_factory=dict)
    max_loras: int = 0

    @classmethod
    def of(cls, seed: int, blocks: int) -> Load:
        rng = random.Random(seed)
        load = cls(seed)
        longest = min(60, (blocks - 2) * harness.BLOCK // 2)
        adapters = rng.random() < 0.4
        load.max_loras = rng.randint(1, 2) if adapters else 0
        for i in range(rng.randint(2, 12)):
            load.jobs.append(
                Job(
                    id=str(i),
                    step=rng.choice((0, 0, 0, 1, 3, 8, 20)),
                    prompt_len=rng.randint(1, longest),
                    output_len=rng.randint(1, longest),
                    lora=rng.randint(0, 3) if adapters else 0,
                    grammar_at=rng.randint(1, 30) if rng.random() < 0.2 else -1,
                    abort_at=rng.randint(1, 30) if rng.random() < 0.1 else -1,
                    told=rng.choice((None, rng.uniform(1, 100))),
                    scored_after=rng.randint(0, 12),
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
        return load


def served(load: Load, scheduler: Any, ours: bool) -> tuple[harness.Runner, int]:
    """Serve a load; return the runner and the steps it took."""
    if load.max_loras:
        scheduler.lora_config = SimpleNamespace(max_loras=load.max_loras)
    runner = harness.Runner(scheduler, 2 if scheduler.vllm_config.scheduler_config.async_scheduling else 1)
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    compiling: dict[str, Any] = {}
    last = max(max(job.step, job.grammar_at, job.abort_at) for job in load.jobs)
    last = max([last, *load.pauses])
    step = 0
    while step <= last or scheduler.has_unfinished_requests() or runner.busy:
        for job in load.jobs:
            if job.step == step:
                runner.add([made(job, compiling)])
            if job.id in compiling and job.grammar_at <= step:
                compiled(compiling.pop(job.id))
            if job.abort_at == step and job.id in scheduler.requests:
                harness.abort(scheduler, job.id)
            if ours and job.told is None and job.step + job.scored_after == step:
                scheduler._arrived.append((job.id, Prediction(float(job.output_len), float(job.output_len))))
        if step in load.pauses and hasattr(scheduler, "set_pause_state"):
            scheduler.set_pause_state(type(scheduler._pause_state)[load.pauses[step]])
        runner.once()
        step += 1
        assert step < 3_000, f"seed {load.seed} does not come to an end"
    assert not scheduler.requests
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == free
    return runner, step


def made(job: Job, compiling: dict[str, Any]) -> Any:
    request = harness.request(
        job.id,
        job.output_len,
        arrival_time=float(job.step),
        prompt_len=job.prompt_len,
        xargs=None if job.told is None else {"sooner_predicted_len": job.told},
    )
    if job.lora:
        request.lora_request = SimpleNamespace(
            lora_int_id=job.lora, lora_name=str(job.lora), name=str(job.lora)
        )
    if job.grammar_at >= 0:
        request.status = harness.waiting_for_grammar()
        request.structured_output_request = SimpleNamespace(grammar=None)
        compiling[job.id] = request
    return request


def compiled(request: Any) -> None:
    """The grammar of a request is there; without a model nothing walks it."""
    request.structured_output_request = None
    if request.status == harness.waiting_for_grammar():
        request.status = harness.RequestStatus.WAITING


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int, bool], Any]:
    model = harness.tiny_model(tmp_path_factory.mktemp("oracle"))
    return {
        shape: harness.vllm_config(model, slots=shape[0], blocks=shape[1], asynchronous=shape[2])
        for shape in SHAPES
    }


@pytest.mark.parametrize("batch", range(BATCHES))
def test_loads_differ_from_vllms_own_in_order_only(configs: dict[Any, Any], batch: int) -> None:
    for seed in range(batch, SEEDS, BATCHES):
        shape = SHAPES[seed % len(SHAPES)]
        config, load = configs[shape], Load.of(seed, shape[1])
        config.additional_config = {"sooner": {"ranker": "", "learn": False, "state": ""}}
        stock, stock_steps = served(load, harness.builtin(config), ours=False)
        config.additional_config = {"sooner": {"ranker": "", "learn": False, "state": "", **load.sooner}}
        scheduler = harness.scheduler(Scheduler, config)
        ours, our_steps = served(load, scheduler, ours=True)
        told = f"seed {seed}, {shape}, {load.sooner}"
        whole = [job.id for job in load.jobs if job.abort_at < 0]
        lengths = {job.id: job.output_len for job in load.jobs}
        for runner in (stock, ours):
            assert {id: runner.tokens[id] for id in whole} == {id: lengths[id] for id in whole}, told
        assert not scheduler.order.tickets, told
        counts = scheduler.counters.counts
        assert (counts["hook_errors"], counts["policy_errors"], counts["bypassed"]) == (0, 0, 0), told
        redone = counts["second_looks"] + counts["rank_preemptions"] + counts["kv_preemptions"]
        assert our_steps <= 2 * stock_steps + 20 + 10 * redone, told
        scheduler.shutdown()


def test_the_loads_contain_what_they_promise() -> None:
    loads = [Load.of(seed, SHAPES[seed % len(SHAPES)][1]) for seed in range(SEEDS)]
    assert sum(bool(load.pauses) for load in loads) > 400
    assert sum(load.max_loras > 0 for load in loads) > 600
    assert sum(any(job.grammar_at >= 0 for job in load.jobs) for load in loads) > 1000
    assert sum(any(job.abort_at >= 0 for job in load.jobs) for load in loads) > 700
    assert {load.sooner["policy"] for load in loads} == set(ORDERS)
    assert compat.FLOOR < compat.CEILING
