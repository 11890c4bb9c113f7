"""A job's requests to vLLM in this process: no server, no sockets, every step counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sooner.core import ConfigError, EngineError
from sooner.generate.engines import Answer, Declined, Told
from sooner.generate.prompts import ROUTES, Ask

if TYPE_CHECKING:
    from sooner.vllm.offline import SteppedEngine, WholeReply

_RESERVE = 0.1
"""Of the slots: so many requests wait in the engine, so that a free slot is taken in the same step."""


class InProcess:
    """vLLM in this process. `settings` are `vllm.LLM`'s; with `stream`, tokens are told as they come."""

    def __init__(
        self, model: str, settings: Mapping[str, Any] | None = None, *, stream: bool = False
    ) -> None:
        self.name = self.model = model
        self._settings = dict(settings or {})
        self._stream = stream
        self._engine: SteppedEngine | None = None

    @property
    def window(self) -> int:
        """How many requests may be open at once."""
        slots = 1 if self._engine is None else self._engine.max_num_seqs
        return slots + max(2, round(_RESERVE * slots))

    @property
    def steps(self) -> int | None:
        """Engine steps so far."""
        return None if self._engine is None else self._engine.steps

    @property
    def stepped(self) -> SteppedEngine:
        """The engine itself, once it was started."""
        assert self._engine is not None
        return self._engine

    async def start(self) -> None:
        """Load the model. Raises ConfigError, EngineError or MissingExtra."""
        from sooner.vllm.offline import SteppedEngine

        self._engine = SteppedEngine(self.model, self._settings, pieces=self._stream)

    async def reply(self, ask: Ask, told: Told | None) -> Answer:
        """Return the whole reply; see `Maker`."""
        engine, loop = self.stepped, asyncio.get_running_loop()
        done: asyncio.Future[WholeReply] = loop.create_future()

        def arrived(tokens: int, text: str, ended: WholeReply | Exception | None) -> None:
            if done.done():
                return
            if isinstance(ended, Exception):
                done.set_exception(ended)
            elif ended is not None:
                done.set_result(ended)
            elif told is not None:
                told(tokens, text)

        def heard(tokens: int, text: str, ended: WholeReply | Exception | None) -> None:
            loop.call_soon_threadsafe(arrived, tokens, text, ended)

        try:
            ids = engine.tokens(ask.body)
            name = engine.submit(ids, engine.params(ask.body, len(ids)), heard)
        except ConfigError as error:
            raise Declined(str(error)) from error
        try:
            ended = await done
        except asyncio.CancelledError:
            engine.abort(name)
            raise
        except EngineError:
            raise
        except Exception as error:
            raise Declined(f"vLLM refuses the request: {error}") from error
        raw = _as_served(ask, self.model, name, ended) if ask.batch else None
        return Answer(ended.text, ended.output_len, ended.prompt_len, ended.finish_reason, {}, raw)

    async def recovered(self, patience: float) -> bool:
        """An engine in this process does not come back."""
        return False

    async def close(self) -> None:
        """End the engine."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)
            self._engine = None


def _as_served(ask: Ask, model: str, name: str, ended: WholeReply) -> dict[str, Any]:
    """Return a reply as a server would have sent it."""
    chat = ask.route == ROUTES["chat"]
    said: dict[str, Any] = {"text": ended.text}
    if chat:
        said = {"message": {"role": "assistant", "content": ended.text}}
    return {
        "id": name,
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": ended.finish_reason}],
        "usage": {
            "prompt_tokens": ended.prompt_len, "completion_tokens": ended.output_len,
            "total_tokens": ended.prompt_len + ended.output_len,
        },
    }  # fmt: skip
