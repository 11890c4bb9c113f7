"""Whoever reads a request reads the same: a log's row, plugin, middleware, gateway and simulator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sooner import chat
from sooner.chat import ChatRequest, Conversation, Signals
from sooner.gateway.admission import reading
from sooner.ordering import wire
from sooner.training.rows import dataset
from sooner.workloads import logs, traces

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("look", "book")]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
SYSTEM = {"role": "system", "content": "Answer as a librarian."}
USER = {"role": "user", "content": "Which book is about\ntrees?"}
LATER = [
    *(SYSTEM, USER, {"role": "assistant", "content": "Walden, I should say."}),
    {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "whales?"}]},
]
BODIES: dict[str, dict[str, Any]] = {
    "bare": {"messages": [USER]},
    "a limit": {"messages": [SYSTEM, USER], "max_tokens": 200},
    "the newest name of the limit": {"messages": [USER], "max_completion_tokens": 90},
    "temperature 0": {"messages": [USER], "temperature": 0},
    "the usual temperature": {"messages": [USER], "temperature": 1.0, "max_tokens": 12},
    "a schema": {"messages": [SYSTEM, USER], "response_format": SCHEMA, "temperature": 0.3},
    "no schema": {"messages": [USER], "response_format": {"type": "text"}},
    "tools": {"messages": [SYSTEM, USER], "tools": TOOLS, "max_tokens": 64},
    "a later turn": {"messages": LATER, "max_tokens": 300, "temperature": 0.7},
    "a completion": {"prompt": "Once upon a time", "max_tokens": 400, "temperature": 0.5},
}
ALL = pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())


def written(path: Path, record: dict[str, Any]) -> Path:
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return path


def logged(body: dict[str, Any], path: Path) -> list[Conversation]:
    """The row as a ranker is trained on it, from a log of requests and from a log of bare columns."""
    rows = [
        row
        for record in ({"request": body, "usage": {"completion_tokens": 9}}, {**body, "output_len": 9})
        for row in logs.read(str(written(path, record)))[0]
    ]
    data = dataset(rows)
    return [Conversation(prompt, context) for prompt, context in zip(data.prompts, data.context, strict=True)]


def simulated(body: dict[str, Any], path: Path) -> Conversation:
    trace = traces.read(written(path, {**body, "output_tokens": 9}))
    assert trace.requests is not None
    return trace.requests[0].conversation()


def sent(request: ChatRequest) -> ChatRequest:
    """The request as it arrives in the scorer's process."""
    (question,) = wire.Questions().feed(wire.ask(1, request))
    return question.request


def served(body: dict[str, Any]) -> Conversation:
    asked = reading.read(json.dumps(body).encode(), client_scores=False, deadline_ms=None)
    return sent(asked.request).conversation()


def expected(body: dict[str, Any]) -> Conversation:
    return chat.of_body(body).conversation()


@ALL
def test_a_log_a_workload_and_the_gateway_agree(body: dict[str, Any], tmp_path: Path) -> None:
    wanted = expected(body)
    assert logged(body, tmp_path / "log.jsonl") == [wanted, wanted]
    assert simulated(body, tmp_path / "workload.jsonl") == wanted
    assert served(body) == wanted
    assert sent(chat.of_body(body)).conversation() == wanted


def test_every_signal_reaches_a_ranker() -> None:
    body = {
        "messages": [USER],
        "max_tokens": 7,
        "temperature": 0.2,
        "tools": TOOLS,
        "response_format": SCHEMA,
    }
    context = served(body).context
    assert (context.max_tokens, context.temperature, context.tools, context.structured) == (7, 0.2, 2, True)


@pytest.mark.parametrize(
    ("settings", "signals"),
    [
        ({}, chat.UNSAID),
        ({"max_tokens": "5", "temperature": "hot", "tools": {}, "response_format": None}, chat.UNSAID),
        ({"max_tokens": 0}, chat.UNSAID),
        ({"max_tokens": True}, chat.UNSAID),
        ({"max_tokens": 2**40}, chat.UNSAID),
        ({"temperature": float("nan")}, chat.UNSAID),
        ({"temperature": 10**400}, chat.UNSAID),
        ({"max_tokens": None, "max_output_tokens": 8}, Signals(8)),
        ({"max_tokens": 5, "max_completion_tokens": 6}, Signals(6)),
        ({"text": {"format": SCHEMA}}, Signals(structured=True)),
        ({"guided_regex": "a+"}, Signals(structured=True)),
        (
            {"tools": 3, "structured": True},
            Signals(tools=3, structured=True),
        ),
    ],
)
def test_odd_settings_say_nothing(settings: dict[str, Any], signals: Signals) -> None:
    assert Signals.of(settings) == signals


