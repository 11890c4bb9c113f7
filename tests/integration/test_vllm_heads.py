"""The real engine under a burst whose head cannot run yet: a JSON schema that compiles, an adapter's limit.

Twenty rounds of each, with everything switched on that sends running requests back: the engine lives, and
every request is whole.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from serving import write_tiny_model

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # vLLM's and torch's, not ours to mend
]

ROUNDS = 20
LONG, SHORT = 60, 12
SETTINGS = {
    "policy": "spw",
    "ranker": "ranker_by_length:Ranker",
    "learn": False,
    "preemption": True,
    "preemption_gain": 1.0,
    "state": "",
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}


def write_model(folder: Path) -> Path:
    """Write the tiny model with letters and signs among its words, so that a reply can be JSON."""
    write_tiny_model(folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    for index, sign in enumerate('{}[]":,0123456789abcdefghijklmnopqrstuvwxyz '):
        words[sign] = words.pop(f"word{index}")
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def write_adapter(folder: Path) -> Path:
    """Write a LoRA adapter of rank 8 for the tiny model."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    weights = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = torch.full((8, 64), 0.01)
        weights[f"{name}.lora_B.weight"] = torch.full((64, 8), 0.01)
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@contextmanager
def running(model: Path, metrics: Path) -> Iterator[Any]:
    """A real engine in a process of its own, two requests and one adapter at a time, with our scheduler."""
    from vllm import EngineArgs, LLMEngine

    made = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(model),
            load_format="dummy",
            dtype="float32",
            max_model_len=256,
            max_num_seqs=2,
            enforce_eager=True,
            scheduler_cls="sooner.vllm.Scheduler",
            additional_config={"sooner": {**SETTINGS, "metrics_dir": str(metrics)}},
            enable_lora=True,
            max_loras=1,
            max_lora_rank=8,
        ),
        enable_multiprocessing=True,
    )
    try:
        yield made
    finally:
        made.engine_core.shutdown()
        made.engine_core.ctx.destroy(linger=0)  # vLLM leaves it to the garbage collector, which warns


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("VLLM_PLUGINS", "")  # else vLLM registers our collector in the tests' own process


def ended(engine: Any) -> dict[str, int]:
    """Step until nothing is left; return how many tokens each request was given."""
    tokens: dict[str, int] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                tokens[output.request_id] = len(output.outputs[0].token_ids)
    return tokens


def counts(metrics: Path) -> dict[str, int]:
    """Return the engine's own counts, the newest file's."""
    newest = max(metrics.glob("*.json"), key=lambda path: path.stat().st_mtime)
    found: dict[str, int] = json.loads(newest.read_text(encoding="utf-8"))["counts"]
    return found


def told(length: int) -> dict[str, int]:
    return {"sooner_predicted_len": length}


@pytest.mark.usefixtures("surroundings")
def test_a_head_that_cannot_run_yet_ends_nothing(tmp_path: Path) -> None:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import StructuredOutputsParams

    from sooner.vllm import compat

    metrics = tmp_path / "metrics"
    metrics.mkdir()
    first, second = (
        LoRARequest(str(number), number, str(write_adapter(tmp_path / f"adapter{number}")))
        for number in (1, 2)
    )
    long = SamplingParams(max_tokens=LONG, ignore_eos=True, extra_args=told(LONG))
    short = SamplingParams(max_tokens=SHORT, ignore_eos=True, extra_args=told(SHORT))
    with running(write_model(tmp_path / "tiny"), metrics) as engine:
        for turn in range(2 * ROUNDS):
            adapters = turn % 2 == 1
            whole = {}
            for name in ("long", "longer"):
                whole[f"{turn}-{name}"] = LONG
                engine.add_request(
                    f"{turn}-{name}", "word90 " * 9, long, lora_request=first if adapters else None
                )
            engine.step()
            for name in ("short", "shorter"):
                if adapters:
                    whole[f"{turn}-{name}"] = SHORT
                    engine.add_request(f"{turn}-{name}", "word91", short, lora_request=second)
                    continue
                # a schema of its own each time: a grammar that is known is there at once
                schema = {**SCHEMA, "title": f"{turn} {name}", "required": ["a", "b"]}
                asked = SamplingParams(
                    max_tokens=SHORT,
                    extra_args=told(SHORT),
                    structured_outputs=StructuredOutputsParams(json=schema),
                )
                engine.add_request(f"{turn}-{name}", "word91", asked)
            given = ended(engine)
            assert len(given) == 4
            assert {id: given[id] for id in whole} == whole
            assert min(given.values()) > 0
        time.sleep(1.5)  # the counts are written once a second
        found = counts(metrics)
    assert (found["bypassed"], found["hook_errors"], found["policy_errors"]) == (0, 0, 0)
    if compat.displaces(compat.version()):
        assert found["rank_preemptions"] > 0
