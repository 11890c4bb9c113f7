"""Ollama: `options.num_predict`, `eval_count`, `done_reason`, thoughts beside the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sooner.workloads.logs import fields
from sooner.workloads.logs.exchange import Exchange
from sooner.workloads.logs.fields import mapping
from sooner.workloads.logs.messages import said
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Dropped, Record, plain, shape


def _is_one(record: Record) -> bool:
    response = plain.response_of(record)
    return any("eval_count" in source or "done" in source for source in (record, response))


@shape("ollama", when=_is_one)
def ollama(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Read one request to /api/chat or /api/generate, beside its reply or among the reply's fields."""
    request = plain.request_of(record) or record
    response = plain.response_of(record) or record
    options = mapping(request.get("options"))
    message = response.get("message")
    texts = {"content": response.get("response"), "thinking": response.get("thinking")}
    text = said(message) if isinstance(message, Mapping) else said(texts)
    if not text:
        text = "".join(plain.reply_texts({}, response, report))
    yield from plain.plain(
        {
            **{name: record[name] for name in (*fields.CONVERSATIONS, *fields.SENDERS) if name in record},
            "id": record.get("id", record.get("request_id")),
            "created_at": record.get("created_at", response.get("created_at")),
            "request": {**options, **{name: value for name, value in request.items() if name != "response"}},
            "response": {
                "content": text,
                "model": response.get("model"),
                "eval_count": response.get("eval_count"),
                "finish_reason": response.get("done_reason"),
            },
            "prompt_tokens": response.get("prompt_eval_count"),
        },
        report,
    )
