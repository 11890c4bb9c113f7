"""`sooner train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from sooner.cli.options import SEED, NameOption, progress_bar, ranker_names, say


@click.command()
@click.argument("data")
@click.option(
    "--ranker",
    "name",
    cls=NameOption,
    names=ranker_names,
    default="lexical",
    show_default=True,
    help="Which ranker.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write it to.")
@click.option(
    "--learner",
    is_flag=True,
    help="Start a learner from the log instead: --out is the file that the setting `learned` of sooner serve "
    "names, --prior the ranker that it serves beside ('': none).",
)
@click.option("--seed", default=0, type=SEED, show_default=True, help="Seed of every random choice.")
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
    learner: bool,
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
    if learner:
        _seed(Path(data), prior, out)
        return
    from sooner import training
    from sooner.judging import evaluation, measures
    from sooner.training import from_log
    from sooner.workloads import logs

    chosen = dict(map(_setting, settings))
    if checkpoint is not None:
        chosen["checkpoint"] = checkpoint
    for folder in (out, checkpoint):
        if folder is not None:
            training.try_folder(folder)
    count = logs.tokenizer(tokenizer) if tokenizer else None
    log = logs.read(data, count=count, first_turns=first_turns, model=model)
    say(str(log.report))
    rows = from_log.rows_of(log, leave_out=leave_out, say=say)
    with progress_bar(f"training {name}") as bar:
        ranker, unseen = from_log.train(
            rows,
            name,
            seed=seed,
            prior=prior,
            held_out=held_out,
            settings=chosen,
            progress=lambda share, words: bar(int(100 * share), 100),
        )
    told = {"data": Path(data).name, "tokenizer": Path(tokenizer).name if tokenizer else None}
    ranker.training_ = {**ranker.training_, **{key: value for key, value in told.items() if value}}
    training.keep(ranker, rows, out, examples=keep_examples, seed=seed)
    facts = {"out": str(out), "ranker": name, **ranker.training_}
    judged = measures.held_out(unseen, seed=seed)
    if judged is not None:
        facts |= {f"held_out_{key}": judged[key] for key in ("n", "kendall_tau", "kendall_tau_se")}
        facts["verdict"] = judged["verdict"]
        say(
            f"{'Switch it on' if judged['verdict']['switch_on'] else 'Do not switch it on'}: "
            f"{judged['verdict']['reason']} (on {judged['n']} held-out requests)"
        )
    click.echo(json.dumps(evaluation.plain(facts)))


def _seed(data: Path, prior: str | None, out: Path) -> None:
    """Start a learner from a log, and print what it learned."""
    from sooner import rankers
    from sooner.training.seeding import seed
    from sooner.workloads import traces

    ranker = None if prior == "" else rankers.load(prior or rankers.DEFAULT)
    click.echo(json.dumps(seed(traces.read(data), ranker, out)))


def _setting(given: str) -> tuple[str, Any]:
    """The name and value of NAME=VALUE; a value that is JSON is read as such."""
    name, sign, value = given.partition("=")
    if not sign or not name.isidentifier() or name in ("seed", "prior"):
        raise click.BadParameter(f"{given!r}; allowed: NAME=VALUE", param_hint="--set")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
