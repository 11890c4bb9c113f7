"""What the learner costs a request beside the ranker, in CPU microseconds: it is to be at most 50.

    python benchmarks/learner_cost.py [--requests 20000] [--rounds 5] [--out learner_cost.json]

Each request is predicted, and its reply learned from 16 requests later: 200 senders, 1,000 templates, every
opening new, a ranker's word with each. `full` has as many groups as are ever kept. `writing_ms` is what one
copy of all that is known takes from the thread that answers, once a second. `last_layer` is what the
ranker's last layer costs besides, vectors as wide as the shipped ranker's: a look and its part of a fit to
512 replies, one in 8,000. The quickest of the rounds is told, for a busy machine only adds. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import sooner
from sooner.core import Prediction
from sooner.learning import Identity, Learner
from sooner.learning.hierarchy import MOST_GROUPS
from sooner.learning.last_layer import EVERY, ROWS, LastLayer
from sooner.learning.memory import state

BEHIND = 16
SENDERS, TEMPLATES = 200, 1000
WIDTH = 1039  # of the shipped ranker's vectors


def served(learner: Learner, requests: int, seed: int) -> float:
    """Serve requests; return the CPU seconds of each."""
    rng = np.random.default_rng(seed)
    senders, templates = rng.integers(1, SENDERS, requests), rng.integers(1, TEMPLATES, requests)
    openings = rng.integers(1, 2**62, requests)
    asked = [Identity(1, *row) for row in np.stack([senders, templates, openings], axis=1).tolist()]
    means = rng.normal(5.0, 1.0, SENDERS)[senders]
    lengths = np.exp(means + 0.5 * rng.standard_normal(requests)).tolist()
    words = [Prediction(length, length) for length in np.exp(means).tolist()]
    start = time.process_time()
    for row in range(requests):
        learner.predict(row, asked[row], words[row], limit=4096)
        if row >= BEHIND:
            learner.finished(row - BEHIND, lengths[row - BEHIND])
    return (time.process_time() - start) / requests


def measured(requests: int, rounds: int, *, full: bool) -> dict[str, Any]:
    """Return what a request costs a new learner, or one with all the groups that are kept."""
    costs, writing = [], []
    for seed in range(rounds):
        learner = Learner()
        if full:
            served(learner, MOST_GROUPS, 1000 + seed)
        costs.append(served(learner, requests, seed))
        start = time.process_time()
        state(learner)
        writing.append(time.process_time() - start)
    return {
        "groups": len(learner.groups),
        "microseconds_a_request": round(min(costs) * 1e6, 1),
        "writing_ms": round(min(writing) * 1e3, 1),
    }


def last_layer(rounds: int) -> dict[str, float]:
    """Return what the ranker's last layer costs a request: a look at it, and its part of the fits."""
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((ROWS, WIDTH)) / np.sqrt(WIDTH)).astype(np.float32)
    text, looks, fits = Prediction(1.0, 100.0), [], []
    for _ in range(rounds):
        layer = LastLayer()
        start = time.process_time()
        for row, vector in enumerate(vectors):
            layer.said(row, text, vector)
            layer.ended(row, float(row % 7))
        fits.append(time.process_time() - start)  # the last of its fits is half of this
        start = time.process_time()
        for row, vector in enumerate(vectors):
            layer.said(row, text, vector)
            layer.ended(row, None)
        looks.append((time.process_time() - start) / ROWS)
    return {
        "look_microseconds": round(min(looks) * 1e6, 1),
        "fits_to_512_ms": round(min(fits) * 1e3, 1),
        "microseconds_a_request": round((min(looks) + min(fits) / EVERY) * 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = {
        "sooner": sooner.__version__, "python": platform.python_version(), "machine": platform.machine(),
        "command": " ".join(sys.argv),
        "new": measured(options.requests, options.rounds, full=False),
        "full": measured(options.requests, options.rounds, full=True),
        "last_layer": last_layer(options.rounds),
    }  # fmt: skip
    text = json.dumps(found, indent=2)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
