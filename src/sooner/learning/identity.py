"""Whose request this is and what it is made from, as salted hashes: no name and no text is kept.

A hash is BLAKE2b keyed with the installation's salt, so that nobody without the salt can check a guess.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sooner import config
from sooner.chat import ChatRequest, Context, Signals
from sooner.core import ConfigError

logger = logging.getLogger("sooner.learning")

_SALT_BYTES = 32
_OPENING = 64
"""Letters of the first user's text: equal within a conversation, and where an application begins alike."""

_NOBODY = ("", "default")
"""What a gateway without keys calls a tenant that names itself by nothing."""

_BLOCKS = (32, 96)
"""Leading token ids that stand for template and opening where no tokenizer reads them."""


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
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
            try:
                with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                    file.write(secrets.token_bytes(_SALT_BYTES))
                with contextlib.suppress(FileExistsError):
                    os.link(draft, path)  # whole or not at all, and the first of several stays
            finally:
                draft.unlink(missing_ok=True)
        return cls(path.read_bytes())

    @classmethod
    def of_installation(cls) -> Salt:
        """Return the salt in the cache folder; one for this process only where that cannot be used."""
        try:
            return cls.kept(config.cache_folder() / "salt")
        except (OSError, ConfigError) as error:
            logger.warning("the salt cannot be kept (%s): groups are learned anew at the next start", error)
            return cls.fresh()

    def of(self, *parts: str | int | bool | None) -> int:
        """Return the hash of some words; 0 where all are empty."""
        if not any(parts):
            return 0
        text = "\x1f".join("" if part is None else str(part) for part in parts)
        data = text.encode("utf-8", "replace")
        return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=self._secret).digest(), "little") or 1

    def sender(self, *names: str) -> int:
        """Return the hash of who asks: tenant and user, of which a log may know one only."""
        return self.of(*dict.fromkeys(name for name in names if name not in _NOBODY))

    def template(self, context: Context) -> int:
        """Return the hash of a system prompt with tools, format and limit."""
        return self.of(context.system, context.tools, context.structured, context.max_tokens)

    def opening(self, prompt: str, context: Context) -> int:
        """Return the hash of how a conversation begins."""
        first = context.asked[0] if context.turn and context.turn == len(context.asked) else prompt
        if context.turn > len(context.asked):
            first = ""  # the beginning of a long conversation is not kept
        return self.of(first[:_OPENING])

    def blocks(self, ids: Sequence[int], said: Signals) -> tuple[int, int]:
        """Return template and opening of a prompt that is known as token ids only."""
        first, second = (",".join(map(str, ids[:n])) for n in _BLOCKS)
        return self.of(first, said.tools, said.structured, said.max_tokens), self.of(second)

    def identity(self, request: ChatRequest, prompt: str, context: Context) -> Identity:
        """Return whose request it is; `prompt` and `context` are what a ranker sees of it."""
        said = request.signals
        return Identity(
            self.of(said.model),
            self.sender(said.sender),
            self.template(context),
            self.opening(prompt, context),
        )
