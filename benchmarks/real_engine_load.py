"""Orders under Poisson arrivals on the real vLLM: above capacity, where they differ, and at a third of it.

    python benchmarks/real_engine_load.py [--requests 300] [--seeds 3] [--out FILE]

A Llama with random weights, real prompts, and the demo model's own reply lengths times `--length-scale`,
forced on the engine. The ranker is trained on one half of the collected lengths and the requests come from
the other. Both arrivals and latencies are counted in engine steps, so that the load is what it is said to
be whatever else the machine does: a slot gives a token a step, so capacity is slots / mean length requests
a step. Prints JSON; takes about 15 minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sooner import metrics
from sooner import training as train
from sooner.core import Completed
from sooner.demo import engine, model, prompts
from sooner.demo.run import versions
from sooner.replay.client import Endpoint, Sampling
from sooner.replay.drive import attach_fields
from sooner.replay.record import completed
from sooner.replay.saved import replay_to_file
from sooner.workloads.arrivals import poisson
from sooner.workloads.logs import LogRow
from sooner.workloads.prompts import Prompt

SLOTS = 16
ABOVE: dict[str, dict[str, Any]] = {
    "fcfs": {"policy": "fcfs"},
    "aged, follow 0.3": {"policy": "aged", "follow": 0.3, "beta": 0.0},
    "aged": {"policy": "aged"},
    "aged, follow 3": {"policy": "aged", "follow": 3.0, "beta": 0.0},
    "ltr": {"policy": "ltr"},
    "sjf": {"policy": "sjf"},
}
BELOW = {name: ABOVE[name] for name in ("fcfs", "aged", "ltr")}


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--length-scale", type=float, default=0.25)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real_engine_load.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.requests, options.seeds, options.length_scale)
    text_ = json.dumps(result, indent=2)
    options.out.write_text(text_ + "\n", encoding="utf-8")
    print(text_)


def measure(folder: Path, requests: int, seeds: int, scale: float) -> dict[str, Any]:
    """Return both comparisons; every arm has a server of its own and serves the same requests."""
    weights = tiny_model(folder / "model")
    rows = prompts.collected()
    train_rows, rest = rows[::2], rows[1::2]
    data = train.dataset(
        [
            LogRow(
                conversation=str(row.prompt.id),
                messages=row.prompt.messages,
                output_len=row.output_len * scale,
            )
            for row in train_rows
        ]
    )
    ranker = train.fit(
        "lexical", data.prompts, data.lengths, context=data.context, prior=train.load("default")
    )
    ranker.save(folder / "ranker")
    workload = [
        Prompt(
            id=row.prompt.id, messages=row.prompt.messages, output_len=max(1, round(row.output_len * scale))
        )
        for row in rest[: requests * seeds]
    ]
    if len(workload) < requests * seeds:
        sys.exit(
            f"{len(workload)} collected lengths for {requests * seeds} requests; lower --requests or --seeds"
        )
    parts = [workload[i * requests : (i + 1) * requests] for i in range(seeds)]
    capacity = SLOTS / float(np.mean([prompt.output_len or 0 for prompt in workload]))
    above = {name: serve(folder, weights, each, parts, capacity * 1.3) for name, each in ABOVE.items()}
    below = {name: serve(folder, weights, each, parts, capacity / 3) for name, each in BELOW.items()}
    return {
        "requests": requests,
        "seeds": seeds,
        "slots": SLOTS,
        "requests_per_step_at_capacity": capacity,
        "at_1.3_capacity": against_fcfs(above),
        "at_a_third": against_fcfs(below),
        "versions": versions(),
    }


class StepClock:
    """Lets requests leave at engine steps, read off the trace; an idle engine goes on to the next arrival."""

    def __init__(self, steps: Path) -> None:
        self._file = steps.open(encoding="utf-8")
        self._steps = 0
        self._read()
        self._zero = float(self._steps)
        self._sent = self._done = 0

    async def until(self, arrival: float) -> None:
        """Wait until `arrival` [steps from the start]."""
        while self._steps - self._zero < arrival:
            if self._sent == self._done:
                self._zero = self._steps - arrival
                break
            await asyncio.sleep(0.002)
            self._read()
        self._sent += 1

    def _read(self) -> None:
        lines = self._file.readlines()
        if lines:
            self._steps = int(json.loads(lines[-1])["step"])

    def ended(self, done: int, total: int) -> None:
        """Say how many requests have ended."""
        self._done = done


def serve(
    folder: Path, weights: Path, policy: dict[str, Any], parts: list[list[Prompt]], rate: float
) -> list[Completed]:
    """Serve each part of the workload at `rate` [req/step] on a server of its own."""
    trace = folder / f"{len(list(folder.iterdir()))}.trace.jsonl"
    settings = {**policy, "ranker": str(folder / "ranker"), "trace": str(trace)}
    attach = attach_fields(score_field="output_len") if policy["policy"] == "sjf" else None
    served = []
    with engine.serve(
        weights, name="tiny", log=folder / "server.log", settings=settings, max_num_seqs=SLOTS
    ) as url:
        for seed, part in enumerate(parts):
            clock = StepClock(Path(f"{trace}.steps"))
            run = asyncio.run(
                replay_to_file(
                    folder / "run.jsonl",
                    part,
                    poisson(len(part), rate, np.random.default_rng(seed)),
                    Endpoint(url=url, model="tiny"),
                    Sampling(),
                    attach=attach,
                    force_len=True,
                    until=clock.until,
                    server_trace=trace,
                    progress=clock.ended,
                )
            )
            served.append(completed(run.records))
            print(f"{policy} at {rate:.3f} a step: part {seed + 1} of {len(parts)}", file=sys.stderr)
    return served


def against_fcfs(arms: dict[str, list[Completed]]) -> dict[str, Any]:
    """Return each arm's measures in steps as ratios to FCFS, by seed, with mean and spread."""
    measured = {name: [_steps(done) for done in runs] for name, runs in arms.items()}
    return {
        name: {
            key: _spread([run[key] / base[key] for run, base in zip(runs, measured["fcfs"], strict=True)])
            for key in runs[0]
        }
        | {"mean_e2e_steps": float(np.mean([run["mean"] for run in runs]))}
        for name, runs in measured.items()
    }


def _steps(done: Completed) -> dict[str, float]:
    steps = np.asarray(metrics.e2e_steps(done))
    return {
        "mean": float(steps.mean()),
        "p99": float(np.percentile(steps, 99)),
        "normalized": float(np.mean(metrics.normalized_steps(done))),
    }


def _spread(ratios: list[float]) -> dict[str, float]:
    return {"ratio": float(np.mean(ratios)), "min": min(ratios), "max": max(ratios)}


def tiny_model(folder: Path) -> Path:
    """Return a Llama of two layers with random weights and the demo model's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(model.prepare(), folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=49152,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
