"""What the gateway writes while it serves: text or JSON, and a line a request at a bounded rate."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from sooner.gateway.delivery.context import Finished
from sooner.gateway.page.words import plain

FORMS = ("text", "json")
access = logging.getLogger("sooner.access")


class JsonLines(logging.Formatter):
    """One JSON object a line: `at` [Unix s], `level`, `logger`, `message`, and what the line has besides."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        told: dict[str, Any] = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=True, default=str)


class TextLines(logging.Formatter):
    """A line for people; what strangers named cannot begin another."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with what it has besides behind it."""
        line = super().format(record)
        fields = getattr(record, "fields", None)
        if not fields:
            return line
        return line + " " + " ".join(f"{name}={plain(str(value), 80)}" for name, value in fields.items())


def set_up(form: str) -> None:
    """Write the log to stderr in one of `FORMS`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines("%(asctime)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class AccessLog:
    """A line for each finished request, at most `rate` a second; how many were left out is said. 0: none."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = float(rate)
        self._clock = clock
        self._left = self._rate
        self._at = clock()
        self.left_out = 0

    def add(self, record: Finished) -> None:
        """Write a request's line, or count that it was left out."""
        if not self._rate:
            return
        now = self._clock()
        self._left = min(self._rate, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            self.left_out += 1
            return
        self._left -= 1.0
        fields: dict[str, Any] = {
            "request_id": record.id,
            "tenant": record.tenant,
            "model": record.asked.model,
            "backend": record.backend,
            "status": record.status,
            "wait_s": round(record.wait, 4),
            "first_byte_s": round(record.first_byte, 4),
            "total_s": round(record.total, 4),
            "prompt_tokens": record.prompt_len,
            "output_tokens": record.output_len,
        }
        if record.trace:
            fields["trace_id"] = record.trace
        if self.left_out:
            fields["left_out"] = self.left_out
            self.left_out = 0
        access.info("request", extra={"fields": fields})
