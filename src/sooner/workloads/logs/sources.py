"""Where logs lie: JSON Lines, JSON lists, CSV, parquet, vLLM's own log, folders of these, and the hub.

Everything becomes plain records; what a record means is the matter of `sooner.workloads.logs.shapes`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sooner.core import DataError, MissingExtra
from sooner.workloads.logs import vllm_log
from sooner.workloads.logs.report import Report

ALLOWED = "JSON with `prompt` or `messages`, and `output_len` or `output_tokens`"

HUB = "hf:"
"""Before the name of a data set on the Hugging Face hub: `hf:owner/name`, `hf:owner/name@revision`."""

_KINDS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv", ".csv.gz", ".parquet", ".log", ".log.gz")


_TEXTS = ("prompt", "input", "output", "generated", "completion", "response", "reply", "content", "id")
"""Columns of a CSV that are text even where they look like a number."""


def records(path: str | Path, report: Report) -> Iterator[Mapping[str, Any]]:
    """Yield the records of a file, of the files of a folder in the order of their names, or of the hub.

    Raises DataError for what cannot be read, MissingExtra for parquet or the hub without its library.
    """
    name = str(path)
    if name.startswith(HUB):
        for file in _downloaded(name.removeprefix(HUB)):
            yield from _file(file, report)
    elif name != "-" and Path(path).is_dir():
        found = sorted(
            file for file in Path(path).rglob("*") if file.name.endswith(_KINDS) and file.is_file()
        )
        if not found:
            raise DataError(f"the folder {name!r} has no log; allowed: files of {', '.join(_KINDS)}")
        for file in found:
            yield from _file(file, report)
    else:
        yield from _file(path, report)


def _file(path: str | Path, report: Report) -> Iterator[Mapping[str, Any]]:
    name = str(path)
    if name.endswith(".parquet"):
        yield from _parquet(path)
        return
    text = _text(name)
    start = text.lstrip("\ufeff \t\r\n")[:1]
    if name.endswith((".csv", ".csv.gz")):
        found: Iterator[Any] = _table(text, name)
    elif start not in ("{", "[") and vllm_log.is_one(text):
        found = vllm_log.records(text, report)
    else:
        found = items(text) if start == "[" else _lines(text, name, report)
    for record in found:
        if isinstance(record, Mapping):
            yield from _unfolded(record)
        else:
            report.dropped["not a JSON object"] += 1


def _unfolded(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The records in a page of an API (`data`) or in a trace (`observations`); else the record itself."""
    for name in ("data", "observations"):
        inner = record.get(name)
        if isinstance(inner, list) and "messages" not in record and "prompt" not in record:
            for one in inner:
                if isinstance(one, Mapping):
                    yield from _unfolded(one)
            return
    yield record


def _text(name: str) -> str:
    try:
        if name == "-":
            return sys.stdin.buffer.read().decode("utf-8", "replace")
        if name.endswith(".gz"):
            with gzip.open(name) as stream:
                return io.TextIOWrapper(stream, encoding="utf-8", errors="replace").read()
        return Path(name).read_text(encoding="utf-8", errors="replace")
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read {name!r}: {error}") from error


def items(text: str) -> Iterator[Any]:
    """Yield the items of a JSON list one at a time; a list that is cut off ends with its last whole item."""
    decoder = json.JSONDecoder()
    space = re.compile(r"[\s,]*")
    first = text.find("[") + 1
    at = space.match(text, first).end()  # type: ignore[union-attr]  # matches the empty string too
    while at < len(text) and text[at] != "]":
        try:
            item, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            return
        yield item
        at = space.match(text, at).end()  # type: ignore[union-attr]


def _lines(text: str, path: str, report: Report) -> Iterator[Any]:
    lines = text.splitlines() if "\n" not in text else text.split("\n")
    last = max((number for number, line in enumerate(lines) if line.strip()), default=-1)
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number == 0 and line.lstrip().startswith("{"):
                try:
                    yield json.loads(text)
                    return
                except json.JSONDecodeError:
                    pass
            if number == last and number > 0:
                report.dropped["a last line that is cut off"] += 1
                return
            raise DataError(
                f"{path!r}, line {number + 1} is not JSON: {error}; allowed: {ALLOWED}"
            ) from error


def _table(text: str, path: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a CSV with a header, numbers as numbers; `shapes` reads the JSON in their cells."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        for row in csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")):
            yield {
                str(name): _cell(str(name), value) for name, value in row.items() if value not in (None, "")
            }
    except csv.Error as error:
        raise DataError(f"{path!r} is not a CSV with a header: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _cell(name: str, value: Any) -> Any:
    number = isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?", value)
    return float(value) if number and name not in _TEXTS else value


def _parquet(path: str | Path) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "logs") from error
    try:
        for batch in pyarrow.parquet.ParquetFile(str(path)).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from error


def _downloaded(name: str) -> Iterator[Path]:
    """The data files of a data set on the hub, of its training split where it has splits, in order."""
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError as error:
        raise MissingExtra("huggingface-hub", "logs") from error
    repository, _, revision = name.partition("@")
    try:
        listed = HfApi().list_repo_files(repository, repo_type="dataset", revision=revision or None)
        files = sorted(file for file in listed if file.endswith(_KINDS))
        files = [file for file in files if re.search(r"(?:^|[/_-])train", file)] or files
        if not files:
            raise DataError(f"the data set {repository!r} has no file of {', '.join(_KINDS)}")
        for file in files:
            yield Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision or None))
    except DataError:
        raise
    except Exception as error:  # those of the hub, of files, and of whichever HTTP library it uses now
        raise DataError(
            f"cannot read the data set {repository!r}: {error}; gated ones need `hf auth login` first"
        ) from error
