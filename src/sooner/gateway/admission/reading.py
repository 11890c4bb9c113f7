"""What the gateway takes from a request before it passes the bytes on."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

from sooner import chat
from sooner.chat import ChatRequest
from sooner.core import ConfigError
from sooner.ordering import given
from sooner.ordering.given import Given

PREFIX = 512  # letters that decide whether two prompts begin alike
_LONGEST_TEXT = 64 * 1024  # letters sent to the scorer; of a longer prompt its two ends
_LONGEST_DEADLINE = 1e12  # ms


class BadRequest(ConfigError):
    """A request that cannot be served as it is: HTTP 400."""


class Asked(NamedTuple):
    """What one request asks for. `prompt_len` is an estimate; `prefix` is equal where prompts begin alike."""

    model: str
    stream: bool
    request: ChatRequest
    prompt_len: int
    prefix: int
    prioritised: bool
    given: Given


def read(body: bytes, *, client_scores: bool, deadline_ms: str | None) -> Asked:
    """Return what a JSON body asks for. Raises BadRequest where it is no request."""
    try:
        parsed = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(parsed, dict):
        raise BadRequest(f"the body is a JSON {type(parsed).__name__}, allowed: an object")
    model = parsed.get("model", "")
    if not isinstance(model, str):
        raise BadRequest(f"model={model!r}, allowed: text")
    request = chat.of_body(parsed)
    opening = request.opening(PREFIX)
    said = given.read(parsed.get("vllm_xargs")) if client_scores else given.NOTHING
    if deadline_ms is not None:
        said = said._replace(deadline_ms=_deadline(deadline_ms))
    return Asked(
        model,
        parsed.get("stream") is True,
        request.cut(_LONGEST_TEXT),
        request.prompt_len,
        hash(opening) if opening else 0,
        "priority" in parsed,
        said,
    )


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
    return json.dumps(parsed, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
