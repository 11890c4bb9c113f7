"""Fit, save and load rankers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from numpy.typing import ArrayLike

from sooner import rankers
from sooner.core import DataError
from sooner.rankers import Context, Progress, Ranker
from sooner.training.rows import Dataset, merged

load = rankers.load


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


def save(ranker: Ranker, directory: str | Path) -> None:
    """Write a fitted ranker to `directory`."""
    ranker.save(directory)
