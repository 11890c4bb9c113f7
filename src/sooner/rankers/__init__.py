"""What predicts reply length: one file for each ranker, one contract for all, and the registry.

A package of your own adds rankers through the entry-point group `sooner.rankers`
(`name = "package.module:Class"`); they are then known to `sooner train --ranker name`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

from sooner.chat import Context, estimate_tokens
from sooner.core import UnknownName
from sooner.rankers import files, shipped
from sooner.rankers.contract import Progress, Ranker, Rows, State
from sooner.rankers.shipped import DEFAULT, LIGHT

__all__ = [
    "DEFAULT",
    "LIGHT",
    "Context",
    "Progress",
    "Ranker",
    "Rows",
    "State",
    "create",
    "estimate_tokens",
    "get",
    "load",
    "names",
    "ranker",
]

_BUILT_IN = {
    # name: module of this package that registers it, imported only when it is asked for
    "blend": "blend",
    "transformer": "transformer",
    "boosted": "boosted",
    "lexical": "lexical",
    "ltr": "papers.ltr",
    "buckets": "papers.buckets",
    "ssjf": "papers.ssjf",
    "pars": "papers.pars",
    "magnus": "papers.magnus",
    "prompt_length": "simple",
    "constant": "simple",
    "oracle": "oracle",
}
_REGISTRY: dict[str, type[Ranker]] = {}
_Kind = TypeVar("_Kind", bound=Ranker)


def ranker(name: str) -> Callable[[type[_Kind]], type[_Kind]]:
    """Register the decorated class under `name`."""

    def register(kind: type[_Kind]) -> type[_Kind]:
        kind.name = name
        _REGISTRY[name] = kind
        return kind

    return register


def names() -> tuple[str, ...]:
    """Return every ranker name, those of other installed packages included."""
    return tuple(
        sorted({*_BUILT_IN, *_REGISTRY, *(point.name for point in entry_points(group="sooner.rankers"))})
    )


def get(name: str) -> type[Ranker]:
    """Return the class of ranker `name`. Raises UnknownName, or MissingExtra from a ranker's module."""
    if name not in _REGISTRY and name in _BUILT_IN:
        importlib.import_module(f"sooner.rankers.{_BUILT_IN[name]}")
    if name not in _REGISTRY:
        for point in entry_points(group="sooner.rankers", name=name):
            kind: type[Ranker] = point.load()
            kind.name = name
            _REGISTRY[name] = kind
    if name not in _REGISTRY:
        raise UnknownName("ranker", name, names())
    return _REGISTRY[name]


def create(name: str, **settings: object) -> Ranker:
    """Return a new ranker. Raises UnknownName for the name, TypeError for a setting it does not take."""
    return get(name)(**settings)  # type: ignore[arg-type]  # each class checks its own settings


def check(directory: str) -> None:
    """Raise RankerFileError where `load` would find no ranker; reads its manifest only."""
    files.read_manifest(shipped.folder(directory) or Path(directory))


def load(directory: str | Path) -> Ranker:
    """Return the ranker saved in `directory`; "default" is the shipped one, "light" the shipped lexical one.

    Raises RankerFileError when it is missing, damaged, or of another version.
    """
    place = shipped.folder(str(directory)) or Path(directory)
    name = files.read_manifest(place)["ranker"]
    try:
        kind = get(name)
    except UnknownName as error:
        raise files.damaged(place, str(error)) from error
    return kind.load(place)
