"""All that `sooner train` does: rows of a log in; a ranker, and its scores of rows it had not seen, out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sooner import rankers
from sooner.core import DataError
from sooner.rankers import Progress, Ranker
from sooner.rankers.contract import OutOfFold
from sooner.training.fitting import fit
from sooner.training.rows import Dataset, dataset, merged, split
from sooner.workloads import logs

_FEWEST = 20  # conversations, below which none is held out

Say = Callable[[str], None]


class Trained(NamedTuple):
    """A fitted ranker, and its scores of requests that it was not fitted on; None where there are none."""

    ranker: Ranker
    unseen: OutOfFold | None


def rows_of(read: logs.Log, *, leave_out: Path | None = None, say: Say = lambda words: None) -> Dataset:
    """Return the rows that a log allows to learn from, repeated prompts merged; `say` is told of the others.

    `leave_out` is a file that names conversations. Raises DataError where no row is left.
    """
    allowed: Sequence[logs.LogRow] = read.rows
    if leave_out is not None:
        apart = set(leave_out.read_text(encoding="utf-8", errors="replace").split())
        allowed = [row for row in read.rows if row.conversation not in apart]
        say(f"{len(read.rows) - len(allowed)} rows left out as {leave_out} says")
        if not allowed:
            raise DataError(f"{str(leave_out)!r} leaves no row of the log; allowed: at least one")
    rows = merged(dataset(allowed))
    if (twice := len(allowed) - len(rows.prompts)) > 0:
        say(f"{twice} rows repeated a prompt and were merged")
    return rows


def train(
    rows: Dataset,
    name: str,
    *,
    seed: int = 0,
    prior: str | None = None,
    held_out: float = 0.0,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Return ranker `name` fitted on all rows, and what it made of rows that it had not seen.

    `prior` names a saved ranker to start from. Rankers whose fitting leaves no row unseen are fitted once
    more, without the share `held_out` of the conversations. Raises as `fit` does, and RankerFileError.
    """
    start = rankers.load(prior) if prior else None

    def fitted(part: Dataset) -> Ranker:
        return fit(
            name,
            part.prompts,
            part.lengths,
            context=part.context,
            groups=part.groups,
            seed=seed,
            prior=start,
            progress=progress,
            **(settings or {}),
        )

    ranker = fitted(rows)
    if ranker.out_of_fold_ is not None or held_out == 0 or len(set(rows.groups)) < _FEWEST:
        return Trained(ranker, ranker.out_of_fold_)
    known, unseen = split(rows, held_out, seed)
    scores = fitted(known).predict(unseen.prompts, context=unseen.context)
    return Trained(ranker, OutOfFold(scores, unseen.lengths, unseen.groups))
