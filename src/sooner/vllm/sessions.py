"""Streaming sessions: a request that ends a turn, waits for more input, and then waits for its place anew.

Where one is preempted with its last step in flight, vLLM's own bookkeeping loses it: it is taken off every
queue, and the next input replaces its context. Here it keeps both.
"""

from __future__ import annotations

from typing import Any

from sooner.ordering.order import Order
from sooner.ordering.queue import RankedQueue
from sooner.vllm import compat


class Sessions:
    """The sessions that the engine holds, by request id."""

    def __init__(self, host: Any, order: Order) -> None:
        self._host = host
        self._order = order
        self._mends = compat.loses_sessions()
        self._ids: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._ids)

    def arrive(self, id: str) -> None:
        """Note a request that may go on as a session."""
        if self._mends:
            self._ids.add(id)

    def leave(self, id: str) -> None:
        """Forget a session; another request is tolerated."""
        self._ids.discard(id)

    def queue_lost(self) -> None:
        """Queue again who neither runs nor is queued."""
        for id in self._ids:
            request = self._host.requests.get(id)
            if request is not None and not compat.is_placed(self._host, request):
                self._host._enqueue_waiting_request(request)

    def keep_context(self, session: Any) -> bool:
        """Let a session without memory keep its tokens for the next input; return whether it has none.

        vLLM keeps those that are computed, which would be none.
        """
        known = session.request_id in self._ids
        lost = bool(known and session.num_computed_tokens == 0 and session.num_output_tokens > 0)
        if lost:
            session.num_computed_tokens = session.num_tokens - 1
        return lost

    def wait_anew(self, session: Any, queues: list[RankedQueue[Any]]) -> None:
        """Give a session that got more input its place as of now."""
        self._order.again(session.request_id, session.arrival_time, session.num_prompt_tokens, 0)
        for queue in queues:
            queue.move(session)
