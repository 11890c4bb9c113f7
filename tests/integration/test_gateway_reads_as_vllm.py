"""The gateway against vLLM's real routes and request models: what passes means the same to both.

Thousands of generated spellings of paths, headers, limits and bodies. Seeds are fixed, and a case that
fails is shown whole.
"""

from __future__ import annotations

import asyncio
import json
import random
import warnings
from functools import cache
from typing import Any
from urllib.parse import unquote

import pytest

from sooner.gateway.admission import headers, paths, reading
from sooner.gateway.admission.forms import BadRequest
from sooner.gateway.admission.paths import ENDPOINTS, UnknownPath
from sooner.gateway.engines.kinds import KINDS

pytestmark = pytest.mark.engine

CASES = 10_000
SPOKEN = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


@cache
def routes() -> tuple[Any, ...]:
    """Return the routes of vLLM's own application."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.entrypoints.openai.api_server import build_app
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        try:
            from vllm.entrypoints.launchers.cli_args import make_arg_parser
        except ImportError:  # where it was before 0.30
            from vllm.entrypoints.openai.cli_args import make_arg_parser
        settings = make_arg_parser(FlexibleArgumentParser()).parse_args([])
        app = build_app(settings, ("generate", "transcription"))
    return tuple(route for route in app.routes if getattr(route, "methods", None))


@cache
def models() -> dict[str, Any]:
    """Return vLLM's request models by path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    found = (ChatCompletionRequest, CompletionRequest, ResponsesRequest, AnthropicMessagesRequest)
    return dict(zip(SPOKEN, found, strict=True))


@cache
def served_by_vllm(path: str, method: str) -> str | None:
    """Return the route that vLLM would serve a decoded path with."""
    from starlette.routing import Match

    scope = {"type": "http", "path": path, "root_path": "", "method": method, "headers": []}
    return next((route.path for route in routes() if route.matches(scope)[0] is Match.FULL), None)


def spelled(draw: random.Random, path: str) -> str:
    """Return some spelling of a path: letters encoded once or twice, parts put in, ends changed."""
    encoded = ""
    for letter in path:
        roll = draw.random()
        code = f"%{ord(letter):02x}"
        if roll < 0.03:
            letter = code if draw.random() < 0.5 else code.upper()
        elif roll < 0.04:
            letter = code.replace("%", "%25")
        encoded += letter
    for _ in range(draw.choice((0, 0, 0, 1, 2))):
        at = draw.randrange(len(encoded) + 1)
        odd = draw.choice(
            ("/", "//", "/./", "/../", "/x/..", "%2F", "%2f", "%5c", "\\", "%00", "%0a", "%0d%0a", ";x", "?",
             "#", "%", "%20", "\t", "é", "%c3%a9", "%c0%af", ".", "%2e%2e/", "A", "+", "%25", "@", ":", "~",
             "v1/")
        )  # fmt: skip
        encoded = encoded[:at] + odd + encoded[at:]
    tail = draw.choice(
        ("", "", "", "", "/", "?a=b", "?api-version=1", "%3f", "/.", "/..", "%20", "%0a", "//")
    )
    front = draw.choice(("", "", "", "", "", "", "/", "http://other", "/%2e", "/x/.."))
    return front + encoded + tail


def test_a_path_that_passes_is_the_one_that_vllm_serves() -> None:
    draw = random.Random(13)
    known = sorted(
        {route.path for route in routes()} | set(ENDPOINTS) | {"/v1/load_lora_adapter", "/v1/files"}
    )
    passed = 0
    for _ in range(CASES):
        target = spelled(draw, draw.choice(known).replace("{response_id}", "resp_1"))
        try:
            sent = paths.endpoint(paths.canonical(target)).path
        except UnknownPath:
            continue
        passed += 1
        assert sent in ENDPOINTS
        assert unquote(target.partition("?")[0]) == sent, target  # as uvicorn decodes it
        assert served_by_vllm(sent, "POST") in (sent, None), target
    assert passed > CASES / 50


def test_the_list_of_vllm_is_what_vllm_has_and_generates_with() -> None:
    for path in KINDS["vllm"].paths:
        pooled = not ENDPOINTS[path].generates and "messages" not in path
        assert pooled or served_by_vllm(path, "POST") == path  # pooling models have routes of their own
    for route in routes():
        listed = route.path in ENDPOINTS
        ours = route.path in ("/v1/models", "/health", "/metrics")
        assert listed or ours or paths_closed(route.path.replace("{response_id}", "resp_1")), route.path


