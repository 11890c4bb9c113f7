"""vLLM's own log as text: `vllm serve --enable-log-requests --enable-log-outputs`.

Until 0.10 the log holds prompts at level INFO; from then on at DEBUG only, with the ids of generated
tokens, which are counted. At INFO it then holds parameters and replies but no prompts, so nothing can be
learned from it. `--max-log-len` cuts prompts, replies and ids, which is noticed where it shows.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from sooner.workloads.logs.report import Report

_TEXT = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|None"
_ASKED = re.compile(
    r"Received request (\S+): (?:prompt: (?P<prompt>" + _TEXT + r"), )?params: (?P<params>.*)"
)
_DETAILS = re.compile(
    r"Request (\S+) details: prompt: (" + _TEXT + r"), prompt_token_ids: (\[[^\]]*\]|None)?"
)
_IDS = re.compile(r"Generated response (\S+)(?: \(streaming (\w+)\))? details: output_token_ids: (.*)")
_REPLY = re.compile(
    r"Generated response (\S+?)(?: \(streaming (\w+)\))?: output: (?P<reply>" + _TEXT + r")"
    r"(?:, output_token_ids: (?P<ids>.*?))?, finish_reason: (?P<reason>\w+)"
)
_NUMBER = re.compile(r"\b(max_tokens|temperature|n)=([\d.]+)")
_PROMPT_IDS = re.compile(r"prompt_token_ids: \[([^\]]*)\]")
_LISTED = re.compile(r"\[[^\]]*\]|\([\d, ]*\)")
_DIGITS = re.compile(r"\d+")
_MOST_BYTES = 8.0
"""Bytes of a reply to a token, beyond which the pieces in the log cannot be all of them."""


def is_one(text: str) -> bool:
    """Whether `text` looks like such a log."""
    return "Received request " in text or "Generated response " in text


def records(text: str, report: Report) -> Iterator[dict[str, Any]]:
    """Yield a record of each request that the log shows both asked and answered.

    The others are counted in `report`.
    """
    asked: dict[str, dict[str, Any]] = {}
    for line in text.split("\n"):
        if found := _DETAILS.search(line):
            asked.setdefault(found[1], {}).update(_prompt(found[2], found[3]))
        elif found := _ASKED.search(line):
            record = asked.setdefault(found[1], {})
            record.update({name: float(value) for name, value in _NUMBER.findall(found["params"])})
            if found["prompt"]:
                ids = _PROMPT_IDS.search(found["params"])
                record.update(_prompt(found["prompt"], ids and ids[1]))
        elif found := _IDS.search(line):
            record = asked.setdefault(found[1], {})
            record["ids"] = record.get("ids", 0) + _count(found[3])
            record["deltas"] = record.get("deltas", False) or found[2] == "delta"
        elif (found := _REPLY.search(line)) and found[2] != "delta":
            record = asked.setdefault(found[1], {})
            record.update(reply=_text(found["reply"]) or "", finish_reason=found["reason"])
            record["ids"] = record.get("ids", 0) or _count(found["ids"] or "")
    yield from _usable(asked, report)


def _usable(asked: dict[str, dict[str, Any]], report: Report) -> Iterator[dict[str, Any]]:
    cut = _cut_at(record.get("prompt") for record in asked.values())
    for name, record in asked.items():
        ids, deltas = record.pop("ids", 0), record.pop("deltas", False)
        reply = record.get("reply") or ""
        if ids and not (deltas and len(reply.encode("utf-8", "replace")) > _MOST_BYTES * ids):
            record["output_len"] = ids
        if record.get("prompt") is None:
            report.drop("a request of vLLM's log without its prompt (log at DEBUG)")
        elif "output_len" not in record and not reply:
            report.drop("a request of vLLM's log without its reply (--enable-log-outputs)")
        else:
            if len(record["prompt"]) == cut or _ends_early(record):
                report.shortened += 1
            yield {"request_id": name, **record}


def _cut_at(prompts: Any) -> int | None:
    """The length at which the log cuts prompts: that of the longest, where several have it."""
    lengths = Counter(len(prompt) for prompt in prompts if isinstance(prompt, str))
    longest = max(lengths, default=0)
    texts = sum(lengths.values())
    return longest if lengths[longest] > max(1, texts // 20) and len(lengths) > 1 else None


def _ends_early(record: dict[str, Any]) -> bool:
    """Whether a reply ended at its limit and yet shows fewer tokens than that."""
    limit, shown = record.get("max_tokens", 0), record.get("output_len", math.inf)
    return bool(record.get("finish_reason") == "length" and shown < limit)


def _prompt(literal: str, ids: str | None) -> dict[str, Any]:
    counted = _count(ids or "")
    return {"prompt": _text(literal)} | ({"prompt_tokens": counted} if counted else {})


def _count(ids: str) -> int:
    listed = _LISTED.search(ids)
    return len(_DIGITS.findall(listed[0] if listed else ids))


def _text(literal: str) -> str | None:
    """The string that Python printed with repr; None for "None" and for what was cut."""
    try:
        value = ast.literal_eval(literal)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, str) else None
