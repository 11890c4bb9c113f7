"""Write the prompts whose reply lengths the demo's ranker is trained on, for `sooner collect`.

    python scripts/demo_prompts.py > prompts.jsonl

First turns of ShareGPT as the demo sends them, in an order that a hash of their ids gives, without the
conversations in `scripts/held_out_conversations.txt`, from which the demo's own bursts come.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from sooner.demo import prompts

HELD_OUT = Path(__file__).with_name("held_out_conversations.txt")


def main() -> None:
    """Print one JSON line for each prompt."""
    excluded = frozenset(HELD_OUT.read_text(encoding="utf-8").split())
    found = sorted(
        prompts.eligible(prompts.package_file(), excluded),
        key=lambda prompt: hashlib.sha256(str(prompt.id).encode()).hexdigest(),
    )
    for prompt in found:
        sys.stdout.write(json.dumps({"id": prompt.id, "messages": prompt.messages}) + "\n")


if __name__ == "__main__":
    main()
