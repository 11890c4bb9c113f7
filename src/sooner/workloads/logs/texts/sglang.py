"""SGLang's log as text: `sglang.launch_server --log-requests --log-requests-level 2` or higher.

A request is one line when it ends: `Finish: obj=GenerateReqInput(...), out={...}`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from sooner.workloads.logs.report import Report

_ID = re.compile(r"\brid='([^']*)'")
_PROMPT = re.compile(r"\btext=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")")
_NUMBER = re.compile(r"'(max_new_tokens|temperature)': ([\d.]+)")
_OUT = re.compile(r", out=(\{.*\})\s*\Z")


def is_one(text: str) -> bool:
    """Whether `text` looks like such a log."""
    return "Receive: obj=" in text or "Finish: obj=" in text


def records(text: str, report: Report) -> Iterator[dict[str, Any]]:
    """Yield a record of each request that the log shows ended; the others are counted in `report`."""
    begun: dict[str, None] = {}
    for line in text.split("\n"):
        _, mark, rest = line.partition("Finish: obj=")
        if not mark:
            if "Receive: obj=" in line and (found := _ID.search(line)):
                begun[found[1]] = None
            continue
        name = _ID.search(rest)
        begun.pop(name[1] if name else "", None)
        prompt = _PROMPT.search(rest)
        out = _OUT.search(rest)
        said = _literal(out[1]) if out else None
        if prompt is None:
            report.drop("a request of SGLang's log without its prompt (--log-requests-level 2)")
        elif not isinstance(said, dict):
            report.drop("a request of SGLang's log without its reply (--log-requests-level 2)")
        else:
            yield {
                "rid": name[1] if name else None,
                "text": _literal(prompt[1]),
                "sampling_params": {key: float(value) for key, value in _NUMBER.findall(rest)},
                "out": said,
            }
    for _ in begun:
        report.drop("a request of SGLang's log that has not ended in it")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
