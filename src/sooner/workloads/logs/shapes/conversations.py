"""Whole recorded conversations, each reply a row: ShareGPT and its forks, LMSYS, WildChat, UltraChat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sooner.workloads.logs import fields
from sooner.workloads.logs.exchange import Exchange
from sooner.workloads.logs.messages import Message, loads, normal, said
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Dropped, Record, shape

_NAMES = ("conversations", "conversation", "items", "dialog", "dialogue", "turns", "data")


def _whole(record: Record) -> list[Any] | None:
    """The messages of a recorded conversation, None where a record is none; bare texts take turns."""
    for name in _NAMES:
        found = record.get(name)
        if isinstance(found, str) and found.lstrip()[:1] == "[":
            found = loads(found)
        if isinstance(found, list) and found and all(isinstance(item, Mapping) for item in found):
            return _unpaired(found)
        if name != "items" and _are_turns(found):
            assert isinstance(found, list)
            return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(found)]
    return None


def _unpaired(found: list[Any]) -> list[Any]:
    """The messages, where each item is a pair of a question and its answer (`human`, `assistant`)."""
    asked = next((name for name in ("human", "user", "prompt", "question") if name in found[0]), None)
    answered = next(
        (name for name in ("assistant", "bot", "gpt", "response", "answer") if name in found[0]), None
    )
    if asked is None or answered is None or "role" in found[0]:
        return found
    return [
        {"role": role, "content": item.get(name)}
        for item in found
        for role, name in (("user", asked), ("assistant", answered))
    ]


def _are_turns(found: object) -> bool:
    return isinstance(found, list) and len(found) > 1 and all(isinstance(item, str) for item in found)


def _unreadable(record: Record) -> bool:
    """Whether a conversation is kept as text that is no JSON, or has no messages."""
    found = record.get("conversations", record.get("conversation"))
    return found == [] or (isinstance(found, str) and found.lstrip()[:2] in ("[{", "[["))


@shape("conversations", when=lambda record: _whole(record) is not None)
def conversations(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Read each reply of a conversation."""
    messages = normal(_whole(record) or [], report.unread)
    about = {
        "conversation": fields.text_in((record,), fields.CONVERSATIONS),
        "id": fields.text_in((record,), ("id", "request_id")),
        "model": fields.text_in((record,), fields.MODELS) or "",
        "sender": fields.text_in((record,), fields.SENDERS),
    }
    yield from replies(messages, about)


def replies(messages: Sequence[Message], about: Mapping[str, Any]) -> Iterator[Exchange | Dropped]:
    """Yield each reply of a conversation that answers a user or a tool."""
    if not messages:
        yield Dropped("a conversation without messages")
    elif not any(message["role"] == "assistant" for message in messages):
        yield Dropped("a conversation without a reply")
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = messages[at - 1]["role"] if at else ""
        text = said(message)
        if before in ("", "assistant", "system"):
            yield Dropped("a reply to nothing")
        elif not text.strip():
            yield Dropped("an empty reply")
        else:
            yield Exchange(messages=messages[:at], replies=[text], **about)


@shape("conversation as text", when=_unreadable)
def unreadable(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Refuse a conversation that nothing can be read of."""
    found = record.get("conversations", record.get("conversation"))
    yield Dropped("a conversation as text that is no JSON" if found else "a conversation without messages")
