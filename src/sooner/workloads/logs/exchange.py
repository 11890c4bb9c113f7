"""One request and its reply as a record tells them, before anything is decided about the length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sooner import chat

Count: TypeAlias = Callable[[str], int]
"""Counts the tokens of a reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRow:
    """One finished request: its messages, the length of the reply [tokens], and what else was said.

    `conversation` is shared by the requests of one conversation. Messages are those before the reply.
    `sender` is who asked, `arrival_time` [s] and `prompt_len` [tokens] what the record says of them.
    """

    conversation: str
    messages: Sequence[Mapping[str, Any]]
    output_len: float
    signals: chat.Signals = chat.UNSAID
    sender: str | None = None
    arrival_time: float | None = None
    prompt_len: float | None = None

    @property
    def request(self) -> chat.ChatRequest:
        """What was asked, as every reader of requests has it."""
        return chat.of_messages(self.messages, self.signals)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and its reply. What a record does not say is None or empty.

    `said` are the tokens of the reply that the record counts, of all `choices` together; `replies` the
    texts of the choices, with what was thought and which tools were called; `settings` what the client
    set, under OpenAI's names. `conversation` is named as such, `id` is the record's own name.
    """

    messages: Sequence[Mapping[str, Any]] = ()
    replies: Sequence[str] = ()
    said: float | None = None
    choices: int = 1
    at_limit: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    conversation: str | None = None
    id: str | None = None
    model: str = ""
    sender: str | None = None
    arrival_time: float | None = None
    prompt_len: float | None = None
