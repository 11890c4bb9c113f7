"""A place at an engine: held until the engine is done, and given back once, with what was made there.

What was made is charged however the reply ended. A reply that the client saw is counted; what an
engine made unseen, for a client that left or read nothing, is reckoned from the time it held the place.
"""

from __future__ import annotations

from sooner.gateway.admission.shares import OUTPUT_WEIGHT, charge
from sooner.gateway.delivery import relay
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.engines.backend import Backend
from sooner.gateway.engines.client import Sent
from sooner.gateway.engines.connections import Unreachable
from sooner.gateway.visit import Visit


class Place:
    """One engine's slot in the hands of one request. `sent` is the reply, once it has begun to come.

    `prompt` says whether the prompt counts here, as it does once for a reply.
    """

    def __init__(
        self, dispatcher: Dispatcher, waiting: Visit, backend: Backend, *, prompt: bool = True
    ) -> None:
        self.backend = backend
        self.sent: Sent | None = None
        self._dispatcher = dispatcher
        self._waiting = waiting
        self._began = dispatcher.clock()
        self._prompt = prompt
        self._held = True

    def give_back(self, served: float, error: str = "") -> None:
        """Give it back with the tokens that were made, once; later calls change nothing.

        `error` names what went wrong, for the trace.
        """
        if self._held:
            self._held = False
            if self._waiting.trace is not None:
                self._waiting.trace.engine_over(error)
            self._dispatcher.over(self._waiting, self.backend, served)

    def done(self, served: float) -> None:
        """Give it back after a whole reply, and learn from it what an engine makes in its time."""
        self._waiting.pool.made.add(served)
        self.give_back(served)

    def failed(self, error: Exception) -> None:
        """Give it back where the engine failed: what was seen of its work is charged.

        What it may have made unseen counts for no more than was expected: it may as well have stood still.
        """
        if isinstance(error, Unreachable):
            made = 0.0
        elif self._seen:
            made = self._reckoned()
        else:
            made = min(self._reckoned(), self._waiting.charged)
        self.give_back(made, type(error).__name__)

    def left(self) -> None:
        """Give it back where the client has left, or whatever else ended the reply."""
        if self._held:
            self.give_back(self._reckoned(), "client_gone")

    @property
    def _seen(self) -> bool:
        """Whether all that the engine made has come here, token by token."""
        streams = self._waiting.asked.stream and self._waiting.asked.endpoint.generates
        return streams and self.sent is not None and not self.sent.connection.slowed

    def _reckoned(self) -> float:
        """Return what the engine made, as far as it can be seen [tokens of input]."""
        waiting, sent = self._waiting, self.sent
        prompt_len: float = waiting.ticket.prompt_len
        unseen = not waiting.asked.stream and waiting.asked.endpoint.generates
        if sent is None:
            made = self._by_time(prompt_len) if unseen else 0.0
        else:
            used = relay.usage(sent.connection, waiting.asked, ended=False)
            prompt_len = prompt_len if used.prompt_len is None else used.prompt_len
            made = float(used.output_len)
            if not used.counted and (unseen or sent.connection.slowed):
                made = max(made, self._by_time(prompt_len))
        return charge(prompt_len if self._prompt else 0.0, made)

    def _by_time(self, prompt_len: float) -> float:
        """Return the output tokens that an engine makes in the time that the place was held."""
        waiting = self._waiting
        seconds = self._dispatcher.clock() - self._began
        if self.backend.window.step_time:
            tokens = seconds / self.backend.window.step_time
        elif waiting.pool.service.value and waiting.pool.made.value:
            pace = waiting.pool.made.value / waiting.pool.service.value
            tokens = (seconds * pace - prompt_len) / OUTPUT_WEIGHT
        else:  # nothing is known yet: what was expected
            tokens = (waiting.charged - prompt_len) / OUTPUT_WEIGHT
        bounds = (waiting.asked.request.signals.max_tokens, waiting.slice or None)
        return max(0.0, min([tokens, *(float(bound) for bound in bounds if bound is not None)]))
