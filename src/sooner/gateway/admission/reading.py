"""What the gateway takes from a request before it passes the bytes on."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sooner import chat
from sooner.chat import ChatRequest
from sooner.core import DataError
from sooner.gateway.admission import abridged, claims, forms, piecewise, places
from sooner.gateway.admission.abridged import Abridged
from sooner.gateway.admission.claims import ONE, Claimed
from sooner.gateway.admission.forms import BadRequest
from sooner.gateway.admission.paths import ENDPOINTS, Route
from sooner.gateway.engines.prefixes import NONE, Beginnings, beginnings
from sooner.ordering import given
from sooner.ordering.given import Given

_LONGEST_TEXT = 64 * 1024  # letters sent to the scorer; of a longer prompt its two ends
_LONGEST_DEADLINE = 1e12  # ms
_FIELDS = frozenset(
    ("model", "messages", "prompt", "input", "stream", "n", "best_of", "max_tokens", "max_completion_tokens",
     "max_output_tokens", "n_predict", "min_tokens", "ignore_eos", "priority", "vllm_xargs", "documents",
     "query", "queries", "items", "text_1", "text_2", "system", "tools", "suffix", "previous_response_id")
)  # fmt: skip
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
    claim: Claimed = ONE

    @property
    def streams_events(self) -> bool:
        """Whether its reply should be server-sent events."""
        return self.stream and self.endpoint.generates and not self.endpoint.form


def read(
    body: bytes, *, client_scores: bool, deadline_ms: str | None, endpoint: Route = CHAT,
    kinds: Collection[str] = (),
) -> Asked:  # fmt: skip
    """Return what a JSON body asks for at a path of engines of these kinds. Raises BadRequest."""
    return _asked(_parsed(_text(body)), client_scores, deadline_ms, endpoint, kinds)


def read_json(
    body: bytes, *, client_scores: bool, deadline_ms: str | None, endpoint: Route,
    kinds: Collection[str], aliases: Mapping[str, str], model: str = "", query: str = "",
) -> tuple[bytes, Asked]:  # fmt: skip
    """Return the body as an engine gets it, and what it asks for. Raises BadRequest.

    A model's alias is resolved, and what chooses a place is left out; all else stays as it was written.
    A `model` that was named by the path holds, whatever the body names.
    """
    short = abridged.abridged(body) if len(body) > abridged.LARGE else None
    text = _text(body if short is None else short.body)
    parsed = _parsed(text)
    told = parsed if not model else {**parsed, "model": model}
    asked = _asked(told, client_scores, deadline_ms, endpoint, kinds, short, query)
    changes = places.chosen(parsed, prioritised=client_scores)
    real = aliases.get(asked.model, asked.model)
    if real != parsed.get("model", ""):
        changes["model"] = json.dumps(real)
        asked = asked._replace(model=real)
    if not changes:
        return body, asked
    changed = places.edited(text, changes).encode()
    return (changed if short is None else short.restored(changed, body)), asked


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.reason} at byte {error.start}") from error


def _parsed(text: str) -> dict[str, Any]:
    try:
        parsed = piecewise.decoder(len(text), places.once).decode(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(parsed, dict):
        raise BadRequest(f"the body is a JSON {type(parsed).__name__}, allowed: an object")
    for name in parsed:
        if name not in _FIELDS and name.casefold() in _FIELDS:
            raise BadRequest(f"the field {name[:40]!r}, allowed: {name.casefold()!r}")
    places.refuse_kept(parsed)
    return parsed


def _asked(
    parsed: dict[str, Any], client_scores: bool, deadline_ms: str | None, endpoint: Route,
    kinds: Collection[str], short: Abridged | None = None, query: str = "",
) -> Asked:  # fmt: skip
    model = parsed.get("model", "")
    if not isinstance(model, str):
        raise BadRequest(f"model={cut(model)}, allowed: text")
    claim = claims.read(parsed, endpoint, kinds)
    request = _request(parsed, endpoint, claim)
    first = request.prompt_len  # of several prompts it speaks for all
    prompt_len = claims.prompt_len(parsed, endpoint, first, short.missing if short else None)
    if short is not None:
        request = _bare(request, short)
    alike = endpoint.generates and prompt_len <= 2 * first
    said = given.read(parsed.get("vllm_xargs")) if client_scores else given.NOTHING
    if deadline_ms is not None:
        said = said._replace(deadline_ms=_deadline(deadline_ms))
    if not endpoint.generates:
        said = said._replace(score=None, predicted_len=0.0)
    return Asked(
        model,
        claims.flag(parsed.get("stream")),
        request.cut(_LONGEST_TEXT) if endpoint.generates else ChatRequest(),
        prompt_len,
        beginnings(request, model) if alike else NONE,
        (client_scores and places.PRIORITY in parsed) or not endpoint.priority,
        said,
        endpoint,
        query,
        claim=claim,
    )


def _request(parsed: dict[str, Any], endpoint: Route, claim: Claimed) -> ChatRequest:
    if endpoint.path == "/v1/messages" and "system" in parsed:  # of Anthropic's: the system prompt
        with contextlib.suppress(DataError):
            parsed = {**parsed, "instructions": chat.content_text(parsed["system"])}
    elif endpoint.path == "/v1/chat/completions/batch" and isinstance(parsed.get("messages"), list):
        parsed = {**parsed, "messages": next(iter(parsed["messages"]), None)}  # the first speaks for all
    request = chat.of_body(parsed)
    if request.signals.max_tokens == claim.limit:
        return request
    return request._replace(signals=request.signals._replace(max_tokens=claim.limit))


def _bare(request: ChatRequest, short: Abridged) -> ChatRequest:
    """Return the request without the marks of what was left out of its texts."""
    if isinstance(request.prompt, str):
        return request._replace(prompt=short.bare(request.prompt))
    if request.tokenized:
        return request
    return request._replace(prompt=tuple(turn._replace(text=short.bare(turn.text)) for turn in request.turns))


def read_form(
    body: bytes, content_type: str, *, aliases: Mapping[str, str], deadline_ms: str | None, endpoint: Route,
    model: str = "",
) -> tuple[bytes, Asked]:  # fmt: skip
    """Return a form, written anew with its model's name resolved, and what it asks for. Raises BadRequest.

    A `model` that was named by the path holds, whatever the form names.
    """
    fields = [field for field in forms.parts(body, content_type) if not places.is_place(field.name)]
    named = forms.text(fields, "model")
    real = aliases.get(model or named, model or named)
    fields = [field for field in fields if field.name != "model"]
    if real:
        fields.insert(0, forms.Part("model", real.encode()))
    written, kind = forms.written(fields)
    said = given.NOTHING
    if deadline_ms is not None:
        said = said._replace(deadline_ms=_deadline(deadline_ms))
    streamed = claims.flag(forms.text(fields, "stream"))
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
    """Return the body with its model's name replaced; every other field stays as it was written."""
    return places.edited(body.decode("utf-8"), {"model": json.dumps(new)}).encode()
