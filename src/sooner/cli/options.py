"""Options and the progress bar that the commands talking to a server share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from sooner.replay.client import Endpoint

Command = TypeVar("Command", bound=Callable[..., Any])


SEED = click.IntRange(0, 2**31 - 1)
"""What a seed may be: all of NumPy, torch and LightGBM take it."""


class NameOption(click.Option):
    """An option that takes a name of a registry; its help lists them, read only when it is shown."""

    def __init__(self, *words: Any, names: Callable[[], Iterable[str]], **settings: Any) -> None:
        super().__init__(*words, **settings)
        self._names = names

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its help with the names."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        words, told = record
        return words, f"{told}  Names: {', '.join(self._names())}."


def ranker_names() -> Iterable[str]:
    """Return the names that `sooner train --ranker` takes."""
    from sooner import rankers

    return rankers.names()


def policy_names() -> Iterable[str]:
    """Return the names that `--policy` takes."""
    from sooner import policies

    return policies.names()


def say(words: str) -> None:
    """Print words for people, to stderr."""
    click.echo(words, err=True)


def say_notes(workload: str, notes: Sequence[str]) -> None:
    """Say what was dropped of a workload's source, and how it was understood."""
    for note in notes:
        say(f"{workload}: {note}")


def endpoint_options(command: Command) -> Command:
    """Add --url, --model, --api and --api-key-file."""
    for option in (
        click.option(
            "--api-key-file",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="File holding the key of the server, where it wants one.",
        ),
        click.option(
            "--api",
            type=click.Choice(["chat", "completions"]),
            default="chat",
            show_default=True,
            help="Which API.",
        ),
        click.option("--model", required=True, help="The model's name as the server knows it."),
        click.option("--url", required=True, help="The server, such as http://127.0.0.1:8000."),
    ):
        command = option(command)
    return command


def endpoint_of(url: str, model: str, api: str, api_key_file: Path | None) -> Endpoint:
    """Return the endpoint the options of `endpoint_options` name."""
    from sooner.replay.client import Endpoint

    key = api_key_file.read_text(encoding="utf-8").strip() if api_key_file else None
    return Endpoint(url=url, model=model, api=api, api_key=key)


def sampling_options(command: Command) -> Command:
    """Add --max-tokens, --temperature, --top-p and --seed-base."""
    for option in (
        click.option(
            "--seed-base",
            default=0,
            show_default=True,
            help="Each request's seed is a hash of this and its id.",
        ),
        click.option("--top-p", type=float, help="Sent only if given."),
        click.option(
            "--temperature", type=float, help="Sent only if given; else the server's default holds."
        ),
        click.option(
            "--max-tokens", default=512, show_default=True, help="Replies are cut off here [tokens]."
        ),
    ):
        command = option(command)
    return command


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table to stdout: the first column to the left, the others to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # a name with markup in it is a name

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(header):
        shown.add_column(Text(name), justify="right" if i else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*map(Text, row))
    Console(soft_wrap=True).print(shown)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that shows progress and the time left on stderr.

    Where stderr is no terminal, a plain line every 15 s takes the place of the bar.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if not sys.stderr.isatty():
        yield _plain(what)
        return
    with Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        speed_estimate_period=300,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain(what: str) -> Callable[[int, int], None]:
    start = last = time.monotonic()
    first: int | None = None

    def show(done: int, total: int) -> None:
        nonlocal last, first
        now = time.monotonic()
        first = done - 1 if first is None else first
        if now - last >= 15 or done == total:
            last = now
            left = (now - start) / max(done - first, 1) * (total - done)
            click.echo(
                f"{what}: {done}/{total}, {now - start:.0f} s passed, about {left:.0f} s left", err=True
            )

    return show
