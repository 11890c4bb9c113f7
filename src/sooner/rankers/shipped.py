"""Which ranker ships: the light one in this package, or a better one that an installed package brings.

Such a package names a folder under the entry-point group `sooner.shipped` (`default = "package:FOLDER"`);
`sooner-blend` in `packages/` does.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import entry_points
from pathlib import Path

DEFAULT = "default"
"""The name that `load` takes for the best shipped ranker that can run here."""

LIGHT = "light"
"""The name that `load` takes for the one in this package: lexical, NumPy only."""

_NEEDED = ("onnxruntime", "tokenizers")


def folder(name: str) -> Path | None:
    """Return the folder of the shipped ranker called `name`, or None for a name that is not shipped's.

    "default" is the light one where no package brings another, or ONNX Runtime is not installed.
    """
    light = Path(__file__).parent / "default"
    if name == LIGHT:
        return light
    if name != DEFAULT:
        return None
    if all(importlib.util.find_spec(module) for module in _NEEDED):
        for point in entry_points(group="sooner.shipped", name=DEFAULT):
            brought: Path = point.load()
            return brought
    return light
