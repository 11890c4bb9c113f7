"""`sooner evaluate`."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("directory")
@click.argument("data")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--seed", default=0, show_default=True, help="Seed of the bootstrap and the small queue.")
@click.option("--tokenizer", help="Counts replies that come as text: a tokenizer.json, folder or name.")
@click.option("--first-turns", is_flag=True, help="Leave out requests that follow an earlier reply.")
def evaluate(
    directory: str, data: str, as_json: bool, seed: int, tokenizer: str | None, first_turns: bool
) -> None:
    """Judge the ranker in DIRECTORY ("default": the shipped one) on DATA it was not trained on.

    DATA is a log as `sooner train` reads it. Kendall's tau comes with its standard error, and a verdict
    says whether the order is worth switching on.
    """
    from sooner import train as library
    from sooner.workloads import logs

    ranker = library.load(directory)
    log = logs.read(data, count=logs.tokenizer(tokenizer) if tokenizer else None, first_turns=first_turns)
    click.echo(str(log.report), err=True)
    result = library.evaluate(ranker, library.merged(library.dataset(log.rows)), seed=seed)
    if as_json:
        click.echo(json.dumps(result))
        return
    for key, value in result.items():
        if isinstance(value, float):
            click.echo(f"{key:24} {value:.4f}")
        elif isinstance(value, int | str):
            click.echo(f"{key:24} {value}")
    click.echo(f"{'coverage':24} " + "  ".join(f"{k}: {v:.3f}" for k, v in result["coverage"].items()))
    click.echo(f"{'verdict':24} {result['verdict']['reason']}")
