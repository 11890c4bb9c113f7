"""`sooner check`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click


@click.command()
@click.option(
    "--config",
    "config_file",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The gateway's TOML file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(config_file: Path, as_json: bool) -> None:
    """Look at all that a gateway's settings name, without serving: what would a start find, now or later?

    The file itself, each engine (does it answer, has it the models, does it take a priority), aliases, the
    port, keys, the admin key, the journal and the ranker. The exit code is 1 where something is an error,
    2 where the settings themselves are refused.

    Example: sooner check --config gateway.toml
    """
    from sooner.gateway import checks
    from sooner.gateway.settings import read_with

    found = asyncio.run(checks.check(read_with(config_file, {})))
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in found]))
    else:
        for finding in found:
            click.echo(f"{finding.state:8} {finding.what}: {finding.words}")
    raise click.exceptions.Exit(int(any(finding.state == checks.ERROR for finding in found)))
