"""Reading logs of finished requests: what was asked, and how many tokens the reply had.

One reader for JSON Lines, JSON lists (also one that is cut off at its end, as ShareGPT's often is),
`.gz` of both, parquet, and standard input. Each record may be of any of these shapes:

- `prompt` or `messages`, with `output_len` or `output_tokens`;
- a request and its response as OpenAI and vLLM log them: `messages` or `prompt` beside, or under
  `request` or `body`, and `usage.completion_tokens` beside, or under `response`;
- ShareGPT (`conversations` of `from`, `value`), LMSYS-Chat-1M and WildChat (`conversation` of `role`,
  `content`): one row for each reply;
- Langfuse observations (`input`, `usage.output` or `usageDetails.output`) and LiteLLM spend logs
  (`messages`, `completion_tokens`).
"""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sooner.core import DataError, MissingExtra

Count = Callable[[str], int]
"""Counts the tokens of a reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One finished request: its messages, the length of the reply [tokens], and what else was set.

    `conversation` is shared by the requests of one conversation. Messages are those before the reply.
    """

    conversation: str
    messages: Sequence[Mapping[str, Any]]
    output_len: float
    max_tokens: int | None = None
    temperature: float | None = None
    tools: int = 0
    structured: bool = False


@dataclass(slots=True)
class Report:
    """What became of the records of a log."""

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    estimated: int = 0  # lengths counted as a token for every four bytes

    def __str__(self) -> str:
        parts = [f"{self.rows} rows read"]
        parts += [f"{count} dropped: {reason}" for reason, count in self.dropped.most_common()]
        if self.estimated:
            parts.append(f"{self.estimated} lengths estimated from text; name a tokenizer to count them")
        return "; ".join(parts)


class Log(NamedTuple):
    """The rows of a log, in its order, and the report on it."""

    rows: list[Row]
    report: Report


def read(path: str | Path, *, count: Count | None = None, first_turns: bool = False) -> Log:
    """Return the finished requests in `path` ("-": standard input).

    `count` counts a reply's tokens where the record says no number; without it, a token is taken for
    every four bytes. `first_turns` keeps only requests before any reply. A record that cannot be used
    is dropped and counted in the report. Raises DataError when the file cannot be read or holds no row.
    """
    report = Report()
    rows: list[Row] = []
    for number, record in enumerate(_records(path, report)):
        for row in _rows(record, number, count, report):
            if first_turns and any(_role(message) == "assistant" for message in row.messages):
                report.dropped["a later turn"] += 1
            else:
                rows.append(row)
    report.rows = len(rows)
    if not rows:
        raise DataError(f"{str(path)!r} has no usable request ({report}); allowed: {_ALLOWED}")
    return Log(rows, report)


_ALLOWED = "JSON with `prompt` or `messages`, and `output_len` or `output_tokens`"


