"""A job's requests to an OpenAI-compatible server; its window keeps the batch full and the queue short."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any

import aiohttp

from sooner.core import ConfigError, EngineError
from sooner.generate.engines import Answer, Begun, Declined, OutOfReach, Told, Unwell
from sooner.generate.opening import Opening
from sooner.generate.prompts import ROUTES, Ask
from sooner.replay.client import Endpoint, events, refuse, session

_LOOK = 0.25  # seconds between two looks at the server's gauges
_RUNNING, _WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
_PREEMPTED = "vllm:num_preemptions_total"
_STEPS = "vllm:iteration_tokens_total_count"
_AGAIN = frozenset((408, 409, 425, 429))


class Server:
    """One server. `window` is fixed where it is given, else it follows what the server says is waiting.

    With `stream`, tokens are counted as they come, so that a reply that is ended early is known so far.
    """

    def __init__(
        self, url: str, model: str | None = None, *, api_key: str | None = None, window: int | None = None,
        stream: bool = False,
    ) -> None:  # fmt: skip
        self._endpoint = Endpoint(url=url, model=model or "", api_key=api_key)
        self.name = self._endpoint.root
        self.model = model or ""
        self._stream = stream
        self._opening = Opening(window)
        self._http: aiohttp.ClientSession | None = None
        self._watch: asyncio.Task[None] | None = None
        self._first_step: int | None = None
        self._last_step: int | None = None

    pauses = False

    @property
    def window(self) -> int:
        """How many requests may be open at once now."""
        return self._opening.size

    @property
    def steps(self) -> int | None:
        """Engine steps since the start, where the server counts its iterations as vLLM does."""
        if self._first_step is None or self._last_step is None:
            return None
        return self._last_step - self._first_step

    async def start(self) -> None:
        """Find the model's name and the gauges. Raises EngineError where the server is not there."""
        self._http = session(self._endpoint, timeout=None)
        if not self.model:
            self.model = await self._only_model()
        await self._look()
        self._first_step = self._last_step
        self._watch = asyncio.get_running_loop().create_task(self._looking())

    async def _only_model(self) -> str:
        try:
            data = await self._get("/v1/models")
            names = [str(card["id"]) for card in json.loads(data)["data"]]
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{self.name} does not say which models it has: {error!r}") from error
        if len(names) != 1:
            raise ConfigError(f"{self.name} has {len(names)} models, choose one of: {', '.join(names)}")
        return names[0]

    async def _get(self, path: str) -> bytes:
        assert self._http is not None
        async with self._http.get(self.name + path, timeout=aiohttp.ClientTimeout(total=10)) as response:
            await refuse(response)
            return await response.read()

    async def _looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            await self._look()

    async def _look(self) -> None:
        """Read the gauges: the steps, and what runs and waits."""
        try:
            gauges = _gauges((await self._get("/metrics")).decode("utf-8", "replace"))
        except (aiohttp.ClientError, TimeoutError):
            return
        if _STEPS in gauges:
            self._last_step = int(gauges[_STEPS])
        if _RUNNING in gauges:
            waiting, preempted = gauges.get(_WAITING, 0.0), gauges.get(_PREEMPTED, 0.0)
            self._opening.look(gauges[_RUNNING], waiting, preempted)

    async def reply(self, ask: Ask, told: Told | None, begun: Begun | None = None) -> Answer:
        """Return the whole reply; see `Maker`."""
        assert self._http is not None
        body = ask.body if ask.body.get("model") else {**ask.body, "model": self.model}
        stream = self._stream and told is not None and not ask.batch
        if stream:
            options = {"include_usage": True, "continuous_usage_stats": True}
            body = {**body, "stream": True, "stream_options": options}
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        try:
            async with self._http.post(self.name + ask.route, data=data, headers=headers) as response:
                await refuse(response)
                if stream and told is not None:
                    return await _followed(response, told)
                return _whole(json.loads(await response.read()), ask.route)
        except aiohttp.ClientResponseError as error:
            words = f"{error.status} {error.message}"
            if error.status in _AGAIN or error.status >= 500:
                raise Unwell(words) from error
            raise Declined(words) from error
        except (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError) as error:
            raise OutOfReach(f"{self.name}: {error}") from error
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unwell(f"{type(error).__name__}: {error}") from error

    async def recovered(self, patience: float) -> bool:
        """Wait until the server answers again, at most `patience` [s]; return whether it does."""
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + patience, 0.1
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError, TimeoutError):
                try:
                    await self._get("/v1/models")
                    return True
                except aiohttp.ClientResponseError as error:
                    if error.status < 500:
                        return True
            if loop.time() >= until:
                return False
            await asyncio.sleep(min(pause, max(0.0, until - loop.time())))
            pause = min(pause * 2, 5.0)

    async def close(self) -> None:
        """Look a last time at the steps, and close the connections."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        if self._http is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._look()
            await self._http.close()


def _gauges(text: str) -> dict[str, float]:
    """Return the sums of the metrics that are looked at, over their labels."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in (_RUNNING, _WAITING, _PREEMPTED, _STEPS):
            with contextlib.suppress(ValueError):
                found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
    return found


def _whole(data: Any, route: str) -> Answer:
    """Return the reply in a server's JSON. Raises Unwell for what is none."""
    try:
        choice, usage = data["choices"][0], data["usage"]
        said = choice["message"] if route == ROUTES["chat"] else choice
        text = said.get("content" if route == ROUTES["chat"] else "text")
        if choice["finish_reason"] in ("abort", "error"):
            raise Unwell(f"the reply ended with finish_reason {choice['finish_reason']!r}")
        return Answer(
            text or "", int(usage["completion_tokens"]), int(usage["prompt_tokens"]),
            str(choice["finish_reason"]), _besides(said), data,
        )  # fmt: skip
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unwell(f"a reply without choices or usage: {str(data)[:200]}") from error


def _besides(message: Mapping[str, Any]) -> dict[str, Any]:
    """What a message holds besides its text: thoughts and tool calls."""
    names = ("reasoning_content", "reasoning", "tool_calls", "refusal", "logprobs")
    return {name: message[name] for name in names if message.get(name)}


async def _followed(response: aiohttp.ClientResponse, told: Told) -> Answer:
    """Take in a stream to its end."""
    parts: list[str] = []
    besides: dict[str, Any] = {}
    tokens = prompt = 0
    reason = ""
    async for event in events(response):
        if event == b"[DONE]":
            break
        data = json.loads(event)
        new = ""
        if data.get("error"):
            raise Unwell(f"the stream reported an error: {str(data['error'])[:300]}")
        for choice in data.get("choices") or ():
            delta = choice.get("delta") or choice
            text = delta.get("content") or delta.get("text") or ""
            new += text
            tokens += 1 if text else 0
            for name in ("reasoning_content", "reasoning"):
                if delta.get(name):
                    besides[name] = besides.get(name, "") + delta[name]
                    tokens += 1
            reason = str(choice.get("finish_reason") or reason)
        parts.append(new)
        if usage := data.get("usage"):
            tokens, prompt = int(usage["completion_tokens"]), int(usage["prompt_tokens"])
        told(tokens, new)
    if not reason:
        raise Unwell("the stream broke off before the reply was finished")
    return Answer("".join(parts), tokens, prompt, reason, besides)
