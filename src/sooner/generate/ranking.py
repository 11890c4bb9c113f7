"""What is known of each prompt before anything runs: read and ranked once, kept beside the job's file."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner import rankers
from sooner.core import DataError
from sooner.generate.prompts import Ask, PromptFile
from sooner.rankers import Ranker

_BATCH = 64
_MOST_GROUPS = 1000
_NAME = 60  # letters of a group's name
LARGE = 20_000
"""Prompts from which on "default" means the light ranker: the better one would take an hour for a million."""


class Known(NamedTuple):
    """Columns (n,): what the ranker said [tokens] (NaN: nothing), prompt lengths, groups, limits [tokens]."""

    told: NDArray[np.float32]
    prompt_len: NDArray[np.float32]
    groups: NDArray[np.int32]
    limits: NDArray[np.float32]
    names: NDArray[np.str_]  # of the groups


def load_ranker(name: str, n: int) -> Ranker | None:
    """Return the ranker that a job of n prompts uses, None for "none"."""
    if name == "none":
        return None
    return rankers.load(rankers.LIGHT if name == rankers.DEFAULT and n > LARGE else name)


def rank(
    file: PromptFile, ranker_name: str, max_tokens: int | None, kept: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Known:  # fmt: skip
    """Read all prompts and rank them; what comes of it is kept in `kept` and read from there the next time.

    Raises DataError or RankerFileError.
    """
    mark = f"1 {ranker_name} {max_tokens} {file.api} {digest(file.path)}"
    known = _kept(file, kept, mark)
    if known is not None:
        return known
    ranker = load_ranker(ranker_name, _count(file.path) if ranker_name == rankers.DEFAULT else 0)
    known = _columns(file, ranker, max_tokens, progress)
    kept.parent.mkdir(parents=True, exist_ok=True)
    beside = kept.with_name("ranked.part.npz")
    batch = np.array(file.batch)
    np.savez(beside, mark=np.array(mark), offsets=file.offsets, ids=file.ids, batch=batch, **known._asdict())
    beside.replace(kept)
    return known


def _columns(
    file: PromptFile, ranker: Ranker | None, max_tokens: int | None,
    progress: Callable[[int, int], None] | None,
) -> Known:  # fmt: skip
    told: list[NDArray[np.float32]] = []
    lengths: list[NDArray[np.float32]] = []
    limits: list[NDArray[np.float32]] = []
    groups: list[NDArray[np.int32]] = []
    names: dict[str, int] = {}
    done = 0
    for asks in _batched(file.scan(), _BATCH):
        requests = [ask.request for ask in asks]
        seen = [request.conversation() if request.readable else None for request in requests]
        caps = [_limit(ask, max_tokens) for ask in asks]
        said = np.full(len(asks), np.nan, dtype=np.float32)
        if ranker is not None:
            readable = [at for at, talk in enumerate(seen) if talk is not None]
            talks = [talk for talk in seen if talk is not None]
            made = ranker.predictions([t.prompt for t in talks], context=[t.context for t in talks])
            for at, prediction in zip(readable, made, strict=True):
                said[at] = math.nan if prediction.predicted_len is None else prediction.predicted_len
        told.append(said)
        lengths.append(np.array([request.prompt_len for request in requests], dtype=np.float32))
        limits.append(np.array(caps, dtype=np.float32))
        system = ["" if talk is None else talk.context.system for talk in seen]
        groups.append(_codes([ask.group or text for ask, text in zip(asks, system, strict=True)], names))
        done += len(asks)
        if progress:
            progress(done, 0)
    return Known(
        np.concatenate(told), np.concatenate(lengths), np.concatenate(groups), np.concatenate(limits),
        np.array([name[:_NAME] for name in names]),
    )  # fmt: skip


def _limit(ask: Ask, max_tokens: int | None) -> float:
    for name in ("max_completion_tokens", "max_tokens"):
        if isinstance(ask.body.get(name), int):
            return float(ask.body[name])
    return math.inf if max_tokens is None else float(max_tokens)


def _codes(texts: Iterable[str], names: dict[str, int]) -> NDArray[np.int32]:
    """Return small integers for groups; once there are too many, a new one counts as the first."""
    codes = []
    for text in texts:
        code = names.get(text)
        if code is None:
            code = 0
            if len(names) < _MOST_GROUPS:
                code = names[text] = len(names)
        codes.append(code)
    return np.array(codes, dtype=np.int32)


def _kept(file: PromptFile, path: Path, mark: str) -> Known | None:
    """Return what an earlier run kept of the same file and ranker, None where there is no such thing."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["mark"]) != mark:
                return None
            file.offsets, file.ids, file.batch = kept["offsets"], kept["ids"], bool(kept["batch"])
            known = Known(*(kept[name] for name in Known._fields))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    file.digest = mark.rpartition(" ")[2]
    return known


def digest(path: Path) -> str:
    """Return what stands for a file's content. Raises DataError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from error


def _count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _batched(items: Iterator[Ask], size: int) -> Iterator[list[Ask]]:
    while batch := list(islice(items, size)):
        yield batch
