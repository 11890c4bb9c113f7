"""A saved ranker on disk: `arrays.npz`, other named files, and `manifest.json` with their checksums.

Nothing is pickled, so loading a ranker runs no code of its author.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import sooner
from sooner.core import RankerFileError

FORMAT = 1
"""The number of this layout; raised when older code could no longer read it."""

_ARRAYS = "arrays.npz"
_MOST_BYTES, _MOST_MANIFEST_BYTES, _MOST_FILES = 2 << 30, 16 << 20, 1000
MANIFEST = "manifest.json"


class Saved(NamedTuple):
    """What was read back, checksums verified."""

    manifest: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    files: dict[str, bytes]


def write(
    directory: Path, arrays: Mapping[str, NDArray[Any]], files: Mapping[str, bytes], facts: Mapping[str, Any]
) -> None:
    """Write arrays, files and the manifest.

    All are written beside their places first and then moved there, the manifest last: where writing fails,
    the ranker that was there stays. Raises OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    contents = {_ARRAYS: buffer.getvalue(), **files}
    manifest = {
        "format": FORMAT,
        "sooner": sooner.__version__,
        **facts,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(contents.items())},
    }
    contents[MANIFEST] = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    beside = {directory / f"{name}.part": directory / name for name in contents}
    try:
        for path, data in zip(beside, contents.values(), strict=True):
            path.write_bytes(data)
        for path, place in beside.items():
            os.replace(path, place)
    finally:
        for path in beside:
            path.unlink(missing_ok=True)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest. Raises RankerFileError when it is missing, damaged or of another version."""
    if not os.path.lexists(directory / MANIFEST):
        raise RankerFileError(f"no ranker in {str(directory)!r}: {MANIFEST} is missing")
    try:
        manifest = json.loads(read_file(directory, MANIFEST, _MOST_MANIFEST_BYTES).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, RankerFileError):
            raise
        raise damaged(directory, f"{MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise damaged(directory, f"{MANIFEST} names no format")
    if manifest["format"] != FORMAT:
        raise RankerFileError(
            f"the ranker in {str(directory)!r} has format {manifest['format']}, written by sooner "
            f"{manifest.get('sooner', '?')}; this version reads format {FORMAT}: train it again"
        )
    wanted = {"ranker": str, "training": dict, "settings": dict, "sha256": dict}
    for key, kind in wanted.items():
        if not isinstance(manifest.get(key), kind):
            raise damaged(directory, f"{MANIFEST} has no {key!r}")
    return manifest


def read(directory: Path) -> Saved:
    """Return a saved ranker's parts. Raises RankerFileError when anything differs from what was written."""
    manifest = read_manifest(directory)
    contents: dict[str, bytes] = {}
    if len(manifest["sha256"]) > _MOST_FILES:
        raise damaged(directory, f"{MANIFEST} names more than {_MOST_FILES} files")
    for name, digest in manifest["sha256"].items():
        if Path(name).name != name:
            raise damaged(directory, f"{MANIFEST} names {name!r}, which is not a file of this directory")
        contents[name] = read_file(directory, name)
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise damaged(directory, f"{name} is not the file that was saved (its checksum differs)")
    try:
        packed = io.BytesIO(contents.pop(_ARRAYS))
        with zipfile.ZipFile(packed) as listed:
            whole = sum(part.file_size for part in listed.infolist())
        if whole > _MOST_BYTES:
            raise ValueError(f"{whole} bytes unpacked; allowed: at most {_MOST_BYTES}")
        with np.load(packed, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise damaged(directory, f"{_ARRAYS} cannot be read: {error}") from error
    return Saved(manifest, arrays, contents)


def read_file(directory: Path, name: str, most: int = _MOST_BYTES) -> bytes:
    """Return the bytes of a regular file in the folder: no link, no pipe, not larger than `most`.

    Raises RankerFileError for another.
    """
    try:
        with open(os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise damaged(directory, f"{name} is not a file")
            if about.st_size > most:
                raise damaged(directory, f"{name} has {about.st_size} bytes; allowed: at most {most}")
            return file.read(most)
    except OSError as error:
        link = error.errno == errno.ELOOP
        raise damaged(directory, f"{name} {'is a link' if link else f'cannot be read: {error}'}") from error


def damaged(directory: str | Path, reason: str) -> RankerFileError:
    """Return the error that says what is wrong with the ranker in `directory`."""
    return RankerFileError(f"the ranker in {str(directory)!r} cannot be used: {reason}")
