"""`sooner evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from sooner.cli.options import SEED, say


@click.command()
@click.argument("directory", required=False)
@click.argument("data", required=False)
@click.option(
    "--prequential",
    metavar="LOG",
    help="Play a log or trace in the order of time through a learner beside the ranker.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page with plots to this file as well.",
)
@click.option(
    "--refit",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Fit the ranker's last layer to so many rows of DATA first, and judge it on the rest.",
)
@click.option(
    "--seed", default=0, type=SEED, show_default=True, help="Seed of the refit's rows, bootstrap and queue."
)
@click.option("--tokenizer", help="Counts replies that come as text: a tokenizer.json, folder or name.")
@click.option("--model", help="Only rows of this served model, in logs of several.")
@click.option("--first-turns", is_flag=True, help="Leave out requests that follow an earlier reply.")
def evaluate(
    directory: str | None,
    data: str | None,
    prequential: str | None,
    as_json: bool,
    html: Path | None,
    refit: int,
    seed: int,
    tokenizer: str | None,
    model: str | None,
    first_turns: bool,
) -> None:
    """Judge the ranker in DIRECTORY ("default": the shipped one) on DATA it was not trained on.

    DATA is a log as `sooner train` reads it. Kendall's tau comes with its standard error, and a verdict
    says whether the order is worth switching on.

    With --prequential each request is predicted from what had finished before it, as `sooner serve` learns.

    Example: sooner evaluate my-ranker last-week.jsonl --html ranker.html
    """
    if prequential is not None:
        _play(prequential, directory, as_json)
        return
    if directory is None or data is None:
        raise click.UsageError("a ranker's DIRECTORY and DATA, or --prequential LOG")
    from sooner import training as library
    from sooner.judging import evaluation
    from sooner.report import ranker as page
    from sooner.workloads import logs

    ranker = library.load(directory)
    count = logs.tokenizer(tokenizer) if tokenizer else None
    log = logs.read(data, count=count, first_turns=first_turns, model=model)
    say(str(log.report))
    result = evaluation.evaluate(ranker, library.dataset(log.rows), refit=refit, seed=seed)
    if known := result["trained_on_share"]:
        say(f"about {known:.0%} of these requests were among those that the ranker was trained on")
    if as_json:
        click.echo(json.dumps(result))
    else:
        _print(result)
    if html is not None:
        page.write(html, result, title=f"The ranker in {directory} on {Path(data).name}")
        say(f"wrote {html}")


def _play(log: str, directory: str | None, as_json: bool) -> None:
    from sooner import rankers
    from sooner.judging.played import played
    from sooner.workloads import traces

    trace = traces.read(Path(log))
    ranker = None if trace.requests is None else rankers.load(directory or rankers.DEFAULT)
    result = played(trace, ranker)
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        if name != "tau_by_hundred":
            click.echo(f"{name:24} {value:.4f}" if isinstance(value, float) else f"{name:24} {value}")


def _print(result: dict[str, Any]) -> None:
    for key, value in result.items():
        if isinstance(value, float):
            click.echo(f"{key:24} {value:.4f}")
        elif isinstance(value, int | str):
            click.echo(f"{key:24} {value}")
    low, high = result["kendall_tau_interval"]
    click.echo(f"{'95 % interval of tau':24} {low:.3f} to {high:.3f}")
    for key in ("tau_by_ranker_part", "coverage", "refit", "noise_ceiling"):
        if result.get(key):
            found = "  ".join(f"{name}: {value:.3f}" for name, value in result[key].items())
            click.echo(f"{key:24} {found}")
    for number, tenth in enumerate(result["deciles"], start=1):
        click.echo(
            f"{f'tenth {number} of the score':24} predicted {tenth['mean_predicted_len']:.0f}, "
            f"true {tenth['mean_output_len']:.0f} tokens ({tenth['n']} requests)"
        )
    click.echo(f"{'verdict':24} {result['verdict']['reason']}")