def chatml(body: dict[str, Any]) -> str:
    """What Qwen's own template makes of a body."""
    if "prompt" in body:
        return str(body["prompt"])
    messages = list(body["messages"])
    system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
    if "tools" in body:
        system += "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        system += "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        system += "\n".join(json.dumps(tool) for tool in body["tools"])
        system += (
            "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
        )
        system += 'within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, '
        system += '"arguments": <args-json-object>}\n</tool_call>'
    turns = [("system", system)] if system else []
    turns += [(message["role"], chat.content_text(message["content"])) for message in messages]
    marked = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    return f"{marked}<|im_start|>assistant\n"


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of vLLM and torch, not ours to mend
@ALL
def test_the_plugin_agrees(body: dict[str, Any]) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.v1.request import Request

    from sooner.vllm import compat

    unsaid = compat.Filled(4096, None, 0.6)
    ids = [ord(letter) for letter in chatml(body)]
    limit = chat.reply_limit(body) or 4096 - len(ids)  # vLLM fills in what is left of its length
    schema = SCHEMA if (body.get("response_format") or {}).get("type") == "json_schema" else None
    asked = SamplingParams(
        max_tokens=limit,
        temperature=body.get("temperature", 0.6),
        structured_outputs=StructuredOutputsParams(json=schema) if schema else None,
    )
    request = Request("a", ids, asked, None)
    made = ChatRequest(request.prompt_token_ids, compat.signals(request, unsaid))
    assert sent(made).conversation(lambda ids: "".join(map(chr, ids))) == expected(body)


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of vLLM and torch, not ours to mend
@ALL
def test_the_middleware_agrees(body: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    import asyncio

    from sooner.core import Prediction
    from sooner.vllm import middleware

    asked: list[ChatRequest] = []
    priority = middleware.Priority(lambda *_: asyncio.sleep(0))  # type: ignore[arg-type]  # never called here

    class Scores:
        def submit(self, id: str, request: ChatRequest) -> None:
            asked.append(request)
            priority._deliver(id, Prediction(1.0, 1.0))

    async def ask() -> None:
        priority._scorer, priority._loop = Scores(), asyncio.get_running_loop()  # type: ignore[assignment]
        await priority._predicted_len(body)

    asyncio.run(ask())
    assert [sent(request).conversation() for request in asked] == [expected(body)]


def test_a_conversation_is_cut_to_its_ends_and_keeps_its_turns() -> None:
    request = chat.of_messages(
        [
            {"role": "system", "content": "s" * 1000},
            {"role": "user", "content": "a" * 1000},
            {"role": "assistant", "content": "b" * 1000},
            {"role": "user", "content": "c" * 500},
        ]
    )
    cut = request.cut(1000)
    assert [len(turn.text) for turn in cut.turns] == [250, 0, 250, 500]
    assert cut.conversation().context.turn == 1
    assert request.cut(3500) == request
    assert ChatRequest("a" * 10 + "b" * 10).cut(4) == ChatRequest("aabb")
    assert ChatRequest([1] * 10).cut(4) == ChatRequest([1] * 10)


def test_openings_are_equal_where_prompts_begin_alike() -> None:
    first = chat.of_messages([SYSTEM, USER])
    other = chat.of_messages([SYSTEM, {"role": "user", "content": "Something else"}])
    assert first.opening(10) == other.opening(10) != ""
    assert first.opening(100) != other.opening(100)
    assert ChatRequest([1, 2]).opening(5) == ""


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({"input": "hi", "instructions": "Be brief."}, (("system", "Be brief."), ("user", "hi"))),
        ({"input": [{"type": "function_call_output", "output": "42"}]}, (("tool", "42"),)),
        ({"messages": [{"role": 7, "content": "x"}]}, ""),
        ({"messages": [3]}, ""),
        ({"prompt": [[1, 2], [3]]}, [1, 2]),
        ({"prompt": {}}, ""),
    ],
)
def test_what_a_body_asks(body: dict[str, Any], prompt: object) -> None:
    assert chat.of_body(body).prompt == prompt
