"""Prompts that are packed, piped or parquet, and parquet that comes out: the same samples."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import engine, run

from sooner.core import ConfigError, DataError, MissingExtra
from sooner.generate.http import Server
from sooner.generate.job import OfflineJob
from sooner.generate.settings import JobSettings
from sooner.workloads import parquet

LINES = [
    {"id": i, "prompt": f"ask {i}", "max_tokens": 1 + i % 4} if i % 2 else {"id": i, "prompt": f"ask {i}"}
    for i in range(12)
]
TEXT = "".join(json.dumps(line) + "\n" for line in LINES).encode()


def framed(data: bytes) -> bytes:
    """Pack with zstd as a stream, as `zstd FILE` does."""
    arrow = pytest.importorskip("pyarrow")
    sink = arrow.BufferOutputStream()
    with arrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def table(data: bytes) -> bytes:
    arrow = pytest.importorskip("pyarrow")
    lines = [json.loads(line) for line in data.splitlines()]
    sink = arrow.BufferOutputStream()
    arrow.parquet.write_table(
        arrow.table({name: [line.get(name) for line in lines] for name in lines[1]}), sink
    )
    return bytes(sink.getvalue())


def served(prompts: Path, out: Path) -> list[dict[str, Any]]:
    """Run a job; return the lines it kept."""

    async def serve() -> None:
        async with engine(model="m").serving() as one:
            server = Server(one.url, window=8)
            await server.start()
            try:
                with OfflineJob(prompts, out, JobSettings(ranker="none")) as job:
                    job.prepare(server.model)
                    assert (await job.run([server]))["kept"] == len(LINES)
                    job.in_order()
            finally:
                await server.close()

    run(serve)
    return [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, framed, table])
def test_packed_prompts_are_read_by_what_they_hold(
    tmp_path: Path, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").write_bytes(TEXT)
    (tmp_path / "packed").write_bytes(pack(TEXT))
    same = served(tmp_path / "plain", tmp_path / "one.jsonl")
    assert [line["id"] for line in same] == list(range(12))
    assert [line["output_len"] for line in same[1::2]] == [1 + i % 4 for i in range(1, 12, 2)]
    assert served(tmp_path / "packed", tmp_path / "two.jsonl") == same
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pack(TEXT))))
    assert served(Path("-"), tmp_path / "three.jsonl") == same


def test_piped_prompts_are_gone_on_with_and_others_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in (TEXT, TEXT):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert len(served(Path("-"), tmp_path / "out.jsonl")) == len(LINES)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.replace(b"ask 3", b"ask 4"))))
    with pytest.raises(ConfigError, match="prompts_sha256 was"):
        served(Path("-"), tmp_path / "out.jsonl")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, framed, table])
def test_what_is_cut_off_is_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "prompts"
    path.write_bytes(pack(TEXT * 40)[:-12])
    with pytest.raises(DataError, match=r"cannot (unpack|read) .*prompts"):
        served(path, tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out.work/*"))


def test_parquet_comes_out_with_the_lines_beside_it(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    (tmp_path / "plain").write_bytes(TEXT)
    lines = served(tmp_path / "plain", tmp_path / "out.parquet")
    assert arrow.parquet.read_table(tmp_path / "out.parquet").to_pylist() == lines
    (tmp_path / "out.parquet").unlink()
    assert served(tmp_path / "plain", tmp_path / "out.parquet") == lines  # the job is over, the table is not
    assert arrow.parquet.read_schema(tmp_path / "out.parquet").field("id").type == arrow.int64()


def test_a_table_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(TEXT)
    (tmp_path / "out.parquet").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"out.parquet' is no job's file"):
        served(tmp_path / "plain", tmp_path / "out.parquet")


def test_cells_that_are_no_text_and_ids_of_both_kinds(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from sooner.generate.sources import write_table
    from sooner.generate.store import Lines

    with (tmp_path / "lines").open("w") as file:
        file.write('{"id": 1, "tool_calls": [{"a": 1}], "control": true}\n{"id": "1", "output_len": 3}\n')
    write_table(tmp_path / "t.parquet", Lines(tmp_path / "lines"))
    first, second = parquet.rows(tmp_path / "t.parquet")
    assert first == {"id": "1", "tool_calls": '[{"a": 1}]', "control": True, "output_len": None}
    assert (second["id"], second["output_len"], second["tool_calls"]) == ("1", 3, None)


def test_without_pyarrow_it_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"sooner\[logs\]"):
        OfflineJob(tmp_path / "p", tmp_path / "out.parquet", JobSettings())