def paths_closed(path: str) -> bool:
    try:
        paths.endpoint(paths.canonical(path))
    except UnknownPath:
        return True
    return False


def test_no_header_that_passes_says_anything_to_vllm() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from starlette.datastructures import Headers
        from vllm.entrypoints.generate.base.serving import GenerateBaseServing
    names = ("X-data-parallel-rank", "X-Session-ID", "X-Vllm-Priority", "X-Request-Id", "Accept",
             "User-Agent", "Content-Type", "traceparent", "Content-Encoding",
             "Authorization", "Host", "X-Any")  # fmt: skip
    draw = random.Random(14)

    class _Raw:
        def __init__(self, lines: bytes) -> None:
            pairs = [line.split(b": ", 1) for line in lines.split(b"\r\n") if line]
            self.headers = Headers(raw=[(name.lower(), value) for name, value in pairs])

    for _ in range(CASES):
        given = []
        for _ in range(draw.randrange(6)):
            name = "".join(one.upper() if draw.random() < 0.3 else one for one in draw.choice(names))
            name = name.replace("-", draw.choice(("-", "-", "_")))
            given.append((name, draw.choice(("1", "7", "mine", "a, b", "é", "\udcff", "1\tX-Session-ID: 3"))))
        raw: Any = _Raw(headers.forwarded(given, "vllm", draw.choice(SPOKEN), "mine", "application/json"))
        assert raw.headers.getlist("content-type") == ["application/json"]
        assert len(set(raw.headers.keys())) == len(raw.headers.keys())
        assert raw.headers.get("x-request-id") in (None, "mine")
        assert GenerateBaseServing._get_data_parallel_rank(raw) is None
        assert GenerateBaseServing._get_session_id_from_headers(raw) is None
        assert raw.headers.get("X-Vllm-Priority") is None


NUMBERS = (1, 5, 16, 4000, "4000", " 77 ", "4_000", "1.0", "12.", 9.0, 9.5, True, False, None, 0, -1, "x", "",
           10**12, "1e3", "٣", [5], {"a": 1})  # fmt: skip
TEXTS = ("hi", "", "é", "\ud800", "x" * 300, 'a"b\\c\n', "😀")
PROMPTS = ("hi", ["a", "b", "c"], [1, 2, 3], [[1, 2], [3]], [], None, ["é"], [["a"]])
NAMES = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "best_of",
    "min_tokens",
    "n_predict",
)


def body(draw: random.Random, path: str) -> dict[str, Any]:
    """Return some body for a path, mostly a good one."""
    said: dict[str, Any] = {"model": draw.choice(("m", "m", "alias", "é"))}
    text = draw.choice(TEXTS)
    if path == "/v1/completions":
        said["prompt"] = draw.choice(PROMPTS)
    elif path == "/v1/responses":
        said["input"] = text
    else:
        said["messages"] = [{"role": "user", "content": text}]
    if path == "/v1/messages":
        said["max_tokens"] = 50
    for name in draw.sample(NAMES, draw.randrange(4)):
        said[name] = draw.choice(NUMBERS) if draw.random() < 0.7 else draw.randrange(1, 500)
    for name, values in (
        ("stream", (True, False, "true", 1, None, "no")), ("priority", (0, 3, -5)),
        ("session_id", ("s",)), ("user", ("u",)),
        ("kv_transfer_params", ({"do_remote_prefill": True}, {})),
        ("vllm_xargs", ({"session_id": "s"}, None)),
        ("ignore_eos", (True, False)), ("request_id", ("r",)),
    ):  # fmt: skip
        if draw.random() < 0.15:
            said[name] = draw.choice(values)
    return said


