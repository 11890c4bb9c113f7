"""From a record to rows: what tells nothing is dropped, and the length of each reply is decided."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from sooner import chat
from sooner.workloads.logs import fields, shapes
from sooner.workloads.logs.exchange import Count, Exchange, LogRow
from sooner.workloads.logs.fields import mapping
from sooner.workloads.logs.messages import loads, role_of
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Dropped, Record
from sooner.workloads.numbers import number, usable

FAILED = "a request that failed"

_WRAPPED = ("standard_logging_object", "standard_logging_payload")
"""Where LiteLLM's callbacks put the record itself."""

_AS_TEXT = (
    *("messages", "response", "request", "body", "input", "output", "usage", "usageDetails", "usage_details"),
    *("modelParameters", "model_parameters", "proxy_server_request", "metadata", "conversation"),
    *("conversations", "choices", "tools", "response_format", "request_body", "response_body", "inputs"),
    *("outputs", "full_request", "full_response", "attributes", "prompt", "completion"),
)
"""Columns in which databases and exports keep JSON as text."""

_MAY_BE_SAID = ("input", "output", "response", "prompt", "completion", "inputs", "outputs")
"""Of these the ones that may be what a user or a model wrote."""

_BROKEN_OFF = ("abort", "aborted", "cancelled", "error")
_STATUS = ("status_code", "statusCode", "response_status", "http_status", "responseStatus", "status")


def rows(
    record: Record, number_: int, count: Count | None, report: Report, model: str | None = None
) -> Iterator[tuple[LogRow, bool]]:
    """Yield the finished requests of a record, and whether its own name stands for the conversation.

    With `model`, only those of that served model. What cannot be used is counted in `report`.
    """
    record = _decoded(_wrapped(record))
    if (reason := _unusable(record)) is not None:
        report.drop(reason)
        return
    by_hand = number(record.get("output_len")) == 0
    for found in shapes.read(record, report):
        if isinstance(found, Dropped):
            report.drop(found.reason)
        elif not found.messages:
            report.drop("neither a prompt nor messages")
        elif model is not None and found.model != model:
            report.drop("a reply of another model" if found.model else "no model named")
        elif (length := _length(found, count, report, by_hand=by_hand)) is not None:
            if found.model:
                report.models[found.model] += 1
            report.truncated += found.at_limit
            yield _row(found, length, number_), found.conversation is None and found.id is not None


def _row(found: Exchange, length: float, number_: int) -> LogRow:
    return LogRow(
        conversation=found.conversation or found.id or _unnamed(found, number_),
        messages=found.messages,
        output_len=length,
        signals=chat.Signals.of(_plain(found.settings))._replace(
            model=found.model or "", sender=found.sender or ""
        ),
        sender=found.sender,
        arrival_time=found.arrival_time,
        prompt_len=found.prompt_len if usable(found.prompt_len) and found.prompt_len else None,
    )


def _unnamed(found: Exchange, number_: int) -> str:
    """A name for a record that has none, not shared with a record of another file."""
    said = "".join(str(message.get("content"))[:1000] for message in found.messages)
    return f"#{number_}.{zlib.crc32(said.encode('utf-8', 'replace')):08x}"


def _plain(settings: Record) -> dict[str, Any]:
    """Settings under OpenAI's names, their numbers as numbers."""
    named = next((number(settings[name]) for name in fields.LIMITS if settings.get(name) is not None), None)
    limits = dict.fromkeys(chat.LIMITS) | {"max_tokens": named}
    return {**settings, **limits, "temperature": number(settings.get("temperature"))}


def _length(found: Exchange, count: Count | None, report: Report, *, by_hand: bool) -> float | None:
    """The tokens of one reply; None, counted, where nothing tells them.

    A count of 0 beside a reply is not believed, as is one that cannot be: the text is counted then. A 0 of
    a server means that nothing was made; `by_hand`, as our own `output_len`, it is a length.
    """
    texts = [text for text in found.replies if text.strip()]
    if found.said is not None and usable(found.said) and found.said > 0:
        return found.said / found.choices
    if texts:
        if found.said is not None:
            report.disbelieved += 1
        return sum(_count(text, count, report) for text in texts) / len(texts)
    if found.said is None:
        report.drop("an empty reply" if found.replies else "no reply length")
    elif found.said == 0 and by_hand:
        return 0.0
    elif found.said == 0:
        report.drop("a reply of 0 tokens")
    else:
        report.drop("a reply length that is not a finite number >= 0")
    return None


def _count(text: str, count: Count | None, report: Report) -> float:
    if count is not None:
        return float(count(text))
    report.estimated += 1
    return float(max(1, round(chat.estimate_tokens(text))))


def _wrapped(record: Record) -> Record:
    kwargs = record.get("kwargs")
    for source in (record, kwargs if isinstance(kwargs, Mapping) else {}):
        for name in _WRAPPED:
            if isinstance(source.get(name), Mapping):
                inner: Record = source[name]
                return inner
    return record


def _decoded(record: Record) -> Record:
    """The record with the JSON that it keeps as text read."""
    read: dict[str, Any] = {}
    for name in _AS_TEXT:
        value = record.get(name)
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            found = loads(value)
            if found is not None and (name not in _MAY_BE_SAID or _is_chat(found)):
                read[name] = found  # else JSON is what was said
    return {**record, **read} if read else record


def _is_chat(value: object) -> bool:
    """Whether decoded text is part of a chat, and not JSON that a user or a model wrote."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, Mapping) and role_of(item) for item in value)
    return isinstance(value, Mapping) and any(
        name in value
        for name in ("messages", "prompt", "choices", "usage", "role", "content", "generations", "prompts")
    )


def _unusable(record: Record) -> str | None:
    """Why a record tells nothing about replies, None where it may."""
    kind = record.get("type")
    traced = any(name in record for name in ("traceId", "trace_id", "parentObservationId"))
    if traced and isinstance(kind, str) and kind.upper() in ("SPAN", "EVENT", "TRACE"):
        return "an observation that is no generation"
    call = record.get("call_type")
    if isinstance(call, str) and re.search("embedding|rerank|image|speech|transcription|moderation", call):
        return "a call that generates no text"
    if _failed(record) or any(_failed(mapping(record.get(name))) for name in ("response", "response_body")):
        return FAILED
    if record.get("cache_hit") in (True, "True", "true"):
        return "a reply from a cache"
    return None


def _failed(record: Record) -> bool:
    if not record:
        return False
    choices = record.get("choices")
    first = mapping(choices[0]) if isinstance(choices, list) and choices else {}
    if record.get("finish_reason", first.get("finish_reason")) in _BROKEN_OFF:
        return True
    if record.get("status") in ("failure", "failed", "error", "cancelled", "canceled", "errored"):
        return True
    if str(record.get("level")).upper() == "ERROR" or record.get("success") is False:
        return True
    if record.get("error") or record.get("exception") or number(record.get("error_code")):
        return True
    for name in _STATUS:
        code = number(record[name]) if name in record else None
        if code is not None and (code >= 400 or code < 0):
            return True
    return False


def first_turn(row: LogRow) -> bool:
    """Return whether a request comes before any reply of its conversation."""
    return not any(role_of(message) == "assistant" for message in row.messages)
