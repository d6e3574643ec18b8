"""`cassata batch`: scripts that an operator puts into the service, and that workers run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from cassata.cli.event import Reported, service_options
from cassata.cli.options import Delay, output_option
from cassata.cli.output import print_json, print_table, show
from cassata.client import Client, NewEvent
from cassata.model import new_event_id

COLUMNS = ["batch-id", "active", "size", "sha256", "changed-at"]

app_argument = click.argument("application_id", metavar="APP")
batch_argument = click.argument("batch_id", metavar="BATCH")


@click.group(cls=Reported)
@service_options
@click.pass_context
def batch(ctx: click.Context, service: str, key: str | None, retries: int) -> None:
    """Upload, list, enable, disable, run and delete batches, which are scripts."""
    ctx.obj = ctx.with_resource(Client(service, key=key, retries=retries))


@batch.command()
@app_argument
@batch_argument
@click.argument("source", metavar="FILE_OR_FOLDER", type=click.Path(exists=True, path_type=Path))
@output_option
@click.pass_obj
def upload(client: Client, application_id: str, batch_id: str, source: Path, output: str) -> None:
    """Put a script here: a zip archive with script.sh at its root, or a folder that is made into one. Needs an operator's key."""
    from cassata import archive

    try:
        packed = archive.packed(source) if source.is_dir() else source.read_bytes()
        archive.check(packed)
    except archive.InvalidArchive as error:
        raise click.ClickException(f"{source} {error}") from error
    show(client.put_batch(application_id, batch_id, packed), output)


@batch.command(name="list")
@app_argument
@output_option
@click.pass_obj
def list_batches(client: Client, application_id: str, output: str) -> None:
    """List the batches of an application."""
    found = client.batches(application_id)
    if output == "json":
        print_json(found)
    elif found:
        print_table(COLUMNS, found)
    else:
        click.echo(f"no batches of {application_id!r}")


def _switch(name: str, active: bool, sentence: str) -> None:
    """Make the command that lets a batch be run, or not."""

    @batch.command(name=name, help=sentence)
    @app_argument
    @batch_argument
    @output_option
    @click.pass_obj
    def switch(client: Client, application_id: str, batch_id: str, output: str) -> None:
        show(client.set_batch_active(application_id, batch_id, active), output)


_switch("enable", True, "Let a batch be run again.")
_switch("disable", False, "Let a batch not be run: what is due then fails with that reason.")


@batch.command()
@app_argument
@batch_argument
@click.pass_obj
def delete(client: Client, application_id: str, batch_id: str) -> None:
    """Delete a batch: what is still to run it fails."""
    client.delete_batch(application_id, batch_id)
    click.echo(f"batch {batch_id!r} of {application_id!r} is deleted")


@batch.command()
@app_argument
@batch_argument
@click.argument("arguments", nargs=-1)
@click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="A variable for it; may be repeated.")
@click.option("--payload", help="What it reads on standard input.")
@click.option("--timeout", type=Delay(), default="1h", show_default=True, metavar="TIME", help="How long it may run.")
@click.option("--id", "event_id", default=new_event_id, show_default="a new one", help="The event's id.")
@output_option
@click.pass_obj
def run(
    client: Client,
    application_id: str,
    batch_id: str,
    arguments: Sequence[str],
    environment: Sequence[str],
    payload: str | None,
    timeout: timedelta,
    event_id: str,
    output: str,
) -> None:
    """Have a batch run now, once: an event. Put -- before ARGUMENTS that begin with a hyphen."""
    destination: dict[str, Any] = {"type": "script", "batch": batch_id}
    if arguments:
        destination["arguments"] = list(arguments)
    if environment:
        destination["environment"] = _environment(environment)
    new = NewEvent(
        application_id,
        delay=0,
        payload=payload,
        event_id=event_id,
        timeout=timeout.total_seconds(),
        destination=destination,
    )
    show(client.schedule(new).document, output)


def _environment(given: Sequence[str]) -> Mapping[str, str]:
    pairs = [pair.partition("=") for pair in given]
    if wrong := [name for name, separator, _ in pairs if not separator]:
        raise click.UsageError(f"--env {wrong[0]!r} is not NAME=VALUE.")
    return {name: value for name, _, value in pairs}
