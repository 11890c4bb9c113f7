"""The emulated engine behind the OpenAI API: what `sooner serve --emulate` starts, and the test double."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sooner.chat import LIMITS, content_text, estimate_tokens
from sooner.core import ConfigError, MissingExtra
from sooner.emulator.engine import CostModel, Emulator, Job, Lengths, counts
from sooner.emulator.reply import ReplyFrames, Wanted, said

try:
    from aiohttp import web
except ImportError as error:
    raise MissingExtra("aiohttp", "gateway") from error

_DEFAULT_LIMIT = {"chat": None, "completions": 16, "responses": None}


class Refused(ConfigError):
    """A request that the engine does not take: HTTP 400."""


class EmulatedEngine:
    """An OpenAI-compatible server whose replies have the lengths and the pace of an engine, and no sense.

    The reply's length is `lengths`' for the prompt, cut at the request's limit; with `ignore_eos` it is
    the limit. As with vLLM, a `priority` other than 0 is refused unless the engine goes `by_priority`,
    and a reply that was cut can be continued from its text.
    """

    def __init__(
        self,
        cost: CostModel,
        lengths: Lengths | None = None,
        *,
        model: str = "",
        by_priority: bool = False,
        time_scale: float = 1.0,
    ) -> None:
        self.emulator = Emulator(cost, by_priority=by_priority, time_scale=time_scale)
        self.lengths = lengths or Lengths()
        self.model = model or cost.name
        self.url = ""
        self.seen: list[tuple[float, str]] = []  # when each request came, and its prompt's first 40 letters
        self._count = 0

    def app(self) -> web.Application:
        """Return the server as an application; the engine starts and stops with it."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        for path, api in (("chat/completions", "chat"), ("completions", "completions"), ("responses",) * 2):
            app.router.add_post(f"/v1/{path}", self._handler(api))
        app.cleanup_ctx.append(self._running)
        return app

    @asynccontextmanager
    async def serving(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[EmulatedEngine]:
        """Serve in the running loop; `url` says where."""
        runner = web.AppRunner(self.app(), handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, backlog=2048).start()
            self.url = f"http://{host}:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    async def _running(self, app: web.Application) -> AsyncIterator[None]:
        self.emulator.start()
        yield
        await self.emulator.stop()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "sooner-emulated"})

    async def _metrics(self, request: web.Request) -> web.Response:
        lines = [
            f'{name}{{model_name="{self.model}"}} {value}' for name, value in counts(self.emulator).items()
        ]
        return web.Response(text="\n".join(lines) + "\n")

    async def _models(self, request: web.Request) -> web.Response:
        card = {"id": self.model, "object": "model", "created": 0, "owned_by": "sooner"}
        return web.json_response({"object": "list", "data": [card]})

    def _handler(self, api: str) -> Any:
        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                body = await request.json()
                asked = self._read(api, body if isinstance(body, dict) else {})
                reply = ReplyFrames(api, f"emu-{self._next()}", self.model, asked)
                return await self._serve(request, asked, reply)
            except (ValueError, TypeError) as error:
                wrong = {"message": str(error), "type": "BadRequestError", "code": 400}
                return web.json_response({"error": wrong}, status=400)

        return answer

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _read(self, api: str, body: Mapping[str, Any]) -> Wanted:
        prompt, prompt_len = _prompt(body)
        limit = next((body[name] for name in LIMITS if body.get(name) is not None), _DEFAULT_LIMIT[api])
        if limit is not None and (type(limit) is not int or limit < 1):
            raise Refused(f"max_tokens={limit!r}, allowed: an integer >= 1")
        priority = body.get("priority", 0)
        if priority and not self.emulator.by_priority:
            raise Refused(f"priority={priority!r}, allowed: 0, since the engine does not go by priority")
        if isinstance(priority, bool) or not isinstance(priority, int | float):
            raise Refused(f"priority={priority!r}, allowed: a number")
        prompt, done = _begun(body, prompt)
        left = self.lengths.of(prompt) - done
        if limit is not None and body.get("ignore_eos") is True:
            left = limit + 1
        output = max(1, left if limit is None else min(left, limit))
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        return Wanted(
            api, prompt, prompt_len, output, limit is not None and left > limit, priority,
            body.get("stream") is True, usage, done, left < 1,
        )  # fmt: skip

    async def _serve(self, request: web.Request, asked: Wanted, reply: ReplyFrames) -> web.StreamResponse:
        self.seen.append((time.monotonic(), asked.prompt[:40]))
        if len(self.seen) > 100_000:
            del self.seen[:50_000]
        frames: list[bytes] = []
        writer: list[Any] = []

        def on_token(n: int) -> None:
            if not asked.stream:
                return
            frame = reply.piece(n)
            if not writer:
                frames.append(frame)
            elif not writer[0].is_closing():  # a client that has left is dropped in a moment
                writer[0].write(frame)

        job = Job(asked.prompt_len, asked.output_len, on_token, asked.priority)
        self.emulator.submit(job)
        try:
            if not asked.stream:
                await job.done.wait()
                return web.json_response(reply.whole())
            return await self._stream(request, job, reply, frames, writer)
        finally:
            self.emulator.abort(job)

    async def _stream(
        self, request: web.Request, job: Job, reply: ReplyFrames, frames: list[bytes], writer: list[Any]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        if request.version >= (1, 1):
            response.enable_chunked_encoding()
        prepared = await response.prepare(request)
        assert prepared is not None  # it was this call that prepared it
        assert request.transport is not None  # a client that left cancels this task
        opening = reply.opening()
        flush = getattr(prepared, "send_headers", None)  # before aiohttp 3.12 they have gone already
        if opening:
            await prepared.write(opening)
        elif flush is not None:
            flush()
        if request.version >= (1, 1):  # from here on, tokens are written in the callback of their iteration
            if not request.transport.is_closing():
                request.transport.write(b"".join(frames))
            writer.append(request.transport)
            await job.done.wait()
        else:
            await job.done.wait()
            await prepared.write(b"".join(_unframed(frame) for frame in frames))
        await response.write(reply.closing())
        await response.write_eof()
        return response


def _unframed(frame: bytes) -> bytes:
    return frame[frame.index(b"\r\n") + 2 : -2]


def _prompt(body: Mapping[str, Any]) -> tuple[str, int]:
    """Return the text of a request and its length, four letters to a token. Raises Refused."""
    given = body.get("messages", body.get("prompt", body.get("input")))
    if isinstance(given, list) and given and all(type(token) is int for token in given):
        return " ".join(map(str, given)), len(given)
    if isinstance(given, list) and given and all(isinstance(message, Mapping) for message in given):
        texts = [content_text(message.get("content")) for message in given]
        prompt = texts[-1]
        return prompt, max(1, round(sum(map(estimate_tokens, texts))))
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str):
        given = given[0]
    if not isinstance(given, str):
        raise Refused("neither messages nor a prompt; allowed: messages, prompt or input")
    return given, max(1, round(estimate_tokens(given)))


def _begun(body: Mapping[str, Any], prompt: str) -> tuple[str, int]:
    """Return the prompt without the part of a reply it ends with, and how many tokens that part has.

    So a reply can be continued: a completion by a prompt that ends as our reply began, a chat by a
    last message of the assistant and `continue_final_message`, as vLLM has it.
    """
    messages = body.get("messages")
    if isinstance(body.get("prompt"), str):
        done = said(prompt)
        return prompt[: _cut(prompt, done)], done
    if body.get("continue_final_message") is not True or not messages or len(messages) < 2:
        return prompt, 0
    return content_text(messages[-2].get("content")), said(prompt)


def _cut(text: str, words: int) -> int:
    end = len(text)
    for _ in range(words):
        end = text.rindex(" ", 0, end)
    return end
