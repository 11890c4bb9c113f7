"""Batches: OpenAI's and Anthropic's put requests and replies into two files, and `custom_id` joins them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sooner.workloads.logs.report import Report

_ASKED = ("body", "params")
_ANSWERED = ("response", "result", "error")


def joined(records: Iterable[Any], report: Report) -> Iterator[Any]:
    """Yield records, a batch's outputs with their inputs; outputs that meet none are passed on as they are.

    A `custom_id` that several requests share tells nothing and is dropped.
    """
    asked: dict[str, list[Mapping[str, Any]]] = {}
    answered: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        half = _half(record)
        if half is None:
            yield record
        else:
            (asked if half in _ASKED else answered).setdefault(record["custom_id"], []).append(record)
    for name in [*asked, *(name for name in answered if name not in asked)]:
        inputs, outputs = asked.get(name, []), answered.get(name, [])
        if len(inputs) > 1 or len(outputs) > 1:
            for _ in range(max(len(inputs), len(outputs))):
                report.drop("a batch's `custom_id` that several requests share")
        elif not outputs:
            report.drop("a batch's request without its output")
        else:
            yield {**(inputs[0] if inputs else {}), **outputs[0]}


def _half(record: Any) -> str | None:
    """Which half of a batch's request a record is, by its telling field; None for what is whole."""
    if not isinstance(record, Mapping) or not isinstance(record.get("custom_id"), str):
        return None
    asked = next((name for name in _ASKED if isinstance(record.get(name), Mapping)), None)
    answered = next((name for name in _ANSWERED if isinstance(record.get(name), Mapping)), None)
    return None if asked and answered else asked or answered
