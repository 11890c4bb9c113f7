"""`sooner train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sooner.cli.options import progress_bar

if TYPE_CHECKING:
    from sooner.rankers import Ranker
    from sooner.training.fit import Dataset


@click.command()
@click.argument("data")
@click.option("--ranker", "name", default="lexical", show_default=True, help="Which ranker.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write it to."
)
@click.option("--seed", default=0, show_default=True, help="Seed of every random choice.")
@click.option("--prior", help='Ranker to start from: a folder, or "default" for the shipped one.')
@click.option("--tokenizer", help="Counts replies that come as text: a tokenizer.json, folder or name.")
@click.option("--model", help="Only rows of this served model, in logs of several.")
@click.option("--first-turns", is_flag=True, help="Leave out requests that follow an earlier reply.")
@click.option(
    "--leave-out",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File that names conversations, one a line: nothing is learned from their requests.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that keeps finished epochs (blend, transformer): the same training, started again, goes on "
    "from there.",
)
@click.option(
    "--held-out",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 0.5),
    help="Share of conversations to judge it on, for rankers whose fitting leaves no row unseen; these are "
    "then fitted again on all. 0: do not.",
)
@click.option(
    "--keep-examples",
    type=click.Choice(["lengths", "text", "none"]),
    default="lengths",
    show_default=True,
    help="What to keep of the rows for sooner explain: names, lengths and sketches, or the texts as well.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of the ranker, such as size=100 for buckets; may be given several times.",
)
def train(
    data: str,
    name: str,
    out: Path,
    seed: int,
    prior: str | None,
    tokenizer: str | None,
    model: str | None,
    first_turns: bool,
    leave_out: Path | None,
    checkpoint: Path | None,
    held_out: float,
    keep_examples: str,
    settings: tuple[str, ...],
) -> None:
    """Train a ranker on DATA: a log of finished requests, a folder of them, - for stdin, or hf:owner/name.

    A record has `prompt` or `messages`, and `output_len` or `output_tokens`; docs/logs.md names the other
    logs that are read. What was dropped, and how good the ranker is, goes to stderr; the facts of the
    training go to stdout as JSON.

    Example: sooner train requests.jsonl --ranker boosted --out my-ranker
    """
    from sooner.core import DataError
    from sooner.judging import evaluation, measures
    from sooner.training import fit as library
    from sooner.workloads import logs

    chosen = dict(map(_setting, settings))
    if checkpoint is not None:
        chosen["checkpoint"] = checkpoint
    count = logs.tokenizer(tokenizer) if tokenizer else None
    log = logs.read(data, count=count, first_turns=first_turns, model=model)
    click.echo(str(log.report), err=True)
    apart = set(leave_out.read_text(encoding="utf-8").split()) if leave_out else set()
    allowed = [row for row in log.rows if row.conversation not in apart]
    if leave_out:
        click.echo(f"{len(log.rows) - len(allowed)} rows left out as {leave_out} says", err=True)
    if not allowed:
        raise DataError(f"{str(leave_out)!r} leaves no row of {data!r}; allowed: at least one")
    rows = library.merged(library.dataset(allowed))
    if (twice := len(allowed) - len(rows.prompts)) > 0:
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
                **chosen,
            )

        ranker = fit(rows)
        verdict = measures.held_out(ranker, seed=seed)
        if verdict is None and held_out > 0 and len(set(rows.groups)) >= 20:
            known, unseen = library.split(rows, held_out, seed)
            verdict = measures.evaluate(fit(known), unseen, seed=seed)
    told = {"data": Path(data).name, "tokenizer": Path(tokenizer).name if tokenizer else None}
    ranker.training_ = {**ranker.training_, **{key: value for key, value in told.items() if value}}
    ranker.save(out)
    _keep(rows, out, keep_examples, seed)
    facts = {"out": str(out), "ranker": name, **ranker.training_}
    if verdict is not None:
        facts |= {f"held_out_{key}": verdict[key] for key in ("n", "kendall_tau", "kendall_tau_se")}
        facts["verdict"] = verdict["verdict"]
        click.echo(
            f"{'Switch it on' if verdict['verdict']['switch_on'] else 'Do not switch it on'}: "
            f"{verdict['verdict']['reason']} (on {verdict['n']} held-out requests)",
            err=True,
        )
    click.echo(json.dumps(evaluation.plain(facts)))


def _setting(given: str) -> tuple[str, Any]:
    """The name and value of NAME=VALUE; a value that is JSON is read as such."""
    name, sign, value = given.partition("=")
    if not sign or not name.isidentifier() or name in ("seed", "prior"):
        raise click.BadParameter(f"{given!r}; allowed: NAME=VALUE", param_hint="--set")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _keep(rows: Dataset, out: Path, what: str, seed: int) -> None:
    """Keep training examples beside the ranker, or see to it that none of an earlier training are there."""
    from sooner.training import examples

    if what == "none":
        (out / examples.FILE).unlink(missing_ok=True)
        return
    kept = examples.Examples.of(rows.prompts, rows.lengths, rows.groups, texts=what == "text", seed=seed)
    kept.save(out)
