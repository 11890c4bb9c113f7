"""A job's requests to vLLM in this process: no server, no sockets, every step counted."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from sooner.core import ConfigError, EngineError
from sooner.generate.engines import Answer, Begun, Declined, Told
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
        self._news: deque[Callable[[], None]] = deque()
        self._woken = False

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

    @property
    def pauses(self) -> bool:
        """Whether a reply can be interrupted: where its tokens are told."""
        return self._stream

    async def reply(self, ask: Ask, told: Told | None, begun: Begun | None = None) -> Answer | Begun:
        """Return the whole reply, or what there is of it; see `Maker`."""
        from sooner.vllm.offline import goes_on

        engine, loop = self.stepped, asyncio.get_running_loop()
        done: asyncio.Future[WholeReply] = loop.create_future()
        had: tuple[int, ...] = () if begun is None else begun.ids
        try:
            prompt = engine.tokens(ask.body)
            params = engine.params(ask.body, len(prompt), len(had))
        except ConfigError as error:
            raise Declined(str(error)) from error

        def arrived(tokens: int, text: str, ended: WholeReply | Exception | None) -> None:
            if done.done():
                return
            if isinstance(ended, Exception):
                done.set_exception(ended)
            elif ended is not None:
                done.set_result(ended)
            elif told is not None and told(len(had) + tokens, text) and goes_on(params):
                engine.interrupt(name)

        def heard(tokens: int, text: str, ended: WholeReply | Exception | None) -> None:
            self._news.append(partial(arrived, tokens, text, ended))
            if not self._woken:
                self._woken = True
                loop.call_soon_threadsafe(self._hear)

        name = engine.submit([*prompt, *had], params, heard)
        try:
            ended = await done
        except asyncio.CancelledError:
            engine.abort(name)
            raise
        except EngineError:
            raise
        except Exception as error:
            raise Declined(f"vLLM refuses the request: {error}") from error
        ids = (*had, *ended.ids)
        text = engine.text(ids) if had or ended.interrupted else ended.text
        if ended.interrupted:
            return Begun(ids, text)
        answer = Answer(text, len(ids), len(prompt), ended.finish_reason, {})
        return answer._replace(raw=_as_served(ask, self.model, name, answer)) if ask.batch else answer

    def _hear(self) -> None:
        """Take in what the engine's thread has told, all that came together at once."""
        self._woken = False
        while self._news:
            self._news.popleft()()

    async def recovered(self, patience: float) -> bool:
        """An engine in this process does not come back."""
        return False

    async def close(self) -> None:
        """End the engine."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)
            self._engine = None


def _as_served(ask: Ask, model: str, name: str, ended: Answer) -> dict[str, Any]:
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
