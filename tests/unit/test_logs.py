"""Reading logs: every shape of record, what is dropped and why."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from sooner.core import DataError
from sooner.workloads import logs

CHAT = [{"role": "user", "content": "hi"}]
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
    assert (row.max_tokens, row.temperature, row.tools, row.structured) == (99, 0.5, 2, True)
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
