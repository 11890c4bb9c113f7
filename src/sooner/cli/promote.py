"""`sooner promote`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from sooner.cli.options import say


@click.command()
@click.argument("url", metavar="[URL]", default="http://127.0.0.1:8080")
@click.option("--policy", is_flag=True, help="The policy that watches, in place of the ranker.")
@click.option("--if-better", is_flag=True, help="Only where its gain is larger by more than two errors.")
@click.option("--by", default="", help="Your name, for the gateway's log.")
@click.option(
    "--admin-key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the gateway's admin key, where it has one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object: who acts, and how both stand.")
def promote(
    url: str, policy: bool, if_better: bool, by: str, admin_key_file: Path | None, as_json: bool
) -> None:
    """Let the shadow of the gateway at URL act, and what acted be its shadow; again: back.

    The setting `shadow` names a second ranker, `shadow_policy` a second policy: both are asked too, and
    compared. The gateway keeps who acts over restarts. The exit code is 1 where --if-better says no.

    Example: sooner promote http://127.0.0.1:8080 --if-better --by anna
    """
    from sooner.gateway.promoting import ask

    key = admin_key_file.read_text(encoding="utf-8").strip() if admin_key_file else ""
    found = ask(url, key, by=by, if_better=if_better, what="policy" if policy else "ranker")
    if found is None:
        say("not promoted: the shadow is not better beyond chance")
        raise click.exceptions.Exit(1)
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"{found['acting']} orders from now on; {found['shadow']} is its shadow")
    for name in ("acting", "shadow"):
        click.echo(f"{found[name]:24} tau {_sure(found, name, 'tau')}  gain {_sure(found, name, 'gain')}")


def _sure(found: dict[str, Any], name: str, measure: str) -> str:
    value, error = found[f"{name}_{measure}"], found[f"{name}_{measure}_error"]
    return "not known yet" if value is None or error is None else f"{value:.3f} (error {error:.3f})"
