"""What a request claims of an engine is what the engine will do, whatever the client calls it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sooner.gateway.admission import claims, reading
from sooner.gateway.admission.claims import Claimed
from sooner.gateway.admission.forms import BadRequest
from sooner.gateway.admission.paths import ENDPOINTS

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def asked(body: dict[str, Any], path: str = CHAT, kind: str = "vllm") -> reading.Asked:
    data = json.dumps({"model": "m", **body}).encode()
    return reading.read(data, client_scores=False, deadline_ms=None, endpoint=ENDPOINTS[path], kinds={kind})


def claim(body: dict[str, Any], path: str = CHAT, kind: str = "vllm") -> Claimed:
    return asked(body, path, kind).claim


@pytest.mark.parametrize(
    ("path", "kind", "body", "limit"),
    [
        (COMPLETIONS, "vllm", {"max_completion_tokens": 1, "max_tokens": 4000}, 4000),
        (COMPLETIONS, "vllm", {"max_output_tokens": 1}, 16),
        (COMPLETIONS, "vllm", {"max_tokens": None}, 16),
        (COMPLETIONS, "openai", {"max_output_tokens": 1}, None),
        (COMPLETIONS, "llamacpp", {"max_tokens": 1, "n_predict": 4000}, 4000),
        (COMPLETIONS, "llamacpp", {"max_tokens": 1, "n_predict": -1}, None),
        (CHAT, "vllm", {"max_completion_tokens": 5, "max_tokens": 4000}, 5),
        (CHAT, "sglang", {"max_completion_tokens": 5, "max_tokens": 4000}, 4000),
        (CHAT, "vllm", {"max_completion_tokens": None, "max_tokens": 4000}, 4000),
        (CHAT, "vllm", {"max_output_tokens": 1, "max_tokens": 4000}, 4000),
        (CHAT, "vllm", {"max_output_tokens": 1}, None),
        (CHAT, "vllm", {"max_tokens": "4000"}, 4000),
        (CHAT, "vllm", {"max_tokens": " 4_000 "}, 4000),
        (CHAT, "vllm", {"max_tokens": 4000.0}, 4000),
        (CHAT, "vllm", {"max_tokens": "4e3"}, None),
        (CHAT, "vllm", {"max_tokens": 10**30}, None),
        (CHAT, "vllm", {"max_tokens": True}, 1),
        (CHAT, "llamacpp", {"max_tokens": 1, "n_predict": 4000}, 4000),
        ("/v1/responses", "vllm", {"max_tokens": 1, "max_output_tokens": 4000}, 4000),
        ("/v1/responses", "vllm", {"max_tokens": 1, "max_completion_tokens": 1}, None),
        ("/v1/messages", "vllm", {"max_completion_tokens": 1, "max_tokens": 4000}, 4000),
        ("/v1/chat/completions/batch", "vllm", {"max_completion_tokens": 7, "max_tokens": 1}, 7),
        (CHAT, "ollama", {"max_completion_tokens": 1, "max_tokens": 4000}, 4000),
    ],
)
def test_the_limit_is_the_one_that_is_read_there(path: str, kind: str, body: Any, limit: int | None) -> None:
    found = asked(body, path, kind)
    assert found.claim.limit == limit
    assert found.request.signals.max_tokens == limit


def test_of_several_kinds_the_largest_claim_counts() -> None:
    body = {"max_completion_tokens": 5, "max_tokens": 4000}
    assert claims.read(body, ENDPOINTS[CHAT], {"vllm", "sglang"}).limit == 4000
    assert claims.read({"max_output_tokens": 1}, ENDPOINTS[COMPLETIONS], {"vllm", "ollama"}).limit is None


@pytest.mark.parametrize(
    ("path", "body", "replies"),
    [
        (CHAT, {"n": 64}, 64),
        (CHAT, {"n": "64"}, 64),
        (CHAT, {"n": 1, "best_of": 64}, 64),
        (CHAT, {"n": -5}, 1),
        (CHAT, {"n": None, "best_of": None}, 1),
        (COMPLETIONS, {"prompt": ["a"] * 100, "n": 2}, 200),
        (COMPLETIONS, {"prompt": [[1, 2]] * 100}, 100),
        (COMPLETIONS, {"prompt": [1, 2, 3]}, 1),
        (COMPLETIONS, {"prompt": "a", "prompt_embeds": ["x", "y"]}, 2),
        ("/v1/chat/completions/batch", {"messages": [[{"role": "user", "content": "a"}]] * 50, "n": 2}, 100),
    ],
)
def test_every_prompt_and_choice_counts(path: str, body: Any, replies: int) -> None:
    found = claim({**body, "max_tokens": 10}, path)
    assert found.replies == replies
    assert found.total(1000.0) == 10.0 * replies


def test_a_reply_that_must_be_long_is() -> None:
    assert claim({"ignore_eos": True, "max_tokens": 4000}).total(3.0) == 4000.0
    assert claim({"ignore_eos": "true", "max_tokens": 4000}).total(3.0) == 4000.0
    assert claim({"min_tokens": 300}).total(3.0) == 300.0
    assert claim({"min_tokens": 300, "max_tokens": 20}).total(3.0) == 20.0


@pytest.mark.parametrize(
    ("path", "body", "least"),
    [
        (COMPLETIONS, {"prompt": ["x" * 400] * 10}, 1000),
        (COMPLETIONS, {"prompt": [[7] * 100] * 10}, 1000),
        ("/v1/embeddings", {"input": ["x" * 400] * 10}, 1000),
        ("/v1/embeddings", {"input": [[7] * 100] * 10}, 1000),
        ("/v1/rerank", {"query": "x" * 400, "documents": ["y"] * 10}, 1000),
        ("/v1/score", {"text_1": "x" * 400, "text_2": ["y"] * 10}, 1000),
        ("/score", {"queries": ["x" * 400] * 10, "items": "y"}, 1000),
        ("/v1/messages", {"system": "x" * 4000, "messages": [{"role": "user", "content": "y"}]}, 1000),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [
            {"type": "text", "text": "x" * 4000}]}]}]}, 1000),
        (CHAT, {"messages": [], "tools": [{"description": "x" * 4000}]}, 1000),
        (CHAT, {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 99}}]}]}, 500),
        ("/v1/chat/completions/batch", {"messages": [[{"role": "user", "content": "x" * 400}]] * 10}, 1000),
    ],
)  # fmt: skip
def test_all_that_is_read_counts_as_prompt(path: str, body: Any, least: int) -> None:
    assert asked(body, path).prompt_len >= least


def test_a_lone_text_is_counted_as_before() -> None:
    found = asked({"messages": [{"role": "user", "content": "x" * 400}]})
    assert found.prompt_len == found.request.prompt_len == 100


def test_what_chooses_a_place_is_left_out_and_all_else_stays() -> None:
    text = (
        '{ "priority": -9, "model":"a" , "x":1.0, "data_parallel_rank":3,'
        '"vllm_xargs":{"session_id":"s","k":1}, "messages":[{"role":"user","content":"\\ud800 \\u0061\\n{"}],'
        '"kv_transfer_params":{"do_remote_prefill":true}}'
    )
    body, found = reading.read_json(
        text.encode(), client_scores=False, deadline_ms=None, endpoint=ENDPOINTS[CHAT], kinds={"vllm"},
        aliases={"a": "b"},
    )  # fmt: skip
    assert body == (
        b'{"model":"b","x":1.0,"vllm_xargs":{"k": 1},'
        b'"messages":[{"role":"user","content":"\\ud800 \\u0061\\n{"}]}'
    )
    assert found.model == "b"
    assert not found.prioritised
    same, found = reading.read_json(
        b'{"priority": 3}',
        client_scores=True,
        deadline_ms=None,
        endpoint=ENDPOINTS[CHAT],
        kinds=(),
        aliases={},
    )
    assert (same, found.prioritised) == (b'{"priority": 3}', True)


@pytest.mark.parametrize(
    "text",
    [
        '{"max_tokens":1,"max_tokens":4000}', '{"model":"a","mod\\u0065l":"b"}',
        '{"messages":[{"role":"user","content":"a","content":"b"}]}', '{"Max_Tokens":4000}', '{"MODEL":"x"}',
        '{"max_to\\u212aens":4000}', '{"\\u017ftream":true}', '{"previous_response_id":"resp_1"}',
        '{"conversation":"conv_1"}', '{"background":true}', '{"prompt":{"id":"pmpt_1"}}',
        '{"input":[{"role":"user","content":[{"type":"input_file","file_id":"file-1"}]}]}',
        '{"tools":[{"type":"file_search","vector_store_ids":["vs_1"]}]}', '\ufeff{}',
    ],
)  # fmt: skip
def test_a_body_with_two_meanings_or_of_anothers_things_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        reading.read(text.encode(), client_scores=False, deadline_ms=None)


def test_a_tool_may_have_a_parameter_called_file_id() -> None:
    tool = {"function": {"parameters": {"properties": {"file_id": {"type": "string"}}}}}
    assert asked({"tools": [tool]}).model == "m"


@pytest.mark.parametrize("model", ["x" * 10**6, ["x" * 10**6], 10**1000, {"a": "x" * 10**6}])
def test_an_error_repeats_little_of_a_long_value(model: Any) -> None:
    with pytest.raises(BadRequest) as told:
        reading.read(
            json.dumps({"x" * 10**6: 1, "model": [model]}).encode(), client_scores=False, deadline_ms=None
        )
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    ("given", "yes"), [("true", True), (1, True), ("on", True), ("false", False), (0, False)]
)
def test_a_stream_is_one_where_an_engine_takes_it_for_one(given: Any, yes: bool) -> None:
    assert asked({"stream": given}).stream is yes
