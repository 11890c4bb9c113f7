"""Anthropic's Messages: blocks of content, `stop_reason`, the system prompt beside; its batches."""

from __future__ import annotations

from collections.abc import Iterator

from sooner.workloads.logs.exchange import Exchange
from sooner.workloads.logs.fields import mapping
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Dropped, Record, plain, shape


def _batched(record: Record) -> bool:
    return "params" in record and "type" in mapping(record.get("result"))


@shape("anthropic batch", when=_batched)
def batch(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Read a batch's request beside its result; requests and replies themselves are `plain`."""
    result = mapping(record["result"])
    if result.get("type") != "succeeded":
        yield Dropped("a request that failed")
        return
    yield from plain.plain(
        {"id": record.get("custom_id"), "request": record["params"], "response": result.get("message")},
        report,
    )
