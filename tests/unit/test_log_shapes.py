"""Each shape of log gives the same request and the right length, in every layout a file may have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from log_records import ASKED, CHAT, KNOWN, REPLY, Known
from sooner.core import DataError
from sooner.workloads import logs
from sooner.workloads.logs import shapes

USAGE = {"completion_tokens": 7}


def read(tmp_path: Path, *records: Any) -> logs.Log:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return logs.read(path)


def dropped(tmp_path: Path, record: Any) -> str:
    """Why a record is dropped, beside one that is read."""
    log = read(tmp_path, {"prompt": "fine", "output_len": 3}, record)
    assert len(log.rows) == 1
    (reason,) = log.report.dropped
    assert log.report.dropped[reason] == 1
    return reason


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN.keys())
def test_each_shape_is_read(tmp_path: Path, known: Known) -> None:
    record, length, asked, system = known
    for text in (json.dumps(record), json.dumps([record] * 2), json.dumps(record, indent=1)):
        path = tmp_path / "log"
        path.write_text(text, encoding="utf-8")
        log = logs.read(path)
        assert {row.output_len for row in log.rows} == {length}, log.report
        assert not log.report.dropped
        row = log.rows[0]
        seen = row.request.conversation()
        assert (seen.prompt, seen.context.system) == (asked, system)


@pytest.mark.parametrize("name", ["helicone", "anthropic", "gemini", "ollama chat", "tgi", "sglang"])
def test_limits_of_every_maker_are_the_clients_limit(tmp_path: Path, name: str) -> None:
    limits = {"helicone": 5, "anthropic": 64, "gemini": 64, "ollama chat": 50, "tgi": 20, "sglang": 320}
    row = read(tmp_path, KNOWN[name].record).rows[0]
    assert row.signals.max_tokens == limits[name]


def test_prompt_tokens_arrivals_and_senders_are_kept(tmp_path: Path) -> None:
    asked = {"prompt": "x", "output_len": 3, "prompt_tokens": "33"}
    given = [
        {**asked, "arrival_time": 5.0, "user": "ann"},
        {**asked, "startTime": "2025-01-01T00:00:00Z", "metadata": {"user_id": "bob"}},
        {**asked, "timestamp": 1_735_689_600_000, "tenant": "team"},
    ]
    rows = read(tmp_path, *given).rows
    assert [row.prompt_len for row in rows] == [33, 33, 33]
    assert [row.sender for row in rows] == ["ann", "bob", "team"]
    assert [row.arrival_time for row in rows] == [5.0, 1_735_689_600.0, 1_735_689_600.0]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": CHAT, "response": {"error": {"type": "x"}, "usage": {}}}, "failed"),
        ({"request_body": {"messages": CHAT}, "response_body": {}, "response_status": 500}, "failed"),
        ({"custom_id": "a", "params": {"messages": CHAT}, "result": {"type": "errored"}}, "failed"),
        ({"prompt": "x", "usage": {"completion_tokens": 0}, "response": ""}, "0 tokens"),
        ({"prompt": "x", "output_len": float("inf")}, "finite"),
        ({"prompt": "x", "output_len": -1}, "finite"),
        ({"prompt": "x", "output_len": 10**400}, "finite"),
        ({"prompt": "x", "output_len": True}, "no reply length"),
        ({"prompt": "x", "output_len": "soon"}, "no reply length"),
        ({"prompt": [1, 2, 3], "usage": {"completion_tokens": 5}}, "token ids"),
        ({"prompt": ["a", "b"], "usage": {"completion_tokens": 5}}, "several prompts"),
        ({"messages": {}, "completion_tokens": 20, "prompt_tokens": 10}, "store_prompts"),
        ({"run_type": "chain", "inputs": {}, "outputs": {}}, "no call of a model"),
        ({"chosen": [], "rejected": []}, "rejected"),
        ({"message_id": "n", "parent_id": "m", "text": "x", "role": "assistant"}, "trees"),
        ({"span": {"inputs": "x", "name": "generate"}, "message": "Success"}, "TGI's router"),
        ({"custom_id": "a", "response": {"body": {"usage": {"completion_tokens": 5}}}}, "batch"),
        ({"metrics": {"input_sequence_length": {"value": 5}}}, "AIPerf"),
        ({"payloads": [{"messages": CHAT}]}, "AIPerf"),
        ({"input_lens": [1], "output_lens": [2]}, "vllm bench"),
        ({"ContextTokens": 4, "GeneratedTokens": 5}, "simulate"),
        ({"timestamp": 1, "input_length": 4, "output_length": 5}, "simulate"),
        ({"conversation": "[{'a': datetime.datetime(2023, 1, 1)}]", "output_len": 3}, "no JSON"),
        ({"conversations": []}, "without messages"),
        ({"resourceLogs": []}, "no spans"),
        ({"messages": CHAT, "response": {"choices": [{"finish_reason": "abort"}], "usage": USAGE}}, "failed"),
        ({"attributes": {"http.method": "GET"}, "spanId": "a"}, "no call of a model"),
        ({"attributes": {"gen_ai.usage.output_tokens": 4}, "spanId": "a"}, "without its prompt"),
    ],
)
def test_what_tells_nothing_is_dropped_and_named(tmp_path: Path, record: Any, reason: str) -> None:
    assert re.search(reason, dropped(tmp_path, record))


def test_parts_that_are_no_text_are_counted(tmp_path: Path) -> None:
    assert "1 image_url" in str(read(tmp_path, KNOWN["openai, parts"].record).report)


def test_a_zero_beside_a_reply_is_not_believed_and_said(tmp_path: Path) -> None:
    assert "1 lengths of 0, or that cannot be, were not believed beside a reply" in str(
        read(tmp_path, KNOWN["openai, usage of 0"].record).report
    )


def test_our_own_length_may_be_0_where_there_is_no_reply(tmp_path: Path) -> None:
    assert [row.output_len for row in read(tmp_path, {"prompt": "x", "output_len": 0}).rows] == [0]


def test_every_reply_of_a_conversation_with_tools_is_a_row(tmp_path: Path) -> None:
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
    }
    told = [*CHAT, called, {"role": "tool", "content": "ok"}, {"role": "assistant", "content": REPLY}]
    log = read(tmp_path, {"messages": told})
    assert [(len(row.messages), row.output_len) for row in log.rows] == [(1, 1), (3, 6)]


def test_a_list_of_messages_is_one_conversation(tmp_path: Path) -> None:
    said = [*CHAT, {"role": "assistant", "content": REPLY}]
    assert [row.output_len for row in read(tmp_path, said, said).rows] == [6, 6]
    path = tmp_path / "list.json"
    path.write_text(json.dumps([said, said]), encoding="utf-8")
    assert len(logs.read(path).rows) == 2
    path.write_text(json.dumps(said), encoding="utf-8")
    assert len(logs.read(path).rows) == 1


def test_both_sides_of_an_arena_are_rows_of_their_models(tmp_path: Path) -> None:
    said = [*CHAT, {"role": "assistant", "content": REPLY}]
    record = {
        "question_id": "q",
        "model_a": "a",
        "model_b": "b",
        "conversation_a": said,
        "conversation_b": said,
    }
    log = read(tmp_path, record)
    assert dict(log.report.models) == {"a": 1, "b": 1}
    assert {row.conversation for row in log.rows} == {"q"}


def test_replies_cut_off_at_their_limit_are_counted_whoever_says_so(tmp_path: Path) -> None:
    gemini = json.loads(json.dumps(KNOWN["gemini"].record))
    gemini["response"]["candidates"][0]["finishReason"] = "MAX_TOKENS"
    given = [
        gemini,
        {
            **KNOWN["anthropic"].record,
            "response": {"stop_reason": "max_tokens", "usage": {"output_tokens": 64}},
        },
        {"messages": CHAT, "response": {"status": "incomplete", "usage": {"output_tokens": 5}}},
        {"messages": CHAT, "output_len": 3, "done_reason": "length"},
        KNOWN["tgi"].record,
    ]
    assert read(tmp_path, *given).report.truncated == 5


def test_running_numbers_are_no_parts_of_a_conversation(tmp_path: Path) -> None:
    def names(*ids: str) -> list[str]:
        given = [{"id": name, "prompt": f"say {name}", "output_len": 3} for name in ids]
        return [row.conversation for row in read(tmp_path, *given).rows]

    assert len(set(names(*(f"simple_{i}" for i in range(120))))) == 120
    assert len(set(names(*(f"multiple_{i}" for i in range(3)), *(f"parallel_{i}" for i in range(3))))) == 6
    assert len(set(names(*(f"gsm8k_{i}" for i in range(12))))) == 12
    many = [f"a{i}f{i}_{part}" for i in range(20) for part in range(6)]
    assert len(set(names(*many))) == 20
    assert names("VY7cMKG_0", "VY7cMKG_13", "juND8Ql_0") == ["VY7cMKG", "VY7cMKG", "juND8Ql"]


def test_parts_that_follow_one_another_are_one_conversation(tmp_path: Path) -> None:
    first = [*CHAT, {"role": "assistant", "content": REPLY}]
    later = [*first, {"role": "user", "content": "and then?"}, {"role": "assistant", "content": "more"}]
    given = [
        {"id": "chat_0", "messages": CHAT, "output_len": 5},
        {"id": "chat_1", "messages": later[:3], "output_len": 6},
    ]
    assert {row.conversation for row in read(tmp_path, *given).rows} == {"chat"}
    part = {
        "id": "talk_1",
        "conversations": [
            {"from": "gpt", "value": "x"},
            *({"from": m["role"], "value": m["content"]} for m in first),
        ],
    }
    whole = {"id": "talk_0", "conversations": first}
    assert {row.conversation for row in read(tmp_path, whole, part).rows} == {"talk"}


def test_records_without_a_name_share_none_between_files(tmp_path: Path) -> None:
    one = read(tmp_path, {"prompt": "a", "output_len": 3}).rows[0].conversation
    other = read(tmp_path, {"prompt": "b", "output_len": 3}).rows[0].conversation
    assert one != other


def test_a_batch_is_joined_by_its_custom_id(tmp_path: Path) -> None:
    def line(name: str, **half: Any) -> str:
        return json.dumps({"custom_id": name, **half})

    asked = [line(str(i), body={"messages": CHAT, "max_tokens": 9}) for i in range(3)]
    answered = [
        line(str(i), response={"status_code": 200, "body": {"usage": {"completion_tokens": 20 + i}}})
        for i in range(2)
    ]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "input.jsonl").write_text("\n".join(asked), encoding="utf-8")
    (tmp_path / "b" / "output.jsonl").write_text("\n".join(answered), encoding="utf-8")
    log = logs.read(tmp_path / "b")
    assert [(row.output_len, row.signals.max_tokens) for row in log.rows] == [(20, 9), (21, 9)]
    assert log.report.dropped == {"a batch's request without its output": 1}
    with pytest.raises(DataError, match="give the folder that holds both files"):
        logs.read(tmp_path / "b" / "output.jsonl")


def test_the_documented_shape_and_examples_are_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "logs.md").read_text(encoding="utf-8")
    (examples,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert len(read(tmp_path, *map(json.loads, examples.splitlines())).rows) == len(examples.splitlines())
    (shape,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    try:
        exec(shape, {})
        shapes.known.cache_clear()
        row = read(tmp_path, {"question": ASKED, "tokens": 9}).rows[0]
        assert (row.request.conversation().prompt, row.output_len) == (ASKED, 9)
    finally:
        shapes._SHAPES.pop()
        shapes.known.cache_clear()


def test_a_file_is_all_that_a_new_shape_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @shapes.shape("of a test", when=lambda record: "frage" in record)
    def mine(record: Any, report: Any) -> Any:
        yield shapes.Exchange(messages=[{"role": "user", "content": record["frage"]}], said=4.0)

    try:
        shapes.known.cache_clear()
        assert read(tmp_path, {"frage": ASKED}).rows[0].output_len == 4
    finally:
        shapes._SHAPES.pop()
        shapes.known.cache_clear()
