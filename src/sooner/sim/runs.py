"""What `sooner calibrate` and `validate` are told: the limits, and the part of a run to look at."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

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
}
"""vLLM's arguments and what they are called here."""


def meta_beside(run: Path) -> Path | None:
    """Return the META.json that belongs to NAME_requests.jsonl, or None."""
    name = run.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix("_requests")
    beside = run.with_name(f"{name}_meta.json")
    return beside if beside.is_file() and beside != run else None


def read_limits(meta: Path | None, given: dict[str, int | None]) -> tuple[Engine, frozenset[str]]:
    """Return an engine with the limits that META.json (`engine_kwargs`) and `given` name, and which they are.

    The others are vLLM's defaults. Raises DataError where the file cannot be read.
    """
    known: dict[str, Any] = {}
    if meta is not None:
        try:
            content = json.loads(meta.read_text(encoding="utf-8"))
            kwargs = content.get("engine_kwargs", content)
            known = {ours: int(kwargs[name]) for name, ours in KWARGS.items() if kwargs.get(name) is not None}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"cannot read the run's settings {str(meta)!r}: {error}") from error
    known |= {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(Engine(), **known), frozenset(known)


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
