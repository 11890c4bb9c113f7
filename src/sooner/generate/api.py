"""A job as an async generator, for rollouts: samples as they come, or groups once they are whole.

engine = InProcess("model", {"max_num_seqs": 64}, stream=True)
await engine.start()
async for group in groups(lines, engines=[engine], samples=8, keep=32, ended=parts):
    ...
lines = [go_on(line, parts[line["id"], 0]) for line in lines if (line["id"], 0) in parts]
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

from sooner.core import ConfigError
from sooner.generate.engines import Maker
from sooner.generate.goals import Goal
from sooner.generate.job import OfflineJob
from sooner.generate.settings import JobSettings

Parts = dict[tuple[str | int, int], str]
"""The text that samples had, by id and number, when they were ended early."""


class Sample(NamedTuple):
    """One finished sample of a prompt: sample `number` of `id`, and the line that is on disk."""

    id: str | int
    number: int
    text: str
    output_len: int
    finish_reason: str
    line: dict[str, Any]


async def generate(
    prompts: Path | Iterable[Mapping[str, Any]], *, engines: Sequence[Maker], goal: Goal | None = None,
    out: Path | None = None, ended: Parts | None = None, **settings: Any,
) -> AsyncGenerator[Sample, None]:  # fmt: skip
    """Yield each sample that is kept, as it comes, from engines that were started.

    `prompts` are a file or its lines; `settings` are those of `JobSettings`. With `out` the job is kept
    there and gone on with; without, nothing stays on disk. `ended` is filled with the texts of samples
    that were ended early, of engines that stream. Leaving the loop ends the job. Raises as the job does.
    """
    arrived: asyncio.Queue[Sample | None] = asyncio.Queue()
    with tempfile.TemporaryDirectory() as scratch:
        job = _job(Path(scratch), prompts, out, JobSettings(goal=goal or Goal(), **settings))
        with job:
            run = asyncio.create_task(_run(job, engines, arrived, ended))
            try:
                while (sample := await arrived.get()) is not None:
                    yield sample
                await run
            finally:
                run.cancel()
                await asyncio.gather(run, return_exceptions=True)


async def groups(
    prompts: Path | Iterable[Mapping[str, Any]], *, engines: Sequence[Maker], samples: int,
    keep: int | None = None, ended: Parts | None = None, **settings: Any,
) -> AsyncIterator[list[Sample]]:  # fmt: skip
    """Yield the `samples` samples of a prompt together, once all of them are there.

    With `keep`, the first so many groups that are whole are yielded and the rest is ended early: give
    more prompts than that, and the stragglers are cut. What comes first is short: see the guide.
    Raises ConfigError for a `keep` below 1.
    """
    if keep is not None and keep < 1:
        raise ConfigError(f"keep={keep}, allowed: at least 1 group")
    begun: dict[str | int, list[Sample]] = {}
    whole = 0
    if keep is not None:
        settings.setdefault("turns", False)  # it is not the end of all that counts
    job = generate(prompts, engines=engines, samples=samples, ended=ended, **settings)
    async with aclosing(job) as arriving:
        async for sample in arriving:
            group = begun.setdefault(sample.id, [])
            group.append(sample)
            if len(group) == samples:
                whole += 1
                yield sorted(begun.pop(sample.id), key=lambda each: each.number)
                if whole == keep:
                    break


def go_on(line: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return a line that goes on with a reply that was ended early; what comes is the rest of its text.

    The engine must be able to continue a message, as vLLM is.
    """
    messages = line.get("messages") or [{"role": "user", "content": line["prompt"]}]
    more = [*messages, {"role": "assistant", "content": text}]
    rest = {key: value for key, value in line.items() if key not in ("prompt", "messages")}
    return {**rest, "messages": more, "continue_final_message": True, "add_generation_prompt": False}


def _job(
    scratch: Path, prompts: Path | Iterable[Mapping[str, Any]], out: Path | None, settings: JobSettings
) -> OfflineJob:
    if not isinstance(prompts, Path):
        lines, prompts = prompts, scratch / "prompts.jsonl"
        prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return OfflineJob(prompts, out or scratch / "out.jsonl", settings)


async def _run(
    job: OfflineJob, engines: Sequence[Maker], arrived: asyncio.Queue[Sample | None], ended: Parts | None
) -> None:
    """Run a job and hand on what it keeps; None comes last, whatever happens."""

    def on_sample(sample: int, line: dict[str, Any]) -> None:
        body = line if "text" in line else _of_batch(line)
        number = sample % job.settings.samples
        name = line["id"] if "text" in line else line["custom_id"]
        arrived.put_nowait(
            Sample(name, number, body["text"], body["output_len"], body["finish_reason"], line)
        )

    def on_part(sample: int, tokens: int, text: str) -> None:
        if ended is not None:
            ended[job.ask(sample).id, sample % job.settings.samples] = text

    try:
        job.prepare(engines[0].model)
        await job.run(engines, on_sample=on_sample, on_part=on_part)
    finally:
        arrived.put_nowait(None)


def _of_batch(line: Mapping[str, Any]) -> dict[str, Any]:
    body = line["response"]["body"]
    choice = body["choices"][0]
    return {
        "text": choice.get("text") or (choice.get("message") or {}).get("content") or "",
        "output_len": body["usage"]["completion_tokens"],
        "finish_reason": choice["finish_reason"],
    }
