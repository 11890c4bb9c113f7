"""What makes replies, as a job sees it: so many at once, each whole or ended early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from sooner.core import EngineError
from sooner.generate.prompts import Ask

Told = Callable[[int, str], bool]
"""Told how many tokens a running reply has, and the text that is new, where the engine says so.

Returns whether the reply is to be interrupted, which only an engine that `pauses` does.
"""


class Answer(NamedTuple):
    """One whole reply. `message` is what came besides its text; `raw` the server's own words, for a batch."""

    text: str
    output_len: int
    prompt_len: int
    finish_reason: str
    message: dict[str, Any]
    raw: dict[str, Any] | None = None


class Begun(NamedTuple):
    """What there is of a reply that was interrupted, to be gone on with."""

    ids: tuple[int, ...]  # its tokens
    text: str


class Declined(EngineError):
    """A request that the engine will not serve, however often it is sent."""


class Unwell(EngineError):
    """A request that failed and may succeed when it is sent again."""


class OutOfReach(EngineError):
    """The engine itself is gone: no request's fault, and none is lost."""


class Maker(Protocol):
    """An engine, or one of several. Used as an async context."""

    name: str
    model: str

    @property
    def pauses(self) -> bool:
        """Whether a reply can be interrupted and gone on with."""

    @property
    def window(self) -> int:
        """How many requests may be open at once now."""

    @property
    def steps(self) -> int | None:
        """Engine steps since the job began, None where the engine does not say."""

    async def start(self) -> None:
        """Be ready. Raises EngineError where that cannot be."""

    async def reply(self, ask: Ask, told: Told | None, begun: Begun | None = None) -> Answer | Begun:
        """Return the whole reply, or what there is of it where it was interrupted; `begun` is gone on with.

        When cancelled, the engine drops the request. Raises Declined, Unwell or OutOfReach.
        """

    async def recovered(self, patience: float) -> bool:
        """Wait until the engine answers again, at most `patience` [s]; return whether it does."""

    async def close(self) -> None:
        """Let go of everything."""
