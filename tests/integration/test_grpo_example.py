"""The GRPO example runs as it stands: whole groups come, stragglers are cut, the model learns."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "grpo.py"


@pytest.fixture
def example() -> Any:
    pytest.importorskip("torch", reason="the example trains with torch")
    spec = importlib.util.spec_from_file_location("grpo", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_learns_from_whole_groups_and_cuts_the_stragglers(example: Any) -> None:
    rows = asyncio.run(example.train(steps=12, seed=0))
    assert all(row["groups"] == example.KEEP for row in rows)
    assert any(row["cut_samples"] for row in rows)
    rewards = [row["reward"] for row in rows]
    assert sum(rewards[-4:]) > sum(rewards[:4])
