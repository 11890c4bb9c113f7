"""Collecting reply lengths: prompts run closed-loop against a server, one JSONL line per reply."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import aiohttp

from sooner import __version__
from sooner.core import ConfigError, DataError, EngineError
from sooner.replay.client import Endpoint, Reply, Sampling, body, complete, seed_of, server_version, session
from sooner.replay.record import meta_path
from sooner.workloads.jsonl import read_jsonl
from sooner.workloads.prompts import Prompt

_PATIENCE = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0)
"""Pauses [s] before a request is sent again; after the last the server counts as gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection holds at its end. `capped` replies ended at max_tokens; `failed` have no line."""

    n: int
    capped: int
    output_tokens: int
    failed: dict[str, str]

    @property
    def capped_share(self) -> float:
        """Share of the replies that ended at the token limit instead of by themselves."""
        return self.capped / self.n if self.n else 0.0


async def collect(
    prompts: Sequence[Prompt],
    out: Path,
    endpoint: Endpoint,
    sampling: Sampling,
    *,
    concurrency: int = 64,
    keep_text: bool = False,
    timeout: float | None = 3600.0,
    progress: Callable[[int, int], None] | None = None,
) -> Collected:
    """Run every prompt whose id `out` does not hold yet and append a line for each reply.

    `concurrency` requests are under way at any time. When cancelled, requests under way are dropped
    and the file stays whole, so the same call goes on where this one ended. A prompt the server
    refuses (status 4xx) gets no line and is named in `failed`. `progress` gets (done, total).

    Raises ConfigError where `out` was begun with other settings, DataError where it holds something
    else, EngineError when the server cannot be reached any more.
    """
    if concurrency < 1:
        raise ConfigError(f"concurrency={concurrency}, allowed: >= 1")
    lines = _resume(out)
    missing = [prompt for prompt in prompts if prompt.id not in lines]
    total, failed = len(prompts), dict[str, str]()
    settings = {"model": endpoint.model, "api": endpoint.api, **asdict(sampling)}
    side = _Side(meta_path(out), settings, concurrency, total)
    side.refuse_other_settings(resuming=bool(lines))
    queue = iter(missing)

    async with session(endpoint, timeout) as http:
        side.version = await server_version(http, endpoint)
        side.write(_count(lines, failed))
        with out.open("a", encoding="utf-8") as file:

            async def worker() -> None:
                for prompt in queue:
                    try:
                        reply = await _insist(http, endpoint, body(endpoint, prompt, sampling))
                    except aiohttp.ClientResponseError as error:
                        failed[str(prompt.id)] = f"{error.status} {error.message}"
                        continue
                    line = _line(prompt, reply, sampling, keep_text)
                    _append(file, line)
                    lines[prompt.id] = line
                    if progress:
                        progress(len(lines) + len(failed), max(total, len(lines)))

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(concurrency, len(missing))):
                        group.create_task(worker())
            except ExceptionGroup as group_error:
                raise group_error.exceptions[0] from None
            finally:
                side.write(_count(lines, failed))
    return _count(lines, failed)


async def _insist(http: aiohttp.ClientSession, endpoint: Endpoint, payload: dict[str, Any]) -> Reply:
    """Return the reply, sending again after a failed connection and after 429 and 5xx."""
    for pause in (*_PATIENCE, None):
        try:
            return await complete(http, endpoint, payload)
        except aiohttp.ClientResponseError as error:
            if pause is None or not (error.status == 429 or error.status >= 500):
                raise
        except (aiohttp.ClientError, TimeoutError, EngineError, ValueError) as error:
            if pause is None:
                raise EngineError(f"{endpoint.root} does not answer any more: {error!r}") from error
        await asyncio.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _line(prompt: Prompt, reply: Reply, sampling: Sampling, keep_text: bool) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": prompt.id,
        "prompt_len": reply.prompt_len,
        "output_len": reply.output_len,
        "finish_reason": reply.finish_reason,
        "seed": seed_of(prompt.id, sampling.seed_base),
    }
    return line | {"text": reply.text} if keep_text else line


def _append(file: TextIO, line: dict[str, Any]) -> None:
    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    file.flush()


def _resume(out: Path) -> dict[str | int, dict[str, Any]]:
    """Return the lines already there by id, after cutting off a torn last line."""
    if not out.exists():
        return {}
    try:
        content = out.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with out.open("r+b") as file:
                file.truncate(len(whole))
    except OSError as error:
        raise DataError(f"cannot go on with {str(out)!r}: {error}") from error
    lines: dict[str | int, dict[str, Any]] = {}
    for number, line in read_jsonl(out, what="a line of a collection"):
        try:
            lines[line["id"]] = {key: line[key] for key in ("output_len", "finish_reason")}
        except (KeyError, TypeError) as error:
            raise DataError(f"{out}:{number}: not a line of a collection: {error!r} is missing") from error
    return lines


def _count(lines: Mapping[str | int, Mapping[str, Any]], failed: dict[str, str]) -> Collected:
    return Collected(
        n=len(lines),
        capped=sum(line["finish_reason"] == "length" for line in lines.values()),
        output_tokens=sum(line["output_len"] for line in lines.values()),
        failed=failed,
    )


@dataclass(slots=True)
class _Side:
    """The side file: settings, versions and counts."""

    path: Path
    settings: dict[str, Any]
    concurrency: int
    total: int
    version: str | None = None

    def refuse_other_settings(self, resuming: bool) -> None:
        if not (resuming and self.path.exists()):
            return
        try:
            before = json.loads(self.path.read_text(encoding="utf-8"))["settings"]
            others = {name: before.get(name) for name in self.settings}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"cannot read {str(self.path)!r}: {error!r}") from error
        for name, value in self.settings.items():
            if others[name] != value:
                raise ConfigError(
                    f"{name}={value!r}, but {self.path.name} says {others[name]!r}; use another --out"
                )

    def write(self, result: Collected) -> None:
        content = {
            "sooner": __version__,
            "server_version": self.version,
            "settings": self.settings,
            "concurrency": self.concurrency,
            "prompts": self.total,
            "n": result.n,
            "complete": result.n + len(result.failed) >= self.total,
            "capped_share": round(result.capped_share, 4),
            "output_tokens": result.output_tokens,
            "failed": result.failed,
        }
        self.path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
