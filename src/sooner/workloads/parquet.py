"""Parquet and zstd, by way of pyarrow: the only place that imports it (`pip install 'sooner[logs]'`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from sooner.core import DataError, MissingExtra

_ROWS = 1024


def required() -> Any:
    """Return pyarrow. Raises MissingExtra where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "logs") from error
    return pyarrow


def rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, bytes as text, in flat memory. Raises DataError where it cannot be read."""
    arrow = required()
    try:
        with arrow.parquet.ParquetFile(str(path)) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                for record in batch.to_pylist():
                    yield {name: _text(value) for name, value in record.items()}
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from error


def _text(value: Any) -> Any:
    """Text that a table keeps as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def write(path: Path, records: Iterable[Mapping[str, Any]], kinds: Mapping[str, type]) -> None:
    """Write records as a table whose columns are `kinds`: int, float, bool or str; memory stays flat.

    What is no text in a column of text stands there as JSON. Raises DataError where it cannot be written.
    """
    arrow = required()
    types = {int: arrow.int64(), float: arrow.float64(), bool: arrow.bool_(), str: arrow.string()}
    schema = arrow.schema([(name, types[kind]) for name, kind in kinds.items()])
    texts = {name for name, kind in kinds.items() if kind is str}
    left = iter(records)
    try:
        with arrow.parquet.ParquetWriter(str(path), schema, compression="zstd") as table:
            while some := list(islice(left, _ROWS)):
                shaped = [{name: _cell(line.get(name), name in texts) for name in kinds} for line in some]
                table.write_table(arrow.Table.from_pylist(shaped, schema=schema))
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"cannot write {str(path)!r}: {error}") from error


def _cell(value: Any, text: bool) -> Any:
    if value is None or not text:
        return value
    whole = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return whole.encode("utf-8", "replace").decode("utf-8")


def unpacked(path: Path) -> Any:
    """Return the bytes of a file that zstd packed, as a context with `read(n)`; it raises OSError."""
    return required().input_stream(str(path), compression="zstd")
