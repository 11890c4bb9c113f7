"""The one reader of JSON Lines: strict, for files that this package or a careful hand wrote.

Logs of others are read by `sooner.workloads.logs`, which forgives and counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from sooner.core import DataError
from sooner.workloads import decoding


def lines(path: str | Path) -> Iterator[str]:
    """Yield the lines of a file that are not blank. Raises DataError where it cannot be read."""
    for line in decoding.read(path).text.split("\n"):
        if line.strip():
            yield line


def read_jsonl(
    path: str | Path, *, torn: bool = False, what: str = ""
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for each line that is not blank; packed files too, `-` is stdin.

    With `torn`, a last line that does not end is left: another process may be writing it. `what` says in
    errors what a line ought to be.
    Raises DataError for a file that cannot be read and a line that is not a JSON object.
    """
    text = decoding.read(path).text
    whole = text[: text.rfind("\n") + 1] if torn else text
    for number, line in enumerate(whole.split("\n"), start=1):
        if line.strip():
            yield number, parsed(line, f"{path}:{number}" + (f": not {what}" if what else ""))


def parsed(line: str, where: str) -> dict[str, Any]:
    """Return the JSON object in a line. Raises DataError, naming `where` it stands, for anything else."""
    try:
        record = json.loads(line)
    except ValueError as error:
        _refused(where, f"not JSON: {error}", error)
    except RecursionError as error:
        _refused(where, "not JSON that can be read: nested too deeply", error)
    if not isinstance(record, dict):
        raise DataError(f"{where}: {line.strip()[:40]!r}, allowed: a JSON object")
    return record


def _refused(where: str, why: str, error: Exception) -> NoReturn:
    raise DataError(f"{where}: {why}") from error
