"""Reading logs: every shape of record, what is dropped and why."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakehub import serve

from sooner.core import DataError
from sooner.workloads import logs

CHAT = [{"role": "user", "content": "hi"}]
USAGE = {"usage": {"completion_tokens": 7}}
RECORDS: list[tuple[str, dict[str, Any], float]] = [
    ("prompt", {"prompt": "hi", "output_len": 7}, 7),
    ("messages", {"messages": CHAT, "output_tokens": 7}, 7),
    ("openai flat", {"messages": CHAT, "usage": {"completion_tokens": 7}}, 7),
    ("openai nested", {"request": {"messages": CHAT}, "response": {"usage": {"completion_tokens": 7}}}, 7),
    ("openai batch", {"body": {"messages": CHAT}, "response": {"usage": {"completion_tokens": 7}}}, 7),
    (
        "reply as text",
        {"messages": CHAT, "choices": [{"message": {"role": "assistant", "content": "x" * 28}}]},
        7,
    ),
    ("vllm-ltr", {"prompt": "hi", "generated": "x" * 28}, 7),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "x" * 28}]},
        7,
    ),
    ("lmsys", {"conversation": [*CHAT, {"role": "assistant", "content": "x" * 28}]}, 7),
    ("ends with its reply", {"messages": [*CHAT, {"role": "assistant", "content": "x" * 28}]}, 7),
    ("langfuse", {"input": {"messages": CHAT}, "usageDetails": {"input": 3, "output": 7}}, 7),
    ("langfuse, old", {"input": CHAT, "usage": {"input": 3, "output": 7}, "output": "text"}, 7),
    ("litellm", {"messages": json.dumps(CHAT), "completion_tokens": 7, "request_id": "a"}, 7),
    ("openai batch output", {"body": {"messages": CHAT}, "response": {"status_code": 200, "body": USAGE}}, 7),
    (
        "openai responses",
        {
            "input": "hi",
            "output": [{"type": "message", "content": [{"type": "output_text", "text": "x" * 28}]}],
        },
        7,
    ),
    ("openai responses, usage", {"input": CHAT, "output": [], "usage": {"output_tokens": 7}}, 7),
    (
        "langfuse, enriched export",
        {
            "trace_id": "t",
            "type": "GENERATION",
            "input": json.dumps({"messages": CHAT}),
            "output": "text",
            "usage_details": json.dumps({"input": 3, "output": 7}),
            "model_parameters": json.dumps({"max_tokens": 50}),
        },
        7,
    ),
    ("langfuse, a trace", {"id": "t", "observations": [{"type": "GENERATION", "input": CHAT, **USAGE}]}, 7),
    (
        "litellm, standard payload",
        {
            "id": "a",
            "trace_id": "t",
            "status": "success",
            "messages": CHAT,
            "completion_tokens": 7,
            "response": {},
        },
        7,
    ),
    (
        "litellm, callback",
        {"kwargs": {"standard_logging_object": {"messages": CHAT, "completion_tokens": 7}}},
        7,
    ),
    (
        "litellm, proxy request",
        {"proxy_server_request": {"body": {"messages": CHAT}}, "completion_tokens": 7},
        7,
    ),
]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("record", "length"), [row[1:] for row in RECORDS], ids=[row[0] for row in RECORDS])
def test_each_shape_of_record_is_read(tmp_path: Path, record: dict[str, Any], length: float) -> None:
    lines = "\n".join(json.dumps(record) for _ in range(3))
    for text in (lines, json.dumps([record] * 3), json.dumps({"data": [record] * 3})):
        log = logs.read(write(tmp_path / "log", text))
        assert [row.output_len for row in log.rows] == [length] * 3
        first = log.rows[0].messages[0]
        assert first.get("content", first.get("value")) == "hi"


def test_gz_stdin_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {
        "id": "abc_12",
        "messages": CHAT,
        "output_len": 7,
        "max_tokens": 99,
        "temperature": 0.5,
        "tools": [{}, {}],
        "response_format": {"type": "json_object"},
    }
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(record).encode()))
    row = logs.read(path).rows[0]
    assert row.conversation == "abc"
    assert tuple(row.signals)[:4] == (99, 0.5, 2, True)
    stream = io.TextIOWrapper(io.BytesIO(json.dumps(record).encode()))
    monkeypatch.setattr("sys.stdin", stream)
    assert logs.read("-").rows == [row]


def test_a_list_that_is_cut_off_ends_with_its_last_whole_item(tmp_path: Path) -> None:
    record = {
        "id": "q_0",
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}],
    }
    whole = json.dumps([record] * 4)
    log = logs.read(write(tmp_path / "cut.json", whole[: len(whole) * 5 // 8]))
    assert len(log.rows) == 2
    assert log.report.estimated == 2


def test_every_reply_of_a_conversation_is_a_row(tmp_path: Path) -> None:
    said = ["a", "b", "c", "d"]
    turns = [{"from": ("human", "gpt")[i % 2], "value": word} for i, word in enumerate(said)]
    record = json.dumps({"id": "z_3", "conversations": [{"from": "gpt", "value": "hello"}, *turns]})
    log = logs.read(write(tmp_path / "x.json", record), count=lambda text: 5)
    assert [len(row.messages) for row in log.rows] == [2, 4]
    assert {row.output_len for row in log.rows} == {5}
    path = write(tmp_path / "y.json", json.dumps({"conversations": turns}))
    assert len(logs.read(path, first_turns=True).rows) == 1


def test_what_cannot_be_used_is_dropped_and_counted(tmp_path: Path) -> None:
    lines = [
        json.dumps({"prompt": "ok", "output_len": 3}),
        '{"prompt": "nan", "output_len": NaN}',
        json.dumps({"prompt": "no length"}),
        json.dumps({"output_len": 3}),
        "[1]",
        "",
        '{"prompt": "cut o',
    ]
    log = logs.read(write(tmp_path / "log.jsonl", "\n".join(lines)))
    assert len(log.rows) == 1
    assert sum(log.report.dropped.values()) == 5
    assert "no reply length" in str(log.report)


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        logs.read(tmp_path / "absent")
    with pytest.raises(DataError, match="line 2 is not JSON"):
        logs.read(write(tmp_path / "a", '{"prompt": "x", "output_len": 1}\nnot json\n{}\n'))
    with pytest.raises(DataError, match="no usable request"):
        logs.read(write(tmp_path / "b", "[]"))
    bad = tmp_path / "c.gz"
    bad.write_bytes(b"\x1f\x8bnot gzip")
    with pytest.raises(DataError, match="cannot read"):
        logs.read(bad)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no tokenizer"):
        logs.tokenizer(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"traceId": "t", "type": "SPAN", "input": "x", "output": "y"}, "no generation"),
        ({"call_type": "aembedding", "messages": CHAT, "completion_tokens": 7}, "generates no text"),
        ({"status": "failure", "messages": CHAT, "completion_tokens": 0}, "failed"),
        ({"body": {"messages": CHAT}, "response": {"status_code": 429, "body": {}}}, "failed"),
        ({"messages": CHAT, "completion_tokens": 7, "cache_hit": "True"}, "cache"),
    ],
)
def test_records_that_tell_nothing_of_replies_are_dropped(
    tmp_path: Path, record: dict[str, Any], reason: str
) -> None:
    good = {"prompt": "ok", "output_len": 3}
    log = logs.read(write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, [record, good]))))
    assert len(log.rows) == 1
    assert [count for name, count in log.report.dropped.items() if reason in name] == [1]


def test_settings_and_cut_replies_are_seen_wherever_they_stand(tmp_path: Path) -> None:
    record = {
        "request": {"messages": CHAT, "max_completion_tokens": 40, "tools": [{}]},
        "model_parameters": {"temperature": 0.3, "response_format": {"type": "text"}},
        "response": {"choices": [{"finish_reason": "length"}], "usage": {"completion_tokens": 40}},
        "session_id": "s",
    }
    log = logs.read(write(tmp_path / "x.jsonl", json.dumps(record)))
    row = log.rows[0]
    assert tuple(row.signals)[:4] == (40, 0.3, 1, False)
    assert row.conversation == "s"
    assert log.report.truncated == 1
    assert "longer than they seem" in str(log.report)


def test_one_model_of_several(tmp_path: Path) -> None:
    records = [{"prompt": str(i), "output_len": i, "model": "ab"[i % 2]} for i in range(6)]
    path = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, records)))
    assert "2 models are mixed" in str(logs.read(path).report)
    log = logs.read(path, model="b")
    assert [row.output_len for row in log.rows] == [1, 3, 5]
    assert log.report.dropped["a reply of another model"] == 3
    with pytest.raises(DataError, match="another model"):
        logs.read(path, model="c")


def test_csv_with_json_in_its_cells(tmp_path: Path) -> None:
    import csv

    with (tmp_path / "export.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "traceId", "type", "input", "output", "usageDetails"])
        writer.writeheader()
        writer.writerow(
            {
                "id": "o",
                "traceId": "t",
                "type": "GENERATION",
                "input": json.dumps(CHAT),
                "output": 'line one\nline two, "quoted"',
                "usageDetails": json.dumps({"output": 7}),
            }
        )
        writer.writerow({"id": "p", "traceId": "t", "type": "SPAN", "input": "x"})
    log = logs.read(tmp_path / "export.csv")
    assert [(row.output_len, row.conversation) for row in log.rows] == [(7, "t")]


def test_text_that_looks_like_something_else_stays_text(tmp_path: Path) -> None:
    log = logs.read(write(tmp_path / "x.csv", "prompt,output_len\n123,7\n"))
    assert [(row.messages[0]["content"], row.output_len) for row in log.rows] == [("123", 7)]
    record = {"type": "GENERATION", "traceId": "t", "input": '{"a": 1}', "output": "[1, 2, 3, 4]"}
    row = logs.read(write(tmp_path / "y.jsonl", json.dumps(record))).rows[0]
    assert row.messages[0]["content"] == '{"a": 1}'
    assert row.output_len == 3


def test_a_folder_is_all_of_its_logs(tmp_path: Path) -> None:
    (tmp_path / "day 2").mkdir()
    write(tmp_path / "day 1.jsonl", json.dumps({"prompt": "a", "output_len": 1}))
    write(tmp_path / "day 2" / "x.json", json.dumps([{"prompt": "b", "output_len": 2}]))
    write(tmp_path / "notes.md", "not a log")
    assert [row.output_len for row in logs.read(tmp_path).rows] == [1, 2]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="has no log"):
        logs.read(tmp_path / "none")


@pytest.mark.parametrize("kind", ["lmsys", "wildchat"])
def test_parquet_of_conversations(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="parquet is read with pyarrow")
    import pyarrow.parquet as parquet

    said = [
        {"role": ("user", "assistant")[i % 2], "content": "x" * 4 * (i + 1), "language": "English"}
        for i in range(4)
    ]
    name = {"lmsys": "conversation_id", "wildchat": "conversation_hash"}[kind]
    record = {name: "c1", "model": "vicuna-13b", "turn": 2, "redacted": False, "conversation": said}
    parquet.write_table(
        pyarrow.Table.from_pylist([record, {**record, name: "c2", "model": "gpt-4"}]), tmp_path / "d.parquet"
    )
    log = logs.read(tmp_path / "d.parquet", model="vicuna-13b")
    assert [(row.conversation, row.output_len, len(row.messages)) for row in log.rows] == [
        ("c1", 2, 1),
        ("c1", 4, 3),
    ]
    write(tmp_path / "bad.parquet", "nonsense")
    with pytest.raises(DataError, match="cannot read"):
        logs.read(tmp_path / "bad.parquet")


VLLM = """
Received request chatcmpl-1: params: SamplingParams(n=1, temperature=0.7, max_tokens=64)
Request chatcmpl-1 details: prompt: "it's\\nme", prompt_token_ids: [1, 2]
Generated response chatcmpl-1 details: output_token_ids: [5, 6, 7]
Generated response chatcmpl-1: output: 'abc', finish_reason: length
Request chatcmpl-2 details: prompt: 'two', prompt_token_ids: None
Generated response chatcmpl-2 (streaming delta): output: 'x', finish_reason: None
Generated response chatcmpl-2 (streaming complete): output: 'xxxxxxxx', finish_reason: stop
Received request chatcmpl-3: params: SamplingParams(n=1)
Request chatcmpl-4 details: prompt: 'four', prompt_token_ids: [1]
"""


def test_vllms_own_log(tmp_path: Path) -> None:
    log = logs.read(
        write(tmp_path / "server.log", VLLM.replace("\n", "\nDEBUG 11-21 10:00:00 [logger.py:73] "))
    )
    first, second = log.rows
    assert first.messages[0]["content"] == "it's\nme"
    assert (first.output_len, first.signals.max_tokens, first.signals.temperature) == (3, 64, 0.7)
    assert second.output_len == 2
    assert log.report.truncated == 1
    assert log.report.estimated == 1
    assert sum(log.report.dropped.values()) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # vLLM's import uses what torch deprecates
def test_what_vllm_logs_is_read_back(tmp_path: Path) -> None:
    """The lines come from vLLM's own logger, so that a change of its words is noticed."""
    pytest.importorskip("vllm", reason="vLLM's logger writes the lines")
    import logging

    from vllm.entrypoints.serve.utils.request_logger import RequestLogger
    from vllm.sampling_params import SamplingParams

    logger = logging.getLogger("vllm.entrypoints.serve.utils.request_logger")
    handler = logging.FileHandler(tmp_path / "server.log")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        told = RequestLogger(max_log_len=None)
        told.log_inputs("chatcmpl-9", 'tell "me"\nnow', [1], None, SamplingParams(max_tokens=32), None)
        told.log_outputs("chatcmpl-9", "a reply", [3, 4, 5, 6], "stop")
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(level)
    row = logs.read(tmp_path / "server.log").rows[0]
    assert row.messages[0]["content"] == 'tell "me"\nnow'
    assert (row.output_len, row.signals.max_tokens) == (4, 32)


def test_a_data_set_of_the_hub_by_name(tmp_path: Path) -> None:
    """A small hub of our own answers the client's requests for the list of files and for a file."""
    pytest.importorskip("huggingface_hub", reason="the hub's own client is used")
    line = json.dumps({"prompt": "from the hub", "output_len": 9}).encode()
    files = {"README.md": b"x", "data/train-0.jsonl": line, "data/test-0.jsonl": b"{}"}
    program = (
        "from sooner.workloads import logs; row, = logs.read('hf:owner/talk').rows; "
        "print(row.output_len, row.messages[0]['content'])"
    )
    with serve("owner/talk", files) as url:
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "9.0 from the hub", done.stderr
        absent = [sys.executable, "-c", program.replace("talk", "gone")]
        done = subprocess.run(absent, env=environment, capture_output=True, text=True, check=False)
        assert "cannot read the data set 'owner/gone'" in done.stderr
