"""Why a request is turned away: a type for each reason, with its counter and its answer."""

from __future__ import annotations

from typing import ClassVar

from sooner.core import SoonerError


class TurnedAway(SoonerError):
    """A request is not served; `retry_after` [s] is when it may come again, None where unknown.

    `counter` counts the reason, `status`, `code` and `kind` are the answer's, and `again` says whether a
    client should come again by itself.
    """

    counter: ClassVar[str]
    code: ClassVar[str]
    status: ClassVar[int] = 503
    again: ClassVar[bool] = True
    kind: ClassVar[str] = "overloaded_error"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RoomFull(TurnedAway):
    """The waiting room, or the tenant's part of it, is full."""

    counter, code = "refused_full", "queue_full"


class WaitTooLong(TurnedAway):
    """It would wait, or has waited, longer than any may."""

    counter, code = "refused_wait", "wait_too_long"


class DeadlineMissed(TurnedAway):
    """Its deadline is out of reach."""

    counter, code, again = "refused_deadline", "deadline_unreachable", False


class NoEngineUp(TurnedAway):
    """No engine for its model is up."""

    counter, code = "refused_down", "no_engine"


class OverLimit(TurnedAway):
    """Its tenant has used up what it may ask for in a minute."""

    counter, code, status, kind = "refused_limit", "rate_limit_exceeded", 429, "rate_limit_error"


class KeyRevoked(TurnedAway):
    """Its key was revoked while it waited."""

    counter, code, status, again, kind = (
        "refused_key", "invalid_api_key", 401, False, "authentication_error",
    )  # fmt: skip


class NoRoomForBody(TurnedAway):
    """The bodies that are held take all the memory that they, or their tenant's, may."""

    counter, code = "refused_bytes", "too_many_bytes"


class UnknownModel(SoonerError):
    """No engine serves the model."""