def encoded(draw: random.Random, said: dict[str, Any]) -> bytes:
    """Return some spelling of a body: escapes, blanks, fields twice, other encodings."""
    text = json.dumps(said, ensure_ascii=draw.random() < 0.5, indent=draw.choice((None, None, 1)))
    if draw.random() < 0.1:
        text = text.replace("max_tokens", "max_\\u0074okens", 1)
    if draw.random() < 0.05:
        text = text.replace("{", '{"max_tokens": 1,', 1)
    if draw.random() < 0.03:
        text = text.replace("max_tokens", draw.choice(("Max_Tokens", "max_to\u212aens", "MAX_TOKENS")), 1)
    if draw.random() < 0.03:
        text += draw.choice((" ", "\n", "}", "x", "{}"))
    encoding = draw.choice(("utf-8",) * 12 + ("utf-8-sig", "utf-16", "utf-32", "latin-1"))
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf-8") else "replace")


def as_vllm(data: bytes, path: str) -> Any:
    """Return the request as vLLM reads it, None where it refuses it."""
    from pydantic import ValidationError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return models()[path].model_validate(json.loads(data))
    except (ValidationError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    except Exception as error:  # vLLM's own errors of validation, which are of several kinds
        if type(error).__module__.startswith("vllm"):
            return None
        raise


def limit_of(request: Any, path: str) -> int | None:
    if path == "/v1/chat/completions":
        given = request.max_completion_tokens
        return given if given is not None else vars(request)["max_tokens"]  # deprecated, it warns
    return request.max_output_tokens if path == "/v1/responses" else request.max_tokens


def prompts_of(request: Any) -> int:
    prompt = getattr(request, "prompt", None)
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1


def test_what_a_request_claims_is_what_vllm_will_do() -> None:
    draw = random.Random(15)
    taken = 0
    for _ in range(CASES):
        path = draw.choice(SPOKEN)
        said = body(draw, path)
        data = encoded(draw, said)
        try:
            sent, asked = reading.read_json(
                data, client_scores=False, deadline_ms=None, endpoint=ENDPOINTS[path], kinds={"vllm"},
                aliases={"alias": "the one"},
            )  # fmt: skip
        except BadRequest:
            continue
        found = as_vllm(sent, path)
        if found is None:
            continue
        taken += 1
        assert found.model == asked.model, data
        assert bool(found.stream) is asked.stream, data
        assert not getattr(found, "priority", 0), data
        assert not getattr(found, "session_id", None), data
        assert not found.kv_transfer_params, data
        assert not (found.vllm_xargs or {}).get("session_id"), data
        limit = limit_of(found, path)
        if limit is not None and limit >= 1:
            assert asked.claim.limit in (limit, None if limit >= 2**31 else limit), data
        else:
            assert asked.claim.limit is None, data
        choices = (found.n if "n" in type(found).model_fields else 1) or 1
        choices = min(choices, 2**16)  # vLLM itself refuses more than 2**14
        assert asked.claim.replies >= min(choices * prompts_of(found), 2**16), data
        if not said.get("best_of"):
            assert asked.claim.replies == min(max(1, choices) * prompts_of(found), 2**16), data
    assert taken > CASES / 4


def test_a_body_that_vllm_reads_otherwise_never_passes() -> None:
    """What is sent parses, as FastAPI parses it, to what was read but for what is left out."""
    draw = random.Random(16)
    left_out = {"priority", "session_id", "kv_transfer_params", "request_id", "vllm_xargs"}
    for _ in range(CASES):
        path = draw.choice(SPOKEN)
        data = encoded(draw, body(draw, path))
        try:
            sent, _ = reading.read_json(
                data, client_scores=False, deadline_ms=None, endpoint=ENDPOINTS[path], kinds={"vllm"},
                aliases={"alias": "the one"},
            )  # fmt: skip
        except BadRequest:
            continue
        before, after = json.loads(data), json.loads(sent)
        assert sent.decode("utf-8")
        if before.get("model") == "alias":
            before["model"] = "the one"
        kept = {name: value for name, value in before.items() if name not in left_out}
        assert {name: value for name, value in after.items() if name != "vllm_xargs"} == kept


def test_vllm_takes_the_content_type_that_is_sent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from starlette.requests import Request
        from vllm.entrypoints.serve.utils.api_utils import validate_json_request
    lines = headers.forwarded([("Content-Type", "text/plain")], "vllm", SPOKEN[0], "x", "application/json")
    pairs = [tuple(line.lower().split(b": ", 1)) for line in lines.split(b"\r\n") if line]
    asyncio.run(validate_json_request(Request({"type": "http", "headers": pairs})))
