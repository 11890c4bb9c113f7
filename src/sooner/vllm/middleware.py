"""The mode without private interfaces: a middleware that sets the priority of each request.

    vllm serve MODEL --scheduling-policy priority --middleware sooner.vllm.middleware.Priority

Stock vLLM reads a request's priority from the header `X-Vllm-Priority`, smallest first. This sets
it to `aged`'s key in milliseconds, from a score made out of process. Settings come from
`SOONER_VLLM_*`. Neither the load nor the engine's pace is seen from here, so `aged` with its `beta` is
the only policy; the plugin's default stands for it, and another is refused at start.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

from sooner import chat, policies
from sooner.core import ConfigError, Prediction, View
from sooner.ordering import given
from sooner.ordering.client import ScorerClient
from sooner.ordering.order import Mean
from sooner.vllm import settings
from sooner.vllm.counters import PluginCounters

logger = logging.getLogger("vllm.plugins.sooner")

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

HEADER = b"x-vllm-priority"
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
EPOCH = 1_735_689_600.0  # 2025-01-01 UTC: the same for every process, so that their numbers compare
_LARGEST_BODY = 32 * 1024 * 1024
_PATIENCE = 0.05  # seconds a request waits for its score before it goes on with a neutral one


class Priority:
    """ASGI middleware that ranks requests to the completion, chat and responses endpoints.

    A header or `priority` that the client sent is obeyed where `client_scores` is on and it is a
    whole number, and replaced otherwise. Any failure passes the request on with its arrival's place.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._settings = settings.load()
        self._aged = _aged(self._settings)
        self.counters = PluginCounters()
        self._waiting: dict[str, asyncio.Future[Prediction]] = {}
        self._mean_len = Mean(0.02)
        self._count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scorer: ScorerClient | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass the request on, with the header set where it is one of ours."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            self.close()
            return
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in PATHS:
            await self._app(scope, receive, send)
            return
        arrival = time.time()
        messages, body = await _read(receive)
        headers = list(scope["headers"])
        try:
            headers = await self._ranked(headers, body, arrival)
        except Exception as error:
            self.counters.warn("hook_errors", "a request keeps its arrival's place: %r", error)
            headers = [*_without(headers), (HEADER, str(milliseconds(arrival)).encode())]
        await self._app({**scope, "headers": headers}, _replay(messages, receive), send)

    def close(self) -> None:
        """Stop the scorer."""
        if self._scorer is not None:
            self._scorer.close()

    async def _ranked(self, headers: list[Any], body: bytes | None, arrival: float) -> list[Any]:
        sent = next((value for name, value in headers if name.lower() == HEADER), None)
        parsed = json.loads(body) if body else {}
        if not isinstance(parsed, dict):
            parsed = {}
        if self._settings.client_scores and _obeyed(sent, parsed):
            return headers
        said = given.read(parsed.get("vllm_xargs")) if self._settings.client_scores else given.NOTHING
        length = said.predicted_len
        if length is None:
            length = await self._predicted_len(parsed)
        self._mean_len.add(length)
        key = float(self._aged.key(View(arrival, predicted_len=length), arrival))
        return [*_without(headers), (HEADER, str(milliseconds(key)).encode())]

    async def _predicted_len(self, parsed: dict[str, Any]) -> float:
        """Return the ranker's expected length, or the recent mean where it does not come in time."""
        request = chat.of_body(parsed)
        if not request.readable or not self._settings.ranker:
            return self._mean_len.value
        loop = asyncio.get_running_loop()
        if self._scorer is None:
            self._loop = loop
            self._scorer = ScorerClient(
                self._settings.scorer_socket,
                self._settings.ranker,
                "",
                self._deliver,
                self.counters,
                self._settings.scorer_timeout,
            )
        self._count += 1
        id = str(self._count)
        self._waiting[id] = loop.create_future()
        self._scorer.submit(id, request)
        try:
            prediction = await asyncio.wait_for(self._waiting[id], _PATIENCE)
        except TimeoutError:
            self.counters.warn("scorer_timeouts", "no score within %.2f s", _PATIENCE)
            return self._mean_len.value
        finally:
            del self._waiting[id]
        self.counters.add("scored")
        return self._mean_len.value if prediction.predicted_len is None else prediction.predicted_len

    def _deliver(self, id: str, prediction: Prediction) -> None:
        assert self._loop is not None  # set before the client is made
        self._loop.call_soon_threadsafe(self._settle, id, prediction)

    def _settle(self, id: str, prediction: Prediction) -> None:
        future = self._waiting.get(id)
        if future is not None and not future.done():
            future.set_result(prediction)


def _aged(chosen: settings.VllmSettings) -> policies.Policy:
    """Return `aged` without its pressure. Raises ConfigError where another policy is chosen."""
    if chosen.policy == "aged":
        return policies.get("aged", **{**chosen.parameters, "follow": 0.0})
    if chosen.policy == policies.DEFAULT and not chosen.parameters:
        return policies.get("aged", follow=0.0)
    raise ConfigError(
        f"sooner.policy={chosen.policy!r} with {dict(chosen.parameters)}: the middleware sees no load and no"
        " engine, allowed: 'aged', or the plugin (--scheduler-cls sooner.vllm.Scheduler)"
    )


def milliseconds(key: float) -> int:
    """Return a key [s] as a priority: whole milliseconds since 2025, never negative, within 53 bits."""
    return int(min(max((key - EPOCH) * 1000.0, 0.0), 2.0**53))


def _obeyed(header: bytes | None, parsed: dict[str, Any]) -> bool:
    """Return whether the client set a priority that vLLM can read."""
    if header is None:
        return type(parsed.get("priority")) is int and parsed["priority"] != 0
    text = header.decode("latin-1").strip()
    return text.lstrip("-").isdigit() and -(2**63) <= int(text) < 2**63


def _without(headers: Iterable[Any]) -> list[Any]:
    return [(name, value) for name, value in headers if name.lower() != HEADER]


async def _read(receive: Receive) -> tuple[list[Message], bytes | None]:
    """Read the whole body; return its messages, and the body unless it is too large to look at."""
    messages: list[Message] = []
    size = 0
    while True:
        message = await receive()
        messages.append(message)
        size += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False) or size > _LARGEST_BODY:
            break
    whole = size <= _LARGEST_BODY
    return messages, b"".join(message.get("body", b"") for message in messages) if whole else None


def _replay(messages: list[Message], receive: Receive) -> Receive:
    left = iter(messages)

    async def again() -> Message:
        for message in left:
            return message
        return await receive()

    return again
