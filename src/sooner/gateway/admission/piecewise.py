"""JSON read piece by piece where it is large: the parser in C would let no other thread run until its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from json import scanner
from typing import Any

LARGE = 256 * 1024
"""Letters above which a text is read piece by piece."""

Pairs = list[tuple[str, Any]]


class PieceDecoder(json.JSONDecoder):
    """Reads objects and lists in Python, between whose pieces others have a turn, and texts in C."""

    def __init__(self, *, object_pairs_hook: Callable[[Pairs], Any] | None = None) -> None:
        super().__init__(object_pairs_hook=object_pairs_hook)
        self.scan_once = scanner.py_make_scanner(self)  # type: ignore[attr-defined]


def decoder(size: int, object_pairs_hook: Callable[[Pairs], Any] | None = None) -> json.JSONDecoder:
    """Return what reads a JSON text of `size` letters: both kinds read the same, and refuse the same."""
    return _made(PieceDecoder if size > LARGE else json.JSONDecoder, object_pairs_hook)


@cache
def _made(kind: type[json.JSONDecoder], object_pairs_hook: Callable[[Pairs], Any] | None) -> json.JSONDecoder:
    return kind(object_pairs_hook=object_pairs_hook)
