"""What `sooner calibrate` and `validate` are told: the limits, and the part of a run to look at."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import ConfigError, DataError
from sooner.sim.cost import Engine

KWARGS = {
    "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "block_size": "block_size",
    "num_gpu_blocks": "num_blocks",
    "num_gpu_blocks_override": "num_blocks",
    "data_parallel_size": "data_parallel_size",
    "enable_expert_parallel": "enable_expert_parallel",
}
"""vLLM's arguments and what they are called here."""


def meta_beside(run: Path) -> Path | None:
    """Return the META.json that belongs to NAME_requests.jsonl, or None."""
    name = run.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix("_requests")
    beside = run.with_name(f"{name}_meta.json")
    return beside if beside.is_file() and beside != run else None


class RunLimits(NamedTuple):
    """What a run's settings say: the engine's limits, which of them are known, and the replicas.

    `instances` engines of those limits stand behind vLLM's own balancing (`data_parallel_size`). With
    expert parallelism the ranks step together: then they are one engine of all their limits, and
    `ranks` says of how many.
    """

    engine: Engine
    known: frozenset[str]
    instances: int = 1
    ranks: int = 1


def read_limits(meta: Path | None, given: Mapping[str, int | None]) -> RunLimits:
    """Return what META.json and `given` say; the rest are vLLM's defaults.

    Read are, the later the surer: `engine_kwargs`, `resolved_config` (vLLM's own, with `cache_config`,
    `scheduler_config` and `parallel_config`), `kv_cache`, and `given`. Raises DataError where the file
    cannot be read, ConfigError for numbers that cannot be.
    """
    told: dict[str, Any] = {}
    if meta is not None:
        try:
            content = json.loads(meta.read_text(encoding="utf-8"))
            for part in _parts(content):
                told |= {ours: part[name] for name, ours in KWARGS.items() if part.get(name) is not None}
            numbers = {name: int(value) for name, value in told.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"cannot read the run's settings {str(meta)!r}: {error}") from error
        told = numbers
    told |= {name: value for name, value in given.items() if value is not None}
    size, together = told.pop("data_parallel_size", 1), bool(told.pop("enable_expert_parallel", 0))
    if size < 1:
        raise ConfigError(f"data_parallel_size={size}, allowed: at least 1")
    engine = dataclasses.replace(Engine(), **told)
    if not together or size == 1:
        return RunLimits(engine, frozenset(told), size)
    whole = dataclasses.replace(
        engine,
        max_num_seqs=engine.max_num_seqs * size,
        max_num_batched_tokens=engine.max_num_batched_tokens * size,
        num_blocks=engine.num_blocks * size,
    )
    return RunLimits(whole, frozenset(told), 1, size)


def _parts(content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the parts of a run's settings that name limits, the surest last."""
    kwargs = content.get("engine_kwargs", content)
    yield kwargs
    resolved = content.get("resolved_config") or {}
    for name in ("cache_config", "scheduler_config", "parallel_config"):
        yield resolved.get(name) or {}
    yield content.get("kv_cache") or {}


def part_of(text: str | None, n: int) -> NDArray[np.bool_]:
    """Return which of n requests a part such as `0:0.5` (shares, in order of arrival) names; None is all.

    Raises ConfigError for anything else.
    """
    if text is None:
        return np.ones(n, dtype=np.bool_)
    try:
        low, high = (float(end) for end in text.split(":"))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        raise ConfigError(f"part {text!r}, allowed: two shares such as 0:0.5")
    share = np.arange(n) / max(n, 1)
    return np.asarray((share >= low) & (share < high))
