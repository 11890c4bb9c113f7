"""vLLM's own log as text: `vllm serve --enable-log-requests --enable-log-outputs`, at level DEBUG.

At DEBUG the log holds prompts, and the ids of generated tokens, which are counted. At INFO it holds
parameters and replies but no prompts, so nothing can be learned from it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sooner.workloads.logs.report import Report

_DETAILS = re.compile(r"Request (\S+) details: prompt: (.*?), prompt_token_ids: ")
_PARAMS = re.compile(r"Received request (\S+): params: (.*)")
_IDS = re.compile(r"Generated response (\S+)( \(streaming \w+\))? details: output_token_ids: (.*)")
_REPLY = re.compile(r"Generated response (\S+)( \(streaming \w+\))?: output: (.*), finish_reason: (\w+)")
_NUMBER = re.compile(r"\b(max_tokens|temperature)=([\d.]+)")


def is_one(text: str) -> bool:
    """Whether `text` looks like such a log."""
    return "Received request " in text or "Generated response " in text


def records(text: str, report: Report) -> Iterator[Mapping[str, Any]]:
    """Yield a record of each request that the log shows both asked and answered.

    The others are counted in `report`.
    """
    asked: dict[str, dict[str, Any]] = {}
    for line in text.splitlines():
        if found := _DETAILS.search(line):
            asked.setdefault(found[1], {})["prompt"] = _text(found[2])
        elif found := _PARAMS.search(line):
            numbers = {name: float(value) for name, value in _NUMBER.findall(found[2])}
            asked.setdefault(found[1], {}).update(numbers)
        elif (found := _IDS.search(line)) and found[2] != " (streaming delta)":
            ids = [one for one in found[3].strip(" []()").split(",") if one.strip()]
            if ids and found[3].strip() != "None":
                asked.setdefault(found[1], {})["output_len"] = len(ids)
        elif (found := _REPLY.search(line)) and found[2] != " (streaming delta)":
            reply = _text(found[3])
            asked.setdefault(found[1], {}).update(reply=reply or "", finish_reason=found[4])
    for name, record in asked.items():
        if record.get("prompt") is None:
            report.dropped["a request of vLLM's log without its prompt (log at DEBUG)"] += 1
        elif "output_len" not in record and not record.get("reply"):
            report.dropped["a request of vLLM's log without its reply (--enable-log-outputs)"] += 1
        else:
            yield {"request_id": name, **record}


def _text(literal: str) -> str | None:
    """The string that Python printed with repr; None for "None" and for what was cut."""
    try:
        value = ast.literal_eval(literal)
    except (ValueError, SyntaxError, MemoryError):
        return None
    return value if isinstance(value, str) else None
