"""What a gateway learned of its engines and of the waits before them, kept in a small file over restarts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sooner.gateway.engines.backend import Backend
from sooner.ordering.kept import StateFile
from sooner.ordering.order import Order

VERSION = 1
_MOST = 256  # pools that are kept


class KeptEngines:
    """The file at `path`, no file where it is empty. What makes no sense in it is left alone.

    The pace of an engine goes by its name; what is usual before some engines by all of their names.
    """

    def __init__(self, path: str) -> None:
        self._file = StateFile(Path(path)) if path else None
        kept = self._file.read() if self._file is not None else None
        body = _table(kept) if _table(kept).get("version") == VERSION else {}
        self._paces, self._pools = _table(body.get("paces")), _table(body.get("pools"))

    def paces(self, backends: Iterable[Backend]) -> None:
        """Give engines the paces they had; those that make no sense are counted there."""
        for backend in backends:
            if backend.name in self._paces and not backend.pace.known:
                backend.pace.believe(self._paces[backend.name])

    def usual(self, engines: Sequence[str], order: Order) -> None:
        """Give the order of some engines what was usual before them, its pace being theirs already."""
        kept = self._pools.get(_name(engines))
        if not isinstance(kept, dict) or not isinstance(kept.get("usual"), dict):
            return
        reply = kept.get("reply")
        if not order.usual.restore(kept["usual"]):
            return
        if isinstance(reply, int | float) and math.isfinite(reply) and reply > 0.0:
            order.set_usual_len(reply)

    def tick(self, backends: Sequence[Backend], orders: Mapping[tuple[str, ...], Order]) -> None:
        """Write, once a minute."""
        if self._file is not None:
            self._file.tick(lambda: self._body(backends, orders))

    def save(self, backends: Sequence[Backend], orders: Mapping[tuple[str, ...], Order]) -> None:
        """Write now."""
        if self._file is not None:
            self._file.save(self._body(backends, orders))

    def _body(self, backends: Sequence[Backend], orders: Mapping[tuple[str, ...], Order]) -> dict[str, Any]:
        for backend in backends:
            if backend.pace.known and not backend.pace.given:
                self._paces[backend.name] = dataclasses.asdict(backend.pace.pace)
        for engines, order in orders.items():
            if order.usual.arrivals:
                name = _name(engines)
                self._pools.pop(name, None)
                self._pools[name] = {"usual": order.usual.state(), "reply": order.usual_len}
        names = {backend.name for backend in backends}
        return {
            "version": VERSION,
            "paces": {name: pace for name, pace in self._paces.items() if name in names},
            "pools": dict(list(self._pools.items())[-_MOST:]),
        }


def _table(kept: Any) -> dict[str, Any]:
    return dict(kept) if isinstance(kept, dict) else {}


def _name(engines: Sequence[str]) -> str:
    return " ".join(sorted(engines))
