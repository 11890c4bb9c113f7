"""Whose queue executes the order: the header or field it reads, in its own unit and direction.

Each rule was read in its target's source, at the commit that is named; none of these clusters was run here
(vLLM's header is, by `sooner.vllm.middleware`).
`tests/property/test_hint_targets.py` has each target's own comparison, written again from that source.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from sooner.core import UnknownName

EPOCH = 1_735_689_600.0
"""2025-01-01 UTC: keys of every instance, and of `sooner.vllm.middleware`, are counted from here."""

TENTH = 0.1
_ONE, _SMALLEST = 0x3F80_0000, 0x0080_0000  # 1.0 and the smallest normal number, as bits of a 32-bit float


class Moment(NamedTuple):
    """A request's place in time: Unix arrival, how late it counts, and the bounds of that [s]."""

    arrival_time: float
    late: float
    least: float
    most: float


class Target(NamedTuple):
    """Where a hint goes: a header, or a field of the body; and what is written there.

    `unit` [s] is how fine it orders. `asks` is what its operator has to switch on.
    """

    name: str
    header: str
    field: str
    unit: float
    value: Callable[[Moment], str]
    source: str
    asks: str


def _milliseconds(at: Moment) -> int:
    return round((at.arrival_time + at.late - EPOCH) * 1000.0)


def _llm_d(at: Moment) -> str:
    """Milliseconds after the request was received, never negative; the earliest sum goes first."""
    return str(round((at.late - at.least) * 1000.0))


def _dynamo(at: Moment) -> str:
    """Whole seconds that the request is taken to have come earlier; never negative."""
    return str(round(at.most - at.late))


def _vllm(at: Moment) -> str:
    """Milliseconds since `EPOCH`; the smallest goes first."""
    return str(_milliseconds(at))


def _sglang(at: Moment) -> str:
    """Milliseconds before `EPOCH`, a negative number; the largest goes first."""
    return str(-_milliseconds(at))


def _trtllm(at: Moment) -> str:
    """A number in (0, 1], the largest first: tenths of a second counted down through the 32-bit floats.

    They are dense near 0, so 3.3 years have each tenth its own; then the count begins anew at 1.
    """
    tenths = round((at.arrival_time + at.late - EPOCH) / TENTH)
    bits = _ONE - tenths % (_ONE - _SMALLEST + 1)
    (value,) = struct.unpack("<f", struct.pack("<I", bits))
    return repr(value)


TARGETS = {
    target.name: target
    for target in (
        Target(
            "llm-d", "x-llm-d-slo-ttft-ms", "", 0.001, _llm_d,
            "llm-d/llm-d-router 0f255d7, "
            "pkg/epp/framework/plugins/flowcontrol/ordering/slodeadline/slo_deadline.go",
            'featureGates: ["flowControl"] and the ordering policy slo-deadline-ordering-policy',
        ),
        Target(
            "dynamo", "x-dynamo-request-priority", "", 1.0, _dynamo,
            "ai-dynamo/dynamo 01690d4, lib/kv-router/src/scheduling/policy.rs (FcfsPolicy)",
            "the router's queue, with its policy fcfs (the default)",
        ),
        Target(
            "vllm", "x-vllm-priority", "", 0.001, _vllm,
            "vllm-project/vllm 0.32.0, vllm/v1/request.py (Request.__lt__)",
            "--scheduling-policy priority",
        ),
        Target(
            "sglang", "", "priority", 0.001, _sglang,
            "sgl-project/sglang 00550cd, python/sglang/srt/managers/schedule_policy.py"
            " (_sort_by_priority_and_fcfs)",
            "--enable-priority-scheduling --disable-priority-preemption --schedule-policy fcfs",
        ),
        Target(
            "trtllm", "", "priority", TENTH, _trtllm,
            "NVIDIA/TensorRT-LLM 029e5b4, tensorrt_llm/_torch/pyexecutor/scheduler/waiting_queue.py"
            " (PriorityWaitingQueue)",
            "scheduler_config.waiting_queue_policy: priority",
        ),
    )
}  # fmt: skip


def target(name: str) -> Target:
    """Return a target by its name. Raises UnknownName."""
    try:
        return TARGETS[name]
    except KeyError:
        raise UnknownName("target", name, TARGETS) from None
