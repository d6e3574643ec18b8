"""`cassata db`: the tables and their version."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cassata.cli.control import config_option
from cassata.cli.meter import Meter
from cassata.cli.options import Forgiving, output_option

if TYPE_CHECKING:
    from cassata.config import Settings
    from cassata.scheduler import Scheduler
    from cassata.tenants import Tenants


def database_option(command: Any) -> Any:
    return config_option(click.option("--database-url", metavar="URL", help="Which database; default: the configured one.")(command))


def settings_of(config: Path | None, database_url: str | None) -> tuple[str, Settings]:
    from cassata import config as configuration

    file = config or configuration.default_file("service")
    settings = configuration.load(file, flags={"database.url": database_url}).settings
    return configuration.database_url(settings)[0], settings


@contextlib.contextmanager
def opened_tenants(config: Path | None, database_url: str | None) -> Iterator[Tenants]:
    with opened_scheduler(config, database_url) as scheduler:
        yield scheduler.tenants


@contextlib.contextmanager
def opened_scheduler(config: Path | None, database_url: str | None) -> Iterator[Scheduler]:
    """Open the configured database; the embedded one has its tables made, as when a service starts."""
    from cassata import config as configuration
    from cassata.scheduler import Scheduler

    url, settings = settings_of(config, database_url)
    _, is_embedded = configuration.database_url(settings)
    any_topic = not configuration.authenticates(settings.service)  # as the service has it
    scheduler = Scheduler.open(url, create_tables=is_embedded, settings=settings.database, pool_size=1, any_topic=any_topic)
    try:
        yield scheduler
    finally:
        scheduler.close()


@click.group(cls=Forgiving)
def db() -> None:
    """Look after the tables."""


@db.command()
@database_option
@output_option
def upgrade(config: Path | None, database_url: str | None, output: str) -> None:
    """Make the tables, or bring them to the newest version. Two that start at once take turns."""
    from cassata import database

    url, settings = settings_of(config, database_url)
    _tell_version(database.upgrade(url, settings.database), output)


@db.command()
@click.argument("target", metavar="VERSION")
@click.option("--yes", is_flag=True, help="Do not ask.")
@database_option
@output_option
def downgrade(target: str, yes: bool, config: Path | None, database_url: str | None, output: str) -> None:
    """Bring the tables back to an older VERSION, such as 0005; `base` removes them.

    What only the newer ones can hold is lost. Stop every service and worker before.
    """
    from cassata import database

    url, settings = settings_of(config, database_url)
    if not yes:
        click.confirm(f"This removes what version {target} of the tables cannot hold. Go on?", abort=True, err=True)
    _tell_version(database.downgrade(url, target, settings.database) or "base", output)


@db.command()
@database_option
@click.option("--dry-run", is_flag=True, help="Count what would be removed, and remove nothing.")
@output_option
def prune(config: Path | None, database_url: str | None, dry_run: bool, output: str) -> None:
    """Remove now what has been kept for long enough, as the workers do once an hour. The times are those of config/worker.yaml."""
    from cassata import config as configuration
    from cassata import worker
    from cassata.scheduler import Scheduler

    file = config or configuration.default_file("worker")
    settings = configuration.load(file, flags={"database.url": database_url}).settings
    scheduler = Scheduler.open(configuration.database_url(settings)[0], settings=settings.database, pool_size=1)
    try:
        pruning = scheduler.pruning(worker.retention_of(settings.worker), dry_run=dry_run)
        pruning.begin()
        with Meter("pruning") as meter:
            while pruning.under_way:
                pruning.step()
                meter.show(pruning.total.examined, f"{pruning.total.examined:,} looked at, {pruning.total.events:,} removed")
    finally:
        scheduler.close()
    verb = "would be removed" if dry_run else "removed"
    total = pruning.total
    if output == "json":
        click.echo(json.dumps({"dry-run": dry_run, **dataclasses.asdict(total)}))
        return
    beside = f"{total.attempts:,} attempts and {total.payloads:,} payloads of others"
    click.echo(f"{total.events:,} events {verb}, {beside}; {total.examined:,} looked at")


@db.command()
@database_option
@output_option
def version(config: Path | None, database_url: str | None, output: str) -> None:
    """Tell the version of the tables, and whether this Cassata can use them."""
    from cassata.scheduler import Scheduler
    from cassata.schema import VERSION

    url, settings = settings_of(config, database_url)
    Scheduler.open(url, settings=settings.database, pool_size=1).close()
    _tell_version(VERSION, output)


def _tell_version(version: str, output: str) -> None:
    click.echo(json.dumps({"version": version}) if output == "json" else f"tables are at version {version}")
