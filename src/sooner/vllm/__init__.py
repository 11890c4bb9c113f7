"""The scheduler plugin for unmodified vLLM: `vllm serve MODEL --scheduler-cls sooner.vllm.Scheduler`.

`Scheduler` is imported when it is asked for, so this package can be imported where vLLM is not
installed.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Scheduler"]


def __getattr__(name: str) -> Any:
    if name != "Scheduler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sooner.vllm.scheduler import Scheduler

    return Scheduler
