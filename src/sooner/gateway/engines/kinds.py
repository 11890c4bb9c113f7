"""The order handed on to the engine, each kind in its own direction and type.

With ageing done here the number is frozen when a request leaves, so it matters only among the few
that wait inside the engine. `docs/gateway.md` has the table.
"""

from __future__ import annotations

import bisect
import re
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from sooner.gateway.admission import paths

_EMPTY = re.compile(rb"[ \t\r\n]*\}")


class Kind(NamedTuple):
    """What the gateway knows of a kind of engine.

    `priority` turns a key and its quantile among recent ones, in [0, 1], into the body's `priority`;
    None where the engine has none. `health` is the page that says whether it lives. `waiting`,
    `running` and `kv` are the names of its Prometheus gauges; `hint` is how they are switched on where
    they are missing. `slots` is the page whose `total_slots` says how many it runs at once. `continues`:
    a chat's last message can be one of the assistant's that it goes on with. `replicas`: others stand behind
    it, and a status of 500 may be the end of one of them. `paths` are those of `ENDPOINTS` that it serves.
    """

    priority: Callable[[float, float], int | float] | None = None
    health: str = "/health"
    waiting: str = ""
    running: str = ""
    kv: str = ""
    continues: bool = False
    replicas: bool = False
    slots: str = ""
    hint: str = ""
    paths: frozenset[str] = paths.OPENAI


def _vllm(key: float, quantile: float) -> int:
    """Lower first, any integer: thousandths of the key, so that seconds keep their milliseconds."""
    return int(min(max(key * 1000.0, -(2.0**53)), 2.0**53))


def _sglang(key: float, quantile: float) -> int:
    """Higher first; ten levels, which is within the threshold below which it does not preempt."""
    return 9 - min(9, int(quantile * 10))


def _tensorrt(key: float, quantile: float) -> float:
    """Higher first, 0 to 1."""
    return round(1.0 - quantile, 4)


KINDS = {
    "vllm": Kind(
        _vllm,
        waiting="vllm:num_requests_waiting",
        running="vllm:num_requests_running",
        kv="vllm:kv_cache_usage_perc",
        continues=True,
        hint="Start it without --disable-log-stats.",
        paths=paths.VLLM,
    ),
    "sglang": Kind(
        _sglang,
        waiting="sglang:num_queue_reqs",
        running="sglang:num_running_reqs",
        kv="sglang:token_usage",
        continues=True,
        hint="Start it with --enable-metrics.",
        paths=paths.SGLANG,
    ),
    "tensorrt-llm": Kind(_tensorrt, paths=paths.TEXT),
    "litellm": Kind(_vllm, health="/health/liveliness"),
    "llamacpp": Kind(
        waiting="llamacpp:requests_deferred",
        running="llamacpp:requests_processing",
        slots="/props",
        hint="Start it with --metrics.",
        paths=paths.LLAMACPP,
    ),
    "ray": Kind(health="/-/healthz", continues=True, replicas=True),  # they order for themselves
    "ollama": Kind(health="/v1/models", paths=paths.OLLAMA),
    "openai": Kind(health="/v1/models"),
}


class Quantiles:
    """Where a key stands among the last `n`; the first stands in the middle."""

    def __init__(self, n: int = 256) -> None:
        self._n = n
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def of(self, key: float) -> float:
        """Return the share of recent keys below this one, in [0, 1], and take it in."""
        known = len(self._sorted)
        at = bisect.bisect_left(self._sorted, key)
        quantile = (at + bisect.bisect_right(self._sorted, key)) / (2 * known) if known else 0.5
        bisect.insort(self._sorted, key)
        self._recent.append(key)
        if len(self._recent) > self._n:
            old = self._recent.popleft()
            del self._sorted[bisect.bisect_left(self._sorted, old)]
        return quantile


def with_priority(body: bytes, priority: int | float) -> tuple[bytes, memoryview]:
    """Return the two parts of a JSON object with `priority` put first; every other byte stays.

    `body` has none yet; the second part is not copied.
    """
    at = body.index(b"{") + 1
    comma = b"" if _EMPTY.match(body, at) else b","
    return b'%b"priority":%b%b' % (body[:at], repr(priority).encode(), comma), memoryview(body)[at:]


_VLLM_CACHE = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def cache_tokens(text: str) -> float | None:
    """Return how many tokens the prefix caches in an engine's metrics hold; None where they do not say."""
    told = gauge(text, "sglang:max_total_num_tokens")
    for found in _VLLM_CACHE.finditer(text):
        said = dict(_LABEL.findall(found[1]))
        blocks, size = said.get("num_gpu_blocks", ""), said.get("block_size", "")
        if not (blocks.isdecimal() and size.isdecimal()):
            return None
        cached = said.get("enable_prefix_caching") != "False"
        told = (told or 0.0) + (float(blocks) * float(size) if cached else 0.0)
    return told


def gauge(text: str, name: str) -> float | None:
    """Return the sum of a Prometheus gauge over its labels, or None where it is not there."""
    total: float | None = None
    for line in text.splitlines():
        if not line.startswith(name):
            continue
        after = line[len(name) : len(name) + 1]
        if after not in ("{", " "):
            continue
        try:
            total = (total or 0.0) + float(line.rsplit(" ", 1)[1])
        except (IndexError, ValueError):
            continue
    return total
