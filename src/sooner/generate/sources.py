"""What a job reads and writes besides plain JSON lines: standard input, packed files, parquet."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sooner.core import DataError
from sooner.generate.store import Lines
from sooner.workloads import decoding, parquet

_PARQUET, _ZSTD = b"PAR1", b"\x28\xb5\x2f\xfd"
_KINDS: Mapping[str, type] = {
    "sample": int, "output_len": int, "prompt_len": int, "seed": int, "control": bool,
}  # fmt: skip


def plain(path: Path, folder: Path) -> Path:
    """Return a file of plain JSON lines with what `path` holds: itself, or one made in `folder`.

    Raises DataError where it cannot be read, MissingExtra for parquet and zstd without pyarrow.
    """
    name = str(path)
    source = _received(folder) if name == "-" else path
    start = decoding.head(source)
    opener = next((make for mark, make in decoding.UNPACK.items() if start.startswith(mark)), None)
    if opener is None and not start.startswith((_PARQUET, _ZSTD)):
        return source
    made = folder / "prompts.jsonl"
    beside = made.with_suffix(".part")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with beside.open("wb") as file:
            if start.startswith(_PARQUET):
                for row in parquet.rows(source):
                    file.write(json.dumps(_filled(row), default=str).encode() + b"\n")
            else:
                with parquet.unpacked(source) if opener is None else opener(source) as packed:
                    shutil.copyfileobj(packed, file)
        os.replace(beside, made)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"cannot unpack {name!r}: {error}") from error
    finally:
        beside.unlink(missing_ok=True)
    return made


def _received(folder: Path) -> Path:
    """Keep what standard input holds, so that lines can be read again when their turn comes."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "stdin"
    with kept.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return kept


def _filled(value: Any) -> Any:
    """Leave out what a table leaves empty: a column that only other rows have asks nothing of this one."""
    if isinstance(value, dict):
        return {name: _filled(inner) for name, inner in value.items() if inner is not None}
    return [_filled(inner) for inner in value] if isinstance(value, list) else value


def write_table(path: Path, kept: Lines) -> None:
    """Write finished samples as parquet, beside its place, and move it there.

    Numbers are columns of numbers, and so are ids where all of them are; anything nested is JSON text.
    """
    names: dict[str, type] = {}
    for line in _lines(kept):
        for name, value in line.items():
            kind = int if name == "id" and isinstance(value, int) else _KINDS.get(name, str)
            names[name] = kind if names.get(name, kind) is kind else str
    beside = path.with_name(path.name + ".part")
    try:
        parquet.write(beside, _lines(kept), names or {"id": str})
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _lines(kept: Lines) -> Iterator[Mapping[str, Any]]:
    return (line for _, line in kept.read())
