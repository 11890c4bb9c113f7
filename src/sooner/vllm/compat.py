"""Every question about vLLM's version is asked here. Engine run: 0.32.0. Scheduler run: 0.18 to 0.33."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import vllm
from vllm.v1.core.sched.async_scheduler import AsyncScheduler as VllmAsyncScheduler
from vllm.v1.core.sched.request_queue import RequestQueue, create_request_queue
from vllm.v1.core.sched.scheduler import Scheduler as VllmScheduler

from sooner.chat.signals import USUAL_TEMPERATURE, Signals, sender
from sooner.ordering.queue import RankedQueue
from sooner.ordering.wire import Ending
from sooner.vllm.memory import free_blocks, needed_blocks

__all__ = ["VllmAsyncScheduler", "VllmScheduler"]  # the rest are functions of this file

RequestQueue.register(RankedQueue)

_QUEUES = ("waiting", "kv_holding_waiting", "skipped_waiting")
"""`waiting` is in all versions, `skipped_waiting` in 0.18.1 to 0.30, `kv_holding_waiting` from 0.31."""

FLOOR, CEILING = (0, 18), (0, 33)
"""Versions on which the tests of the scheduler ran; others are served in order of arrival."""
DISPLACES = (0, 27)
"""From here on vLLM's own bookkeeping lets a request be preempted before `schedule`."""

LOSES_SESSIONS = (0, 31)
"""From here on what vLLM does with a session that is preempted in flight was read, and is mended."""

_SCANNED, _PROBED = 1024, 4
"""Blocks of a prompt that are looked up one after the other, and those at a place that is tried."""


def release() -> str:
    """Return what vLLM calls its version."""
    return str(getattr(vllm, "__version__", ""))


def version() -> tuple[int, int] | None:
    """Return vLLM's version as (major, minor), None where it cannot be read, as of a build from source."""
    found = re.match(r"(\d+)\.(\d+)", release())
    return (int(found[1]), int(found[2])) if found else None


def known(found: tuple[int, int] | None) -> bool:
    """Return whether this version's private parts are those that were read."""
    return found is not None and FLOOR <= found <= CEILING


def displaces(found: tuple[int, int] | None) -> bool:
    """Return whether running requests may be sent back on this version."""
    return found is not None and DISPLACES <= found <= CEILING


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
    """Return whether preempting a running request frees its blocks at once and loses nothing.

    A streaming session that stops while its last step is in flight would be taken for finished.
    """
    if is_session(request):
        return False
    check = getattr(scheduler, "_request_blocks_can_be_freed", None)
    return is_running(request) and (check is None or bool(check(request)))


def is_free(scheduler: Any, request: Any) -> bool:
    """Return whether a waiting request waits for a slot or memory only, as far as can be told."""
    if _paused(scheduler):
        return False
    ready = request.status.name in ("WAITING", "PREEMPTED") or _grammar_is_there(request)
    return ready or (_is_remote(request) and request.request_id in _loaded(scheduler))


def is_loading(scheduler: Any, queues: Sequence[RankedQueue[Any]]) -> bool:
    """Return whether KV of a waiting request is on its way from afar."""
    waiting = (request for queue in queues for request in queue.requests())
    return any(_is_remote(request) and request.request_id not in _loaded(scheduler) for request in waiting)


def _is_remote(request: Any) -> bool:
    return bool(request.status.name == "WAITING_FOR_REMOTE_KVS")


def _loaded(scheduler: Any) -> set[str]:
    """Whose KV is here from afar; vLLM looks at them when they are first only."""
    found: set[str] = getattr(scheduler, "finished_recving_kv_req_ids", set())
    return found


def is_session(request: Any) -> bool:
    """Return whether more input may follow, as in a streaming session."""
    return bool(getattr(request, "resumable", False))


def is_placed(scheduler: Any, request: Any) -> bool:
    """Return whether a request runs or is in one of the queues."""
    return request in scheduler.running or any(request in getattr(scheduler, name, ()) for name in _QUEUES)


def loses_sessions() -> bool:
    """Return whether this version loses sessions in a way that was read."""
    found = version()
    return found is not None and LOSES_SESSIONS <= found <= CEILING


