"""How far the demo's result depends on which prompts its bursts hold.

    python benchmarks/demo_bursts.py [--draws 1000]

The demo serves the first of 788 held-out prompts. All 788 have a reply length here, collected with the
settings of `docs/demo.md` (`demo_held_out_lengths.jsonl.gz`: ids and numbers). Rankers are trained as the
demo trains them; bursts of 96 are drawn at random and served on 12 slots, one token a slot and step, all
requests scored before the first step. Prints JSON, and keeps it in `results/demo_bursts.json`.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner.demo import prompts, run
from sooner.metrics import kendall_tau

HERE = Path(__file__).parent
LENGTHS = HERE / "demo_held_out_lengths.jsonl.gz"
OUT = HERE / "results" / "demo_bursts.json"
REQUESTS, BURSTS, SLOTS, MAX_TOKENS = 96, 2, 12, 384


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    draws = parser.parse_args().draws
    rows = [json.loads(line) for line in gzip.decompress(LENGTHS.read_bytes()).splitlines()]
    lengths = np.minimum([row["output_len"] for row in rows], MAX_TOKENS)
    held_out = prompts.held_out(len(rows))
    rng = np.random.default_rng(0)
    bursts = [rng.choice(len(rows), REQUESTS, replace=False) for _ in range(draws)]
    own = [np.arange(i * REQUESTS, (i + 1) * REQUESTS) for i in range(BURSTS)]
    result: dict[str, Any] = {"prompts": len(rows), "draws": draws}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("blend", "lexical"):
            ranker = run.fit_ranker(Path(folder) / name, name, MAX_TOKENS, lambda words: None)
            seen = run.dataset(held_out, [0] * len(held_out), MAX_TOKENS)
            scores = ranker.predict(seen.prompts, context=seen.context)
            result[name] = {
                "kendall_tau": kendall_tau(scores, lengths),
                "random_bursts": spread([gains(lengths[at], scores[at]) for at in bursts]),
                "the_demos_bursts": [gains(lengths[at], scores[at]) for at in own],
            }
    OUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def gains(lengths: NDArray[Any], scores: NDArray[Any]) -> dict[str, float]:
    """Return what the order of `scores` (n,) brings a burst of replies of `lengths` (n,) [tokens]."""
    fcfs, fcfs_normalized = served(lengths)
    ltr, ltr_normalized = served(lengths[np.argsort(scores, kind="stable")])
    sjf, _ = served(np.sort(lengths))
    return {
        "gain_vs_fcfs": fcfs / ltr,
        "normalized_gain_vs_fcfs": fcfs_normalized / ltr_normalized,
        "oracle_gain_vs_fcfs": fcfs / sjf,
        "share_of_oracle_gain": (fcfs - ltr) / (fcfs - sjf),
    }


def served(lengths: NDArray[Any]) -> tuple[float, float]:
    """Return mean E2E [steps] and mean E2E by token [steps/token] of replies served in this order."""
    slots = [0] * SLOTS
    ends = []
    for length in lengths.tolist():
        ends.append(heapq.heappop(slots) + length)
        heapq.heappush(slots, ends[-1])
    return float(np.mean(ends)), float(np.mean(np.array(ends) / lengths))


def spread(found: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation of each gain over the bursts."""
    return {
        name: {"mean": float(np.mean(values)), "sd": float(np.std(values))}
        for name in found[0]
        for values in [[one[name] for one in found]]
    }


if __name__ == "__main__":
    main()
