"""`sooner train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sooner.cli.options import progress_bar

if TYPE_CHECKING:
    from sooner.rankers import Ranker


@click.command()
@click.argument("data")
@click.option("--ranker", "name", default="lexical", show_default=True, help="Which ranker.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write it to."
)
@click.option("--seed", default=0, show_default=True, help="Seed of every random choice.")
@click.option("--prior", help='Ranker to start from: a folder, or "default" for the shipped one.')
@click.option("--tokenizer", help="Counts replies that come as text: a tokenizer.json, folder or name.")
@click.option("--first-turns", is_flag=True, help="Leave out requests that follow an earlier reply.")
@click.option(
    "--held-out",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 0.5),
    help="Share of conversations to judge it on, for rankers whose fitting leaves no row unseen; these are "
    "then fitted again on all. 0: do not.",
)
def train(
    data: str,
    name: str,
    out: Path,
    seed: int,
    prior: str | None,
    tokenizer: str | None,
    first_turns: bool,
    held_out: float,
) -> None:
    """Train a ranker on DATA, a log of finished requests (JSONL, JSON, .gz, parquet, or - for stdin).

    A record has `prompt` or `messages`, and `output_len` or `output_tokens`; docs/rankers.md names the
    other logs that are read. What was dropped, and how good the ranker is, goes to stderr; the facts of
    the training go to stdout as JSON.
    """
    from sooner import train as library
    from sooner.workloads import logs

    log = logs.read(data, count=logs.tokenizer(tokenizer) if tokenizer else None, first_turns=first_turns)
    click.echo(str(log.report), err=True)
    rows = library.merged(library.dataset(log.rows))
    if (twice := len(log.rows) - len(rows.prompts)) > 0:
        click.echo(f"{twice} rows repeated a prompt and were merged", err=True)
    start = library.load(prior) if prior else None
    with progress_bar(f"training {name}") as bar:

        def fit(part: library.Dataset) -> Ranker:
            return library.fit(
                name,
                part.prompts,
                part.lengths,
                context=part.context,
                groups=part.groups,
                seed=seed,
                prior=start,
                progress=lambda share, words: bar(int(100 * share), 100),
            )

        ranker = fit(rows)
        verdict = library.held_out(ranker, seed=seed)
        if verdict is None and held_out > 0 and len(set(rows.groups)) >= 20:
            known, unseen = library.split(rows, held_out, seed)
            verdict = library.evaluate(fit(known), unseen, seed=seed)
    ranker.save(out)
    facts = {"out": str(out), "ranker": name, **ranker.training_}
    if verdict is not None:
        facts |= {f"held_out_{key}": verdict[key] for key in ("n", "kendall_tau", "kendall_tau_se")}
        facts["verdict"] = verdict["verdict"]
        click.echo(
            f"{'Switch it on' if verdict['verdict']['switch_on'] else 'Do not switch it on'}: "
            f"{verdict['verdict']['reason']} (on {verdict['n']} held-out requests)",
            err=True,
        )
    click.echo(json.dumps(facts))
