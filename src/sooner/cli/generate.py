"""`sooner generate`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from sooner.cli.options import SEED, progress_bar, say


@click.command()
@click.argument("prompts", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSONL to write or go on with; NAME.parquet is written from NAME.jsonl at the end.",
)
@click.option(
    "--url", "urls", multiple=True, help="A server, such as http://127.0.0.1:8000; may be repeated."
)
@click.option("--model", help="Load this model with vLLM in this process, in place of a server.")
@click.option("--engine", help="Settings of vllm.LLM for --model, as JSON, such as '{\"max_num_seqs\": 64}'.")
@click.option(
    "--ray", "cluster", is_flag=False, flag_value="local", metavar="[ADDRESS]",
    help="Run --model on a Ray cluster: an address, auto for this machine's, or nothing to start one here.",
)  # fmt: skip
@click.option(
    "--replicas", default=1, type=click.IntRange(min=1), show_default=True, help="Engines, with --ray."
)
@click.option("--served-model", help="The model's name as the servers know it, where they have several.")
@click.option("--all", "everything", is_flag=True, help="Keep all, ended soonest (default).")
@click.option("--sample", type=click.IntRange(min=1), help="Draw N at random and run those: unbiased.")
@click.option(
    "--first", type=click.IntRange(min=1), help="Keep the first N that come: soonest, but short ones."
)
@click.option("--budget", type=float, help="Keep what comes within so many seconds.")
@click.option("--samples", default=1, type=click.IntRange(min=1), show_default=True, help="Samples a prompt.")
@click.option(
    "--ranker", default="default", show_default=True,
    help="Who predicts lengths: a folder of `sooner train`, default, light, or none.",
)  # fmt: skip
@click.option(
    "--order", type=click.Choice(["auto", "longest", "shortest", "arrival"]), default="auto",
    show_default=True,
    help="What runs first; auto is what reaches the goal soonest.",
)  # fmt: skip
@click.option("--balanced", is_flag=True, help="The same quota for each tenth of the predicted lengths.")
@click.option(
    "--control", default=0.05, show_default=True,
    help="Share of prompts that --first and --budget run to their end whatever comes: the truth.",
)  # fmt: skip
@click.option(
    "--history", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="What an earlier epoch wrote: its lengths count in place of the ranker's word.",
)  # fmt: skip
@click.option("--in-order", is_flag=True, help="At the end, put OUT in the order of PROMPTS.")
@click.option("--restart", is_flag=True, help="Begin anew: what OUT holds is thrown away.")
@click.option("--api", type=click.Choice(["chat", "completions"]), default="chat", show_default=True)
@click.option(
    "--api-key-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="The servers' key."
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="Replies are cut off here; sent only if given."
)
@click.option("--temperature", type=float, help="Sent only if given; else the server's default holds.")
@click.option("--top-p", type=float, help="Sent only if given.")
@click.option("--seed-base", type=int, help="Seed each sample by a hash of this, its id and its number.")
@click.option("--seed", default=0, type=SEED, show_default=True, help="Draws samples and controls.")
@click.option("--window", type=click.IntRange(min=1), help="Open requests a server; else it is found.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page with plots.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def generate(
    prompts: Path,
    out: Path,
    urls: tuple[str, ...],
    model: str | None,
    engine: str | None,
    cluster: str | None,
    replicas: int,
    served_model: str | None,
    everything: bool,
    sample: int | None,
    first: int | None,
    budget: float | None,
    samples: int,
    ranker: str,
    order: str,
    balanced: bool,
    control: float,
    history: Path | None,
    in_order: bool,
    restart: bool,
    api: str,
    api_key_file: Path | None,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed_base: int | None,
    seed: int,
    window: int | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Generate a reply (or several) to each of PROMPTS, in the order that reaches the goal soonest.

    PROMPTS is JSONL: `prompt` or `messages`, or the lines of an OpenAI batch; plain, packed, parquet, or
    "-" (standard input). Each sample is on disk as soon as it is finished; the same command again goes on
    where the last one ended.

    Example: sooner generate prompts.jsonl --out replies.jsonl --url http://127.0.0.1:8000
    """
    from sooner.core import ConfigError
    from sooner.generate.goals import Goal
    from sooner.generate.job import OfflineJob
    from sooner.generate.settings import JobSettings
    from sooner.report import generation

    chosen = {"all": everything or None, "sample": sample, "first": first, "budget": budget}
    named = [name for name, value in chosen.items() if value is not None]
    if len(named) > 1:
        raise ConfigError(f"--{' and --'.join(named)} together, allowed: one goal")
    if cluster is not None and not model:
        raise ConfigError("--ray without --model, allowed: with the model that the cluster is to serve")
    if bool(urls) == bool(model):
        raise ConfigError(f"{'both' if urls else 'neither'} --url and --model, allowed: one of them")
    kind = named[0] if named else "all"
    goal = Goal(kind=kind, n=sample or first, seconds=budget, control=control, balanced=balanced)
    settings = JobSettings(
        goal=goal, samples=samples, order=order, ranker=ranker, api=api, max_tokens=max_tokens,
        temperature=temperature, top_p=top_p, seed_base=seed_base, seed=seed,
    )  # fmt: skip
    job = OfflineJob(prompts, out, settings)
    if restart:
        job.forget()
    makers: list[Any]
    with ExitStack() as stack:
        if cluster is not None:
            from sooner.ray.engines import engines

            with _words_to_stderr():
                there = engines(
                    str(model), _settings(engine), address=cluster, replicas=replicas, stream=goal.selects
                )
                makers = list(stack.enter_context(there))
        elif model:
            from sooner.generate.inprocess import InProcess

            told = goal.selects or settings.takes_turns
            makers = [InProcess(model, _settings(engine), stream=told)]
        else:
            from sooner.generate.http import Server

            key = api_key_file.read_text(encoding="utf-8").strip() if api_key_file else None
            makers = [
                Server(url, served_model, api_key=key, window=window, stream=goal.selects) for url in urls
            ]
        with job, _words_to_stderr() if model else nullcontext():
            report = asyncio.run(_run(job, makers, history))
            if in_order:
                job.in_order()
    if report["failed"]:
        say(f"{report['failed']} samples failed; they are named in {job.failures}")
    if html:
        generation.write(html, report)
    if as_json:
        click.echo(json.dumps(report))
        return
    for name, value in report.items():
        if name not in ("tenths", "groups"):
            click.echo(f"{name:20} {'' if value is None else value}")
    say(generation.verdict(report))


