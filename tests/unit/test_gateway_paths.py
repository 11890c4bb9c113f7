"""One meaning for a path: what the gateway takes it for is what an engine that decodes takes it for."""

from __future__ import annotations

import pytest

from sooner.gateway.admission import headers, paths
from sooner.gateway.admission.paths import ENDPOINTS, UnknownPath
from sooner.gateway.engines.kinds import KINDS


@pytest.mark.parametrize(
    "target",
    [
        "/v1/chat%2Fcompletions", "/v1/chat/completions/", "//v1/chat/completions",
        "/v1//chat/completions", "/v1/./chat/completions", "/v1/x/../chat/completions",
        "/v1/%2e%2e/v1/models", "/v1/%2E/models", "/v1/%256Coad_lora_adapter", "/v1/chat/completions%00",
        "/v1/chat/completions%0a", "/v1/chat\\completions", "/v1/chat%5Ccompletions", "/v1/mod%",
        "/v1/%c0%af", "/v1/%ff", "http://other/v1/models", "*", "", "other:80", "/v1/models#x",
        "/v1/modèls", "/v1/chat/completions%20%e2%80%a8", "/v1/chat/completions\t",
    ],
)  # fmt: skip
def test_a_path_with_two_meanings_is_refused(target: str) -> None:
    with pytest.raises(UnknownPath):
        paths.endpoint(paths.canonical(target))


@pytest.mark.parametrize(
    "target", ["/v1/%63hat/completions", "/v1/chat/completions?x=%2F", "/v1/chat/completion%73"]
)
def test_a_spelling_that_decodes_to_one_path_is_that_path(target: str) -> None:
    assert paths.endpoint(paths.canonical(target)).path == "/v1/chat/completions"


@pytest.mark.parametrize("target", ["/v1/%6Coad_lora_adapter", "/v1/unload_lora_adapter"])
def test_what_changes_an_engine_is_closed_however_it_is_spelled(target: str) -> None:
    assert paths.changes_an_engine(paths.canonical(target))


@pytest.mark.parametrize(
    "path",
    ["/v1/files", "/v1/files/file-1/content", "/v1/responses/resp_1", "/v1/batches", "/v1/organization/users",
     "/v1/load", "/tokenize", "/v1/chat/completions/render", "/invocations", "/v1/completions/derender"],
)  # fmt: skip
def test_what_is_not_listed_is_closed(path: str) -> None:
    with pytest.raises(UnknownPath, match="not served here"):
        paths.endpoint(paths.canonical(path))


def test_a_model_may_have_a_slash_in_its_name() -> None:
    assert paths.canonical("/v1/models/org%2Fname") == "/v1/models/org/name"
    for target in ("/v1/models/../chat/completions", "/v1/models/%2e%2e%2fchat%2fcompletions"):
        assert paths.canonical(target) not in ENDPOINTS


@pytest.mark.parametrize(
    ("target", "path", "model"),
    [
        ("/openai/deployments/gpt/chat/completions?api-version=1", "/v1/chat/completions", "gpt"),
        ("/openai/deployments/org/m/completions", "/v1/completions", "org/m"),
        ("/openai/deployments/a/chat/chat/completions", "/v1/chat/completions", "a/chat"),
        ("/openai/deployments/g%70t/audio/transcriptions", "/v1/audio/transcriptions", "gpt"),
        ("/openai/v1/responses", "/v1/responses", ""),
    ],
)
def test_azures_paths_name_an_endpoint_and_perhaps_its_model(target: str, path: str, model: str) -> None:
    called = paths.called(paths.canonical(target))
    assert called == (ENDPOINTS[path], model)
    assert paths.query(target) in ("", "?api-version=1")


@pytest.mark.parametrize(
    "target",
    ["/openai/deployments/chat/completions/", "/openai/deployments//chat/completions", "/openai/files",
     "/openai/deployments/m/../../v1/files", "/openai/deployments/a%2Fb/chat/completions",
     "/openai/deployments/m/files", "/openai/deployments", "/openai/v1/files",
     "/openai/v1/load_lora_adapter", "/openai/deployments/m/load_lora_adapter"],
)  # fmt: skip
def test_nothing_else_is_open_by_azures_paths(target: str) -> None:
    with pytest.raises(UnknownPath):
        paths.endpoint(paths.canonical(target))


