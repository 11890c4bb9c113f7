"""Reading prompts from JSONL: `prompt` or `messages`, and optionally `id`, `output_len`, `arrival_time`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sooner.chat import content_text
from sooner.core import DataError
from sooner.workloads.jsonl import read_jsonl

_KNOWN = {"id", "prompt", "messages", "output_len", "output_tokens", "arrival_time"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt with what its line says of it; `fields` holds every other key of the line.

    `id` is the file's own, or the line's index where the file has none.
    """

    id: str | int
    messages: tuple[Mapping[str, Any], ...]
    output_len: int | None = None
    arrival_time: float | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The contents of all messages, without roles or template marks, joined by newlines."""
        return "\n".join(content_text(message.get("content")) for message in self.messages)

    def number(self, name: str) -> float:
        """Return field `name` of the line as a number. Raises DataError where it is not one."""
        known = {"output_len": self.output_len, "arrival_time": self.arrival_time}
        value = known.get(name, self.fields.get(name))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"prompt {self.id!r}: field {name!r} is {value!r}, allowed: a number")
        return float(value)


def read_prompts(path: str | Path, limit: int | None = None) -> list[Prompt]:
    """Return the prompts of a JSONL file (`.gz` too, `-` is stdin), at most the first `limit`.

    Raises DataError, naming the line, for a file that cannot be read, a line that is not a prompt
    and an id that comes twice.
    """
    prompts: list[Prompt] = []
    seen: set[str | int] = set()
    for number, record in read_jsonl(path):
        if limit is not None and len(prompts) >= limit:
            break
        prompt = _prompt(record, len(prompts), f"{path}:{number}")
        if prompt.id in seen:
            raise DataError(f"{path}:{number}: id {prompt.id!r} comes twice, allowed: ids that differ")
        seen.add(prompt.id)
        prompts.append(prompt)
    return prompts


def _prompt(record: Mapping[str, Any], index: int, where: str) -> Prompt:
    messages = record.get("messages")
    if messages is None and isinstance(record.get("prompt"), str):
        messages = [{"role": "user", "content": record["prompt"]}]
    shaped = isinstance(messages, list) and messages and all(_is_message(m) for m in messages)
    if not shaped or messages is None:
        raise DataError(
            f"{where}: neither a 'prompt' (text) nor 'messages' (a list of objects with 'role' and 'content')"
        )
    name = record.get("id", index)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise DataError(f"{where}: id {name!r}, allowed: text or an integer")
    length = record.get("output_len", record.get("output_tokens"))
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 0):
        raise DataError(f"{where}: output_len {length!r}, allowed: an integer >= 0")
    arrival = record.get("arrival_time")
    if arrival is not None and (isinstance(arrival, bool) or not isinstance(arrival, int | float)):
        raise DataError(f"{where}: arrival_time {arrival!r}, allowed: seconds")
    return Prompt(
        id=name,
        messages=tuple(messages),
        output_len=length,
        arrival_time=None if arrival is None else float(arrival),
        fields={key: value for key, value in record.items() if key not in _KNOWN},
    )


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message
