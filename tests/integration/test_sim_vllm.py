"""The simulator's FCFS is vLLM's: the real scheduler, without a model, takes the same steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
pytest.importorskip("numba", reason="numba, the sim extra, is not installed")

from vllm_harness import BLOCK, Runner, builtin, request, tiny_model, vllm_config

from sooner import policies
from sooner.sim.cost import Engine
from sooner.sim.engine import simulate
from sooner.workloads.columns import Workload

STEP_S = 1.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("seed", range(12))
def test_every_request_ends_in_the_step_that_vllm_ends_it_in(model: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, slots = 60, int(rng.integers(2, 9))
    tokens = int(rng.choice([64, 200, 512]))
    blocks = int(rng.choice([24, 40, 4_000]))  # the first two evict, the last never does
    watermark = float(rng.choice([0.0, 0.1]))
    prompt, output = rng.integers(1, 150, n), rng.integers(1, 120, n)
    arrival = np.cumsum(rng.choice([0, 0, 1, 3, 20], n))
    config = vllm_config(model, slots=slots, blocks=blocks + 1)  # vLLM keeps one block to itself
    config.scheduler_config.max_num_batched_tokens = tokens
    config.scheduler_config.watermark = watermark
    real = Runner(builtin(config))
    for i in range(n):
        while real.step < arrival[i]:
            real.once()
        real.add([request(i, int(output[i]), arrival_time=float(i), prompt_len=int(prompt[i]))])
    real.run()

    ours = simulate(
        Workload(arrival_time=arrival * STEP_S, prompt_len=prompt, output_len=output),
        Engine(
            iteration_s=STEP_S,
            prefill_token_s=0.0,
            decode_seq_s=0.0,
            context_token_s=0.0,
            max_num_seqs=slots,
            max_num_batched_tokens=tokens,
            block_size=BLOCK,
            num_blocks=blocks,
            watermark=watermark,
        ),
        policies.get("fcfs"),
    ).completed
    assert ours.id.tolist() == list(range(n))
    expected = [real.finished[str(i)] for i in range(n)]
    assert np.rint(ours.finish_time / STEP_S).astype(int).tolist() == expected
    if blocks < 100:
        assert np.sum(ours.preemptions) > 0
