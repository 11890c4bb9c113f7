"""What a learner knows as arrays, and the file it is kept in over restarts.

Requests under way are not kept: whoever tells of their replies says again what they were taken for.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sooner.learning.learner import Learner, Served
from sooner.learning.watch import Watch

logger = logging.getLogger("sooner.learning")

Arrays: TypeAlias = dict[str, NDArray[Any]]

VERSION = 1
EVERY = 0.4
"""Seconds between two writings. Ends reach the scorer within half a second, so a kill loses one at most."""


def state(learner: Learner) -> Arrays:
    """Return what a learner knows. A copy: the learner may go on."""
    keys, groups = learner.groups.arrays()
    models = list(learner.models.items())
    watches = [learner.watch, *(model.watch for _, model in models)]
    kept = [watch.rows() for watch in watches]
    root = learner.root
    return {
        "version": np.array([VERSION]),
        "facts": np.array([*learner.facts(), root.weight, root.total, root.count]),
        "switch": np.array([learner.switch.on, learner.switch.turns], dtype=np.int64),
        "group_keys": keys,
        "groups": groups,
        "models": np.array([name for name, _ in models], dtype=np.uint64),
        "model_facts": np.array([_facts(model) for _, model in models]).reshape(len(models), -1),
        "watched": np.concatenate(kept),
        "watched_counts": np.array([len(one) for one in kept]),
        **learner.layer.state(),
        **{f"regression_{name}": values.copy() for name, values in learner.regression.state().items()},
    }


def restore(learner: Learner, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Give a new learner what another knew. Raises ValueError, KeyError for what is no learner's state."""
    if arrays["version"].tolist() != [VERSION]:
        raise ValueError(f"a learner's state of version {arrays['version'].tolist()}; allowed: {VERSION}")
    for name, values in arrays.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{name} has values that are not finite; allowed: finite numbers")
    *facts, weight, total, count = arrays["facts"].tolist()
    learner.take_facts(facts)
    learner.root.weight, learner.root.total, learner.root.count = weight, total, int(count)
    on, turns = arrays["switch"].tolist()
    learner.switch.on, learner.switch.turns = bool(on), turns
    learner.layer.load(arrays)
    learner.groups.load(arrays["group_keys"], arrays["groups"])
    learner.regression.load({name: arrays[f"regression_{name}"] for name in ("square", "product")})
    watches = [learner.watch]
    for name, row in zip(arrays["models"].tolist(), arrays["model_facts"].tolist(), strict=True):
        model = learner.served(name)
        _take(model, row)
        watches.append(model.watch)
    _fill(watches, arrays["watched"], arrays["watched_counts"].tolist())


def _facts(model: Served) -> list[float]:
    on = model.switch
    return [model.epoch, model.settled, model.neutral, on.on, on.turns, *model.drift.state()]


def _take(model: Served, row: list[float]) -> None:
    epoch, settled, model.neutral, on, turns, *drift = row
    model.epoch, model.settled = int(epoch), int(settled)
    model.switch.on, model.switch.turns = bool(on), int(turns)
    model.drift.load(drift)


def _fill(watches: list[Watch], rows: NDArray[np.float64], counts: list[int]) -> None:
    at = 0
    for watch, count in zip(watches, counts, strict=True):
        watch.load(rows[at : at + count])
        at += count


def save(learner: Learner, path: Path) -> None:
    """Write what a learner knows, whole or not at all. Raises OSError."""
    _put(path, state(learner))


def _put(path: Path, arrays: Arrays) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]  # none of ours is called allow_pickle
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
        file.write(data.getbuffer())
    draft.replace(path)


class LearnedFile:
    """The file at `path`. Reading and writing never raise: without it all is learned anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 0.0
        self._writer: threading.Thread | None = None

    def read(self, learner: Learner) -> Learner:
        """Return the learner, with what was kept; a new one where there is nothing or it makes no sense."""
        try:
            with np.load(self._path, allow_pickle=False) as kept:
                restore(learner, {name: kept[name] for name in kept.files})
        except FileNotFoundError:
            return learner
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
            logger.warning("what was learned cannot be read and is learned anew: %r", error)
            return Learner()
        logger.info("%d requests were learned from before", learner.seen)
        return learner

    @property
    def due(self) -> bool:
        """Whether the last writing is a second ago, and over."""
        return time.monotonic() >= self._next and not self._busy

    @property
    def _busy(self) -> bool:
        return self._writer is not None and self._writer.is_alive()

    def write(self, learner: Learner) -> None:
        """Write in a thread of its own: a slow disk holds nothing up."""
        self._next = time.monotonic() + EVERY
        self._writer = threading.Thread(target=self._write, args=(state(learner),), daemon=True)
        self._writer.start()

    def close(self, learner: Learner) -> None:
        """Write a last time, unless the disk stands still."""
        if self._writer is not None:
            self._writer.join(timeout=2)
        if not self._busy:
            self._write(state(learner))

    def _write(self, arrays: Arrays) -> None:
        """Write whole or not at all."""
        try:
            _put(self._path, arrays)
        except OSError as error:
            logger.warning("what was learned cannot be written: %s", error)
