"""`cassata openapi`: the HTTP interface, for generators of clients and for gateways."""

from __future__ import annotations

import click


@click.command()
def openapi() -> None:
    """Print the HTTP interface as an OpenAPI document."""
    from cassata.config import Service
    from cassata.scheduler import Scheduler
    from cassata.service import create_app, documentation
    from cassata.service.openapi import document

    scheduler = Scheduler.open("sqlite:///never-opened.db", check=False)  # nothing is asked of it
    try:
        click.echo(documentation.written(document(create_app(scheduler, Service()))), nl=False)
    finally:
        scheduler.close()
