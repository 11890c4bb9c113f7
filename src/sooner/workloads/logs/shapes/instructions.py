"""Data sets of instructions: Alpaca (`instruction`, `input`, `output`), Dolly (`context`), TRL's pairs."""

from __future__ import annotations

from collections.abc import Iterator

from sooner.workloads.logs import fields
from sooner.workloads.logs.exchange import Exchange
from sooner.workloads.logs.messages import Message, normal, said, text_of
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Dropped, Record, shape

_GIVEN = ("input", "context")
_REPLIES = ("output", "response", "completion", "answer")


_ASKED = ("instruction", "question", "query")


def _is_one(record: Record) -> bool:
    """Whether a record asks under one of the names, and answers."""
    asked = next((name for name in _ASKED if isinstance(record.get(name), str)), None)
    answered = any(isinstance(record.get(name), str) for name in _REPLIES)
    return asked == "instruction" or (asked is not None and answered and "messages" not in record)


@shape("instruction", when=_is_one)
def instruction(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Read an instruction, with the input or context it is about, and its answer."""
    given = next((record[name] for name in _GIVEN if isinstance(record.get(name), str) and record[name]), "")
    first = next(record[name] for name in _ASKED if isinstance(record.get(name), str))
    asked = "\n\n".join(text for text in (first, given) if text.strip())
    reply = next((record[name] for name in _REPLIES if isinstance(record.get(name), str)), "")
    system = record.get("system")
    before = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    before += [message for turn in _earlier(record.get("history")) for message in turn]
    yield Exchange(
        messages=[*before, {"role": "user", "content": asked}],
        replies=[reply] if reply else [],
        said=fields.reply_tokens((_without_texts(record),), ()),
        id=fields.text_in((record,), ("id", "request_id")),
        model=fields.text_in((record,), fields.MODELS) or "",
    )


def _earlier(history: object) -> list[list[Message]]:
    """Earlier turns as pairs of a question and its answer (LLaMA-Factory's Alpaca)."""
    if not isinstance(history, list):
        return []
    return [
        [{"role": "user", "content": str(turn[0])}, {"role": "assistant", "content": str(turn[1])}]
        for turn in history
        if isinstance(turn, list) and len(turn) == 2
    ]


def _without_texts(record: Record) -> Record:
    return {name: value for name, value in record.items() if name not in _REPLIES}


@shape(
    "prompt and completion",
    when=lambda record: (
        isinstance(record.get("completion"), list) and isinstance(record.get("prompt"), list | str)
    ),
)
def completion(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Read TRL's pairs: a prompt and a completion that are text or lists of messages."""
    prompt = record["prompt"]
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    replies = normal(record["completion"], report.unread)
    yield Exchange(
        messages=normal(asked, report.unread),
        replies=["\n".join(said(message) for message in replies)],
        said=fields.reply_tokens((record,), ()),
        id=fields.text_in((record,), ("id", "request_id")),
        model=fields.text_in((record,), fields.MODELS) or "",
    )


@shape("chosen and rejected", when=lambda record: "chosen" in record and "rejected" in record)
def preference(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Refuse pairs of which people liked one better: who made which reply is not said."""
    text_of(record.get("chosen"))
    yield Dropped("a pair of a chosen and a rejected reply, not of one model")
