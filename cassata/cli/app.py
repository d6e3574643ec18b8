"""`cassata app`: applications, straight in the database: what an operator does with or without a service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from cassata.cli.db import database_option, opened_scheduler, opened_tenants
from cassata.cli.options import Delay, Forgiving, output_option
from cassata.cli.output import Document, in_words, print_json, print_table, show
from cassata.model import Application, EgressPolicy

Command = Callable[..., Any]

PAGE_LENGTH = 1_000
EGRESS = [*(policy.value for policy in EgressPolicy), "default"]

app_argument = click.argument("application_id", metavar="APP")


def settings_options(command: Command) -> Command:
    """What can be set of an application."""
    for option in reversed(
        [
            click.option("--limit", "limits", multiple=True, metavar="NAME=VALUE", help="A limit of its own; NAME= is the default again."),
            click.option("--egress", type=click.Choice(EGRESS), help="Where its requests may go."),
            click.option("--allow", multiple=True, metavar="CIDR_OR_HOST", help="What --egress list allows; may be repeated."),
            click.option("--topic", "topics", multiple=True, metavar="NAME[=URL]", help="What it may publish to: a name, or prefix*."),
            click.option("--topics", "no_topics", type=click.Choice(["none", "default"]), help="To nothing, or as configured."),
            click.option("--metadata", metavar="JSON", help="An object to keep with it."),
            click.option("--stream-url", metavar="URL", help="Where it is told of the lives of its events."),
            click.option("--stream-topic", metavar="TOPIC", help="The same: a topic of Kafka instead of a URL."),
            click.option("--stream-kind", "stream_kinds", multiple=True, metavar="KIND", help="Of what it is told; may be repeated."),
            click.option("--stream-header", "stream_headers", multiple=True, metavar="HEADER", help="A 'Name: value' of those requests."),
            click.option("--no-stream", is_flag=True, help="Tell it nothing any more; what it has not been told yet is dropped."),
        ]
    ):
        command = option(command)
    return command


@click.group(cls=Forgiving)
def app() -> None:
    """Make, look at and change applications."""


@app.command()
@app_argument
@settings_options
@output_option
@database_option
def create(application_id: str, output: str, config: Path | None, database_url: str | None, **options: Any) -> None:
    """Make an application."""
    from cassata.service import tenancy_wire

    with in_words():
        document = {"application-id": application_id, **_document(**options)}
        changes = tenancy_wire.read(tenancy_wire.ApplicationDocument, document).changes()
    with opened_scheduler(config, database_url) as scheduler:
        with in_words():
            tenancy_wire.check_stream(scheduler.batches, Application(0, application_id), changes)
        _show_application(tenancy_wire.application_document(scheduler.tenants.create(application_id, changes)), output)


@app.command()
@app_argument
@settings_options
@output_option
@database_option
def update(application_id: str, output: str, config: Path | None, database_url: str | None, **options: Any) -> None:
    """Change limits, egress, topics or metadata; what is not named stays as it is."""
    from cassata.service import tenancy_wire

    with in_words():
        changes = tenancy_wire.read(tenancy_wire.ChangesDocument, _document(**options)).changes()
    with opened_scheduler(config, database_url) as scheduler:
        if changes.stream:
            with in_words():
                tenancy_wire.check_stream(scheduler.batches, scheduler.tenants.application(application_id), changes)
        _show_application(tenancy_wire.application_document(scheduler.tenants.change(application_id, changes)), output)


@app.command()
@app_argument
@output_option
@database_option
def get(application_id: str, output: str, config: Path | None, database_url: str | None) -> None:
    """Show an application."""
    from cassata.service import tenancy_wire

    with opened_tenants(config, database_url) as tenants:
        _show_application(tenancy_wire.application_document(tenants.application(application_id)), output)


@app.command()
@app_argument
@output_option
@database_option
def stream(application_id: str, output: str, config: Path | None, database_url: str | None) -> None:
    """Show where an application is told of the lives of its events, and how that fares."""
    from cassata.service import tenancy_wire

    with opened_scheduler(config, database_url) as scheduler:
        state = scheduler.outbox.state(application_id, tenancy_wire.MOST_COUNTED)
    show(tenancy_wire.stream_document(state, masked=False), output)


@app.command(name="list")
@output_option
@database_option
def list_applications(output: str, config: Path | None, database_url: str | None) -> None:
    """List all applications."""
    from cassata.service import tenancy_wire

    documents: list[dict[str, Any]] = []
    with opened_tenants(config, database_url) as tenants:
        while page := tenants.applications(after=documents[-1]["application-id"] if documents else "", limit=PAGE_LENGTH):
            documents += [tenancy_wire.application_document(application) for application in page]
    if output == "json":
        print_json(documents)
    elif not documents:
        click.echo("no applications: make one with cassata app create, or add an event where no keys are needed")
    else:
        print_table(["application-id", "active", "limits", "egress", "topics", "metadata", "created-at"], list(map(_in_brief, documents)))


@app.command()
@app_argument
@output_option
@database_option
def activate(application_id: str, output: str, config: Path | None, database_url: str | None) -> None:
    """Let an application take events, and have them sent, again."""
    _set_active(application_id, True, output, config, database_url)


@app.command()
@app_argument
@output_option
@database_option
def deactivate(application_id: str, output: str, config: Path | None, database_url: str | None) -> None:
    """Let an application take no more events; those that it has wait until it is activated."""
    _set_active(application_id, False, output, config, database_url)


def _set_active(application_id: str, active: bool, output: str, config: Path | None, database_url: str | None) -> None:
    from cassata.service import tenancy_wire
    from cassata.tenants import Changes

    with opened_tenants(config, database_url) as tenants:
        _show_application(tenancy_wire.application_document(tenants.change(application_id, Changes(active=active))), output)


# --- signing secrets -----------------------------------------------------------------------------------------------------


@app.command()
@app_argument
@click.option("--overlap", type=Delay(), default="24h", show_default=True, metavar="TIME", help="How long the one before is used too.")
@click.option("--secret", envvar="CASSATA_SECRET", show_envvar=True, metavar="WHSEC", help="The new one; without it: one is made.")
@output_option
@database_option
def rotate_secret(
    application_id: str, overlap: timedelta, secret: str | None, output: str, config: Path | None, database_url: str | None
) -> None:
    """Sign with a new secret from now on, and show it."""
    from cassata.model import Secret
    from cassata.service import tenancy_wire

    document = {"overlap": overlap.total_seconds()} | ({"secret": secret} if secret else {})
    with in_words():
        asked = tenancy_wire.read(tenancy_wire.RotationDocument, document)
    with opened_tenants(config, database_url) as tenants:
        rotated = tenants.rotate_secret(application_id, overlap_ms=asked.overlap, secret=Secret(asked.secret) if asked.secret else None)
    _show_secrets(tenancy_wire.secrets_document(rotated.secrets), output)


@app.command()
@app_argument
@output_option
@database_option
def secrets(application_id: str, output: str, config: Path | None, database_url: str | None) -> None:
    """Show by which secrets the receivers of an application know it."""
    from cassata.service import tenancy_wire

    with opened_tenants(config, database_url) as tenants:
        _show_secrets(tenancy_wire.secrets_document(tenants.secrets(application_id)), output)


def _show_secrets(document: Document, output: str) -> None:
    if output == "json":
        print_json(document)
    else:
        print_table(["secret", "until"], document["secrets"])


@app.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def new_key_file(file: Path) -> None:
    """Make a FILE for database.secretsKeyFile, with a key by which secrets are sealed."""
    from cassata.vault import new_key_file

    try:
        new_key_file(file)
    except FileExistsError:
        raise click.ClickException(f"{file} is there already, and a key that is lost makes secrets unreadable: name another one") from None
    click.echo(f"{file} holds a new key. Put the same file on every host, name it in database.secretsKeyFile, and seal what there is:")
    click.echo("cassata app seal-secrets")


@app.command()
@database_option
def seal_secrets(config: Path | None, database_url: str | None) -> None:
    """Write all signing secrets down anew, sealed as database.secretsKeyFile says now."""
    with opened_tenants(config, database_url) as tenants:
        count = tenants.seal_secrets()
    click.echo(f"secrets of {count} applications written anew")


# --- what is written, and shown ------------------------------------------------------------------------------------------


def _document(
    limits: Sequence[str],
    egress: str | None,
    allow: Sequence[str],
    topics: Sequence[str],
    no_topics: str | None,
    metadata: str | None,
    **stream: Any,
) -> dict[str, Any]:
    """Write the options as a client of the service would."""
    if allow and egress != EgressPolicy.LIST:
        raise click.UsageError("--allow goes with --egress list.")
    document: dict[str, Any] = {}
    if limits:
        document["limits"] = dict(_limit(limit) for limit in limits)
    if egress:
        document["egress"] = None if egress == "default" else {"policy": egress, "allow": list(allow)}
    if topics and no_topics:
        raise click.UsageError("Give only one of --topic and --topics.")
    if topics:
        document["topics"] = {name: url or None for name, _, url in (topic.partition("=") for topic in topics)}
    if no_topics:
        document["topics"] = None if no_topics == "default" else {}
    if metadata is not None:
        document["metadata"] = _value("--metadata", metadata)
    return document | _stream_document(**stream)


def _stream_document(
    stream_url: str | None, stream_topic: str | None, stream_kinds: Sequence[str], stream_headers: Sequence[str], no_stream: bool
) -> dict[str, Any]:
    if stream_url is None and stream_topic is None:
        if stream_kinds or stream_headers:
            raise click.UsageError("--stream-kind and --stream-header go with --stream-url: a stream is set as a whole.")
        return {"stream": None} if no_stream else {}
    if no_stream or (stream_url and stream_topic):
        raise click.UsageError("--stream-url, --stream-topic and --no-stream do not go together.")
    aim = {"url": stream_url} if stream_url else {"type": "kafka", "topic": stream_topic}
    return {"stream": {**aim, "kinds": list(stream_kinds) or None, "request-headers": list(stream_headers)}}


def _limit(written: str) -> tuple[str, Any]:
    name, separator, value = written.partition("=")
    if not separator:
        raise click.UsageError(f"--limit {written!r} is not NAME=VALUE.")
    return name, _value(f"--limit {name}", value) if value else None


def _value(place: str, written: str) -> Any:
    from cassata.service.wire import MalformedDocument, read_json

    try:
        return read_json(written.encode())
    except MalformedDocument as error:
        raise click.ClickException(f"{place}: {error}") from error


def _show_application(document: Document, output: str) -> None:
    show(document if output == "json" else _in_brief(document), output)


def _in_brief(document: Document) -> Document:
    """Write topics as they are given here: what stands for one behind its name."""
    topics = document["topics"]
    if topics is None:
        return document
    return {**document, "topics": [name if url is None else f"{name}={url}" for name, url in topics.items()] or ["none"]}
