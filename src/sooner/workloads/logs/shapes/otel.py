"""OpenTelemetry's spans of generative AI: `gen_ai.*`, as collectors and SDKs export them; OpenInference's.

Read are spans of a call to a model: OTLP as JSON (`resourceSpans`), one span with a list or a mapping of
attributes, messages as JSON in an attribute, in numbered attributes or in events.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sooner.workloads.logs import fields
from sooner.workloads.logs.exchange import Exchange
from sooner.workloads.logs.fields import mapping
from sooner.workloads.logs.messages import loads, normal, said
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Dropped, Record, shape
from sooner.workloads.numbers import number

_ASKED = (
    "gen_ai.input.messages",
    "llm.input_messages",
    "gen_ai.prompt",
    "ai.prompt.messages",
    "input.value",
    "traceloop.entity.input",
)
_ANSWERED = (
    "gen_ai.output.messages", "llm.output_messages", "gen_ai.completion", "ai.response.text", "output.value",
)  # fmt: skip
_OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion")
_PROMPT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
_MODEL = ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name")
_CONVERSATION = ("gen_ai.conversation.id", "session.id", "langfuse.session.id", "thread.id")
_SENDER = ("user.id", "enduser.id", "gen_ai.request.user", "langfuse.user.id")
_NUMBERED = re.compile(
    r"(gen_ai\.prompt|gen_ai\.completion|llm\.input_messages|llm\.output_messages)\.(\d+)\.(?:message\.)?(role|content)"
)
_OURS = ("gen_ai.", "llm.", "openinference.")
_FLAT = (*_OURS, *(f"attributes.{name}" for name in _OURS))  # names of columns, with a span in each row
_NESTED = ("gen_ai", "llm", "openinference", "session", "user", "enduser", "thread")
_DEEPEST = 8  # of nested names
_OTHERS = ("resourceLogs", "resourceMetrics")
_NOT_TEXT = ("embeddings", "execute_tool", "create_agent", "invoke_agent", "retrieval")


def _is_one(record: Record) -> bool:
    if any(name in record for name in ("resourceSpans", "scopeSpans", *_OTHERS)):
        return True
    if isinstance(record.get("spans"), list) and ("traceID" in record or "processes" in record):
        return True
    if any(str(name).startswith(_FLAT) for name in record):
        return True
    if "attributes" in record and any(
        name in record for name in ("spanId", "span_id", "context", "traceId", "trace_id")
    ):
        return True
    return any(
        str(name).startswith(_OURS)
        for where in ("attributes", "tags")
        for name in _attributes(record.get(where))
    )


@shape("otel", when=_is_one)
def otel(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Read every span of a call to a model; the others are dropped and counted."""
    if any(name in record for name in _OTHERS):
        yield Dropped("OpenTelemetry's logs or metrics, which are no spans (export traces)")
        return
    for span in _spans(record):
        yield _read(span, _told(span), report)


def _told(span: Record) -> dict[str, Any]:
    """What a span says: under `attributes`, Jaeger's and Zipkin's `tags`, or in columns of a table."""
    flat = {
        str(name).removeprefix("attributes."): value
        for name, value in span.items()
        if str(name).startswith((*_FLAT, "attributes."))
    }
    return {**_attributes(span.get("tags")), **_attributes(span.get("attributes")), **flat}


def _spans(record: Record) -> Iterator[Record]:
    for name in ("resourceSpans", "scopeSpans", "instrumentationLibrarySpans", "spans"):
        if isinstance(record.get(name), list):
            for inner in record[name]:
                yield from _spans(mapping(inner))
            return
    inner = [name for name in ("scopeSpans", "spans") if name in record]
    if not inner and record:
        yield record


def _read(span: Record, told: Record, report: Report) -> Exchange | Dropped:
    if not any(name.startswith(_OURS[:2]) for name in told):
        return Dropped("a span that is no call of a model")
    if told.get("gen_ai.operation.name") in _NOT_TEXT or told.get("openinference.span.kind", "LLM") != "LLM":
        return Dropped("a span that is no call of a model")
    if mapping(span.get("status")).get("code") in (2, "STATUS_CODE_ERROR", "ERROR") or told.get("error.type"):
        return Dropped("a request that failed")
    asked, answered = _messages(span, told)
    if not asked:
        return Dropped("a span without its prompt (capture the content of messages)")
    ends = told.get("gen_ai.response.finish_reasons")
    ends = loads(ends) if isinstance(ends, str) and ends.startswith("[") else ends
    ends = [
        *(ends if isinstance(ends, list) else [ends]),
        *(mapping(m).get("finish_reason") for m in answered),
    ]
    return Exchange(
        messages=normal(asked, report.unread),
        replies=[text for message in normal(answered, report.unread) if (text := said(message))],
        said=_first(told, _OUTPUT),
        choices=int(number(told.get("gen_ai.request.choice.count")) or 1),
        at_limit=any(isinstance(end, str) and end in fields.ENDS_AT_LIMIT for end in ends),
        settings={
            "max_tokens": told.get("gen_ai.request.max_tokens"),
            "temperature": told.get("gen_ai.request.temperature"),
            "tools": _json(told.get("gen_ai.tool.definitions")),
            "response_format": told.get("gen_ai.output.type") == "json",
        },
        conversation=fields.text_in((told,), _CONVERSATION)
        or fields.text_in((span,), ("traceId", "trace_id")),
        id=fields.text_in((span,), ("spanId", "span_id")),
        model=fields.text_in((told,), _MODEL) or "",
        sender=fields.text_in((told,), _SENDER),
        arrival_time=fields.moment_in((span,)),
        prompt_len=_first(told, _PROMPT),
    )


