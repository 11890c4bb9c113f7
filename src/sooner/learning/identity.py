"""Whose request this is and what it is made from, as salted hashes: no name and no text is kept.

A hash is BLAKE2b keyed with the installation's salt, so that nobody without the salt can check a guess.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import NamedTuple

from sooner.chat import ChatRequest, Context
from sooner.core import ConfigError

_SALT_BYTES = 32
_OPENING = 64
"""Letters of the first user's text: equal within a conversation, and where an application begins alike."""


class Identity(NamedTuple):
    """The groups a request belongs to, each a hash of 64 bits; 0 where that is not known.

    `template` is the system prompt with tools, format and limit; `opening` how the conversation begins.
    """

    model: int = 0
    sender: int = 0
    template: int = 0
    opening: int = 0


class Salt:
    """Hashes with the secret of one installation."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _SALT_BYTES:
            raise ConfigError(f"a salt of {len(secret)} bytes, allowed: {_SALT_BYTES}")
        self._secret = secret

    @classmethod
    def fresh(cls) -> Salt:
        """Return a salt that nobody else has."""
        return cls(secrets.token_bytes(_SALT_BYTES))

    @classmethod
    def kept(cls, path: Path) -> Salt:
        """Return the salt in a file, which is made at first use and read by its owner only.

        Raises ConfigError for a file that holds something else.
        """
        try:
            with path.open("xb") as file:
                path.chmod(0o600)
                file.write(secrets.token_bytes(_SALT_BYTES))
        except FileExistsError:
            pass
        return cls(path.read_bytes())

    def of(self, *parts: str | int | bool | None) -> int:
        """Return the hash of some words; 0 where all are empty."""
        if not any(parts):
            return 0
        text = "\x1f".join("" if part is None else str(part) for part in parts)
        data = text.encode("utf-8", "replace")
        return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=self._secret).digest(), "little") or 1

    def identity(self, request: ChatRequest, prompt: str, context: Context) -> Identity:
        """Return whose request it is; `prompt` and `context` are what a ranker sees of it."""
        said = request.signals
        first = context.asked[0] if context.turn and context.turn == len(context.asked) else prompt
        if context.turn > len(context.asked):
            first = ""  # the beginning of a long conversation is not kept
        return Identity(
            self.of(said.model),
            self.of(said.sender),
            self.of(context.system, context.tools, context.structured, context.max_tokens),
            self.of(first[:_OPENING]),
        )
