"""What the page remembers over a restart: the switch and who turned it, and whether it was worth it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sooner.ordering.kept import StateFile

logger = logging.getLogger("sooner.gateway")

VERSION = 1


class RememberedPage:
    """The file at `path`, no file where it is empty. A slow disk holds nobody up: a thread writes."""

    def __init__(self, path: str = "") -> None:
        self._file = StateFile(Path(path)) if path else None
        kept = self._file.read() if self._file is not None else None
        self._body: dict[str, Any] = {"version": VERSION}
        if isinstance(kept, dict) and kept.get("version") == VERSION:
            self._body = kept
        self._writing = threading.Lock()
        self._writer: threading.Thread | None = None

    def get(self, name: str) -> Mapping[str, Any]:
        """Return what was put under a name; empty where that is nothing, or no table."""
        found = self._body.get(name)
        return found if isinstance(found, dict) else {}

    def put(self, name: str, value: Mapping[str, Any]) -> None:
        """Remember a value that JSON can hold; returns at once."""
        self._body = {**self._body, name: dict(value)}
        if self._file is not None:
            self._writer = threading.Thread(target=self._write, args=(self._file,), daemon=True)
            self._writer.start()

    def _write(self, file: StateFile) -> None:
        with self._writing:  # whoever is last writes the newest
            if not file.save(self._body):
                logger.warning("what the page remembers cannot be kept over the next start")

    def close(self) -> None:
        """Wait for what is being written, at most two seconds."""
        if self._writer is not None:
            self._writer.join(timeout=2.0)
