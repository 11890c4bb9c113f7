"""Chatbot Arena: one question, the conversations of two models."""

from __future__ import annotations

from collections.abc import Iterator

from sooner.workloads.logs import fields
from sooner.workloads.logs.exchange import Exchange
from sooner.workloads.logs.messages import normal
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Dropped, Record, shape
from sooner.workloads.logs.shapes.conversations import replies


@shape(
    "arena",
    when=lambda record: all(isinstance(record.get(f"conversation_{side}"), list) for side in ("a", "b")),
)
def arena(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Read both conversations, each with its model's name; they are one conversation for a split."""
    name = fields.text_in((record,), ("question_id", "conversation_id", "id"))
    for side in ("a", "b"):
        model = record.get(f"model_{side}")
        about = {"conversation": name, "model": model if isinstance(model, str) else ""}
        yield from replies(normal(record[f"conversation_{side}"], report.unread), about)
