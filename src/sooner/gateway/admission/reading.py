"""What the gateway takes from a request before it passes the bytes on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

from sooner import chat
from sooner.chat import ChatRequest
from sooner.gateway.admission import forms
from sooner.gateway.admission.forms import BadRequest
from sooner.gateway.admission.paths import ENDPOINTS, Route
from sooner.gateway.engines.prefixes import NONE, Beginnings, beginnings
from sooner.ordering import given
from sooner.ordering.given import Given

_LONGEST_TEXT = 64 * 1024  # letters sent to the scorer; of a longer prompt its two ends
_LONGEST_DEADLINE = 1e12  # ms
_YES = ("true", "1", "yes", "on", "t", "y")
_BYTES_OF_A_TOKEN = 256  # of sound, about: 20 ms of it are one token for the engine
_SHOWN = 120  # letters of a client's value that an answer repeats


CHAT = ENDPOINTS["/v1/chat/completions"]


class Asked(NamedTuple):
    """What one request asks for, where, and as what its body goes to an engine.

    `prompt_len` is an estimate; `beginnings` are equal as far as prompts begin alike. `query` is what of
    the client's is sent behind the path.
    """

    model: str
    stream: bool
    request: ChatRequest
    prompt_len: int
    beginnings: Beginnings
    prioritised: bool
    given: Given
    endpoint: Route = CHAT
    query: str = ""
    content_type: str = "application/json"


def read(body: bytes, *, client_scores: bool, deadline_ms: str | None, endpoint: Route = CHAT) -> Asked:
    """Return what a JSON body asks for at an endpoint. Raises BadRequest where it is no request."""
    try:
        parsed = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(parsed, dict):
        raise BadRequest(f"the body is a JSON {type(parsed).__name__}, allowed: an object")
    model = parsed.get("model", "")
    if not isinstance(model, str):
        raise BadRequest(f"model={cut(model)}, allowed: text")
    request = chat.of_body(parsed)
    said = given.read(parsed.get("vllm_xargs")) if client_scores else given.NOTHING
    if deadline_ms is not None:
        said = said._replace(deadline_ms=_deadline(deadline_ms))
    if not endpoint.generates:
        said = said._replace(score=None, predicted_len=0.0)
    return Asked(
        model,
        parsed.get("stream") is True,
        request.cut(_LONGEST_TEXT) if endpoint.generates else ChatRequest(),
        request.prompt_len,
        beginnings(request, model) if endpoint.generates else NONE,
        "priority" in parsed or not endpoint.priority,
        said,
        endpoint,
    )


def read_form(
    body: bytes, content_type: str, *, aliases: Mapping[str, str], deadline_ms: str | None, endpoint: Route
) -> tuple[bytes, Asked]:
    """Return a form, written anew with its model's name resolved, and what it asks for. Raises BadRequest."""
    fields = forms.parts(body, content_type)
    model = forms.text(fields, "model")
    real = aliases.get(model, model)
    fields = [one._replace(value=real.encode()) if one.name == "model" else one for one in fields]
    written, kind = forms.written(fields)
    said = (
        given.NOTHING if deadline_ms is None else given.NOTHING._replace(deadline_ms=_deadline(deadline_ms))
    )
    streamed = forms.text(fields, "stream").strip().lower() in _YES
    prompt_len = max(1, len(body) // _BYTES_OF_A_TOKEN)
    asked = Asked(real, streamed, ChatRequest(), prompt_len, NONE, True, said, endpoint, "", kind)
    return written, asked


def cut(value: object) -> str:
    """Return how a client's value is shown in an answer: never more of it than a line."""
    text = value[:_SHOWN] if isinstance(value, str) else value
    return f"{text!r:.{_SHOWN}}" if isinstance(value, str | int | float | None) else type(value).__name__


def _deadline(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= _LONGEST_DEADLINE:
        raise BadRequest(f"x-sooner-deadline-ms: {text[:40]!r}, allowed: milliseconds > 0")
    return value


def renamed(body: bytes, old: str, new: str) -> bytes:
    """Return the body with its model's name replaced: the one change that writes the JSON anew."""
    parsed = json.loads(body)
    assert parsed["model"] == old  # the caller read it from this body
    parsed["model"] = new
    return json.dumps(parsed, separators=(",", ":")).encode("ascii")  # so a lone surrogate stays an escape
