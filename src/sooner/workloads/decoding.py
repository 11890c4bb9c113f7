"""The text of a file, whatever it is packed and encoded with; what was done to it is told.

Packing and encoding are read from the bytes, never from the name: gzip, bzip2 and xz; UTF-8, UTF-16 and
UTF-32; a line that is none of these is taken for Windows-1252, as old exports are.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sooner.core import DataError


class Decoded(NamedTuple):
    """A file's text, its lines ended by a newline each, and what was done to it, in words."""

    text: str
    notes: tuple[str, ...]


UNPACK: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_CANNOT = {
    b"\x28\xb5\x2f\xfd": "packed with zstd; allowed: plain, gzip, bzip2 or xz (unpack it with `zstd -d`)",
    b"PK\x03\x04": "a zip archive; allowed: plain, gzip, bzip2 or xz (unpack it first)",
    b"SQLite format 3\x00": "an SQLite database; allowed: a log (`sooner export` reads a gateway's journal)",
    b"ARROW1": "an Arrow file; allowed: JSON, CSV or parquet",
    b"ORC": "an ORC file; allowed: JSON, CSV or parquet",
    b"Obj\x01": "an Avro file; allowed: JSON, CSV or parquet",
}
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PACKED = (".gz", ".bz2", ".xz")
_CHUNK = 1 << 20


def read(path: str | Path) -> Decoded:
    """Return the text of a file ("-": standard input). Raises DataError where it cannot be read."""
    name = str(path)
    notes: list[str] = []
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {name!r}: {error}") from error
    data = _unpacked(data, name, notes)
    for start, why in _CANNOT.items():
        if data.startswith(start):
            raise DataError(f"cannot read {name!r}: it is {why}")
    return Decoded(_lines_ended(_decoded(data, notes), notes), tuple(notes))


def head(path: str | Path, count: int = 8) -> bytes:
    """Return the first bytes of a file, none where it cannot be read or is standard input."""
    try:
        if str(path) == "-":
            return b""
        with open(path, "rb") as file:
            return file.read(count)
    except OSError:
        return b""


def _unpacked(data: bytes, name: str, notes: list[str], packed: bool = True) -> bytes:
    opener = next((make for start, make in UNPACK.items() if data.startswith(start)), None)
    if opener is None:
        if packed and name.endswith(_PACKED) and data.lstrip()[:1] not in (b"{", b"["):
            raise DataError(f"cannot read {name!r}: it is not packed as its name says")
        return data
    parts: list[bytes] = []
    try:
        with opener(io.BytesIO(data)) as stream:
            while part := stream.read(_CHUNK):
                parts.append(part)
    except EOFError as error:
        parts = parts or _what_is_there(data)
        if not parts:
            raise DataError(f"cannot read {name!r}: {error}") from error
        notes.append("the packed file is cut off; what is there was read")
    except (OSError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"cannot read {name!r}: {error}") from error
    return _unpacked(b"".join(parts), name, notes, packed=False)


def _what_is_there(data: bytes) -> list[bytes]:
    """What can be unpacked of a gzip file that is cut off in its first block."""
    try:
        whole = zlib.decompressobj(wbits=31).decompress(data)
    except zlib.error:
        return []
    return [whole] if whole else []


def _decoded(data: bytes, notes: list[str]) -> str:
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _strict(data[len(mark) :], encoding, notes)
    if wide := _without_mark(data[:4096]):
        return _strict(data, wide, notes)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    lines = data.split(b"\n")
    counts = {"utf-8": 0, "cp1252": 0, "": 0}
    read = [_line(line, counts) for line in lines]
    if counts["cp1252"]:
        notes.append(f"{counts['cp1252']} lines are not UTF-8 and were read as Windows-1252")
    if counts[""]:
        notes.append(f"{counts['']} lines hold bytes that are no text, and a mark stands for each")
    return "\n".join(read)


def _line(line: bytes, counts: dict[str, int]) -> str:
    for encoding in ("utf-8", "cp1252"):
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError:
            continue
        counts[encoding] += 1
        return text
    counts[""] += 1
    return line.decode("utf-8", "replace")


def _without_mark(start: bytes) -> str | None:
    """UTF-16 without its mark: every other byte of plain text in it is zero."""
    if len(start) < 4:
        return None
    even, odd = start[0::2], start[1::2]
    for zeros, others, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if zeros.count(0) > 0.4 * len(zeros) and others.count(0) < 0.1 * len(others):
            return encoding
    return None


def _strict(data: bytes, encoding: str, notes: list[str]) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        notes.append(f"some bytes are not {encoding.upper()}, and a mark stands for each")
        return data.decode(encoding, "replace")


def _lines_ended(text: str, notes: list[str]) -> str:
    """The text with one kind of line end, and without the zero bytes that a crash leaves in a file."""
    if "\x00" in text:
        notes.append(f"{text.count(chr(0))} zero bytes were left out")
        text = text.replace("\x00", "")
    if "\r" in text:
        text = text.replace("\r\n", "\n")
        if "\n" not in text:
            text = text.replace("\r", "\n")
    return text.removeprefix("\ufeff")
