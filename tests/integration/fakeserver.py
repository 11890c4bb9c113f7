"""A real aiohttp server that speaks the OpenAI protocol, and misbehaves on request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class FakeServer:
    """Answers every prompt with as many tokens as it has words.

    The first word may order a fault: `error500`, `error400`, `cut`, `garbage`, `nousage`, `midfault`,
    `silent`, `hang`. `flaky` counts connections to drop before answering. Nobody is answered until
    `hold` requests are under way at once.
    """

    first_token_s: float = 0.0
    token_s: float = 0.0
    flaky: int = 0
    hold: int = 1
    seen: list[dict[str, Any]] = field(default_factory=list)
    request_ids: list[str | None] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    url: str = ""
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "fake-1"})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return await self._answer(request)
        finally:
            self.under_way -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.flaky > 0:
            self.flaky -= 1
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        self.seen.append(body)
        self.request_ids.append(request.headers.get("X-Request-Id"))
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        words = text.split()
        if words[0].startswith("error"):
            return web.json_response({"error": {"message": "no such luck"}}, status=int(words[0][5:]))
        reason = "length" if len(words) >= body.get("max_tokens", 10**9) else "stop"
        length = min(len(words), body.get("max_tokens", 10**9))
        usage = {"prompt_tokens": len(words), "completion_tokens": length}
        if self.under_way >= self.hold:
            self.enough.set()
        await self.enough.wait()
        await asyncio.sleep(self.first_token_s)
        if not body.get("stream"):
            await asyncio.sleep(self.token_s * length)
            choice = {"message": {"content": text}, "text": text, "finish_reason": reason}
            return web.json_response({"choices": [choice], "usage": usage})
        return await self._stream(request, body, words[:length], reason, usage)

    async def _stream(
        self, request: web.Request, body: dict[str, Any], words: list[str], reason: str, usage: dict[str, int]
    ) -> web.StreamResponse:
        fault = words[0]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(event: object) -> None:
            text = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {text}\r\n\r\n".encode())

        def delta(text: str, reason: str | None = None) -> dict[str, Any]:
            chat = "messages" in body
            said = {"delta": {"content": text}} if chat else {"text": text}
            return {"choices": [{**said, "finish_reason": reason}], "usage": None}

        await response.write(b": a comment\n\n")
        await send({"choices": [{"delta": {"role": "assistant", "content": ""}, "text": ""}]})
        for index, word in enumerate(words):
            last = index == len(words) - 1
            await asyncio.sleep(self.token_s if index else 0.0)
            if index == 1 and fault == "cut":
                assert request.transport is not None
                request.transport.close()
                return response
            if index == 1 and fault == "silent":
                return response
            if index == 1 and fault == "garbage":
                await send('{"choices": [')
                continue
            if index == 1 and fault == "midfault":
                await send({"error": {"message": "engine died", "code": 500}})
                return response
            if index == 1 and fault == "hang":
                await asyncio.sleep(60)
            await send(delta(word, reason if last else None))
        if body.get("stream_options", {}).get("include_usage") and fault != "nousage":
            await send({"choices": [], "usage": usage})
        await send("[DONE]")
        return response

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeServer]:
        app = web.Application()
        app.router.add_get("/version", self.version)
        app.router.add_post("/v1/chat/completions", self.answer)
        app.router.add_post("/v1/completions", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()
