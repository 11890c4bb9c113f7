"""`sooner reproduce`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sooner.reproduce.result import Reproduction


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_data", is_flag=True, help="Print JSON instead of a table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML page here.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0), help="Seed of the draws.")
@click.pass_context
def reproduce(ctx: click.Context, name: str | None, as_data: bool, out: Path | None, seed: int) -> None:
    """Run a published result again and put ours beside the paper's; without NAME, list the names.

    Each shape the paper claims is marked reproduced or not, with the reason. Exits 1 when one is not.

    \b
    Example: sooner reproduce ssjf-table --out ssjf.html
    """
    from sooner import reproduce as library
    from sooner.reproduce.page import html

    if name is None:
        for known in library.NAMES:
            click.echo(known)
        return
    found = library.run(name, seed=seed, report=lambda text: click.echo(text, err=True))
    if out is not None:
        out.write_text(html(found), encoding="utf-8")
    if as_data:
        click.echo(json.dumps(found.as_json()))
    else:
        _print(found)
    if not found.reproduced:
        ctx.exit(1)


def _print(found: Reproduction) -> None:
    from rich.console import Console
    from rich.table import Table

    from sooner.report.table import number

    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold", title=found.title, title_justify="left")
    for column in ("setting", "measure"):
        table.add_column(column)
    for column in ("ours", "paper", "ours/paper"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found.rows:
        unit = f" [dim]{row.unit}[/dim]" if row.unit else ""
        paper = number(row.paper) if row.paper is not None else ""
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        table.add_row(row.setting, row.measure + unit, number(row.ours), paper, ratio)
    console.print(table)
    for claim in found.claims:
        verdict = ("reproduced" if claim.holds else "NOT reproduced") + (", reworded" * bool(claim.reworded))
        console.print(f"\n[bold]{verdict}[/bold]  {claim.text}")
        console.print(f"  {claim.explanation} ({claim.source})", style="dim")
    for setting, why in found.unconfirmed.items():
        console.print(
            f"unconfirmed: {setting}={found.settings[setting]}: {why}", style="dim", highlight=False
        )
