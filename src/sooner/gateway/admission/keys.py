"""API keys: shown once when made, kept as hashes, compared in constant time.

A key is `sk-sooner-<id>-<secret>` with a secret of 256 random bits, so a plain SHA-256 of it cannot
be turned back; the id finds the row, and the comparison leaks nothing of the secret.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Mapping
from typing import NamedTuple

import sqlalchemy as sa

from sooner.core import ConfigError
from sooner.gateway.database import KEYS, Database

logger = logging.getLogger("sooner.gateway")

_KEY = re.compile(r"sk-sooner-([0-9a-f]{12})-[A-Za-z0-9_-]{43}\Z")
_TENANT = re.compile(r"[A-Za-z0-9_.@-]{1,64}\Z")


class Key(NamedTuple):
    """One key as it is kept; times are Unix times, `revoked` None while it is good."""

    id: str
    tenant: str
    hash: str
    created: float
    revoked: float | None


class KeyBook:
    """The keys of a gateway. `find` looks in memory; `read` brings it up to date."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._good: dict[str, Key] = {}

    def add(self, tenant: str) -> str:
        """Make a key for a tenant and return it: the only time that it is seen."""
        if not _TENANT.match(tenant):
            raise ConfigError(f"tenant {tenant!r}, allowed: 1 to 64 letters, digits and _ . @ -")
        id = secrets.token_hex(6)
        key = f"sk-sooner-{id}-{secrets.token_urlsafe(32)}"
        with self._database.begin() as connection:
            connection.execute(
                KEYS.insert().values(id=id, tenant=tenant, hash=_hash(key), created=time.time())
            )
        return key

    def all(self) -> list[Key]:
        """Return every key that was ever made, oldest first."""
        with self._database.begin() as connection:
            return [Key(*row) for row in connection.execute(sa.select(KEYS).order_by(KEYS.c.created))]

    def revoke(self, id: str) -> None:
        """End a key. Raises ConfigError where there is none with this id that is good."""
        change = KEYS.update().where(KEYS.c.id == id, KEYS.c.revoked.is_(None)).values(revoked=time.time())
        with self._database.begin() as connection:
            if connection.execute(change).rowcount != 1:
                raise ConfigError(f"no good key has the id {id!r}; sooner keys list shows them")

    def open(self) -> None:
        """Read the keys there are. Raises DataError where the database is a file that is not there."""
        self.must_exist()
        self.read()
        if not self._good:
            logger.warning("the database of keys holds none that is good; sooner keys add makes one")

    def must_exist(self) -> None:
        """Raise DataError where the database is a file that is not there."""
        self._database.must_exist("a file that sooner keys add has made")

    def close(self) -> None:
        """Close the database; the keys that were read stay good."""
        self._database.close()

    def read(self) -> None:
        """Take in what has changed in the database."""
        self._good = {key.id: key for key in self.all() if key.revoked is None}

    def tenant(self, given: str) -> str | None:
        """Return whose key this is, None where it is nobody's."""
        found = _KEY.match(given)
        key = self._good.get(found[1]) if found else None
        known = key.hash if key else "0" * 64
        same = hmac.compare_digest(_hash(given), known)
        return key.tenant if key is not None and same else None

    def is_good(self, given: str) -> bool:
        """Return whether a key that was good is so still."""
        return self.tenant(given) is not None


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def presented(headers: Mapping[str, str]) -> str:
    """Return the key in a request's headers: OpenAI's, else Anthropic's, else Azure's; empty for none."""
    return bearer(headers.get("Authorization")) or headers.get("x-api-key") or headers.get("api-key") or ""


def bearer(header: str | None) -> str:
    """Return the key in an Authorization header; empty where there is none."""
    kind, _, key = (header or "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""
