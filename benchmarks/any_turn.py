"""How well rankers order any turn of conversations that they have not seen, and several of them together.

    python benchmarks/any_turn.py SHAREGPT DEV TOKENIZER RANKER [RANKER ...] [--out FILE]

SHAREGPT is the whole log, as `sooner train` reads it; DEV is a file of first turns, whose conversations
are kept from it with all their turns. Prints JSON: each ranker's Kendall tau on all turns, on the first
and on the later ones, its standard error (bootstrap over conversations), and the tau of the rankers'
mean standardised score.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from sooner import rankers
from sooner import training as train
from sooner.judging import certainty
from sooner.metrics import kendall_tau
from sooner.workloads import logs


def unseen(log: str, dev: str, tokenizer: str) -> train.Dataset:
    """Return every turn of the conversations in `dev`."""
    kept = {row.conversation for row in logs.read(dev).rows}
    rows = logs.read(log, count=logs.tokenizer(tokenizer)).rows
    return train.merged(train.dataset([row for row in rows if row.conversation in kept]))


def measure(scores: np.ndarray[Any, Any], data: train.Dataset) -> dict[str, float]:
    later = np.array([one.turn > 0 for one in data.context])
    return {
        "kendall_tau": round(kendall_tau(scores, data.lengths), 4),
        "kendall_tau_se": round(certainty.tau_error(scores, data.lengths, data.groups), 4),
        "first_turns": round(kendall_tau(scores[~later], data.lengths[~later]), 4),
        "later_turns": round(kendall_tau(scores[later], data.lengths[later]), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs=3, metavar="SHAREGPT DEV TOKENIZER")
    parser.add_argument("rankers", nargs="+")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = unseen(*options.data)
    scores = {
        name: np.asarray(rankers.load(name).predict(data.prompts, context=data.context))
        for name in options.rankers
    }
    found: dict[str, Any] = {name: measure(one, data) for name, one in scores.items()}
    together = np.mean([(one - one.mean()) / one.std() for one in scores.values()], axis=0)
    result = {"rows": len(data.prompts), "rankers": found, "together": measure(together, data)}
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
