"""Where logs lie: files of any packing and layout, folders of these, and the hub.

Everything becomes plain records; what a record means is the matter of `sooner.workloads.logs.shapes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sooner.core import DataError, MissingExtra
from sooner.workloads import decoding, parquet
from sooner.workloads.logs import frames, json_values, shipped_lines, table
from sooner.workloads.logs.json_values import ALLOWED, is_message, items
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.texts import sglang, vllm

__all__ = ["ALLOWED", "HUB", "items", "records"]

HUB = "hf:"
"""Before the name of a data set on the Hugging Face hub: `hf:owner/name`, `hf:owner/name@revision`."""

_JSON = (".jsonl", ".json", ".ndjson", ".jsonlines", ".geojsonl")
_TABLES = (".csv", ".tsv")
_TEXTS = (".log", ".txt", ".out", ".err")
_KINDS = (*_JSON, *_TABLES, *_TEXTS, ".parquet")
_STARTS_AS_JSON = re.compile(r'\s*(?:\{|\[\s*(?:["\[{\]]|\Z))')
_ROTATED = re.compile(r"(?:\.(?:gz|bz2|xz|\d+|\d{4}-?\d\d-?\d\d\S*|old|bak))+\Z")


def records(path: str | Path, report: Report) -> Iterator[Any]:
    """Yield the records of a file, of the files of a folder in the order of their names, or of the hub.

    A record is a mapping, or the list of a conversation's messages. In a folder, a file that is no log
    is passed over and named in the report. Raises DataError for what cannot be read, MissingExtra for
    parquet or the hub without its library.
    """
    name = str(path)
    if name.startswith(HUB):
        for file in _downloaded(name.removeprefix(HUB)):
            yield from _file(file, report)
    elif name != "-" and Path(path).is_dir():
        yield from _folder(Path(path), report)
    else:
        yield from _file(path, report)


def _folder(folder: Path, report: Report) -> Iterator[Any]:
    read = 0
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = str(file.relative_to(folder))
        if _kind(file.name) is None or any(part.startswith(".") for part in Path(name).parts):
            report.skipped[name] = "its name is not that of a log"
            continue
        try:
            yield from _file(file, report)
            read += 1
        except DataError as error:
            report.skipped[name] = str(error).removeprefix("cannot read ").replace(str(file), name)
    if not read:
        said = "; ".join(f"{name}: {why}" for name, why in report.skipped.items())
        raise DataError(
            f"the folder {str(folder)!r} has no log; allowed: files of {', '.join(_KINDS)}"
            + (f" (not read: {said[:600]})" if said else "")
        )


def _kind(name: str) -> str | None:
    """What a file's name says of it, however it was packed or rotated; None for what is no log."""
    bare = _ROTATED.sub("", name.lower())
    return next((kind for kind in _KINDS if bare.endswith(kind)), None)


def _file(path: str | Path, report: Report) -> Iterator[Any]:
    name = str(path)
    kind = _kind(name)
    if decoding.head(path, 4) == b"PAR1" or kind == ".parquet":
        found: Iterator[Any] = parquet.rows(path)
    else:
        text, notes = decoding.read(path)
        report.notes += [f"{Path(name).name}: {note}" for note in notes]
        if not text.strip():
            raise DataError(f"{name!r} is empty: it holds no request; allowed: {ALLOWED}")
        found = _of_text(text, name, kind, report)
    for record in found:
        if isinstance(record, Mapping):
            framed = frames.rows(record)
            for row in (record,) if framed is None else framed:
                yield from _unfolded(row, report)
        elif isinstance(record, list) and record and all(map(is_message, record)):
            yield {"messages": record}
        else:
            report.drop("not a JSON object")


def _of_text(text: str, name: str, kind: str | None, report: Report) -> Iterator[Any]:
    """The records of a text by what it holds; its name only tells a table from the rest."""
    text = shipped_lines.unwrapped(text)
    if _STARTS_AS_JSON.match(text):
        return json_values.values(text, name, report)
    if kind in _TABLES:
        return table.rows(text, name, report)
    if vllm.is_one(text):
        return vllm.records(text, report)
    if sglang.is_one(text):
        return sglang.records(text, report)
    if table.looks_like_one(text):
        return table.rows(text, name, report)
    if text.lstrip().startswith(("data:", "event:")):
        raise DataError(
            f"{name!r} is a captured event stream: replies without their requests; allowed: {ALLOWED}"
        )
    return json_values.values(text, name, report)


def _unfolded(record: Mapping[str, Any], report: Report) -> Iterator[Mapping[str, Any]]:
    """The records in an API's page (`data`), a trace (`observations`), Elasticsearch's hits; else itself."""
    if isinstance(record.get("_source"), Mapping):
        record = record["_source"]
    if isinstance(record.get("hits"), Mapping):
        record = record["hits"]
    for name in ("data", "observations", "hits"):
        inner = record.get(name)
        alone = "messages" not in record and "prompt" not in record
        if alone and isinstance(inner, list) and any(isinstance(item, Mapping) for item in inner):
            for item in inner:
                if isinstance(item, Mapping):
                    yield from _unfolded(item, report)
                else:
                    report.drop("not a JSON object")
            return
    yield record


def _downloaded(name: str) -> Iterator[Path]:
    """The data files of a data set on the hub, of its training split where it has splits, in order."""
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError as error:
        raise MissingExtra("huggingface-hub", "logs") from error
    repository, _, revision = name.partition("@")
    try:
        listed = HfApi().list_repo_files(repository, repo_type="dataset", revision=revision or None)
        files = sorted(file for file in listed if _kind(file) in (*_JSON, *_TABLES, ".parquet"))
        files = [file for file in files if re.search(r"(?:^|[/_-])train", file)] or files
        if not files:
            raise DataError(f"the data set {repository!r} has no file of {', '.join(_KINDS)}")
        for file in files:
            yield Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision or None))
    except DataError:
        raise
    except Exception as error:  # the hub's client raises its own errors, and those of what it sends with
        raise DataError(
            f"cannot read the data set {repository!r}: {error}; gated ones need `hf auth login` first"
        ) from error
