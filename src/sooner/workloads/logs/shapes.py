"""What a record of a log means: which messages were asked, and how many tokens the reply had.

See `sooner.workloads.logs` for the shapes that are known.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sooner import chat
from sooner.chat import role_of
from sooner.workloads.logs.report import Report

Count: TypeAlias = Callable[[str], int]
"""Counts the tokens of a reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRow:
    """One finished request: its messages, the length of the reply [tokens], and what else was said.

    `conversation` is shared by the requests of one conversation. Messages are those before the reply.
    `sender` is who asked, `arrival_time` [s] and `prompt_len` [tokens] what the record says of them.
    """

    conversation: str
    messages: Sequence[Mapping[str, Any]]
    output_len: float
    signals: chat.Signals = chat.UNSAID
    sender: str | None = None
    arrival_time: float | None = None
    prompt_len: float | None = None

    @property
    def request(self) -> chat.ChatRequest:
        """What was asked, as every reader of requests has it."""
        return chat.of_messages(self.messages, self.signals)


_WRAPPED = ("standard_logging_object", "standard_logging_payload")
"""Where LiteLLM's callbacks put the record itself."""

_AS_TEXT = (
    *("messages", "response", "request", "body", "input", "output", "usage", "usageDetails", "usage_details"),
    *("modelParameters", "model_parameters", "proxy_server_request", "metadata", "conversation"),
    *("conversations", "choices", "tools", "response_format"),
)
"""Columns in which databases and exports keep JSON as text."""


def rows(
    record: Mapping[str, Any], number: int, count: Count | None, report: Report, model: str | None = None
) -> Iterator[LogRow]:
    """Yield the finished requests of one record; what cannot be used is counted in `report`.

    With `model`, only records of that served model.
    """
    record = _decoded(_wrapped(record))
    if (reason := _unusable(record)) is not None:
        report.dropped[reason] += 1
        return
    served = _model(record)
    if model is not None and served != model:
        report.dropped["a reply of another model" if served else "no model named"] += 1
        return
    for row in _rows(record, number, count, report):
        if served:
            report.models[served] += 1
        yield row


def _wrapped(record: Mapping[str, Any]) -> Mapping[str, Any]:
    kwargs = record.get("kwargs")
    for source in (record, kwargs if isinstance(kwargs, Mapping) else {}):
        for name in _WRAPPED:
            if isinstance(source.get(name), Mapping):
                inner: Mapping[str, Any] = source[name]
                return inner
    return record


