"""OpenAssistant: trees of messages, in which a message has several replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sooner.workloads.logs import fields
from sooner.workloads.logs.exchange import Exchange
from sooner.workloads.logs.fields import mapping
from sooner.workloads.logs.messages import Message, normal, said
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Dropped, Record, shape

_DEEPEST = 200


@shape("oasst tree", when=lambda record: "replies" in mapping(record.get("prompt")))
def tree(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Read each reply of an assistant in a tree, with the messages that lead to it."""
    name = fields.text_in((record,), ("message_tree_id", "id"))
    yield from _below(mapping(record["prompt"]), [], name, report)


def _below(
    node: Record, before: Sequence[Message], name: str | None, report: Report
) -> Iterator[Exchange | Dropped]:
    if len(before) > _DEEPEST:
        yield Dropped("a tree of messages that is too deep")
        return
    here = normal([{"role": node.get("role"), "content": node.get("text")}], report.unread)
    if here and here[0]["role"] == "assistant" and before:
        yield Exchange(messages=before, replies=[said(here[0])], conversation=name)
    later: Any = node.get("replies")
    for reply in later if isinstance(later, list) else []:
        yield from _below(mapping(reply), [*before, *here], name, report)


@shape("oasst message", when=lambda record: "parent_id" in record and "message_id" in record)
def message(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Refuse messages one by one: what each answers stands in another record."""
    yield Dropped("one message of OpenAssistant's flat export (use the trees)")
