"""Every question about the version of vLLM is asked in this file. Run: 0.32.0. Read: 0.12 to 0.33."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vllm.v1.core.sched.async_scheduler import AsyncScheduler as VllmAsyncScheduler
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.core.sched.scheduler import Scheduler as VllmScheduler

from sooner.chat.signals import UNSAID, USUAL_TEMPERATURE, Signals
from sooner.ordering.queue import RankedQueue

__all__ = [
    "VllmAsyncScheduler",
    "VllmScheduler",
    "can_preempt",
    "engine_index",
    "filled",
    "is_running",
    "queues",
    "replace_queues",
    "signals",
    "slots",
    "steps_tokens",
    "tokenizer_name",
    "wants_async",
]

RequestQueue.register(RankedQueue)

_QUEUES = ("waiting", "kv_holding_waiting", "skipped_waiting")
"""`waiting` is in all versions, `skipped_waiting` in 0.18 to 0.22, `kv_holding_waiting` from 0.31."""


def queues(scheduler: Any) -> list[RankedQueue[Any]]:
    """Return our queues in a scheduler whose queues were replaced."""
    found = (getattr(scheduler, name, None) for name in _QUEUES)
    return [queue for queue in found if isinstance(queue, RankedQueue)]


def replace_queues(scheduler: Any, make: Any) -> None:
    """Put `make()` in place of each of vLLM's waiting queues, which are empty at this time."""
    for name in _QUEUES:
        if isinstance(getattr(scheduler, name, None), RequestQueue):
            setattr(scheduler, name, make())


def wants_async(vllm_config: Any) -> bool:
    """Return whether this engine schedules a step ahead; False on CPU."""
    return bool(getattr(vllm_config.scheduler_config, "async_scheduling", False))


def is_running(request: Any) -> bool:
    """Return whether a request runs (a popped one may also be loading KV from afar)."""
    return bool(request.status.name == "RUNNING")


def can_preempt(scheduler: Any, request: Any) -> bool:
    """Return whether preempting a running request frees its blocks at once."""
    check = getattr(scheduler, "_request_blocks_can_be_freed", None)
    return is_running(request) and (check is None or bool(check(request)))


def slots(scheduler: Any) -> int:
    """Return how many requests may run at once."""
    return int(getattr(scheduler, "max_num_active_reqs", scheduler.max_num_running_reqs))


def steps_tokens(output: Any) -> int:
    """Return how many tokens a step computes; a step of none is not counted."""
    return int(output.total_num_scheduled_tokens)


def engine_index(vllm_config: Any) -> int:
    """Return the data-parallel index of this engine."""
    parallel = vllm_config.parallel_config
    return int(getattr(parallel, "data_parallel_index", getattr(parallel, "data_parallel_rank", 0)))


def tokenizer_name(vllm_config: Any) -> str:
    """Return the folder or hub name of the model's tokenizer; empty where vLLM runs without one."""
    model = vllm_config.model_config
    if getattr(model, "skip_tokenizer_init", False):
        return ""
    return str(model.tokenizer or "")


def prompt_tokens(request: Any) -> Sequence[int] | None:
    """Return the prompt's token ids, or None for a prompt of embeddings."""
    return request.prompt_token_ids or None


class Filled(NamedTuple):
    """What vLLM fills in where a client says nothing; a request that has it said nothing."""

    model_len: int
    max_tokens: int | None = None
    temperature: float | None = None


def filled(vllm_config: Any) -> Filled:
    """Return what this engine fills in, by its model's length and generation config."""
    model = vllm_config.model_config
    defaults = model.get_diff_sampling_param()
    return Filled(int(model.max_model_len), defaults.get("max_tokens"), defaults.get("temperature"))


def signals(request: Any, unsaid: Filled) -> Signals:
    """Return what the client said besides its prompt. Its tools are in the prompt by now."""
    asked = request.sampling_params
    if asked is None:
        return UNSAID
    limit, temperature = request.max_tokens, asked.temperature
    if limit == unsaid.max_tokens or limit >= unsaid.model_len - request.num_prompt_tokens > 0:
        limit = None
    if temperature == unsaid.temperature or temperature == USUAL_TEMPERATURE:
        temperature = None
    return Signals(limit, temperature, 0, asked.structured_outputs is not None)
