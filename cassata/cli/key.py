"""`cassata key`: keys, straight in the database, so that the first one can be made before there is a service."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import click

from cassata.cli.db import database_option, opened_tenants
from cassata.cli.options import Delay, Forgiving, output_option
from cassata.cli.output import Document, in_words, print_json, print_table, show
from cassata.model import Scope

SCOPES = [scope.value for scope in Scope]

app_option = click.option("--app", "application_id", metavar="APP", help="Of this application.")
operator_option = click.option("--operator", is_flag=True, help="An operator's: for all applications.")


@click.group(cls=Forgiving)
def key() -> None:
    """Make, list and revoke the keys by which the service is asked."""


@key.command()
@app_option
@operator_option
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    help="What it is good for; may be repeated.  [default: publish and read; an operator's: admin]",
)
@click.option("--expires-in", type=Delay(), metavar="TIME", help="How long it is valid, such as 90d; without it: until it is revoked.")
@click.option("--name", default="", help="What it is called in lists.")
@output_option
@database_option
def create(
    application_id: str | None,
    operator: bool,
    scopes: tuple[str, ...],
    expires_in: timedelta | None,
    name: str,
    output: str,
    config: Path | None,
    database_url: str | None,
) -> None:
    """Make a key, and show it this once."""
    from cassata.service import tenancy_wire

    owner = _owner(application_id, operator)
    document = {"name": name} | ({"scopes": list(scopes)} if scopes else {})
    with in_words():
        asked = tenancy_wire.read(tenancy_wire.KeyDocument, document)
    expires_at = None if expires_in is None else time.time_ns() // 1_000_000 + round(expires_in.total_seconds() * 1000)
    usual = tenancy_wire.OPERATORS_SCOPES if owner is None else tenancy_wire.USUAL_SCOPES
    with opened_tenants(config, database_url) as tenants:
        made, token = tenants.create_key(owner, asked.scopes or usual, name=asked.name, expires_at=expires_at)
    if output == "json":
        print_json({"token": token, **tenancy_wire.key_document(made)})
    else:
        click.echo(token)  # alone on standard output: KEY=$(cassata key create ...) holds it
    click.echo("Keep it now: it is not shown again, and nobody can read it from the database.", err=True)


@key.command(name="list")
@app_option
@operator_option
@output_option
@database_option
def list_keys(application_id: str | None, operator: bool, output: str, config: Path | None, database_url: str | None) -> None:
    """List keys, without what makes them valid."""
    from cassata.service import tenancy_wire

    owner = _owner(application_id, operator)
    with opened_tenants(config, database_url) as tenants:
        documents = [tenancy_wire.key_document(found) for found in tenants.keys(owner)]
    if output == "json":
        print_json(documents)
    elif not documents:
        click.echo("no keys: make one with cassata key create")
    else:
        print_table(["prefix", "name", "scopes", "created-at", "expires-at", "revoked-at"], documents)


@key.command()
@click.argument("prefix")
@output_option
@database_option
def revoke(prefix: str, output: str, config: Path | None, database_url: str | None) -> None:
    """Make a key worthless, within two seconds everywhere. PREFIX is its second part, as `list` shows it."""
    from cassata.service import tenancy_wire

    with opened_tenants(config, database_url) as tenants:
        document: Document = tenancy_wire.key_document(tenants.revoke_key(prefix))
    show(document, output)


def _owner(application_id: str | None, operator: bool) -> str | None:
    if (application_id is None) is not operator:
        raise click.UsageError("Give one of --app APP and --operator.")
    return application_id
