"""Keeping a trained ranker: the place is tried before the work, and what was computed is never lost."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sooner.core import ConfigError
from sooner.rankers import Ranker
from sooner.training.examples import FILE, Examples
from sooner.training.rows import Dataset


def try_folder(folder: Path) -> None:
    """Make `folder` and see that files can be written in it. Raises ConfigError that says what hinders."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, probe = tempfile.mkstemp(prefix=".sooner-", dir=folder)
        os.close(descriptor)
        os.unlink(probe)
    except OSError as error:
        raise ConfigError(
            f"nothing can be written to {str(folder)!r}: {error.strerror}; allowed: a folder of yours"
        ) from error


def keep(ranker: Ranker, rows: Dataset, folder: Path, *, examples: str, seed: int) -> None:
    """Write the ranker to `folder`, beside it `examples` of its rows: "lengths", "text" or "none".

    Where that fails now, the ranker goes to a new temporary folder, and the ConfigError names it.
    """
    if examples == "none":
        ranker.seen_ = None
    try:
        ranker.save(folder)
        _keep_examples(rows, folder, examples, seed)
    except OSError as error:
        rescue = Path(tempfile.mkdtemp(prefix="sooner-ranker-"))
        ranker.save(rescue)
        raise ConfigError(
            f"the ranker cannot be written to {str(folder)!r}: {error.strerror}; it is in {str(rescue)!r}"
        ) from error


def _keep_examples(rows: Dataset, folder: Path, what: str, seed: int) -> None:
    """Keep examples of the rows, or see to it that none of an earlier training are there."""
    if what == "none":
        (folder / FILE).unlink(missing_ok=True)
        return
    kept = Examples.of(rows.prompts, rows.lengths, rows.groups, texts=what == "text", seed=seed)
    kept.save(folder)
