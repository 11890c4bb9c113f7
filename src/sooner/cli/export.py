"""`sooner export`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("journal")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="JSONL to write; else stdout.")
@click.option("--model", help="Only requests to this model.")
@click.option("--since", default=0.0, help="Only requests that came after this Unix time.")
@click.option("--lengths-only", is_flag=True, help="Leave the text out: lengths, times and scores.")
def export(journal: str, out: Path | None, model: str | None, since: float, lengths_only: bool) -> None:
    """Write the finished requests of a gateway's JOURNAL as JSON lines, for `sooner train` and `simulate`.

    A ranker learns from the text, so only requests whose prompt was kept are written (the setting
    `prompts = true` under [journal]), unless --lengths-only is given. `sooner simulate` and `tune` read
    both: arrival times, tenants and lengths are in each line.

    Example: sooner export sqlite:///journal.db --out log.jsonl
    """
    import contextlib
    import sys

    from sooner.core import DataError
    from sooner.gateway.database import Database
    from sooner.gateway.journal import export as write

    database = Database(journal)
    database.must_exist()
    beside = out.with_name(out.name + ".part") if out else None
    with beside.open("w", encoding="utf-8") if beside else contextlib.nullcontext(sys.stdout) as lines:
        written, without = write(database, lines, since=since, model=model, text=not lengths_only)
    if out and beside:
        beside.replace(out) if written else beside.unlink()
    if not written and without and not lengths_only:
        raise DataError(
            f"none of {without} requests has its prompt; allowed: a journal written with prompts = true, "
            "or --lengths-only"
        )
    click.echo(f"{written} requests" + (f", {without} without text" if without else ""), err=True)