def _first(told: Record, names: tuple[str, ...]) -> float | None:
    return next((value for name in names if (value := number(told.get(name))) is not None), None)


def _messages(span: Record, told: Record) -> tuple[list[Any], list[Any]]:
    """What was asked and what was answered, wherever the exporter put it."""
    numbered: dict[str, dict[int, dict[str, Any]]] = {}
    for name, value in told.items():
        if place := _NUMBERED.fullmatch(name):
            numbered.setdefault(place[1], {}).setdefault(int(place[2]), {})[place[3]] = value
    asked = _listed(numbered, "gen_ai.prompt", "llm.input_messages")
    answered = _listed(numbered, "gen_ai.completion", "llm.output_messages")
    for source in (told, *(_attributes(event.get("attributes")) for event in _events(span))):
        asked = asked or next(
            (found for name in _ASKED if (found := _as_messages(source.get(name), "user"))), []
        )
        answered = answered or next(
            (found for name in _ANSWERED if (found := _as_messages(source.get(name), "assistant"))), []
        )
    if not asked:
        asked, answered = _said_in_events(span)
    system = _as_messages(told.get("gen_ai.system_instructions"), "system")
    if asked and system:
        asked = [{"role": "system", "content": [part.get("content") for part in system]}, *asked]
    return asked, answered


def _listed(numbered: Mapping[str, dict[int, dict[str, Any]]], *names: str) -> list[Any]:
    for name in names:
        if name in numbered:
            return [message for _, message in sorted(numbered[name].items()) if "role" in message]
    return []


def _said_in_events(span: Record) -> tuple[list[Any], list[Any]]:
    """Messages as events of their own: `gen_ai.user.message`, `gen_ai.choice`."""
    asked: list[Any] = []
    answered: list[Any] = []
    for event in _events(span):
        found = re.fullmatch(
            r"gen_ai\.(system|user|assistant|tool)\.message|gen_ai\.(choice)", str(event.get("name"))
        )
        if found:
            told = {**_attributes(event.get("attributes")), **mapping(_json(event.get("body")))}
            told = {**told, **mapping(_json(told.get("message")))}
            role = found[1] or "assistant"
            (answered if found[2] else asked).append(
                {"role": role, "content": told.get("content", told.get("text"))}
            )
    return asked, answered


def _events(span: Record) -> list[Record]:
    events = span.get("events")
    return [event for event in events if isinstance(event, Mapping)] if isinstance(events, list) else []


def _as_messages(value: Any, role: str) -> list[Any]:
    found = _json(value)
    if isinstance(found, Mapping) and isinstance(found.get("messages"), list):
        found = found["messages"]
    if isinstance(found, list) and found and all(isinstance(item, Mapping) for item in found):
        found = [mapping(item.get("message")) or item for item in found]  # OpenInference's stand one deeper
        return [{str(name).removeprefix("message."): value for name, value in item.items()} for item in found]
    return [{"role": role, "content": value}] if isinstance(value, str) and value else []


def _json(value: Any) -> Any:
    return loads(value) if isinstance(value, str) and value.lstrip()[:1] in ("{", "[") else value


def _attributes(given: Any) -> dict[str, Any]:
    """Attributes as a mapping: OTLP lists them as keys and typed values, some exporters nest their names."""
    if isinstance(given, Mapping):
        return dict(_named(given, ""))
    if not isinstance(given, list):
        return {}
    return {
        str(item["key"]): _value(item.get("value"))
        for item in given
        if isinstance(item, Mapping) and "key" in item
    }


def _named(given: Record, before: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield attributes by whole names, such as those in `{"gen_ai": {"usage": {"output_tokens": 3}}}`."""
    for name, value in given.items():
        whole, read = f"{before}{name}", _value(value)
        if isinstance(read, Mapping) and depth < _DEEPEST and whole.partition(".")[0] in _NESTED:
            yield from _named(read, f"{whole}.", depth + 1)
        else:
            yield whole, read


def _value(given: Any, depth: int = 0) -> Any:
    if not isinstance(given, Mapping) or len(given) != 1 or depth > 20:
        return given
    kind, value = next(iter(given.items()))
    if kind == "arrayValue":
        return [_value(item, depth + 1) for item in mapping(value).get("values", [])]
    if kind == "kvlistValue":
        listed = mapping(value).get("values", [])
        return {
            item.get("key"): _value(item.get("value"), depth + 1)
            for item in listed
            if isinstance(item, Mapping)
        }
    return value if kind in ("stringValue", "intValue", "doubleValue", "boolValue", "bytesValue") else given
