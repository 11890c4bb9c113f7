"""Hugging Face's Text Generation Inference: `inputs`, `generated_text`, `details`; its router's log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sooner.workloads.logs import fields
from sooner.workloads.logs.exchange import Exchange
from sooner.workloads.logs.fields import first_mapping, mapping
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Dropped, Record, plain, shape


def _inputs(record: Record) -> Record:
    """What holds `inputs` as text."""
    inner = plain.request_of(record)
    return next((source for source in (inner, record) if isinstance(source.get("inputs"), str)), {})


@shape("tgi", when=lambda record: bool(_inputs(record)))
def tgi(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Read one request to /generate and its reply."""
    request = _inputs(record)
    told = record.get("response", record.get("output", record))
    if isinstance(told, list):
        told = told[0] if told else {}
    response: Record = told if isinstance(told, Mapping) else {"generated_text": told}
    details = mapping(response.get("details", record.get("details")))
    yield from plain.plain(
        {
            **{name: record[name] for name in (*fields.CONVERSATIONS, *fields.SENDERS) if name in record},
            **mapping(request.get("parameters")),
            "id": record.get("id", record.get("request_id")),
            "timestamp": fields.moment_in((record,)),
            "model": fields.text_in((record, request), fields.MODELS),
            "prompt": request["inputs"],
            "output_tokens": details.get("generated_tokens", record.get("generated_tokens")),
            "finish_reason": details.get("finish_reason"),
            "response": {"content": response.get("generated_text")},
        },
        report,
    )


@shape("tgi router", when=lambda record: "inputs" in first_mapping(record, ("span",)))
def router(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Refuse the router's own log: it says neither the reply nor its tokens."""
    yield Dropped("a line of TGI's router, which tells neither the reply nor its tokens (log the responses)")
