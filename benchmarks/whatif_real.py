"""Is `sooner whatif` right? A vLLM served under `boost` is asked what `fcfs` would have done, then does it.

    python benchmarks/whatif_real.py [--requests 300] [--load 1.3] [--length-scale 0.25]

A Llama with random weights on the real vLLM (CPU), real prompts, reply lengths forced, the ranker trained on
other prompts. Requests arrive at engine steps, the same in both arms. `whatif` reads the trace of the first
arm only; both arms' latencies are counted in engine work at the pace of the first arm's steps, so that the
machine's other load changes nothing. Prints JSON, kept in `results/whatif_real.json`; takes minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from real_engine_load import SLOTS, serve, tiny_model
from sooner import metrics, policies
from sooner import training as train
from sooner.demo import prompts
from sooner.demo.run import versions
from sooner.whatif.replays import ask, sentence
from sooner.whatif.trace import read_trace
from sooner.workloads.logs import LogRow
from sooner.workloads.prompts import Prompt

OUT = Path(__file__).parent / "results" / "whatif_real.json"
WITHIN = 0.05


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--load", type=float, default=1.3)
    parser.add_argument("--length-scale", type=float, default=0.25)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--keep", type=Path, help="Leave the traces in this folder.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options.keep or Path(folder), options.requests, options.load, options.length_scale)
    text = json.dumps(result, indent=2)
    options.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    raise SystemExit(int(not result["within_5_percent"]))


def measure(folder: Path, requests: int, load: float, scale: float) -> dict[str, Any]:
    """Serve under boost and under fcfs, ask about the first, and compare with the second."""
    weights = tiny_model(folder / "model")
    rows = prompts.collected()
    data = train.dataset(
        [
            LogRow(
                conversation=str(row.prompt.id),
                messages=row.prompt.messages,
                output_len=row.output_len * scale,
            )
            for row in rows[::2]
        ]
    )
    train.fit("lexical", data.prompts, data.lengths, context=data.context, prior=train.load("default")).save(
        folder / "ranker"
    )
    work = [
        Prompt(
            id=row.prompt.id, messages=row.prompt.messages, output_len=max(1, round(row.output_len * scale))
        )
        for row in rows[1::2][:requests]
    ]
    rate = load * SLOTS / float(np.mean([prompt.output_len or 0 for prompt in work]))
    traces = {}
    for name in ("boost", "fcfs"):
        before = set(folder.glob("*.trace.jsonl"))
        serve(folder, weights, {"policy": name, "state": ""}, [work], rate)
        traces[name] = (set(folder.glob("*.trace.jsonl")) - before).pop()
    record = read_trace(traces["boost"], "boost")
    answer = ask(record, [policies.get("fcfs"), policies.get("sjf")])
    real = read_trace(traces["fcfs"], "fcfs", pace=record.engine.pace)
    found = float(np.mean(metrics.e2e(real.completed)))
    predicted = answer.others[0].measures["mean_e2e"]
    return {
        "requests": requests,
        "load": load,
        "boost_mean_e2e_work_s": answer.fidelity["mean_e2e"].real,
        "replay": {name: one._asdict() for name, one in answer.fidelity.items()},
        "fcfs_predicted_mean_e2e_work_s": predicted,
        "fcfs_real_mean_e2e_work_s": found,
        "error_of_the_prediction": predicted / found - 1.0,
        "within_5_percent": abs(predicted / found - 1.0) <= WITHIN,
        "said": sentence(answer),
        "lost": [one._asdict() for one in answer.losses],
        "versions": versions(),
    }


if __name__ == "__main__":
    main()
