"""Everything a start would refuse, and what it would only find later: engines, databases, files, the port."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sooner import config, rankers
from sooner.core import SoonerError
from sooner.gateway.admission.keys import KeyBook
from sooner.gateway.database import Database
from sooner.gateway.engines.backend import Backend, key_in
from sooner.gateway.settings import GatewaySettings
from sooner.ordering.process import LEARNER

OK, WARNING, ERROR = "ok", "warning", "error"


class Finding(NamedTuple):
    """What was looked at, how it is (`ok`, `warning` or `error`), and the words."""

    what: str
    state: str
    words: str


async def check(settings: GatewaySettings) -> list[Finding]:
    """Look at all that settings name; nothing is served, and nothing is made."""
    backends = [Backend(chosen, settings.limits) for chosen in settings.backends]
    try:
        await asyncio.gather(*(backend.check(hungry=False) for backend in backends))
        found = [finding for backend in backends for finding in _backend(backend)]
        found += _aliases(settings, backends)
    finally:
        for backend in backends:
            backend.close()
    if not backends:
        found.append(Finding("backends", ERROR, "none is named, allowed: at least one [[backend]]"))
    for look in (_port, _keys, _admin_key, _journal, _ranker, _traces):
        found += await asyncio.to_thread(_list, look, settings)
    return found


def _list(look: object, settings: GatewaySettings) -> list[Finding]:
    assert callable(look)
    return list(look(settings))


def _backend(backend: Backend) -> Iterator[Finding]:
    what = f"backend {backend.name}"
    if not backend.healthy:
        yield Finding(what, ERROR, f"{backend.settings.url} does not answer at {backend.kind.health}")
        return
    names = sorted(backend.cards)
    yield Finding(what, OK, f"answers; models: {', '.join(names[:10]) or 'none listed'}")
    for name in backend.settings.models:
        if backend.cards and name not in backend.cards:
            yield Finding(what, ERROR, f"model {name!r} is not among its models: {', '.join(names[:10])}")
    if backend.settings.hand_on and backend.kind.priority is None:
        yield Finding(
            what, WARNING, f"kind {backend.settings.kind!r} takes no priority: order is kept here only"
        )
    if backend.kind.waiting and backend.waiting_inside is None:
        yield Finding(
            what, WARNING, f"/metrics has no {backend.kind.waiting}: its bound is found from latency"
        )


def _aliases(settings: GatewaySettings, backends: Sequence[Backend]) -> Iterator[Finding]:
    known = {name for backend in backends for name in backend.offers}
    if not known or not all(backend.healthy for backend in backends):
        return
    for alias, name in settings.aliases.items():
        if name not in known:
            listed = ", ".join(sorted(known)[:10])
            yield Finding(f"alias {alias}", ERROR, f"no engine has the model {name!r}; known: {listed}")


def _port(settings: GatewaySettings) -> Iterator[Finding]:
    what = f"{settings.host}:{settings.port}"
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
        yield Finding(what, OK, "free")
    except OSError as error:
        yield Finding(what, WARNING, f"cannot be listened at now: {error.strerror or error}")


def _keys(settings: GatewaySettings) -> Iterator[Finding]:
    if not settings.keys:
        yield Finding("keys", OK, "none: only this machine is served")
        return
    try:
        database = Database(settings.keys)
        database.must_exist()
        book = KeyBook(database)
        good = [key for key in book.all() if key.revoked is None]
        book.close()
    except SoonerError as error:
        yield Finding("keys", ERROR, str(error))
        return
    tenants = {key.tenant for key in good}
    yield Finding("keys", OK if good else WARNING, f"{len(good)} good keys of {len(tenants)} tenants")
    for named in settings.tenants:
        if named.name not in tenants:
            yield Finding(f"tenant {named.name}", WARNING, "is named in the settings and has no good key")


def _admin_key(settings: GatewaySettings) -> Iterator[Finding]:
    if not settings.admin_key_file:
        told = "no admin_key_file: no admin routes" + (", and no page" if settings.keys else "")
        yield Finding("admin key", OK, told)
        return
    try:
        key = key_in(settings.admin_key_file)
    except SoonerError as error:
        yield Finding("admin key", ERROR, str(error))
        return
    if len(key) < 16:
        yield Finding("admin key", WARNING if key else ERROR, f"{len(key)} letters, better: at least 16")
    if stat.S_IMODE(Path(settings.admin_key_file).stat().st_mode) & 0o077:
        yield Finding("admin key", WARNING, f"{settings.admin_key_file} can be read by others; chmod 600 it")
    if len(key) >= 16:
        yield Finding("admin key", OK, "is there")


def _journal(settings: GatewaySettings) -> Iterator[Finding]:
    url = settings.journal.url
    if not url:
        yield Finding("journal", OK, "none is kept")
        return
    try:
        database = Database(url)
        path = database.file
        if path is not None and not path.exists():
            folder = path.absolute().parent
            good = folder.is_dir() and os.access(folder, os.W_OK)
            told = "will be made" if good else f"{str(folder)!r} is no folder that can be written to"
            yield Finding("journal", OK if good else ERROR, told)
            return
        with database.begin():
            pass
        database.close()
        yield Finding("journal", OK, "can be written to")
    except SoonerError as error:
        yield Finding("journal", ERROR, str(error))


def _ranker(settings: GatewaySettings) -> Iterator[Finding]:
    yield _loaded("ranker", settings.ranker)
    if settings.shadow:
        yield _loaded("shadow", "" if settings.shadow == LEARNER else settings.shadow)


def _loaded(what: str, name: str) -> Finding:
    if not name or ":" in name:
        return Finding(what, OK, name or "none")
    try:
        return Finding(what, OK, f"{name}: {rankers.load(name).name}")
    except SoonerError as error:
        return Finding(what, ERROR, str(error))


def _traces(settings: GatewaySettings) -> Iterator[Finding]:
    if not config.otel_wanted():
        yield Finding("traces", OK, "none: OTEL_EXPORTER_OTLP_ENDPOINT names no collector")
    elif importlib.util.find_spec("opentelemetry") is None:
        yield Finding("traces", ERROR, "wanted, and not installed: pip install 'sooner[otel]'")
    else:
        yield Finding("traces", OK, f"sent by OTLP over {config.otel_protocol()}")
