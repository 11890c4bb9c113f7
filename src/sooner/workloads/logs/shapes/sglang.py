"""SGLang: its log of requests, and its own /generate (`text`, `sampling_params`, `meta_info`)."""

from __future__ import annotations

from collections.abc import Iterator

from sooner.workloads.logs import fields
from sooner.workloads.logs.exchange import Exchange
from sooner.workloads.logs.fields import first_mapping, mapping
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Dropped, Record, plain, shape


def _request(record: Record) -> Record:
    return first_mapping(record, ("obj", "request")) or record


def _is_one(record: Record) -> bool:
    reply = first_mapping(record, ("out", "response"))
    return (
        "sampling_params" in _request(record)
        or "meta_info" in reply
        or record.get("event") == "request.received"
    )


@shape("sglang", when=_is_one)
def sglang(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Read one request that has ended."""
    if record.get("event") == "request.received":
        yield Dropped("the begin of a request, which its end tells again")
        return
    request, reply = _request(record), first_mapping(record, ("out", "response"))
    about = mapping(reply.get("meta_info"))
    finish = about.get("finish_reason")
    prompt = request.get("text", request.get("prompt"))
    if prompt is None and request.get("input_ids"):
        yield Dropped("a prompt of token ids, without its text")
        return
    yield from plain.plain(
        {
            **{name: record[name] for name in (*fields.CONVERSATIONS, *fields.SENDERS) if name in record},
            **mapping(request.get("sampling_params")),
            "id": request.get("rid", record.get("rid")),
            "timestamp": record.get("timestamp"),
            "prompt": prompt,
            "messages": request.get("messages"),
            "output_tokens": about.get("completion_tokens"),
            "prompt_tokens": about.get("prompt_tokens"),
            "finish_reason": finish.get("type") if isinstance(finish, dict) else finish,
            "response": {"content": reply.get("text")},
        },
        report,
    )
