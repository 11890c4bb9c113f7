"""Rows of a log as a ranker sees them: texts, lengths and contexts, merged and split.

Rows that repeat a prompt are merged, and rows of one conversation never stand on both sides of a
split: prompts repeat a lot in real logs, and a ranker that has seen the answer looks better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sooner.core import DataError
from sooner.rankers import Context
from sooner.rankers.contract import Floats
from sooner.workloads import logs


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


def dataset(rows: Sequence[logs.LogRow]) -> Dataset:
    """Return the rows of a log as texts and contexts, cleaned as the scheduler cleans them."""
    read = [row.request.conversation() for row in rows]
    return Dataset(
        [asked.prompt for asked in read],
        np.array([row.output_len for row in rows], dtype=np.float64),
        [asked.context for asked in read],
        [row.conversation for row in rows],
    )


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
