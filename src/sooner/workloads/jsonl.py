"""Lines of a text file, plain or gzipped."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

from sooner.core import DataError


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file that are not blank. Raises DataError where it cannot be read."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as file
        ):
            for line in file:
                if line.strip():
                    yield line.rstrip("\n")
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from error
