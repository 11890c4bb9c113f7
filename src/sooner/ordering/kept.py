"""What a host has learned of waits and of its engine's pace, kept in a small file over restarts."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sooner.core import ConfigError
from sooner.ordering.order import Order
from sooner.work import Pace, Usual

VERSION = 1
EVERY = 60.0
"""Seconds between two writings; what was learned since is lost with a killed process."""


class StateFile:
    """A small JSON file at `path`. Reading and writing never raise: without it all is learned anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = time.monotonic() + EVERY
        self._writer: threading.Thread | None = None

    def read(self) -> Any:
        """Return what it holds; None where it is not there, or no JSON."""
        try:
            return json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None

    def tick(self, body: Callable[[], Mapping[str, Any]]) -> None:
        """Write, once a minute, in a thread of its own: a slow disk holds nobody up."""
        if time.monotonic() < self._next or (self._writer is not None and self._writer.is_alive()):
            return
        self._next = time.monotonic() + EVERY
        self._writer = threading.Thread(target=self._write, args=(body(),), daemon=True)
        self._writer.start()

    def save(self, body: Mapping[str, Any]) -> bool:
        """Write now, whole or not at all; return whether it could."""
        if self._writer is not None:
            self._writer.join(timeout=2)
            if self._writer.is_alive():
                return False  # the disk stands still
        return self._write(body)

    def _write(self, body: Mapping[str, Any]) -> bool:
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(body), encoding="utf-8")
            draft.replace(self._path)
        except OSError:
            return False
        return True


class Kept:
    """What one order has learned, in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._file = StateFile(path)

    def restore(self, order: Order) -> bool:
        """Give an order what was kept; False where there is nothing, or it makes no sense."""
        kept = self._file.read()
        try:
            pace = Pace(**kept["pace"])
            if kept["version"] != VERSION or not Usual().restore(kept["usual"]):
                return False
            order.set_pace(pace)  # which counts what is usual anew, so that comes after it
            order.usual.restore(kept["usual"])
        except (KeyError, TypeError, AttributeError, ConfigError):
            return False
        return True

    def tick(self, order: Order) -> None:
        """Write, once a minute, in a thread of its own: a slow disk holds no step up."""
        self._file.tick(lambda: _body(order))

    def save(self, order: Order) -> bool:
        """Write now, whole or not at all; return whether it could."""
        return self._file.save(_body(order))


def _body(order: Order) -> dict[str, Any]:
    return {"version": VERSION, "usual": order.usual.state(), "pace": dataclasses.asdict(order.pace)}
