"""What a host has learned of waits and of its engine's pace, kept in a small file over restarts."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from sooner.core import ConfigError
from sooner.ordering.order import Order
from sooner.work import Pace, Usual

VERSION = 1
EVERY = 60.0
"""Seconds between two writings; what was learned since is lost with a killed process."""


class Kept:
    """The file at `path`. Reading and writing never raise: without it all is learned anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = time.monotonic() + EVERY
        self._writer: threading.Thread | None = None

    def restore(self, order: Order) -> bool:
        """Give an order what was kept; False where there is nothing, or it makes no sense."""
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            pace = Pace(**kept["pace"])
            if kept["version"] != VERSION or not Usual().restore(kept["usual"]):
                return False
            order.set_pace(pace)  # which counts what is usual anew, so that comes after it
            order.usual.restore(kept["usual"])
        except (OSError, ValueError, KeyError, TypeError, ConfigError):
            return False
        return True

    def tick(self, order: Order) -> None:
        """Write, once a minute, in a thread of its own: a slow disk holds no step up."""
        if time.monotonic() < self._next or (self._writer is not None and self._writer.is_alive()):
            return
        self._next = time.monotonic() + EVERY
        self._writer = threading.Thread(target=self._write, args=(_body(order),), daemon=True)
        self._writer.start()

    def save(self, order: Order) -> bool:
        """Write now, whole or not at all; return whether it could."""
        if self._writer is not None:
            self._writer.join(timeout=2)
            if self._writer.is_alive():
                return False  # the disk stands still
        return self._write(_body(order))

    def _write(self, body: dict[str, Any]) -> bool:
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(body), encoding="utf-8")
            draft.replace(self._path)
        except OSError:
            return False
        return True


def _body(order: Order) -> dict[str, Any]:
    return {"version": VERSION, "usual": order.usual.state(), "pace": dataclasses.asdict(order.pace)}
