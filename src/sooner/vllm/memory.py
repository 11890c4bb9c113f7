"""The engine's KV memory in blocks, as vLLM counts it: who holds how much, and whom a victim would help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sooner.ordering.queue import RankedQueue

MOST_HELD = 16
"""Steps in a row that are held back at most: more are not in flight, so something was misread."""


def held_blocks(scheduler: Any, request: Any) -> int:
    """Return how many blocks of KV memory a request holds."""
    return sum(len(group) for group in scheduler.kv_cache_manager.get_blocks(request.request_id).blocks)


def needed_blocks(scheduler: Any, request: Any) -> int:
    """Return how many blocks a request takes with all tokens it has, without any cache."""
    return _blocks(scheduler, request.num_tokens)


def free_blocks(scheduler: Any) -> int:
    """Return how many blocks of KV memory are free."""
    return int(scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


def can_release(scheduler: Any, request: Any) -> bool:
    """Return whether the memory of a waiting request may be freed: nobody writes to it or counts on it."""
    check = getattr(scheduler, "_request_blocks_can_be_freed", None)
    ready = request.status.name in ("WAITING", "PREEMPTED")
    return ready and (check is None or bool(check(request)))


def free_memory(scheduler: Any, request: Any, queues: Sequence[RankedQueue[Any]]) -> None:
    """Free the memory of a waiting request, which is then computed from its beginning."""
    getattr(scheduler, "_free_request_blocks", scheduler.kv_cache_manager.free)(request)
    scheduler.encoder_cache_manager.free(request)
    getattr(scheduler, "_inflight_prefills", set()).discard(request)
    request.num_computed_tokens = 0
    for queue in queues:
        queue.remove_request(request)
    scheduler.waiting.add_request(request)


def preempts_in_vain(scheduler: Any) -> bool:
    """Return whether the next step would preempt requests whose memory cannot be had in it.

    With KV from afar, vLLM 0.24 to 0.29 free a victim's blocks when its last step is over, and go on to the
    next victim until nothing runs. What was in flight is lost too, so that all begin anew, time and again.
    From 0.30 on vLLM lets the steps end first.
    """
    if not getattr(scheduler, "defer_block_free", False) or hasattr(
        scheduler, "_request_blocks_can_be_freed"
    ):
        return False
    running = scheduler.running
    if all(request.last_sched_seq <= scheduler.processed_step_seq for request in running):
        return False
    return sum(_blocks_to_come(scheduler, request) for request in running) > free_blocks(scheduler)


def _blocks_to_come(scheduler: Any, request: Any) -> int:
    """How many blocks a running request takes in the next step, or a few more."""
    computed = request.num_computed_tokens
    new = request.num_tokens_with_spec + request.num_output_placeholders - computed
    tokens = computed + min(new, scheduler.max_num_scheduled_tokens) + scheduler.num_lookahead_tokens
    return max(0, _blocks(scheduler, tokens) - held_blocks(scheduler, request))


def _blocks(scheduler: Any, tokens: int) -> int:
    groups = len(scheduler.kv_cache_manager.kv_cache_config.kv_cache_groups)
    return int(-(-tokens // scheduler.block_size) * groups)
