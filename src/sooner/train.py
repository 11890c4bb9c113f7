"""Fit, evaluate, save and load rankers: from a log of finished requests to figures a person can judge.

Rows that repeat a prompt are merged, and rows of one conversation never stand on both sides of a
split: prompts repeat a lot in real logs, and a ranker that has seen the answer looks better than it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sooner import rankers
from sooner.core import DataError
from sooner.metrics import kendall_tau, pairwise_accuracy, spearman
from sooner.rankers import Context, Progress, Ranker, text
from sooner.rankers.contract import Floats
from sooner.rankers.verdict import Verdict, judge
from sooner.workloads import logs

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Quantiles whose coverage `evaluate` reports."""

load = rankers.load


class Dataset(NamedTuple):
    """Rows as a ranker sees them: n texts, lengths (n,) [tokens], contexts and conversation names."""

    prompts: list[str]
    lengths: Floats
    context: list[Context]
    groups: list[str]

    def take(self, index: ArrayLike) -> Dataset:
        """Return the rows at `index`."""
        at = np.asarray(index, dtype=np.int64)
        return Dataset(
            [self.prompts[i] for i in at],
            self.lengths[at],
            [self.context[i] for i in at],
            [self.groups[i] for i in at],
        )


def dataset(rows: Sequence[logs.Row]) -> Dataset:
    """Return the rows of a log as texts and contexts, cleaned as the scheduler cleans them."""
    read = [text.read_messages([_cleaned(message) for message in row.messages]) for row in rows]
    context = [
        replace(
            one.context,
            max_tokens=row.max_tokens,
            temperature=row.temperature,
            tools=row.tools,
            structured=row.structured,
        )
        for one, row in zip(read, rows, strict=True)
    ]
    return Dataset(
        [one.prompt for one in read],
        np.array([row.output_len for row in rows], dtype=np.float64),
        context,
        [row.conversation for row in rows],
    )


def _cleaned(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A lone prompt may come rendered by a chat template; as a message it is its cleaned text."""
    content = message.get("content")
    if message.get("role") == "user" and isinstance(content, str):
        return {"role": "user", "content": text.clean(content)}
    return message


def merged(data: Dataset) -> Dataset:
    """Return the data with rows of one text and context made one, of their mean length, first place kept."""
    first: dict[tuple[str, Context], int] = {}
    at = np.array([first.setdefault(key, len(first)) for key in zip(data.prompts, data.context, strict=True)])
    if len(first) == len(at):
        return data
    kept = data.take(np.unique(at, return_index=True)[1])
    return kept._replace(lengths=np.bincount(at, weights=data.lengths) / np.bincount(at))


def split(data: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Return (train, test) with about `share` of the conversations in test, none in both.

    A prompt that train has too is left out of test. Raises DataError when either would be empty.
    """
    names = sorted(set(data.groups))
    chosen = np.random.default_rng(seed).permutation(len(names))[: round(share * len(names))]
    apart = {names[i] for i in chosen}
    inside = [i for i, group in enumerate(data.groups) if group not in apart]
    known = {data.prompts[i] for i in inside}
    outside = [i for i, group in enumerate(data.groups) if group in apart and data.prompts[i] not in known]
    if not inside or not outside:
        raise DataError(f"{len(names)} conversations cannot be split with a share of {share}")
    return data.take(inside), data.take(outside)


def fit(
    name: str,
    prompts: Sequence[str],
    lengths: ArrayLike,
    *,
    context: Sequence[Context] | None = None,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    prior: Ranker | None = None,
    progress: Progress | None = None,
    **settings: object,
) -> Ranker:
    """Return ranker `name` fitted on prompts and reply lengths (n,) [tokens], repeated prompts merged.

    `prior` is a fitted ranker to start from, for those that can. Raises UnknownName for the ranker,
    DataError for rows that do not fit together or for a prior the ranker cannot use.
    """
    rows = rankers.Rows.checked(prompts, lengths, context, groups)
    data = merged(Dataset(list(rows.prompts), rows.lengths, list(rows.context), list(rows.groups)))
    extra = settings if prior is None else {**settings, "prior": prior}
    try:
        ranker = rankers.create(name, seed=seed, **extra)
    except TypeError as error:
        raise DataError(f"ranker {name!r} cannot be made with {sorted(extra)}: {error}") from error
    return ranker.fit(data.prompts, data.lengths, context=data.context, groups=data.groups, progress=progress)


def held_out(ranker: Ranker, *, seed: int = 0) -> dict[str, Any] | None:
    """Return how well a ranker just fitted orders rows of its log that it had not seen when it scored them.

    The keys are among those of `evaluate`. None where fitting gave no such scores.
    """
    if ranker.honest_ is None or ranker.honest_.scores.shape[0] < 2:
        return None
    scores, lengths, groups = ranker.honest_
    tau = kendall_tau(scores, lengths)
    se = tau_error(scores, lengths, groups, seed=seed)
    return {
        "n": scores.shape[0],
        "kendall_tau": tau,
        "kendall_tau_se": se,
        "verdict": _spelled(judge(scores, lengths, tau, se, seed=seed)),
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

    `kendall_tau_se` is the bootstrap's over conversations; `ms_per_request` are CPU milliseconds at
    batch 1. Raises DataError for fewer than two rows.
    """
    scores = ranker.predict(data.prompts, context=data.context)
    tau = kendall_tau(scores, data.lengths)
    se = tau_error(scores, data.lengths, data.groups, seed=seed)
    verdict = judge(scores, data.lengths, tau, se, seed=seed)
    single = cpu_ms(ranker, data, 1)
    return {
        "ranker": ranker.name,
        "n": len(data.prompts),
        "kendall_tau": tau,
        "kendall_tau_se": se,
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
    part_scores = getattr(ranker, "part_scores", None)
    return {ranker.name: scores} if part_scores is None else part_scores(data.prompts, data.context)


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


def tau_error(
    scores: Floats, lengths: Floats, groups: Sequence[str], *, seed: int = 0, draws: int = 200
) -> float:
    """Return the bootstrap standard error of Kendall's tau, conversations drawn with replacement."""
    _, conversation = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    members = _members(conversation)
    if len(members) < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    draws = draws if scores.shape[0] <= 5000 else draws // 4
    taus = []
    for _ in range(draws):
        chosen = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        if chosen.shape[0] > 1:
            taus.append(kendall_tau(scores[chosen], lengths[chosen]))
    return float(np.std(taus, ddof=1))


def _members(group: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def cpu_ms(ranker: Ranker, data: Dataset, batch: int, rows: int = 256) -> float:
    """Return CPU milliseconds a request, scored in batches, over at most the first `rows` rows."""
    n = min(rows, len(data.prompts))
    ranker.predictions(data.prompts[:batch], context=data.context[:batch])
    start = time.process_time()
    for at in range(0, n, batch):
        stop = min(at + batch, n)
        ranker.predictions(data.prompts[at:stop], context=data.context[at:stop])
    return (time.process_time() - start) * 1e3 / n


def save(ranker: Ranker, directory: str | Path) -> None:
    """Write a fitted ranker to `directory`."""
    ranker.save(directory)