def _paused(scheduler: Any) -> bool:
    pause = getattr(scheduler, "_pause_state", None)
    return pause is not None and pause.name != "UNPAUSED"


def can_admit(scheduler: Any, request: Any) -> bool:
    """Return whether `schedule` would admit a waiting request now, were a slot free; False where unsure."""
    if request.status.name not in ("WAITING", "PREEMPTED") and not _grammar_is_there(request):
        return False  # for its grammar, for KV from afar, for more input
    if _paused(scheduler):
        return False
    if (
        getattr(scheduler, "connector", None) is not None
        or getattr(scheduler, "ec_connector", None) is not None
    ):
        return False  # the connector has a say, and is asked in `schedule` only
    if getattr(request, "has_encoder_inputs", False):
        return False
    if getattr(request, "num_stale_output_tokens", 0) and not getattr(request, "drop_stale_output", True):
        return False
    if getattr(scheduler, "kv_holding_waiting", None):
        return False  # they go first; in `skipped_waiting` the better-ranked does
    return _lora_fits(scheduler, request) and _prompt_fits(scheduler, request)


def _grammar_is_there(request: Any) -> bool:
    """Whether a request waits for nothing but to be seen: `schedule` looks only where a slot is free."""
    if request.status.name not in ("WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR", "WAITING_FOR_FSM"):
        return False
    asked = request.structured_output_request
    return bool(asked is not None and asked.grammar)


def _lora_fits(scheduler: Any, request: Any) -> bool:
    limits, wanted = getattr(scheduler, "lora_config", None), request.lora_request
    if not limits or not wanted:
        return True
    loaded = {other.lora_request.lora_int_id for other in scheduler.running if other.lora_request}
    return wanted.lora_int_id in loaded or len(loaded) < limits.max_loras


def _prompt_fits(scheduler: Any, request: Any) -> bool:
    """Whether the whole prompt fits into free KV blocks, without those of a victim and without any cache."""
    manager = scheduler.kv_cache_manager
    groups = len(manager.kv_cache_config.kv_cache_groups)
    return free_blocks(scheduler) >= needed_blocks(scheduler, request) + groups


def preempt(scheduler: Any, request: Any, now: float) -> None:
    """Preempt a request that was taken off the running, with the flags that vLLM passes itself."""
    if hasattr(scheduler, "requires_kv_delivery"):
        scheduler._preempt_request(request, now, drop_stale_output=scheduler.requires_kv_delivery)
    else:
        scheduler._preempt_request(request, now)


def use_arrival_victims(scheduler: Any) -> None:
    """Let vLLM take the last of the running as its victim, also under its priority policy.

    We keep the running in our order, and a client's `priority` is its score there.
    """
    policy = getattr(scheduler, "policy", None)
    if policy is not None and policy.name == "PRIORITY":
        scheduler.policy = type(policy).FCFS


def stock_queues(scheduler: Any) -> None:
    """Put vLLM's own queues back, with every request that neither runs nor is queued, by arrival."""
    queued: set[str] = set()
    for name in _QUEUES:
        mine = getattr(scheduler, name, None)
        if not isinstance(mine, RankedQueue):
            continue
        stock = create_request_queue(scheduler.policy)
        for request in sorted(mine.requests(), key=lambda entry: entry.arrival_time):
            stock.add_request(request)
            queued.add(request.request_id)
        setattr(scheduler, name, stock)
    running = {request.request_id for request in scheduler.running}
    lost = [request for id, request in scheduler.requests.items() if id not in queued and id not in running]
    for request in sorted(lost, key=lambda entry: entry.arrival_time):
        if not request.is_finished():
            scheduler.waiting.add_request(request)


def take_back(scheduler: Any, ran_before: set[str]) -> None:
    """Undo the admissions of a `schedule` that raised: they hold blocks, and no worker knows of them."""
    for request in [request for request in scheduler.running if request.request_id not in ran_before]:
        scheduler.running.remove(request)
        scheduler.kv_cache_manager.free(request)
        states = type(request.status)
        request.status = states.PREEMPTED if getattr(request, "num_preemptions", 0) else states.WAITING
        request.num_computed_tokens = 0


