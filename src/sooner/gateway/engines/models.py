"""The models that are offered: those that engines list or are named for, and their aliases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sooner.gateway.engines.backend import Backend


def cards(backends: Iterable[Backend], aliases: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """Return every model and alias by name, as `/v1/models` shows them."""
    found: dict[str, dict[str, object]] = {}
    for backend in backends:
        for name in backend.settings.models:
            found.setdefault(name, {"id": name, "object": "model", "created": 0, "owned_by": "engine"})
        for name, card in backend.cards.items():
            if backend.serves(name):
                found.setdefault(name, dict(card))
    for alias, name in aliases.items():
        if name in found:
            found[alias] = {**found[name], "id": alias}
    return found
