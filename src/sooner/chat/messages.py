"""Chat messages as clients send them and logs keep them: OpenAI's, its Responses', ShareGPT's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sooner.chat.conversation import Conversation, Turn, conversation, plain
from sooner.core import DataError

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
}


def from_messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text to rank of chat messages (`role`, `content`). Raises DataError for another shape."""
    return read_messages(messages).prompt


def read_messages(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """Return the conversation in chat messages. Raises DataError as `turns` does."""
    return conversation(turns(messages))


def turns(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Return the turns of messages that have `role` and `content`, or ShareGPT's `from` and `value`.

    Raises DataError for anything that is not a list of such messages.
    """
    if isinstance(messages, str) or not isinstance(messages, (list, Sequence)):  # a list is seen at once
        raise DataError(f"messages is {type(messages).__name__}; allowed: a list of {{role, content}}")
    return tuple([_turn(message) for message in messages])


def role_of(message: Mapping[str, Any]) -> str:
    """Return the role of a message as we call it, "" where it has none."""
    role = message.get("role", message.get("from"))
    return _ROLES.get(role.lower(), "tool") if isinstance(role, str) else ""


def content_text(content: object) -> str:
    """Return the text of a message's content: a string, None, or a list of parts (text ones count).

    Raises DataError for anything else.
    """
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, Iterable):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        return "\n".join(part for part in parts if isinstance(part, str))
    raise DataError(f"a message's content is {type(content).__name__}; allowed: text or a list of parts")


def _turn(message: Mapping[str, Any]) -> Turn:
    if not isinstance(message, (dict, Mapping)):
        raise DataError(f"a message is {type(message).__name__}; allowed: {{role, content}}")
    kind = message.get("type")
    if kind == "function_call_output":  # an item of OpenAI's Responses
        return Turn("tool", plain(content_text(message.get("output"))))
    if kind in ("function_call", "reasoning"):
        return Turn("assistant", "")
    role = role_of(message)
    if not role:
        found = message.get("role", message.get("from"))
        raise DataError(f"a message has role {found!r}; allowed: a name such as 'user'")
    return Turn(role, plain(content_text(message.get("content", message.get("value")))))