def tokenizer(name: str) -> Count:
    """Return what counts tokens with the tokenizer `name`: a tokenizer.json, a folder or a hub's name.

    Raises MissingExtra without `tokenizers`, DataError when there is no such tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("tokenizers", "train") from error
    path = Path(name)
    try:
        if path.exists():
            made = Tokenizer.from_file(str(path / "tokenizer.json" if path.is_dir() else path))
        else:
            made = Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"no tokenizer {name!r}: {error}") from error
    return lambda text: len(made.encode(text, add_special_tokens=False).ids)


def _records(path: str | Path, report: Report) -> Iterator[Mapping[str, Any]]:
    if str(path).endswith(".parquet"):
        yield from _parquet(path)
        return
    try:
        if str(path) == "-":
            text = sys.stdin.buffer.read().decode("utf-8", "replace")
        elif str(path).endswith(".gz"):
            with gzip.open(path) as stream:
                text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace").read()
        else:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from error
    start = text.lstrip("\ufeff \t\r\n")[:1]
    records = items(text) if start == "[" else _lines(text, str(path), report)
    for record in records:
        if isinstance(record, Mapping):
            inner = record.get("data")
            if isinstance(inner, list) and "messages" not in record and "prompt" not in record:
                yield from (one for one in inner if isinstance(one, Mapping))
            else:
                yield record
        else:
            report.dropped["not a JSON object"] += 1


def items(text: str) -> Iterator[Any]:
    """Yield the items of a JSON list one at a time; a list that is cut off ends with its last whole item."""
    decoder = json.JSONDecoder()
    space = re.compile(r"[\s,]*")
    first = text.find("[") + 1
    at = space.match(text, first).end()  # type: ignore[union-attr]  # matches the empty string too
    while at < len(text) and text[at] != "]":
        try:
            item, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            return
        yield item
        at = space.match(text, at).end()  # type: ignore[union-attr]


def _lines(text: str, path: str, report: Report) -> Iterator[Any]:
    lines = text.splitlines() if "\n" not in text else text.split("\n")
    last = max((number for number, line in enumerate(lines) if line.strip()), default=-1)
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number == 0 and line.lstrip().startswith("{"):
                try:
                    yield json.loads(text)
                    return
                except json.JSONDecodeError:
                    pass
            if number == last and number > 0:
                report.dropped["a last line that is cut off"] += 1
                return
            raise DataError(
                f"{path!r}, line {number + 1} is not JSON: {error}; allowed: {_ALLOWED}"
            ) from error


def _parquet(path: str | Path) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "train") from error
    try:
        for batch in pyarrow.parquet.ParquetFile(str(path)).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from error


def _rows(record: Mapping[str, Any], number: int, count: Count | None, report: Report) -> Iterator[Row]:
    conversation = _conversation(record, number)
    whole = record.get("conversations", record.get("conversation"))
    if isinstance(whole, Sequence) and not isinstance(whole, str):
        yield from _replies(whole, conversation, count, report)
        return
    request = _first_mapping(record, ("request", "body", "kwargs"))
    settings = {**_mapping(record.get("modelParameters")), **record, **request}
    messages = _messages(settings)
    if messages is None:
        report.dropped["neither a prompt nor messages"] += 1
        return
    length = _length(record, request)
    if length is None and messages and _role(messages[-1]) == "assistant":
        yield from _replies(messages, conversation, count, report)
        return
    if length is None:
        reply = _reply(record)
        if not reply:
            report.dropped["no reply length"] += 1
            return
        length = float(_count(reply, count, report))
    if not (math.isfinite(length) and length >= 0):
        report.dropped["a reply length that is not a finite number >= 0"] += 1
        return
    tools = settings.get("tools")
    limit = _number(settings.get("max_tokens", settings.get("max_completion_tokens")))
    yield Row(
        conversation=conversation,
        messages=messages,
        output_len=length,
        max_tokens=int(limit) if limit is not None and 0 < limit < 1e9 else None,
        temperature=_number(settings.get("temperature")),
        tools=len(tools) if isinstance(tools, list) else 0,
        structured=bool(settings.get("response_format") or settings.get("guided_json")),
    )


def _replies(whole: Sequence[Any], conversation: str, count: Count | None, report: Report) -> Iterator[Row]:
    """One row for each reply of a recorded conversation that answers a user or a tool."""
    messages = [message for message in whole if isinstance(message, Mapping) and _role(message)]
    for at, message in enumerate(messages):
        text = message.get("content", message.get("value"))
        if _role(message) != "assistant" or at == 0 or not isinstance(text, str):
            continue
        if _role(messages[at - 1]) in ("assistant", "system"):
            report.dropped["a reply to nothing"] += 1
        elif not text.strip():
            report.dropped["an empty reply"] += 1
        else:
            length = float(_count(text, count, report))
            yield Row(conversation=conversation, messages=messages[:at], output_len=length)


def _messages(settings: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    for name in ("messages", "prompt", "input"):
        found = settings.get(name)
        if isinstance(found, Mapping):
            found = found.get("messages", found.get("prompt"))
        if isinstance(found, str) and name == "messages":
            try:
                found = json.loads(found)  # LiteLLM's spend logs keep JSON in a column of text
            except json.JSONDecodeError:
                continue
        if isinstance(found, str):
            return [{"role": "user", "content": found}]
        if (
            isinstance(found, list)
            and found
            and all(isinstance(one, Mapping) and _role(one) for one in found)
        ):
            return found
    return None


def _length(record: Mapping[str, Any], request: Mapping[str, Any]) -> float | None:
    """The reply's tokens as the record says them, None where it does not."""
    response = _first_mapping(record, ("response", "output"))
    usages = [
        _mapping(source.get(name))
        for source in (record, response, request)
        for name in ("usage", "usageDetails", "metrics")
    ]
    for source in (record, response, *usages):
        for name in ("output_len", "output_tokens", "completion_tokens", "completionTokens", "output"):
            value = source.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
    return None


def _reply(record: Mapping[str, Any]) -> str:
    """The reply's text, empty where there is none."""
    response = _first_mapping(record, ("response", "output"))
    for source in (response, record):
        choices = source.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
            text = _mapping(choices[0].get("message")).get("content", choices[0].get("text"))
            if isinstance(text, str):
                return text
        for name in ("content", "generated", "completion", "output", "response", "reply"):
            if isinstance(source.get(name), str):
                return str(source[name])
    return ""


def _count(text: str, count: Count | None, report: Report) -> int:
    if count is not None:
        return count(text)
    report.estimated += 1
    return max(1, round(len(text.encode("utf-8", "replace")) / 4))


def _conversation(record: Mapping[str, Any], number: int) -> str:
    for name in ("conversation_id", "conversation_hash", "session_id", "sessionId", "trace_id", "traceId"):
        if isinstance(record.get(name), str) and record[name]:
            return str(record[name])
    found = record.get("id", record.get("request_id"))
    return f"#{number}" if found is None else re.sub(r"_\d+\Z", "", str(found))


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role", message.get("from"))
    if not isinstance(role, str):
        return ""
    return "assistant" if role.lower() in ("assistant", "gpt", "chatgpt", "model", "bot") else role.lower()


def _first_mapping(record: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    return next((value for name in names if isinstance(value := record.get(name), Mapping)), {})


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
