"""Where nothing runs although requests wait: somebody is found who can go on.

A waiting request may hold KV memory: loaded from afar, or a session between two inputs. vLLM looks no further
than the first in the queue that does not fit. Where those behind it hold the memory it wants, all would wait
for ever. So who fits is put first, and where nobody does, the worst-ranked gives its memory back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sooner.ordering.queue import Place, RankedQueue
from sooner.vllm import compat, memory
from sooner.vllm.counters import PluginCounters

STALLED = 30.0
"""Seconds in which nothing ran while one waited for memory only: then vLLM's own order is put back."""

FIRST: Place = (-1, 0.0, 0.0, 0)
"""The place of who goes on first, before all promoted ones."""


class Stall:
    """Watches steps that computed nothing. `first` is the id of who was put first, empty for nobody."""

    def __init__(self, host: Any, place: Callable[[Any], Place], counters: PluginCounters) -> None:
        self._host = host
        self._place = place
        self._counters = counters
        self._ran_at = time.monotonic()
        self._empty_steps = 0
        self._tried: set[str] = set()
        self.first = ""

    def after_step(self, ran: int, queues: list[RankedQueue[Any]]) -> str:
        """Find somebody where nothing can run; return why to step aside, empty where there is no reason."""
        now = time.monotonic()
        if ran or not any(queues):
            self._ran_at, self._empty_steps = now, 0
            self._tried.clear()
            if self.first:
                self._put_first("", queues)
            return ""
        self._empty_steps += 1
        if self._empty_steps > 1 and not self._host.running:  # a step that preempts admits nobody
            self._go_on(queues)
        if now - self._ran_at <= STALLED:
            return ""
        self._ran_at = now
        return f"nothing ran for {STALLED:.0f} s while requests waited" if self._free(queues) else ""

    def _free(self, queues: list[RankedQueue[Any]]) -> list[Any]:
        host = self._host
        return [request for queue in queues for request in queue.requests() if compat.is_free(host, request)]

    def _go_on(self, queues: list[RankedQueue[Any]]) -> None:
        """Put the best that fits first, rather one that holds memory; else free what the worst holds."""
        host, free = self._host, self._free(queues)
        held = {request.request_id: memory.held_blocks(host, request) for request in free}
        room = memory.free_blocks(host)
        fit = [
            request for request in free
            if request.request_id not in self._tried
            and memory.needed_blocks(host, request) - held[request.request_id] <= room
        ]  # fmt: skip
        if fit:
            chosen = min(fit, key=lambda request: (not held[request.request_id], self._place(request)))
            self._tried.add(chosen.request_id)
            self._put_first(chosen.request_id, queues)
            return
        holders = [
            request for request in free if held[request.request_id] and memory.can_release(host, request)
        ]
        if holders and len(free) > 1 and not compat.is_loading(host, queues):
            chosen = max(holders, key=lambda request: (not compat.is_session(request), self._place(request)))
            self._tried.clear()
            memory.free_memory(host, chosen, queues)
            self._counters.add("kv_released")

    def _put_first(self, id: str, queues: list[RankedQueue[Any]]) -> None:
        """Let another be first, and who was it take its own place again."""
        moved, self.first = {self.first, id}, id
        for moving in moved:
            request = self._host.requests.get(moving)
            if request is not None:
                for queue in queues:
                    queue.move(request)
