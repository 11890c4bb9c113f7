"""A question on its way to the scorer."""

from __future__ import annotations

from dataclasses import dataclass

from sooner.chat import ChatRequest

NOTHING = ChatRequest()
"""In place of a request that is not needed any more."""


@dataclass(slots=True)
class Submitted:
    """A question, waiting or with the scorer."""

    id: str
    request: ChatRequest
    tenant: str
    expires: float
    frame: bytes = b""
    tries: int = 0
    gone: bool = False  # answered, sent or dropped: it waits no more

    @property
    def size(self) -> int:
        """Letters or token ids of a request: about what reading it costs."""
        request = self.request
        if isinstance(request.prompt, str) or request.tokenized:
            return len(request.prompt)
        return sum(len(turn.text) for turn in request.turns)
