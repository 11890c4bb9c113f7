"""Google's Gemini and Vertex AI: `contents` of `parts`, `candidates`, thoughts counted beside the reply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sooner.workloads.logs import fields, streams
from sooner.workloads.logs.exchange import Exchange
from sooner.workloads.logs.fields import first_mapping, mapping
from sooner.workloads.logs.messages import normal, text_of
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Dropped, Record, shape

_JSON = "application/json"


def _request(record: Record) -> Record:
    request = first_mapping(record, ("request", "full_request", "body", "request_body")) or record
    return first_mapping(request, ("body",)) or request


@shape("gemini", when=lambda record: isinstance(_request(record).get("contents"), list | str))
def gemini(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Read one request and its candidates."""
    request = _request(record)
    told = next(
        (record[name] for name in ("response", "full_response", "response_body") if name in record), record
    )
    response = mapping(streams.whole(told))
    contents = request["contents"]
    given: list[Any] = [{"role": "user", "parts": contents}] if isinstance(contents, str) else contents
    system = mapping(request.get("systemInstruction", request.get("system_instruction")))
    asked = [{"role": "user", **item} if isinstance(item, Mapping) else item for item in given]
    if system:
        asked = [{"role": "system", "content": system.get("parts")}, *asked]
    candidates = response.get("candidates", response.get("choices"))
    found = [mapping(item) for item in candidates] if isinstance(candidates, list) else []
    usage = first_mapping(response, ("usageMetadata", "usage_metadata"))
    config = first_mapping(request, ("generationConfig", "generation_config", "config"))
    ends = [item.get("finishReason", item.get("finish_reason")) for item in found]
    yield Exchange(
        messages=normal(asked, report.unread),
        replies=[_text(item) for item in found],
        said=fields.reply_tokens((), [usage]),
        choices=max(len(found), 1),
        at_limit="MAX_TOKENS" in ends,
        settings={
            **config,
            "tools": request.get("tools"),
            "response_format": config.get("responseSchema")
            or config.get("responseMimeType") == "application/json",
        },
        id=fields.text_in((record,), ("id", "key", "request_id")),
        conversation=fields.text_in((record,), fields.CONVERSATIONS),
        model=fields.text_in((record, request, response), (*fields.MODELS, "modelVersion")) or "",
        sender=fields.text_in((record,), fields.SENDERS),
        arrival_time=fields.moment_in((record,)),
        prompt_len=fields.prompt_tokens((), [usage]),
    )


def _text(candidate: Record) -> str:
    content = candidate.get("content", candidate.get("message"))
    if isinstance(content, Mapping):
        content = content.get("parts", content.get("content"))
    return text_of(content)
