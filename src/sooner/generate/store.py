"""Finished samples on disk, a line each, at once; what a broken-off job left is read back.

A line is whole or not there: it is written in one piece, and a torn last one, as a power cut leaves, is cut
off. Once a second what was written is forced to the disk, so a power cut costs a second of samples and a
killed process none.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from sooner.core import ConfigError, DataError
from sooner.workloads.jsonl import parsed

_EVERY = 1.0  # seconds


class Lines:
    """A JSONL file that only grows, held by one process at a time; made at the first line or by `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._fresh = False

    def open(self) -> None:
        """Take the file and cut off a torn last line. Raises DataError where another process has it."""
        try:
            file = self.path.open("a+b", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.close()
                raise DataError(f"{str(self.path)!r} is being written by another process") from error
        except OSError as error:
            raise DataError(f"cannot write {str(self.path)!r}: {error}") from error
        self._file = file
        end = file.seek(0, os.SEEK_END)
        whole = _whole_end(file, end)
        if whole < end:
            file.truncate(whole)

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (line number, object) of what is there. Raises DataError for what is no such line."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{self.path}:{number}"
                    try:
                        yield number, parsed(line.decode("utf-8"), where)
                    except UnicodeDecodeError as error:
                        raise DataError(f"{where}: not UTF-8: {error}") from error

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line, in one piece. Raises OSError where the disk is full: then nothing of it stays."""
        if self._file is None:
            self.open()
        assert self._file is not None
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        written = self._file.write(data)
        if written != len(data):
            self._file.truncate(self._file.seek(0, os.SEEK_END) - (written or 0))
            raise OSError(28, "No space left on device", str(self.path))
        self._fresh = True

    def sync(self) -> None:
        """Force what was written to the disk."""
        if self._file is not None and self._fresh:
            self._fresh = False
            os.fsync(self._file.fileno())

    async def syncing(self) -> None:
        """Force what was written to the disk, once a second, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY)
            await asyncio.to_thread(self.sync)

    def close(self) -> None:
        """Force everything to the disk and let go of the file."""
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None


def _whole_end(file: IO[bytes], end: int) -> int:
    """Return where the last whole line ends."""
    at = end
    while at > 0:
        start = max(0, at - 65536)
        file.seek(start)
        newline = file.read(at - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        at = start
    return 0


def put_in_order(path: Path, place: Callable[[dict[str, Any]], int]) -> None:
    """Write a file's lines in the order of their places, beside it, and move it there; memory stays flat."""
    offsets: list[int] = []
    places: list[int] = []
    with path.open("rb") as file:
        at = 0
        for line in file:
            offsets.append(at)
            places.append(place(json.loads(line)))
            at += len(line)
        beside = path.with_name(path.name + ".part")
        with beside.open("wb") as ordered:
            for index in np.argsort(np.array(places, dtype=np.int64), kind="stable").tolist():
                file.seek(offsets[index])
                ordered.write(file.readline())
            ordered.flush()
            os.fsync(ordered.fileno())
    os.replace(beside, path)


def check_settings(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the side file of a job says, an empty object where there is none.

    Raises ConfigError, naming each setting that differs, where the job was begun otherwise.
    """
    if not path.exists():
        return {}
    try:
        side: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        before = dict(side["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error!r}") from error
    changed = [
        f"{name} was {before.get(name)!r} and is {settings.get(name)!r}"
        for name in sorted({*before, *settings})
        if before.get(name) != settings.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{path} says the job was begun otherwise: {'; '.join(changed)}."
            " Allowed: the same command, another --out, or --restart to begin anew"
        )
    return side


def write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write a side file beside its place and move it there: it is never half there."""
    beside = path.with_name(path.name + ".part")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
