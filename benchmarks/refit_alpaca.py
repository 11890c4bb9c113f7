"""One shipped encoder, many served models: tau on AlpacaEval before and after a refit on a few examples.

    python benchmarks/refit_alpaca.py RANKER LENGTHS.csv.gz [--models NAME ...] [--out FILE]

RANKER is a folder with a blend or a transformer that never saw these prompts' replies. LENGTHS has the
column `instruction` and one column of reply lengths for each model (-1: absent). For each model the prompts
are shuffled 5 times; the last 150 are tested on, the first 50, 100 and 500 are what the last layer is
fitted to. Prints JSON: the mean tau of each model, and their mean; `targets` compares with the issue's.
The encoder reads each prompt once; a refit is then the closed form of `Ranker.refit`. Takes about a minute.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sooner import rankers
from sooner.chat import EMPTY, clean
from sooner.metrics import kendall_tau
from sooner.rankers.refit import Refit

EXAMPLES = (50, 100, 500)
SPLITS = 5
TESTED = 150
MODELS = (
    "Meta-Llama-3-8B-Instruct",
    "Meta-Llama-3-70B-Instruct",
    "Mistral-7B-Instruct-v0.2",
    "Mixtral-8x7B-Instruct-v0.1",
    "gpt4_0613",
    "gpt-3.5-turbo-0613",
    "gpt-4-turbo-2024-04-09",
    "Qwen1.5-72B-Chat",
    "gemma-7b-it",
    "claude-3-opus-20240229",
    "vicuna-13b",
    "llama-2-70b-chat-hf",
)
"""Served models of eight families, old and new, terse and wordy; those that LENGTHS lacks are left out."""


def read(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the prompts and, for each model, its reply lengths (n,) [tokens]."""
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))
    names = [name for name in rows[0] if name not in ("idx", "subset", "instruction", "in_tok")]
    lengths = {name: np.array([float(row[name] or -1) for row in rows]) for name in names}
    return [clean(row["instruction"]) for row in rows], lengths


def taus(scores: np.ndarray, vectors: np.ndarray, lengths: np.ndarray, seed: int) -> dict[str, float]:
    """Return the mean tau of one model, before a refit (`0`) and after each number of examples."""
    found: dict[str, list[float]] = {str(n): [] for n in (0, *EXAMPLES)}
    known = np.flatnonzero(lengths >= 0)
    for split in range(SPLITS):
        order = np.random.default_rng((seed, split)).permutation(known)
        tested = order[-TESTED:]
        found["0"].append(kendall_tau(scores[tested], lengths[tested]))
        for n in EXAMPLES:
            fitted = order[: min(n, len(order) - TESTED)]
            layer, _ = Refit.fit(scores[fitted], vectors[fitted], lengths[fitted])
            found[str(n)].append(kendall_tau(layer(scores[tested], vectors[tested]), lengths[tested]))
    return {n: round(float(np.mean(values)), 4) for n, values in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ranker")
    parser.add_argument("lengths", type=Path)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()

    prompts, lengths = read(asked.lengths)
    models = [name for name in asked.models if name in lengths]
    if not models:
        parser.error(f"none of {asked.models} is a column; there are {sorted(lengths)}")
    ranker: Any = rankers.load(asked.ranker)
    start = time.process_time()
    seen = ranker.view(prompts, [EMPTY] * len(prompts))
    encoding = time.process_time() - start
    start = time.process_time()
    by_model = {name: taus(seen.scores, seen.vectors, lengths[name], asked.seed) for name in models}
    fitting = time.process_time() - start
    mean = {n: round(float(np.mean([row[n] for row in by_model.values()])), 4) for n in by_model[models[0]]}
    result = {
        "ranker": ranker.name,
        "prompts": len(prompts),
        "models": len(models),
        "mean_tau_by_examples": mean,
        "tau_by_examples": by_model,
        "targets": {"100": mean["100"] >= 0.44, "500": mean["500"] >= 0.48},
        "encode_ms_per_prompt": round(1e3 * encoding / len(prompts), 2),
        "refit_s": round(fitting / (len(models) * SPLITS * len(EXAMPLES)), 3),
        "versions": {name: version(name) for name in ("sooner", "numpy", "onnxruntime")}
        | {"python": platform.python_version()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
