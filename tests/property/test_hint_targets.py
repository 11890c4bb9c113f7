"""Hints under each target's own comparison, written again from its source: what comes out is our order."""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from sooner import policies
from sooner.core import ConfigError
from sooner.gateway.hints.lateness import Lateness
from sooner.gateway.hints.targets import EPOCH, TARGETS, Moment, Target
from sooner.work import Pace

N = 10_000
NOW = EPOCH + 60_000_000.0


class Waiting(NamedTuple):
    """A request as a target's queue holds it: when it came there, what was said of it, and its number."""

    received: float
    said: str
    number: int


def llm_d(queue: list[Waiting]) -> list[int]:
    """`sloDeadlinePolicy.Less`: received plus the header's milliseconds, then received; without one, last.

    llm-d/llm-d-router 0f255d7, pkg/epp/framework/plugins/flowcontrol/ordering/slodeadline/slo_deadline.go.
    Go's times are whole nanoseconds.
    """

    def deadline(one: Waiting) -> int:
        try:
            milliseconds = int(one.said.strip())
        except ValueError:
            return 2**63 - 1
        return 2**63 - 1 if milliseconds < 0 else round(one.received * 1e9) + milliseconds * 10**6

    def less(a: Waiting, b: Waiting) -> int:
        if deadline(a) != deadline(b):
            return -1 if deadline(a) < deadline(b) else 1
        return -1 if a.received < b.received else 1

    return [one.number for one in sorted(queue, key=functools.cmp_to_key(less))]


def dynamo(queue: list[Waiting]) -> list[int]:
    """`FcfsPolicy.enqueue_key`: (strict priority, max(jump, 0) - arrival offset), the largest first.

    ai-dynamo/dynamo 01690d4, lib/kv-router/src/scheduling/policy.rs. The header is read as a whole number of
    32 bits (lib/llm/src/protocols/common/extensions.rs, apply_header_routing_overrides), else as none.
    """

    def key(one: Waiting) -> tuple[int, float]:
        try:
            priority = int(one.said)
        except ValueError:
            priority = 0
        priority = priority if -(2**31) <= priority < 2**31 else 0
        return 0, float(max(priority, 0)) - (one.received - NOW)

    return [one.number for one in sorted(queue, key=key, reverse=True)]


def vllm(queue: list[Waiting]) -> list[int]:
    """`Request.__lt__`: the priority, then the arrival, smallest first, in a heap.

    vllm-project/vllm 0.32.0, vllm/v1/request.py and vllm/v1/core/sched/request_queue.py; the header
    X-Vllm-Priority is read as a whole number (vllm/entrypoints/generate/base/serving.py, _get_priority).
    """
    heap = [(int(one.said), one.received, one.number) for one in queue]
    heapq.heapify(heap)
    return [heapq.heappop(heap)[2] for _ in range(len(heap))]


def sglang(queue: list[Waiting]) -> list[int]:
    """`_sort_by_priority_and_fcfs` with the sign -1: the largest priority, then who came first.

    sgl-project/sglang 00550cd, python/sglang/srt/managers/schedule_policy.py.
    """
    order = sorted(queue, key=lambda one: (int(one.said) * -1, one.received))
    return [one.number for one in order]


def trtllm(queue: list[Waiting]) -> list[int]:
    """`PriorityWaitingQueue`: (-priority, number of insertion) in a heap; a priority is a float in [0, 1].

    NVIDIA/TensorRT-LLM 029e5b4, tensorrt_llm/_torch/pyexecutor/scheduler/waiting_queue.py; PriorityType has
    32 bits (cpp/include/tensorrt_llm/executor/types.h), and anything out of [0, 1] is refused (pull request
    15329, which put the field into the body).
    """
    heap: list[tuple[float, int, int]] = []
    count = itertools.count()
    for one in sorted(queue, key=lambda one: one.received):
        (priority,) = struct.unpack("<f", struct.pack("<f", float(one.said)))
        assert 0.0 <= priority <= 1.0
        heapq.heappush(heap, (-priority, next(count), one.number))
    return [heapq.heappop(heap)[2] for _ in range(len(heap))]