def test_a_near_path_is_named() -> None:
    with pytest.raises(UnknownPath, match="did you mean /v1/chat/completions"):
        paths.endpoint("/chat/completions")
    with pytest.raises(UnknownPath, match="did you mean /v1/embeddings"):
        paths.canonical("//v1/embeddings/")


def test_an_error_repeats_little_of_a_long_path() -> None:
    with pytest.raises(UnknownPath) as told:
        paths.endpoint(paths.canonical("/v1/" + "x" * 10_000))
    assert len(str(told.value)) < 300


def test_of_a_query_only_the_versions_go_on() -> None:
    assert paths.query("/v1/messages?beta=true&data_parallel_rank=3") == "?beta=true"
    assert paths.query("/v1/messages?api-version=2024-10-21&api-version=1") == "?api-version=1"
    assert paths.query("/v1/messages?x") == paths.query("/v1/messages") == ""
    assert paths.query("/v1/messages?beta=%0d%0aX:1") == ""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_serves_only_what_is_listed(kind: str) -> None:
    assert KINDS[kind].paths <= set(ENDPOINTS)


PLACES = (
    "X-Data-Parallel-Rank", "X-Session-ID", "X-Vllm-Priority", "x-smg-priority", "x-smg-target",
    "X-SMG-Routing-Key", "x-gateway-destination-endpoint", "x-gateway-inference-objective",
    "x-llm-d-inference-objective", "X-Request-Priority", "x-dynamo-request-priority", "Accept-Encoding",
    "Content-Encoding", "Transfer-Encoding", "Cookie", "Authorization", "X-Forwarded-For",
    "X-HTTP-Method-Override", "X-Original-URL", "X-Rewrite-URL", "endpoint-load-metrics-format",
    "OpenAI-Organization", "OpenAI-Project", "Idempotency-Key", "api-key", "x-api-key", "Host",
    "Content-Length", "x-sooner-class", "x-envoy-upstream-rq-timeout-ms", "Connection", "Upgrade",
    "x-prefill-host-port", "X-New-Tomorrow",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PLACES)
def test_no_header_that_is_not_named_reaches_an_engine(kind: str, name: str) -> None:
    given = [(name, "1"), (name.lower(), "1"), (name.replace("-", "_"), "1"), ("Content-Type", "text/plain")]
    lines = headers.forwarded(given, kind, "/v1/chat/completions", "id", "application/json")
    assert lines == b"Content-Type: application/json\r\n"


def test_what_an_engine_may_see_comes_once_and_in_printable_letters() -> None:
    given = [
        ("Accept", "application/json"), ("ACCEPT", "text/html"), ("User-Agent", "é"),
        ("X-Request-Id", "mine"), ("anthropic-version", "2023-06-01"), ("traceparent", "00-1-2-01"),
    ]  # fmt: skip
    lines = (
        headers.forwarded(given, "vllm", "/v1/messages", "mine", "application/json").decode().split("\r\n")
    )
    assert lines == [
        "Content-Type: application/json", "Accept: application/json", "X-Request-Id: mine",
        "anthropic-version: 2023-06-01", "traceparent: 00-1-2-01", "",
    ]  # fmt: skip
    other = headers.forwarded(given, "vllm", "/v1/completions", "another", "application/json")
    assert b"anthropic" not in other
    assert b"Request-Id" not in other


def test_a_reply_says_nothing_of_where_the_engine_is() -> None:
    for name in (
        "Location", "Content-Location", "Link", "Via", "Set-Cookie", "Server", "X-Backend", "Alt-Svc",
        "Access-Control-Allow-Origin", "openai-organization", "x-envoy-upstream-service-time",
    ):  # fmt: skip
        assert not headers.returned(name)
    assert headers.returned("Content-Type")