def _decoded(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record with the JSON that it keeps as text read."""
    read = {}
    for name in _AS_TEXT:
        value = record.get(name)
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            try:
                found = json.loads(value)
            except json.JSONDecodeError:
                continue
            if name not in ("input", "output", "response") or _is_chat(found):
                read[name] = found  # else JSON is what was said
    return {**record, **read} if read else record


def _is_chat(value: object) -> bool:
    """Whether decoded text is part of a chat, and not JSON that a user or a model wrote."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, Mapping) and role_of(one) for one in value)
    return isinstance(value, Mapping) and any(
        name in value for name in ("messages", "prompt", "choices", "usage", "role", "content")
    )


def _unusable(record: Mapping[str, Any]) -> str | None:
    """Why a record tells nothing about replies, None where it may."""
    kind = record.get("type")
    traced = any(name in record for name in ("traceId", "trace_id", "parentObservationId"))
    if traced and isinstance(kind, str) and kind.upper() in ("SPAN", "EVENT", "TRACE"):
        return "an observation that is no generation"
    call = record.get("call_type")
    if isinstance(call, str) and re.search("embedding|rerank|image|speech|transcription|moderation", call):
        return "a call that generates no text"
    status, level = record.get("status"), record.get("level")
    if status in ("failure", "failed", "error") or level == "ERROR" or record.get("error"):
        return "a request that failed"
    code = _first_mapping(record, ("response",)).get("status_code", 200)
    if isinstance(code, int) and code >= 400:
        return "a request that failed"
    if record.get("cache_hit") in (True, "True", "true"):
        return "a reply from a cache"
    return None


def _model(record: Mapping[str, Any]) -> str:
    request, response = _first_mapping(record, ("request", "body")), _response(record)
    for source in (record, request, response):
        for name in ("model", "model_group", "provided_model_name", "providedModelName", "model_name"):
            if isinstance(source.get(name), str) and source[name]:
                return str(source[name])
    return ""


def _response(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The response's body: OpenAI's batches wrap it once more."""
    response = _first_mapping(record, ("response", "output"))
    return _first_mapping(response, ("body",)) or response


def _rows(record: Mapping[str, Any], number: int, count: Count | None, report: Report) -> Iterator[LogRow]:
    conversation = _conversation(record, number)
    whole = record.get("conversations", record.get("conversation"))
    if isinstance(whole, Sequence) and not isinstance(whole, str):
        yield from _replies(whole, conversation, count, report)
        return
    request = _first_mapping(record, ("request", "body", "proxy_server_request", "kwargs"))
    request = {**request, **_first_mapping(request, ("body",))}
    parameters = {**_mapping(record.get("modelParameters")), **_mapping(record.get("model_parameters"))}
    settings = {**parameters, **record, **{name: value for name, value in request.items() if _says(value)}}
    messages = _messages(settings)
    if messages is None:
        report.dropped["neither a prompt nor messages"] += 1
        return
    length = _length(record, request)
    if length is None and messages and role_of(messages[-1]) == "assistant":
        yield from _replies(messages, conversation, count, report)
        return
    if length is None:
        reply = _reply(record)
        if not reply:
            report.dropped["no reply length"] += 1
            return
        length = float(_count(reply, count, report))
    if not (math.isfinite(length) and length >= 0):
        report.dropped["a reply length that is not a finite number >= 0"] += 1
        return
    if _cut_off(record):
        report.truncated += 1
    yield LogRow(
        conversation=conversation,
        messages=messages,
        output_len=length,
        signals=chat.Signals.of(settings),
    )


def _says(value: object) -> bool:
    """Whether a setting was made: 0 is one, an empty text or list is none."""
    return bool(value) or isinstance(value, int | float)


def _cut_off(record: Mapping[str, Any]) -> bool:
    for source in (record, _response(record)):
        choices = source.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else {}
        if "length" in (source.get("finish_reason"), _mapping(first).get("finish_reason")):
            return True
        if source.get("status") == "incomplete":
            return True
    return False


def _replies(
    whole: Sequence[Any], conversation: str, count: Count | None, report: Report
) -> Iterator[LogRow]:
    """One row for each reply of a recorded conversation that answers a user or a tool."""
    messages = [message for message in whole if isinstance(message, Mapping) and role_of(message)]
    for at, message in enumerate(messages):
        text = message.get("content", message.get("value"))
        if role_of(message) != "assistant" or at == 0 or not isinstance(text, str):
            continue
        if role_of(messages[at - 1]) in ("assistant", "system"):
            report.dropped["a reply to nothing"] += 1
        elif not text.strip():
            report.dropped["an empty reply"] += 1
        else:
            length = float(_count(text, count, report))
            yield LogRow(conversation=conversation, messages=messages[:at], output_len=length)


def _messages(settings: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    for name in ("messages", "prompt", "input"):
        found = settings.get(name)
        if isinstance(found, Mapping):
            found = found.get("messages", found.get("prompt"))
        if isinstance(found, str) and name == "messages":
            try:
                found = json.loads(found)  # LiteLLM's spend logs keep JSON in a column of text
            except json.JSONDecodeError:
                continue
        if isinstance(found, str):
            return [{"role": "user", "content": found}]
        if (
            isinstance(found, list)
            and found
            and all(isinstance(one, Mapping) and role_of(one) for one in found)
        ):
            return found
    return None


def _length(record: Mapping[str, Any], request: Mapping[str, Any]) -> float | None:
    """The reply's tokens as the record says them, None where it does not."""
    response = _response(record)
    usages = [
        _mapping(source.get(name))
        for source in (record, response, request)
        for name in ("usage", "usageDetails", "usage_details", "metrics")
    ]
    for source in (record, response, *usages):
        for name in ("output_len", "output_tokens", "completion_tokens", "completionTokens", "output"):
            value = source.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
    return None


def _reply(record: Mapping[str, Any]) -> str:
    """The reply's text, empty where there is none."""
    response = _response(record)
    for source in (response, record):
        choices = source.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
            text = _mapping(choices[0].get("message")).get("content", choices[0].get("text"))
            if isinstance(text, str):
                return text
        parts = source.get("output")
        if isinstance(parts, list):  # OpenAI's Responses
            texts = [part.get("text") for one in parts for part in _parts(one)]
            if any(isinstance(text, str) for text in texts):
                return "".join(text for text in texts if isinstance(text, str))
        for name in ("content", "generated", "completion", "output", "response", "reply"):
            if isinstance(source.get(name), str):
                return str(source[name])
    return ""


def _parts(item: object) -> Sequence[Mapping[str, Any]]:
    content = _mapping(item).get("content")
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []


def _count(text: str, count: Count | None, report: Report) -> int:
    if count is not None:
        return count(text)
    report.estimated += 1
    return max(1, round(chat.estimate_tokens(text)))


def _conversation(record: Mapping[str, Any], number: int) -> str:
    for name in ("conversation_id", "conversation_hash", "session_id", "sessionId", "trace_id", "traceId"):
        if isinstance(record.get(name), str) and record[name]:
            return str(record[name])
    found = record.get("id", record.get("request_id"))
    return f"#{number}" if found is None else re.sub(r"_\d+\Z", "", str(found))


def _first_mapping(record: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    return next((value for name in names if isinstance(value := record.get(name), Mapping)), {})


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
