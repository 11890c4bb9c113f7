"""How each API says in the middle of a stream that something went wrong: OpenAI's two, and Anthropic's."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

_ANTHROPIC = "/v1/messages"
_RESPONSES = "/v1/responses"
_ANTHROPICS_KINDS = {"server_error": "api_error"}
_LINE_END = re.compile(r"\r\n|\r|\n")


def error_event(path: str, message: str, code: str, kind: str) -> bytes:
    """Return the server-sent event of an error at an endpoint's path."""
    said: dict[str, Any] = {"message": message, "type": kind, "param": None, "code": code}
    if path == _ANTHROPIC:
        error = {"type": _ANTHROPICS_KINDS.get(kind, kind), "message": message}
        return _named("error", {"type": "error", "error": error})
    if path == _RESPONSES:  # its fields are the event's own; OpenAI's clients look into `error` besides
        event = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": 0}
        return _named("error", {**event, "error": said})
    return _data(json.dumps({"error": said}))


def cut_event(path: str, message: str) -> bytes:
    """Return an event, as one HTTP chunk, that says to a streaming client that its reply was cut."""
    event = error_event(path, message, "engine_failed", "server_error")
    return b"%x\r\n%b\r\n" % (len(event), event)


def as_event(path: str, status: int, body: bytes) -> bytes:
    """Return the event that stands for an answer which is no stream: a refusal, or an engine's error."""
    text = body.decode("utf-8", "replace")
    parsed = None
    with contextlib.suppress(ValueError, RecursionError):
        parsed = json.loads(text)
    if status < 400:
        return _data(text)
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else None
    said = error if isinstance(error, dict) else {}
    message = said.get("message", error if isinstance(error, str) else "") or f"the engine answers {status}"
    kind = said.get("type") or ("invalid_request_error" if status < 500 else "server_error")
    return error_event(path, str(message), str(said.get("code") or status), str(kind))


def _named(name: str, data: Any) -> bytes:
    return f"event: {name}\n".encode() + _data(json.dumps(data))


def _data(text: str) -> bytes:
    return "".join(f"data: {line}\n" for line in _LINE_END.split(text)).encode() + b"\n"
