"""`sooner report`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the page here.")
@click.option("--json", "as_data", is_flag=True, help="Print JSON instead of a table.")
@click.option("--title", default="sooner: comparison of policies", show_default=True)
def report(runs: tuple[Path, ...], out: Path | None, as_data: bool, title: str) -> None:
    """Compare RUNS, the files `sooner replay` wrote: a table, JSON, and one self-contained HTML page.

    Runs with the same label are one arm. The first run's arm is what the others are compared with.

    Example: sooner report fcfs.jsonl ltr.jsonl --out report.html
    """
    from sooner.replay.record import completed, read_run
    from sooner.report import as_json, gather, print_table, split_meta, write_html

    read = {path: read_run(path) for path in runs}
    names = {path: run.meta.get("label", path.name.removesuffix(".jsonl")) for path, run in read.items()}
    arms = gather(
        (names[path], completed(run.records), sum(not record.finished for record in run.records))
        for path, run in read.items()
    )
    meta = split_meta({path.name: run.meta for path, run in read.items()})
    if out is not None:
        write_html(out, arms, meta, title=title)
    if as_data:
        click.echo(json.dumps(as_json(arms, meta)))
    else:
        print_table(arms)
