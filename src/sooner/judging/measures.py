"""How well a ranker orders rows that it was not trained on: tau and its error, coverage, deciles, cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from sooner.judging.certainty import Certainty, certainty
from sooner.judging.verdict import Verdict, judge
from sooner.metrics import kendall_tau, pairwise_accuracy, spearman
from sooner.rankers import Ranker
from sooner.rankers.contract import Floats, OutOfFold
from sooner.rankers.offers import HasParts
from sooner.training.rows import Dataset

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Quantiles whose coverage `evaluate` reports."""


def held_out(unseen: OutOfFold | None, *, seed: int = 0) -> dict[str, Any] | None:
    """Return how well a ranker ordered rows that it had not seen when it scored them.

    The keys are among those of `evaluate`. None where there are no such scores.
    """
    if unseen is None or unseen.scores.shape[0] < 2:
        return None
    sure = certainty(unseen.scores, unseen.lengths, unseen.groups, seed=seed)
    return {
        "n": unseen.scores.shape[0],
        **_told(sure),
        "verdict": _spelled(judge(unseen.scores, unseen.lengths, sure, seed=seed)),
    }


def _told(sure: Certainty) -> dict[str, Any]:
    return {
        "kendall_tau": sure.tau,
        "kendall_tau_se": sure.se,
        "kendall_tau_interval": [sure.low, sure.high],
        "conversations": sure.conversations,
    }


def _spelled(verdict: Verdict) -> dict[str, Any]:
    return {
        "switch_on": verdict.switch_on,
        "reason": verdict.reason,
        "mean_wait_cut": verdict.cut,
        "load": verdict.load,
    }


def evaluate(ranker: Ranker, data: Dataset, *, seed: int = 0) -> dict[str, Any]:
    """Return how well a ranker orders rows it was not trained on, as `sooner evaluate` prints it.

    `kendall_tau_interval` covers 95 %; `ms_per_request` are CPU milliseconds at batch 1. Where the ranker
    was trained on a tenth of the rows or more (`trained_on_share`), the verdict is "no". Raises DataError
    for fewer than two rows.
    """
    scores = ranker.predict(data.prompts, context=data.context)
    sure = certainty(scores, data.lengths, data.groups, seed=seed)
    known = None if ranker.seen_ is None else ranker.seen_.share(data.prompts, data.context)
    verdict = judge(scores, data.lengths, sure, known or 0.0, seed=seed)
    single = cpu_ms(ranker, data, 1)
    return {
        "ranker": ranker.name,
        "n": len(data.prompts),
        **_told(sure),
        "trained_on_share": known,
        "pairwise_accuracy": pairwise_accuracy(scores, data.lengths),
        "spearman": spearman(scores, data.lengths),
        "ms_per_request": single,
        "ms_per_request_batch1": single,
        "ms_per_request_batch32": cpu_ms(ranker, data, 32),
        "tau_by_ranker_part": {
            part: kendall_tau(column, data.lengths) for part, column in _parts(ranker, data, scores).items()
        },
        "coverage": coverage(ranker, scores, data.lengths),
        "deciles": deciles(ranker, scores, data),
        "verdict": _spelled(verdict),
    }


def _parts(ranker: Ranker, data: Dataset, scores: Floats) -> Mapping[str, Floats]:
    """The scores (n,) of each ranker that this one is made of; its own where it is of one piece."""
    if isinstance(ranker, HasParts):
        return ranker.part_scores(data.prompts, data.context)
    return {ranker.name: scores}


def coverage(ranker: Ranker, scores: Floats, lengths: Floats) -> dict[str, float]:
    """Return, for each of `LEVELS`, the share of replies that stay within the ranker's quantile."""
    if ranker.calibration_ is None:
        return {}
    bounds = ranker.calibration_.quantiles(scores, LEVELS)
    return {str(level): float(np.mean(lengths <= bounds[:, i])) for i, level in enumerate(LEVELS)}


def deciles(ranker: Ranker, scores: Floats, data: Dataset) -> list[dict[str, float]]:
    """Return, by tenth of the score from the lowest, what was predicted and what came [tokens]."""
    predicted = ranker.predict_len(data.prompts, context=data.context)
    parts = np.array_split(np.argsort(scores, kind="stable"), min(10, scores.shape[0]))
    return [
        {
            "n": len(part),
            "mean_predicted_len": float(predicted[part].mean()),
            "mean_output_len": float(data.lengths[part].mean()),
            "median_output_len": float(np.median(data.lengths[part])),
        }
        for part in parts
    ]


def cpu_ms(ranker: Ranker, data: Dataset, batch: int, rows: int = 256) -> float:
    """Return CPU milliseconds a request, scored in batches, over at most the first `rows` rows."""
    n = min(rows, len(data.prompts))
    ranker.predictions(data.prompts[:batch], context=data.context[:batch])
    start = time.process_time()
    for at in range(0, n, batch):
        stop = min(at + batch, n)
        ranker.predictions(data.prompts[at:stop], context=data.context[at:stop])
    return (time.process_time() - start) * 1e3 / n
