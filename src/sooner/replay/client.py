"""One request to an OpenAI-compatible server: its body, its reply, its seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sooner.core import ConfigError, EngineError, MissingExtra
from sooner.workloads.prompts import Prompt

try:
    import aiohttp
except ImportError as error:
    raise MissingExtra("aiohttp", "replay") from error

APIS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where requests go. `url` is the server's root, with or without a trailing `/v1`."""

    url: str
    model: str
    api: str = "chat"
    api_key: str | None = None

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url {self.url!r}, allowed: http://... or https://...")
        if self.api not in APIS:
            raise ConfigError(f"api {self.api!r}, allowed: {', '.join(APIS)}")

    @property
    def root(self) -> str:
        """The server's root, without a trailing slash or `/v1`."""
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def target(self) -> str:
        """The full address that requests are posted to."""
        return self.root + APIS[self.api]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How replies are drawn. What is None is not sent, so that the server's own default holds."""

    max_tokens: int | None = 512
    temperature: float | None = None
    top_p: float | None = None
    seed_base: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens={self.max_tokens}, allowed: >= 1")
        if self.temperature is not None and self.temperature < 0:
            raise ConfigError(f"temperature={self.temperature}, allowed: >= 0")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}, allowed: above 0, at most 1")


class Reply(NamedTuple):
    """A whole reply; lengths are the server's own counts [tokens]."""

    prompt_len: int
    output_len: int
    finish_reason: str
    text: str


def seed_of(id: str | int, seed_base: int) -> int:
    """Return the seed of one request, 0 <= seed < 2^31: the same id and base give the same request again."""
    digest = hashlib.blake2b(f"{seed_base}:{id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def body(endpoint: Endpoint, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
    """Return the JSON body of one request, seeded by the prompt's id."""
    payload: dict[str, Any] = {"model": endpoint.model, "seed": seed_of(prompt.id, sampling.seed_base)}
    if endpoint.api == "chat":
        payload["messages"] = list(prompt.messages)
    else:
        payload["prompt"] = prompt.text
    chosen = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    return payload | {name: value for name, value in chosen.items() if value is not None}


def session(endpoint: Endpoint, timeout: float | None) -> aiohttp.ClientSession:
    """Return a session without a limit on connections; `timeout` [s] bounds one whole reply."""
    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=30),
        headers=headers,
    )


async def complete(http: aiohttp.ClientSession, endpoint: Endpoint, payload: Mapping[str, Any]) -> Reply:
    """Post one request and return its whole reply.

    Raises aiohttp.ClientError when the connection fails, aiohttp.ClientResponseError with the
    server's words for a status of 400 or more, EngineError for a reply that is not one.
    """
    async with http.post(endpoint.target, json=payload) as response:
        await refuse(response)
        data = json.loads(await response.read())
    try:
        choice, usage = data["choices"][0], data["usage"]
        text = choice["message"].get("content") if endpoint.api == "chat" else choice["text"]
        return Reply(
            int(usage["prompt_tokens"]),
            int(usage["completion_tokens"]),
            str(choice["finish_reason"]),
            text or "",
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise EngineError(
            f"{endpoint.target} sent a reply without choices or usage: {str(data)[:200]}"
        ) from error


@dataclass(slots=True)
class Stream:
    """A streamed reply as it comes in; what came before an error stays. Times are `clock`'s [s].

    Output is text, reasoning or a tool call; an empty piece is none, so the empty first message of
    a chat does not count as a first token. Lengths are the server's own counts, never counted here.
    """

    clock: Callable[[], float]
    sent_time: float | None = None
    first_token_time: float | None = None
    finish_time: float | None = None
    prompt_len: int | None = None
    output_len: int | None = None
    finish_reason: str | None = None
    itl: list[float] = field(default_factory=list)

    async def follow(
        self, http: aiohttp.ClientSession, endpoint: Endpoint, payload: bytes, request_id: str
    ) -> None:
        """Post a request and take in its stream to the end.

        Raises aiohttp.ClientError or TimeoutError when the connection fails, and EngineError for a
        stream that reports an error, holds what is not JSON, breaks off or counts no tokens.
        """
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        self.sent_time = self.clock()
        async with http.post(endpoint.target, data=payload, headers=headers) as response:
            await refuse(response)
            async for event in events(response):
                if event == b"[DONE]":
                    break
                self._take(event)
        if self.finish_reason is None:
            raise EngineError("the stream broke off before the reply was finished")
        if self.finish_reason in ("abort", "error"):
            raise EngineError(f"the server ended the reply with finish_reason {self.finish_reason!r}")
        if self.output_len is None:
            raise EngineError("the stream held no usage; the server must honour stream_options.include_usage")

    def _take(self, event: bytes) -> None:
        now = self.clock()
        try:
            data = json.loads(event)
            if data.get("error"):
                raise EngineError(f"the stream reported an error: {str(data['error'])[:300]}")
            if usage := data.get("usage"):
                self.prompt_len, self.output_len = (
                    int(usage["prompt_tokens"]),
                    int(usage["completion_tokens"]),
                )
            for choice in data.get("choices") or ():
                self._take_choice(choice, now)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"the stream held {event[:100]!r}, which is no reply") from error

    def _take_choice(self, choice: Mapping[str, Any], now: float) -> None:
        delta = choice.get("delta") or choice
        output = any(
            delta.get(name) for name in ("content", "text", "reasoning_content", "reasoning", "tool_calls")
        )
        last = choice.get("finish_reason")
        if output or last:
            if self.first_token_time is None:
                self.first_token_time = now
            elif output and self.finish_time is not None:
                self.itl.append(now - self.finish_time)
            self.finish_time = now
        if last:
            self.finish_reason = str(last)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the data of each server-sent event; comments and other fields are passed over."""
    rest = b""
    async for piece in response.content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if rest.startswith(b"data:"):
        yield rest[5:].strip()


async def refuse(response: aiohttp.ClientResponse) -> None:
    """Raise aiohttp.ClientResponseError, with the server's own words, for a status of 400 or more."""
    if response.status >= 400:
        words = (await response.text(errors="replace"))[:300].strip()
        raise aiohttp.ClientResponseError(
            response.request_info, (), status=response.status, message=words or response.reason or ""
        )


async def server_version(http: aiohttp.ClientSession, endpoint: Endpoint) -> str | None:
    """Return what the server's `/version` says, or None where it has no such page.

    Raises EngineError when the server cannot be reached.
    """
    try:
        async with http.get(endpoint.root + "/version") as response:
            data = json.loads(await response.read())
    except (aiohttp.ClientConnectionError, TimeoutError) as error:
        raise EngineError(f"cannot reach {endpoint.root}: {error}") from error
    except (aiohttp.ClientError, ValueError):
        return None
    version = data.get("version") if isinstance(data, dict) else None
    return version if isinstance(version, str) else None
