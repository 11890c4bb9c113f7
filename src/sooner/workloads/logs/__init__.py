"""Reading logs of finished requests: what was asked, and how many tokens the reply had.

Files (`sooner.workloads.logs.sources`): JSON Lines, JSON lists (also one that is cut off at its end, as
ShareGPT's often is), CSV with a header, `.gz` of these, parquet, vLLM's own log, a folder of them, standard
input, and data sets of the Hugging Face hub as `hf:owner/name`. Records (`sooner.workloads.logs.shapes`):

- `prompt` or `messages`, with `output_len` or `output_tokens`;
- a request and its response as OpenAI and vLLM log them: `messages`, `prompt` or `input` beside, or under
  `request` or `body`, and the usage beside, or under `response` or `response.body`;
- ShareGPT (`conversations` of `from`, `value`), LMSYS-Chat-1M and WildChat (`conversation` of `role`,
  `content`): one row for each reply;
- Langfuse observations and traces (`input`, `usage.output`, `usageDetails.output` or `usage_details`);
- LiteLLM's spend logs and its standard logging payload (`messages`, `completion_tokens`).

`docs/logs.md` shows one of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sooner.chat import role_of
from sooner.core import DataError, MissingExtra
from sooner.workloads.logs import shapes, sources
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Count, LogRow
from sooner.workloads.logs.sources import items

__all__ = ["Count", "Log", "LogRow", "Report", "items", "read", "tokenizer"]


class Log(NamedTuple):
    """The rows of a log, in its order, and the report on it."""

    rows: list[LogRow]
    report: Report


def read(
    path: str | Path, *, count: Count | None = None, first_turns: bool = False, model: str | None = None
) -> Log:
    """Return the finished requests in `path` ("-": standard input).

    `count` counts a reply's tokens where the record says no number; without it, a token is taken for
    every four bytes. `first_turns` keeps only requests before any reply, `model` those of one served
    model. A record that cannot be used is dropped and counted in the report. Raises DataError when the
    source cannot be read or holds no row.
    """
    report = Report()
    rows: list[LogRow] = []
    for number, record in enumerate(sources.records(path, report)):
        for row in shapes.rows(record, number, count, report, model):
            if first_turns and any(_is_reply(message) for message in row.messages):
                report.dropped["a later turn"] += 1
            else:
                rows.append(row)
    report.rows = len(rows)
    if not rows:
        raise DataError(f"{str(path)!r} has no usable request ({report}); allowed: {sources.ALLOWED}")
    return Log(rows, report)


def _is_reply(message: Mapping[str, Any]) -> bool:
    return role_of(message) == "assistant"


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
