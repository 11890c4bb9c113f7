"""A log is read by what its file holds, whatever its name, packing, encoding and layout."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from sooner.core import DataError
from sooner.workloads import logs
from sooner.workloads.logs.report import Report
from sooner.workloads.numbers import date, number, seconds

LINE = json.dumps({"prompt": "Tell me of Rome", "output_len": 12})
LINES = f"{LINE}\n" * 3


def lengths(path: Path) -> list[float]:
    return [row.output_len for row in logs.read(path).rows]


def file(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


PACKINGS = {"gzip": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "plain": bytes}


@pytest.mark.parametrize("pack", PACKINGS.values(), ids=PACKINGS)
@pytest.mark.parametrize("name", ["log", "log.jsonl", "log.json.1", "LOG.NDJSON"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_packing_and_encoding_are_told_by_the_bytes(
    tmp_path: Path, pack: Callable[[bytes], bytes], name: str, encoding: str
) -> None:
    text = LINES.replace("\n", "\r\n")
    assert lengths(file(tmp_path, name, pack(text.encode(encoding)))) == [12, 12, 12]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x28\xb5\x2f\xfd1234", "zstd"),
        (b"PK\x03\x041234", "zip archive"),
        (b"SQLite format 3\x00", "sooner export"),
        (b"", "empty"),
        (gzip.compress(b"", mtime=0), "empty"),
        (b"data: {}\n\n", "event stream"),
        (b"10.0.0.1 - - [01/Jan/2025] GET /\n10.0.0.1 - - GET /\n", "line 1 is not JSON"),
        (b"[2025-01-01 00:00:00] started\n[2025-01-01 00:00:01] ended\n", "line 1 is not JSON"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says):
        logs.read(file(tmp_path, "log", data))


def test_what_was_done_to_a_file_is_said(tmp_path: Path) -> None:
    latin = LINES.replace("Rome", "caf\u00e9").encode("cp1252")
    assert "3 lines are not UTF-8" in str(logs.read(file(tmp_path, "a.jsonl", latin)).report)
    row = logs.read(tmp_path / "a.jsonl").rows[0]
    assert row.messages[0]["content"] == "Tell me of caf\u00e9"
    padded = f"{LINE}\n{chr(0) * 64}\n{LINE}\n"
    log = logs.read(file(tmp_path, "b.jsonl", padded))
    assert len(log.rows) == 2
    assert "64 zero bytes" in str(log.report)
    cut = gzip.compress(LINES.encode() * 50)[:-9]
    log = logs.read(file(tmp_path, "c.gz", cut))
    assert "cut off" in str(log.report)
    assert len(log.rows) > 100


@pytest.mark.parametrize(
    "line",
    [
        "2025-01-01T00:00:00Z {}",
        "INFO:root:{}",
        "Jan  1 00:00:00 host app[12]: {}",
        "\x1b[32m{}\x1b[0m",
        '{{"_index": "logs", "_id": "1", "_source": {}}}',
        '{{"took": 1, "hits": {{"total": 1, "hits": [{{"_source": {}}}]}}}}',
    ],
)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_loggers_and_stores_put_around_a_record_is_left_out(
    tmp_path: Path, line: str, count: int
) -> None:
    log = logs.read(file(tmp_path, "app.log", (line.format(LINE) + "\n") * count))
    assert [row.output_len for row in log.rows] == [12] * count
    assert not log.report.dropped


def test_lone_surrogates_are_read_and_reported(tmp_path: Path) -> None:
    record = {"id": "c\ud83d", "model": "m\ud83d", "prompt": "hey \ud83d", "output_len": 5}
    log = logs.read(file(tmp_path, "x.jsonl", f"{json.dumps(record)}\n{LINE}"))
    assert len(log.rows) == 2
    str(log.report).encode("utf-8")


@pytest.mark.parametrize(
    ("text", "rows", "reason"),
    [
        (json.dumps([json.loads(LINE)] * 3), 3, None),
        (json.dumps([json.loads(LINE)] * 3, indent=2), 3, None),
        ("\n".join([json.dumps(json.loads(LINE), indent=2)] * 3), 3, None),
        (LINE * 3, 3, None),
        (f"[{LINE},\n{{'broken'}},\n{LINE}]", 2, "broken"),
        (f'[{LINE}, {{"prompt": "x", "output_len": 11,}}, {LINE}]', 2, "broken"),
        (f'[{LINE}, {LINE}, {{"prompt": "Tell', 2, "cut off"),
        (f'{LINE}\n{{"prompt": "torn, "outp\n{LINE}\n', 2, "broken"),
        (f'{LINE}\n{{"prompt": "x", "n": {"[" * 4000}{"]" * 4000}}}\n{LINE}', 2, "too deeply"),
        (f'{LINE}\n{{"prompt": "x", "output_len": 1{"0" * 5000}}}\n{LINE}', 2, "too many digits"),
        (f'ut_len": 3}}\n{LINE}\n{LINE}', 2, "first line"),
        (f'{LINE}\n{LINE}\n{{"prompt": "Te', 2, "last line"),
        (f"[\n{LINE},\n{LINE}\n]", 2, None),
        (f"{LINE},\n{LINE}", 2, None),
        (f"{LINE}\n\ufeff{LINE}\n", 2, None),
        ('{"prompt": "a", "prompt": "b", "output_len": 3, "output_len": 9}', 1, None),
    ],
)
def test_every_layout_of_json_is_read_and_what_is_broken_counted(
    tmp_path: Path, text: str, rows: int, reason: str | None
) -> None:
    log = logs.read(file(tmp_path, "log", text))
    assert len(log.rows) == rows
    assert list(log.report.dropped.values()) == ([1] if reason else [])
    if reason:
        assert reason in str(log.report)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": {"0": "a", "1": "b"}, "output_len": {"0": 1, "1": 2}},
        {"0": {"prompt": "a", "output_len": 1}, "1": {"prompt": "b", "output_len": 2}},
        {"prompt": ["a", "b"], "output_len": [1, 2]},
        {"columns": ["prompt", "output_len"], "index": [0, 1], "data": [["a", 1], ["b", 2]]},
    ],
    ids=["columns", "index", "list", "split"],
)
def test_a_frame_as_pandas_writes_it_is_its_rows(tmp_path: Path, record: object) -> None:
    rows = logs.read(file(tmp_path, "frame.json", json.dumps(record))).rows
    assert [(row.messages[0]["content"], row.output_len) for row in rows] == [("a", 1), ("b", 2)]


def test_marks_between_files_that_were_put_together_are_no_data(tmp_path: Path) -> None:
    assert lengths(file(tmp_path, "x.jsonl", f"\ufeff{LINE}\n\ufeff{LINE}\n")) == [12, 12]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'prompt,output_len\nhi,"1,200"\n'),
        ("A.CSV", "prompt,output_len\nhi,1200.0\n"),
        ("a.csv", "prompt;output_len\nhi;1.200\n"),
        ("a.csv", "prompt;output_len\nhi;1200,0\n"),
        ("a.tsv", "prompt\toutput_len\nhi\t 1200\n"),
        ("a.csv.1", "prompt|output_len\nhi|1.2e3\n"),
        ("a", "\ufeffprompt,output_len\r\nhi,1 200\r\n"),
        ("a.txt", "conversation_id,messages,output_tokens\nc,\"[{'role': 'user', 'content': 'hi'}]\",1200\n"),
    ],
)
def test_tables_of_any_separator_and_their_numbers(tmp_path: Path, name: str, text: str) -> None:
    row = logs.read(file(tmp_path, name, text)).rows[0]
    assert (row.messages[0]["content"], row.output_len) == ("hi", 1200)


def test_a_row_with_a_cell_too_many_is_counted(tmp_path: Path) -> None:
    log = logs.read(file(tmp_path, "a.csv", "prompt,output_len\nhi, there,7\nhi,8\n"))
    assert [row.output_len for row in log.rows] == [8]
    assert "more cells" in str(log.report)


def test_numbers_and_times_as_logs_write_them() -> None:
    written = {
        "7": 7, " 7 ": 7, "7e2": 700, "1,200": 1200, "1'200,": None, "12,34": None, "1\u00a0200": 1200,
        "0x10": None, "": None, "seven": None, "-1": -1, "1_000": 1000, ".5": 0.5,
    }  # fmt: skip
    assert {text: number(text) for text in written} == written
    assert number(True) is None
    assert number(10**400) == float("inf")
    assert number({"value": 3, "unit": "milliseconds"}) is None
    whole = 1_715_299_201.0
    assert (
        date("2024-05-10 00:00:01+00:00")
        == date("2024-05-10T00:00:01Z")
        == date("2024-05-10 00:00:01")
        == whole
    )
    assert date("2024-05-10T02:00:01.5+02:00") == whole + 0.5
    assert date("2024-13-10 00:00:00") is None
    assert [seconds(whole * unit) for unit in (1, 1e3, 1e6, 1e9)] == [whole] * 4


def test_a_folder_names_what_it_did_not_read(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.1", "b.ndjson", "c.JSONL", "d.jsonl.2025-01-01.gz"):
        file(tmp_path, name, LINE)
    file(tmp_path, "e.tsv", "prompt\toutput_len\nx\t1\n")
    file(tmp_path, "f.log.gz", gzip.compress(b""))
    file(tmp_path, "access.log", "10.0.0.1 - - GET /\n10.0.0.1 - - GET /\n")
    file(tmp_path, "notes.md", "not a log")
    log = logs.read(tmp_path)
    assert sorted(row.output_len for row in log.rows) == [1, 12, 12, 12, 12, 12]
    assert set(log.report.skipped) == {"f.log.gz", "access.log", "notes.md"}
    assert "3 files were not read" in str(log.report)


ASKED = (
    "Received request r-1: params: SamplingParams(n=1, temperature=0.7, max_tokens=64), lora_request: None."
)
DETAILS = "Request r-1 details: prompt: 'Tell me', prompt_token_ids: [1, 2], prompt_embeds shape: None."
VLLM = {
    "0.6, prompts at INFO": [
        "Received request r-1: prompt: 'Tell me', params: SamplingParams(n=1, max_tokens=64), "
        "prompt_token_ids: [1, 2], lora_request: None.",
        "Generated response r-1: output: 'abc', output_token_ids: [5, 6, 7], finish_reason: stop",
    ],
    "now": [
        ASKED,
        DETAILS,
        "Generated response r-1 details: output_token_ids: [5, 6, 7]",
        "Generated response r-1: output: 'abc', finish_reason: stop",
    ],
    "now, streamed": [
        ASKED,
        DETAILS,
        *(f"Generated response r-1 (streaming delta) details: output_token_ids: [{i}]" for i in (5, 6, 7)),
        "Generated response r-1 (streaming complete) details: output_token_ids: None",
        "Generated response r-1 (streaming complete): output: 'abc', finish_reason: streaming_complete",
    ],
}
SHIPPERS: dict[str, Callable[[str], str]] = {
    "plain": lambda line: f"(APIServer pid=1) INFO 11-21 10:00:00 [logger.py:70] {line}",
    "kubernetes": lambda line: f"2025-11-21T10:00:00.1Z stdout F INFO 11-21 10:00:00 logger.py:37] {line}",
    "docker": lambda line: json.dumps({"log": f"INFO 11-21 {line}\n", "stream": "stdout", "time": "2025"}),
    "compose": lambda line: f"vllm-1  | INFO 11-21 10:00:00 {line}",
    "google": lambda line: json.dumps({"textPayload": f"INFO {line}", "severity": "INFO"}),
}


@pytest.mark.parametrize("ship", SHIPPERS.values(), ids=SHIPPERS.keys())
@pytest.mark.parametrize("told", VLLM.values(), ids=VLLM.keys())
def test_vllms_log_of_any_version_and_shipper(
    tmp_path: Path, told: list[str], ship: Callable[[str], str]
) -> None:
    row = logs.read(file(tmp_path, "server.log", "\n".join(map(ship, told)))).rows[0]
    assert (row.messages[0]["content"], row.output_len, row.prompt_len) == ("Tell me", 3, 2)
    assert row.signals.max_tokens == 64


@pytest.mark.parametrize("name", ["docker", "kubernetes", "compose"])
def test_json_lines_in_what_a_shipper_wraps(tmp_path: Path, name: str) -> None:
    wrap: dict[str, Callable[[str], str]] = {
        "docker": lambda line: json.dumps({"log": f"{line}\n", "stream": "stdout"}),
        "kubernetes": lambda line: f"2025-11-21T10:00:00.1Z stdout F {line}",
        "compose": lambda line: f"app_1 | {line}",
    }
    assert lengths(file(tmp_path, "x.log", "\n".join(wrap[name](LINE) for _ in range(3)))) == [12, 12, 12]


def test_a_line_that_kubernetes_cut_is_whole_again(tmp_path: Path) -> None:
    cut = f"2025-11-21T10:00:00.1Z stdout P {LINE[:20]}\n2025-11-21T10:00:00.1Z stdout F {LINE[20:]}\n"
    assert lengths(file(tmp_path, "x.log", cut * 2)) == [12, 12]


def test_what_vllms_log_lacks_is_named(tmp_path: Path) -> None:
    log = file(tmp_path, "a.log", "\n".join([ASKED, VLLM["now"][3]]))
    with pytest.raises(DataError, match="without its prompt"):
        logs.read(log)
    with pytest.raises(DataError, match="without its reply"):
        logs.read(file(tmp_path, "b.log", VLLM["0.6, prompts at INFO"][0]))


def test_prompts_cut_by_the_log_are_counted(tmp_path: Path) -> None:
    told = [
        line.replace("r-1", f"r-{i}").replace("Tell me", prompt)
        for i, prompt in enumerate(("abcdefgh", "ijklmnop", "qrstuvwx", "short"))
        for line in VLLM["now"]
    ]
    report = logs.read(file(tmp_path, "a.log", "\n".join(told))).report
    assert report.shortened == 3
    assert "--max-log-len" in str(report)


def test_sglangs_log(tmp_path: Path) -> None:
    begun = "[2025-05-27 20:00:00] Receive: obj=GenerateReqInput(rid='{}', text='Tell me', stream=False)"
    ended = (
        "[2025-05-27 20:00:14] Finish: obj=GenerateReqInput(rid='a', text='Tell me', sampling_params="
        "{'temperature': 0.5, 'max_new_tokens': 320}), out={'text': 'Rome', 'meta_info': "
        "{'id': 'a', 'finish_reason': {'type': 'length'}, 'prompt_tokens': 3, 'completion_tokens': 220}}"
    )
    log = logs.read(file(tmp_path, "x.log", "\n".join([begun.format("a"), begun.format("b"), ended])))
    row = log.rows[0]
    assert (row.output_len, row.prompt_len, row.signals.max_tokens) == (220, 3, 320)
    assert log.report.truncated == 1
    assert log.report.dropped == {"a request of SGLang's log that has not ended in it": 1}


def test_parquet_without_its_suffix_and_with_missing_lengths(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="parquet is read with pyarrow")
    import pyarrow.parquet as parquet

    given = [{"prompt": "a", "output_len": 3}, {"prompt": "b", "output_len": None}]
    parquet.write_table(pyarrow.Table.from_pylist(given), tmp_path / "part-0")
    log = logs.read(tmp_path / "part-0")
    assert [row.output_len for row in log.rows] == [3]
    assert log.report.dropped == {"no reply length": 1}


def test_a_report_says_each_count_once() -> None:
    report = Report(rows=3, shortened=2, disbelieved=1, notes=["x: y"])
    report.drop("broken", "the first: line 4")
    report.drop("broken", "the first: line 9")
    assert str(report) == (
        "3 rows read; 2 dropped: broken (the first: line 4); 2 requests were cut by the log itself "
        "(vLLM's --max-log-len); 1 lengths of 0, or that cannot be, were not believed beside a reply; x: y"
    )
