"""`sooner keys`."""

from __future__ import annotations

import json
import sys
import time

import click


@click.group()
def keys() -> None:
    """Make, list and revoke the API keys of a gateway.

    A key belongs to a tenant, is shown once, and is kept as a hash. A running gateway takes changes
    within five seconds.

    Example: sooner keys add --database keys.db --tenant search
    """


_DATABASE = click.option(
    "--database", required=True, help="Where the keys are: a file, or a URL such as postgresql://..."
)


@keys.command()
@_DATABASE
@click.option("--tenant", required=True, help="Whose requests they will be: shares and limits go by it.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def add(database: str, tenant: str, as_json: bool) -> None:
    """Make a key and print it: it cannot be shown again.

    Example: sooner keys add --database keys.db --tenant search
    """
    from sooner.gateway.admission.keys import KeyBook
    from sooner.gateway.database import Database

    key = KeyBook(Database(database)).add(tenant)
    click.echo(json.dumps({"tenant": tenant, "key": key}) if as_json else key)


@keys.command("list")
@_DATABASE
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_(database: str, as_json: bool) -> None:
    """List the keys by id and tenant; nobody can list the keys themselves.

    Example: sooner keys list --database keys.db
    """
    from sooner.gateway.admission.keys import KeyBook
    from sooner.gateway.database import Database

    book = KeyBook(Database(database))
    book.must_exist()
    rows = [
        {"id": key.id, "tenant": key.tenant, "created": _date(key.created), "revoked": _date(key.revoked)}
        for key in book.all()
    ]
    if as_json or not sys.stdout.isatty():
        click.echo(json.dumps(rows))
        return
    for row in rows:
        click.echo(f"{row['id']}  {row['tenant']:<24} {row['created']}  {row['revoked'] or 'good'}")


@keys.command()
@_DATABASE
@click.argument("id")
def revoke(database: str, id: str) -> None:
    """End the key with this ID.

    Example: sooner keys revoke --database keys.db 1f0c5a7b9d3e
    """
    from sooner.gateway.admission.keys import KeyBook
    from sooner.gateway.database import Database

    book = KeyBook(Database(database))
    book.must_exist()
    book.revoke(id)


def _date(at: float | None) -> str | None:
    return None if at is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
