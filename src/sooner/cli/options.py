"""Options and the progress bar that the commands talking to a server share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sooner.core import ConfigError

if TYPE_CHECKING:
    from sooner.replay.client import Endpoint
    from sooner.sim.study import Study

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


def study_options(command: Command) -> Command:
    """Add what `simulate` and `sweep` share: the workload's shape, the engine and how it batches."""
    for option in (
        click.option("--predict-blocks", is_flag=True, help="The engine stands still while it predicts."),
        click.option(
            "--predict-ms", default=0.0, show_default=True, help="Charged for each prediction [ms]."
        ),
        click.option("--quantum", default=10, show_default=True, help="Steps that the guard promotes for."),
        click.option(
            "--guard", default=0, show_default=True, help="Starvation guard's threshold [steps]; 0: none."
        ),
        click.option("--backfill", is_flag=True, help="Let later requests pass a head that does not fit."),
        click.option("--swap", is_flag=True, help="Evicted KV goes to the host (with --reorder)."),
        click.option(
            "--reorder/--admission",
            default=None,
            help="Order all requests at every iteration, as vllm-ltr, or admissions only, as vLLM; "
            "else as the policy is meant.",
        ),
        click.option(
            "--router",
            default="round-robin",
            show_default=True,
            help="round-robin, least-requests, least-work, max-min, prefix-affinity or vllm-dp.",
        ),
        click.option("--instances", default=1, show_default=True, help="Engines behind the router."),
        click.option("--prefix-cache", default=0, show_default=True, help="Size of a prefix cache [tokens]."),
        click.option(
            "--deadline", type=float, help="Every request's deadline after its arrival [s], for edf."
        ),
        click.option(
            "--classes",
            default="",
            metavar="SHARE:SECONDS,...",
            help="Classes of requests, most urgent first: each one's share and deadline after arrival.",
        ),
        click.option(
            "--tenants",
            default="",
            metavar="SHARE,...",
            help="Tenants 0, 1, ... and their shares of requests.",
        ),
        click.option(
            "--weight", "weights", multiple=True, metavar="TENANT=NUMBER", help="A tenant's weight under vtc."
        ),
        click.option("--cancel-after", type=float, help="Clients leave after this long [s]."),
        click.option(
            "--time-scale", default=1.0, show_default=True, help="Stretches recorded arrival times."
        ),
        click.option(
            "--cv", default=1.0, show_default=True, help="Burstiness of --rate: the gaps' CV; 1 is Poisson."
        ),
        click.option("--load", type=float, help="A rate as a share of what the engines can do, such as 0.8."),
        click.option("--burst", is_flag=True, help="Everything arrives at once."),
        click.option("--requests", type=click.IntRange(min=1), help="How many requests; else all there are."),
        click.option(
            "--engine",
            default="llama3-8b-a100",
            show_default=True,
            help="llama3-8b-a100, llama3-8b-a100-40g, llama3-8b-h100, llama3-70b-8xa100, or a TOML file.",
        ),
        click.option(
            "--set", "limits", multiple=True, metavar="NAME=VALUE", help="Change a number of the engine."
        ),
    ):
        command = option(command)
    return command


def study_of(
    *,
    workload: str,
    policy: str,
    params: Sequence[str],
    engine: str,
    limits: Sequence[str],
    rate: float | None,
    requests: int | None,
    burst: bool,
    load: float | None,
    cv: float,
    time_scale: float,
    cancel_after: float | None,
    deadline: float | None,
    classes: str,
    tenants: str,
    weights: Sequence[str],
    prefix_cache: int,
    instances: int,
    router: str,
    reorder: bool | None,
    swap: bool,
    backfill: bool,
    guard: int,
    quantum: int,
    predict_ms: float,
    predict_blocks: bool,
    tau: float | None,
    seed: int,
) -> Study:
    """Return the study the options of `study_options` describe."""
    from sooner.sim.cost import changed
    from sooner.sim.cost import load as engine_of
    from sooner.sim.engine import Options
    from sooner.sim.study import Study
    from sooner.workloads.build import Shape

    return Study(
        workload=workload,
        policy=policy,
        parameters=numbers(params),
        engine=changed(engine_of(engine), numbers(limits)),
        shape=Shape(
            requests=requests,
            rate=rate,
            burst=burst,
            cv=cv,
            time_scale=time_scale,
            cancel_after=cancel_after,
            deadline=deadline,
            prefix_cache=prefix_cache,
            tenants=_shares(tenants),
            classes=_classes(classes),
        ),
        options=Options(
            iteration_level=reorder,
            swap=swap,
            backfill=backfill,
            guard=guard,
            quantum=quantum,
            predict_s=predict_ms / 1000.0,
            predict_blocks=predict_blocks,
            weights=_weights(weights),
        ),
        instances=instances,
        router=router,
        load=load,
        tau=tau,
        seed=seed,
    )


def numbers(pairs: Sequence[str]) -> dict[str, float]:
    """Return NAME=VALUE pairs as a mapping. Raises ConfigError for what is not one."""
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise ConfigError(f"{pair!r}, allowed: NAME=NUMBER") from None
    return found


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"tenants {text!r}, allowed: shares such as 0.9,0.1") from None


def _classes(text: str) -> tuple[tuple[float, float], ...]:
    try:
        pairs = [part.split(":") for part in text.split(",") if part.strip()]
        return tuple((float(share), float(after)) for share, after in pairs)
    except ValueError:
        raise ConfigError(f"classes {text!r}, allowed: shares and seconds such as 0.2:2,0.8:inf") from None


def _weights(pairs: Sequence[str]) -> dict[int, int]:
    found = numbers(pairs)
    if any(not name.isdigit() or not weight.is_integer() for name, weight in found.items()):
        raise ConfigError(f"weights {list(pairs)}, allowed: whole numbers such as 0=2")
    return {int(name): int(weight) for name, weight in found.items()}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table to stdout: the first column to the left, the others to the right."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(header):
        shown.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
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
