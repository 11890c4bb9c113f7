"""`sooner compare-rankers`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from sooner.cli.options import SEED, progress_bar

_WIDE = 1000
"""Columns where no terminal is: nothing is broken into lines."""


@click.command(name="compare-rankers")
@click.argument("train_data", metavar="TRAIN")
@click.argument("test_data", metavar="TEST")
@click.option(
    "--arm",
    "arms",
    multiple=True,
    help="Only this arm; may be given several times. Left out, all but transformer and blend.",
)
@click.option(
    "--trained",
    multiple=True,
    metavar="DIR",
    help='A ranker that is trained already ("default": the shipped one), judged beside them as it is.',
)
@click.option(
    "--encoder",
    help="Encoder of the papers' heads: a name, a folder, that of a trained transformer or blend too, or "
    '"hashed" for none.',
)
@click.option("--seed", default=0, type=SEED, show_default=True, help="Seed of every random choice.")
@click.option("--tokenizer", help="Counts replies that come as text: a tokenizer.json, folder or name.")
@click.option("--first-turns", is_flag=True, help="Leave out requests that follow an earlier reply.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def compare_rankers(
    train_data: str,
    test_data: str,
    arms: tuple[str, ...],
    trained: tuple[str, ...],
    encoder: str | None,
    seed: int,
    tokenizer: str | None,
    first_turns: bool,
    as_json: bool,
) -> None:
    """Train the papers' rankers on TRAIN, judge them on TEST, and hold the papers' claims against it.

    Both are logs as `sooner train` reads them. Rows of TEST that share a conversation or a prompt with
    TRAIN are left out.

    Example: sooner compare-rankers train.jsonl test.jsonl --arm ltr --arm "buckets 100"
    """
    from sooner import training as train
    from sooner.judging import comparison
    from sooner.rankers.neural.encoding import DEFAULT_ENCODER
    from sooner.workloads import logs

    count = logs.tokenizer(tokenizer) if tokenizer else None
    read = [logs.read(path, count=count, first_turns=first_turns) for path in (train_data, test_data)]
    for log in read:
        click.echo(str(log.report), err=True)
    known, unseen = (train.dataset(log.rows) for log in read)
    with progress_bar("comparing") as bar:
        result = comparison.compare(
            known,
            unseen,
            arms=arms or comparison.QUICK,
            trained=trained,
            encoder=encoder or DEFAULT_ENCODER,
            seed=seed,
            progress=lambda done, words: bar(int(100 * done), 100),
        )
    if as_json:
        click.echo(json.dumps(result))
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("ranker", "tau", "accuracy", "RMSE", "train CPU s", "ms a request", "known of it"):
        words = name == "known of it"
        table.add_column(name, justify="left" if words or name == "ranker" else "right", no_wrap=not words)
    for row in result["arms"]:
        accuracy = row["class_accuracy"]
        table.add_row(
            row["name"],
            f"{row['kendall_tau']:.3f} ± {row['kendall_tau_se']:.3f}",
            "" if accuracy is None else f"{accuracy:.1%}",
            f"{row['rmse']:.0f}",
            "" if row["train_cpu_s"] is None else f"{row['train_cpu_s']:.0f}",
            f"{row['ms_per_request']:.2f}",
            f"{row['paper']}: {row['reported']}" if row["reported"] else row["paper"],
        )
    console = Console() if sys.stdout.isatty() else Console(width=_WIDE)
    console.print(table)
    for claim in result["claims"]:
        figures = f" ({claim['here']})" if claim["here"] else ""
        console.print(f"{claim['paper']}: {claim['claim']}: [bold]{claim['outcome']}[/bold]{figures}")
    kept = "trained before" if result["encoder_trained"] else "kept as it was pre-trained"
    console.print(
        f"{result['train_rows']} training and {result['test_rows']} test rows; heads on {result['encoder']}, "
        f"{kept}, where the papers fine-tune OPT or BERT for each."
    )