def caches_prefixes(scheduler: Any) -> bool:
    """Return whether this engine keeps prompts' KV for others that begin alike."""
    return bool(getattr(scheduler.kv_cache_manager, "enable_caching", False))


def cached_tokens(scheduler: Any, request: Any) -> int:
    """Return how many tokens of a waiting prompt the prefix cache holds now; asks nothing else of it.

    The look-up neither counts as a query nor touches a block, as vLLM's `get_computed_blocks` would. It
    costs a millisecond at most: of a long prompt a few blocks are tried, as its first are evicted last.
    """
    if getattr(request, "skip_reading_prefix_cache", False):
        return 0
    hashes = getattr(request, "block_hashes", None)
    if not hashes:
        return 0
    look = scheduler.kv_cache_manager.coordinator.find_longest_cache_hit
    size = int(scheduler.block_size)
    if len(hashes) <= _SCANNED or len(hashes) != request.num_tokens // size:
        return int(look(hashes[:_SCANNED], request.num_tokens - 1)[1])

    def is_missing(at: int) -> bool:
        return not look(hashes[at : at + _PROBED], _PROBED * size)[1]

    whole = (request.num_tokens - 1) // size  # the last token is computed in any case
    return bisect.bisect_left(range(whole), True, key=is_missing) * size


def context_tokens(scheduler: Any) -> float:
    """Return how many tokens of KV memory are in use."""
    manager = scheduler.kv_cache_manager
    pool = manager.block_pool
    groups = max(len(manager.kv_cache_config.kv_cache_groups), 1)
    return float((pool.num_gpu_blocks - pool.get_num_free_blocks()) * scheduler.block_size / groups)


def shape(scheduler: Any, output: Any) -> tuple[int, int]:
    """Return a step's prompt tokens and decoding requests."""
    most = 1 + int(getattr(scheduler, "num_spec_tokens", 0) or 0)
    tokens = output.num_scheduled_tokens.values()
    decoding = sum(1 for n in tokens if n <= most) if most > 1 else list(tokens).count(1)
    if most == 1:
        return int(output.total_num_scheduled_tokens) - decoding, decoding
    return sum(n for n in tokens if n > most), decoding


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


def of_engine(path: Path, vllm_config: Any) -> Path:
    """Return an engine's own file, so that none shares a line: the first's is `path` itself.

    The first cannot tell whether there are others: of a dense model vLLM tells each that it is alone.
    """
    index = engine_index(vllm_config)
    return path if index == 0 else path.with_name(f"{path.stem}.engine{index}{path.suffix}")


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


def signals(request: Any, unsaid: Filled, model: str = "", sender: str = "") -> Signals:
    """Return what the client said besides its prompt, and `groups`. Its tools are in the prompt by now."""
    asked = request.sampling_params
    if asked is None:
        return Signals(model=model, sender=sender)
    limit, temperature = request.max_tokens, asked.temperature
    if limit == unsaid.max_tokens or limit >= unsaid.model_len - request.num_prompt_tokens > 0:
        limit = None
    if temperature == unsaid.temperature or temperature == USUAL_TEMPERATURE:
        temperature = None
    return Signals(limit, temperature, 0, asked.structured_outputs is not None, model, sender)


def groups(request: Any, model: str) -> tuple[str, str]:
    """Return the names of a request's model, its adapter if it has one, and of its sender."""
    adapter = getattr(request, "lora_request", None)
    extra = getattr(request.sampling_params, "extra_args", None)
    named = sender(extra) if isinstance(extra, dict) else ""
    named = named or str(getattr(request, "cache_salt", "") or "")
    return str(adapter.lora_name) if adapter else model, named


def ending(request: Any) -> Ending:
    """Return how a request ended. One that ignores its end and reaches its limit is as long as it can be.

    Stop strings are found by vLLM's front end, which then aborts the request: so ends who has some.
    """
    name = request.status.name
    if name == "FINISHED_LENGTH_CAPPED":
        return Ending.STOP if getattr(request.sampling_params, "ignore_eos", False) else Ending.LIMIT
    by_text = name == "FINISHED_ABORTED" and getattr(request.sampling_params, "stop", None)
    return Ending.STOP if by_text or name in ("FINISHED_STOPPED", "FINISHED_REPETITION") else Ending.ABORTED