DOUBLES: dict[str, Callable[[list[Waiting]], list[int]]] = {
    "llm-d": llm_d, "dynamo": dynamo, "vllm": vllm, "sglang": sglang, "trtllm": trtllm,
}  # fmt: skip


def test_every_target_has_a_double() -> None:
    assert set(DOUBLES) == set(TARGETS)
    assert all(target.source.split()[0].count("/") == 1 for target in TARGETS.values())


def lateness(policy: str, **parameters: float) -> Lateness:
    return Lateness(policies.get(policy, **parameters), Pace(), 10.0, 0.15)


def keys(target: Target, rule: Lateness, seed: int) -> tuple[list[Waiting], np.ndarray]:
    """Return requests that came within ten minutes, and our key of each [s]."""
    rng = np.random.default_rng(seed)
    arrival = NOW + rng.uniform(0.0, 600.0, N)
    prompt = np.maximum(1.0, np.round(np.exp(rng.normal(5, 1.5, N))))
    reply = np.maximum(1.0, np.exp(rng.normal(5.3, 1.2, N)))
    late = [rule.of(*one) for one in zip(prompt, reply, strict=True)]
    queue = [
        Waiting(float(at), target.value(Moment(float(at), after, rule.least, rule.most)), number)
        for number, (at, after) in enumerate(zip(arrival, late, strict=True))
    ]
    return queue, arrival + np.array(late)


@pytest.mark.parametrize("policy", ["boost", "aged", "fcfs"])
@pytest.mark.parametrize("name", TARGETS)
def test_ten_thousand_requests_are_served_in_our_order(name: str, policy: str) -> None:
    target, rule = TARGETS[name], lateness(policy)
    queue, ours = keys(target, rule, 1)
    served = ours[DOUBLES[name](queue)]
    assert np.unique(served).size == N
    behind = np.maximum.accumulate(served) - served  # how much too late each is served, by its key
    assert behind.max() <= target.unit * (1 + 1e-3)
    inverted = np.count_nonzero(np.diff(served) < 0)
    if policy == "fcfs":
        assert inverted == 0 or target.unit * N / 600 > 0.5  # none but by the target's own rounding


@pytest.mark.parametrize("name", TARGETS)
def test_keys_a_unit_apart_are_never_exchanged(name: str) -> None:
    target, rule = TARGETS[name], lateness("boost")
    queue, ours = keys(target, rule, 2)
    steps = np.argsort(ours, kind="stable")
    apart: list[int] = []
    for number in steps.tolist():
        if not apart or ours[number] - ours[apart[-1]] > target.unit * 1.001:
            apart.append(number)
    assert DOUBLES[name]([queue[number] for number in apart]) == apart
    assert len(apart) > 500


def test_a_policy_that_is_no_time_is_refused() -> None:
    for name in ("spjf", "ltr", "spw", "wspt", "hrrn", "gittins"):
        with pytest.raises(ConfigError, match="gives no time"):
            lateness(name)
    with pytest.raises(ConfigError, match="reads 'deadline'"):
        lateness("edf")
    with pytest.raises(ConfigError, match=r"usual_wait=0\.0"):
        Lateness(policies.get("boost"), Pace(), 0.0, 1.0)


def test_trtllm_counts_down_through_every_float_and_begins_anew() -> None:
    value = TARGETS["trtllm"].value
    said = [json.loads(value(Moment(EPOCH + at, 0.0, 0.0, 0.0))) for at in (0.0, 0.1, 0.2, 1e6, 9e7, 1.05e8)]
    assert said[0] == 1.0
    assert all(a > b > 0 for a, b in itertools.pairwise(said))
    years = (0x3F80_0000 - 0x0080_0000 + 1) * 0.1
    assert json.loads(value(Moment(EPOCH + years, 0.0, 0.0, 0.0))) == 1.0