@contextmanager
def _words_to_stderr() -> Iterator[None]:
    """Let nothing of an engine's log, nor of the processes it starts, get among our data on stdout."""
    sys.stdout.flush()
    data = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(data, 1)
        os.close(data)


@contextmanager
def _outlook(job: Any) -> Iterator[Callable[[Any], None]]:
    """Say how far a job is on stderr: on a terminal in one line, else every 15 s."""
    from sooner.generate.outlook import Forecast

    seconds = job.settings.goal.seconds
    forecast = Forecast(job.course, None if seconds is None else seconds - job.elapsed)
    live, began, told = sys.stderr.isatty(), time.monotonic(), 0.0

    def look(job: Any) -> None:
        nonlocal told
        now = time.monotonic() - began
        words = str(forecast.look(now))
        if live:
            click.echo(f"\r\033[K{words}", err=True, nl=False)
        elif now - told >= 15:
            told = now
            say(words)

    try:
        yield look
    finally:
        if live:
            click.echo("", err=True)


def _settings(engine: str | None) -> dict[str, Any]:
    from sooner.core import ConfigError

    try:
        settings = json.loads(engine or "{}")
    except ValueError as error:
        raise ConfigError(f"--engine {engine!r} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"--engine {engine!r}, allowed: a JSON object of settings")
    return settings


async def _run(job: Any, makers: list[Any], history: Path | None) -> dict[str, Any]:
    started: list[Any] = []
    try:
        for maker in makers:
            started.append(maker)
            await maker.start()
        with progress_bar("reading and ranking") as progress:
            job.prepare(makers[0].model, progress, history)
        say(f"{len(job.file)} prompts, goal {job.settings.goal}: {job.course.kept} samples are there already")
        if job.course.price is not None:
            say(f"balanced: about {job.course.price:.1f} times the tokens of the shortest")
        with _outlook(job) as look:
            report: dict[str, Any] = await job.run(makers, look=look)
        return report
    finally:
        for maker in started:
            await maker.close()
