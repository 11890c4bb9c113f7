"""All that `sooner evaluate` says of a ranker: its measures, a refit first where asked, and the ceiling.

The ceiling is how well any ranker could do that sees prompts only: replies to one prompt differ, and
where a log holds several replies to a prompt, how much they differ can be measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sooner import training as train
from sooner.core import DataError
from sooner.judging import measures
from sooner.metrics import kendall_tau
from sooner.rankers import Context, Ranker
from sooner.rankers.offers import Refits

_FEWEST = 30  # prompts with several replies, below which no ceiling is told
_DRAWS = 20


def evaluate(ranker: Ranker, data: train.Dataset, *, refit: int = 0, seed: int = 0) -> dict[str, Any]:
    """Return how well `ranker` orders `data`, whose repeated prompts are merged first.

    With `refit`, that many rows of other conversations fit the ranker to the served model first, and the
    rest judge it; `refit` of the result compares before and after. A figure that cannot be had is None.
    Raises DataError where there are too few rows, or for a ranker that cannot be refitted.
    """
    ceiling = noise_ceiling(data)
    rows = train.merged(data)
    if len(rows.prompts) < 2:
        raise DataError(f"{len(rows.prompts)} prompt to judge on, repeated ones merged; allowed: at least 2")
    more: dict[str, Any] = {"rows": len(data.prompts), "noise_ceiling": ceiling}
    if refit:
        known, rows = _apart(rows, refit, seed)
        before = ranker.predict(rows.prompts, context=rows.context)
        ranker = _refitted(ranker, known)
        more["refit"] = {"rows": len(known.prompts), "kendall_tau_before": kendall_tau(before, rows.lengths)}
    found: dict[str, Any] = plain({**measures.evaluate(ranker, rows, seed=seed), **more})
    return found


def plain(value: Any) -> Any:
    """Return the value with None for every NaN, which JSON does not know."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _apart(rows: train.Dataset, count: int, seed: int) -> tuple[train.Dataset, train.Dataset]:
    """About `count` rows of whole conversations, and the rest."""
    order = np.random.default_rng(seed).permutation(len(rows.prompts))
    chosen: set[str] = set()
    taken = 0
    sizes: dict[str, int] = {}
    for group in rows.groups:
        sizes[group] = sizes.get(group, 0) + 1
    for at in order:
        group = rows.groups[at]
        if taken >= count:
            break
        if group not in chosen:
            chosen.add(group)
            taken += sizes[group]
    inside = [i for i, group in enumerate(rows.groups) if group in chosen]
    outside = [i for i, group in enumerate(rows.groups) if group not in chosen]
    if len(inside) < 2 or len(outside) < 2:
        raise DataError(f"{len(rows.prompts)} rows cannot spare {count} to refit on; allowed: fewer")
    return rows.take(inside), rows.take(outside)


def _refitted(ranker: Ranker, known: train.Dataset) -> Ranker:
    if not isinstance(ranker, Refits):
        raise DataError(f"a {ranker.name!r} ranker cannot be refitted; allowed: one with a `refit`, as blend")
    return ranker.refit(known.prompts, known.lengths, context=known.context)


def noise_ceiling(data: train.Dataset, *, seed: int = 0) -> dict[str, float] | None:
    """Return the tau between two replies to a prompt and the tau that a perfect ranker would have.

    From prompts that `data` holds several times in one context; None where these are fewer than 30. The
    perfect ranker knows each prompt's own distribution: with a Gaussian copula, replies that correlate
    by r among each other correlate by sqrt(r) with what it knows.
    """
    samples: dict[tuple[str, Context], list[float]] = {}
    for prompt, context, length in zip(data.prompts, data.context, data.lengths.tolist(), strict=True):
        samples.setdefault((prompt, context), []).append(length)
    several = [np.array(lengths) for lengths in samples.values() if len(lengths) > 1]
    if len(several) < _FEWEST:
        return None
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(_DRAWS):
        pairs = np.array([rng.choice(lengths, 2, replace=False) for lengths in several])
        draws.append(kendall_tau(pairs[:, 0], pairs[:, 1]))
    two = float(np.mean(draws))
    best = 2 / math.pi * math.asin(math.sqrt(math.sin(max(two, 0.0) * math.pi / 2)))
    return {
        "prompts": len(several),
        "kendall_tau_of_two_replies": two,
        "kendall_tau_of_a_perfect_ranker": best,
    }
