"""What a request carries besides its text, as far as it says something about the length of the reply."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What is known of one request when it arrives; every field has a value that means "not known".

    `reply_lens` are the lengths of the earlier replies of the conversation, oldest first, as
    `estimate_tokens` counts them [tokens]: trainer and scheduler both see the text, and only one of
    them knows the true counts. `asked` are the requests that these replies answer, long ones cut; it may
    be shorter than `reply_lens`, and is then about the latest. `max_tokens` [tokens] is the client's limit.
    """

    turn: int = 0
    reply_lens: tuple[float, ...] = ()
    asked: tuple[str, ...] = ()
    system: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    tools: int = 0
    structured: bool = False  # the client asked for JSON, a grammar or a schema


EMPTY = Context()


def estimate_tokens(text: str) -> float:
    """Return a rough count of tokens that needs no tokenizer: one for every four bytes of UTF-8."""
    return (len(text) if text.isascii() else len(text.encode("utf-8", "replace"))) / 4.0
