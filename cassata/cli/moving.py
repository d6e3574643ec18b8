"""`cassata import`: what waits in another scheduler, moved here while that one still runs. The work is in `mover`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, BinaryIO

import click

from cassata.cli.event import Reported, text_of
from cassata.cli.options import Instant, output_option
from cassata.client import DEFAULT_URL, Client
from cassata.errors import RecurrenceError

Command = Callable[..., Any]
FAR_DAYS = 366


@click.group(name="import", cls=Reported)
@click.option(
    "--service", envvar="CASSATA_SERVICE_URL", default=DEFAULT_URL, show_default=True, show_envvar=True, help="Where the service listens."
)
@click.option("--key", envvar="CASSATA_KEY", show_envvar=True, help="The key to ask it with.")
@click.pass_context
def import_(ctx: click.Context, service: str, key: str | None) -> None:
    """Move what waits in another scheduler over, while that one still runs.

    Interrupted, or started once more, it moves nothing twice. What is refused is told, and makes the exit code 1.
    """
    ctx.obj = ctx.with_resource(Client(service, key=key))


def _common(command: Command) -> Command:
    """What all of them are asked."""
    for option in reversed(
        [
            click.option("--from", "url", required=True, metavar="URL", help="Where the other scheduler listens."),
            click.option("--header", "headers", multiple=True, metavar="NAME: VALUE", help="To be sent to it; may be repeated."),
            click.option("--rate", type=click.FloatRange(0.01, 1_000), default=10, show_default=True, help="Questions to it per second."),
            click.option("--state", type=click.Path(dir_okay=False, path_type=Path), help="Remember in this file how far it has come."),
            click.option("--dry-run", is_flag=True, help="Only look, and say what would be moved."),
            output_option,
        ]
    ):
        command = option(command)

    @wraps(command)
    def checked(**options: Any) -> Any:
        return command(**{**options, "headers": _headers(options["headers"])})

    return checked


def _zone(_ctx: click.Context, _option: click.Parameter, name: str) -> str:
    from cassata import recurrence

    try:
        recurrence.local_instant("1970-01-01", name)
    except RecurrenceError as error:
        raise click.BadParameter(f"{name!r} {error.problems[0].detail}") from None
    return name


_timezone = click.option(
    "--timezone",
    default="UTC",
    show_default=True,
    callback=_zone,
    help="By the clocks of which zone its servers read cron expressions.",
)


def _headers(lines: Sequence[str]) -> dict[str, str]:
    pairs = [line.partition(":") for line in lines]
    if wrong := next((name for name, colon, _ in pairs if not colon or not name.strip()), None):
        raise click.BadParameter(f"{wrong!r} is not 'NAME: VALUE'", param_hint="--header")
    if any(character > "\xff" for line in lines for character in line):  # what it is stays untold: it may be a key
        raise click.BadParameter("holds characters that no header can: only latin-1 ones can be sent", param_hint="--header")
    return {name.strip(): value.strip() for name, _, value in pairs}


@import_.command(name="goscheduler")
@_common
@click.option("--app", "applications", multiple=True, help="Only this application; may be repeated. Otherwise all of them.")
@click.option("--since", type=Instant(), help="Only what is due from then on. Otherwise from an hour ago on.")
@click.option("--until", type=Instant(), help=f"Only what is due before. Otherwise {FAR_DAYS} days from now.")
@click.option("--missed", is_flag=True, help="Also what should have been sent since then and was not: it is sent at once.")
@_timezone
@click.option("--cron-as-written", is_flag=True, help="Also cron expressions that mean something else here.")
@click.pass_context
def from_goscheduler(
    ctx: click.Context, /, applications: Sequence[str], since: datetime | None, until: datetime | None, **options: Any
) -> None:
    """Move schedules and cron schedules out of GoScheduler: they keep their ids, and what they send.

    Deactivate its applications before: it then sends nothing and takes nothing, and still tells what waits.
    """
    from cassata.cli import mover

    mover.from_goscheduler(ctx, applications, since, until, **options)


@import_.command(name="recurring")
@click.argument("file", metavar="FILE", type=click.File("rb"))
@_common
@click.option("--app", "application_id", envvar="CASSATA_APPLICATION", show_envvar=True, default="recurring", show_default=True)
@click.pass_context
def from_recurring(ctx: click.Context, /, file: BinaryIO, application_id: str, **options: Any) -> None:
    """Move events out of the recurring-event scheduler: those that FILE (- is standard input) names.

    It has no list. Each line of FILE is the id of an event, or the JSON that made it, which is needed for events that do not recur.
    """
    from cassata.cli import mover

    mover.from_recurring(ctx, text_of(file, "FILE"), application_id, **options)


@import_.command(name="jobs")
@_common
@click.option("--app", "application_id", envvar="CASSATA_APPLICATION", show_envvar=True, default="jobs", show_default=True)
@click.option("--job-url", metavar="URL", help="Where jobs go whose metadata name neither a url nor a topic.")
@click.option("--missed", is_flag=True, help="Also the run of a job that should have been and was not: it is sent at once.")
@_timezone
@click.pass_context
def from_jobs(ctx: click.Context, /, application_id: str, job_url: str | None, missed: bool, timezone: str, **options: Any) -> None:
    """Move jobs out of DTS-Go: those that wait become series under their ids, those that are paused stay so."""
    from cassata.cli import mover

    mover.from_jobs(ctx, application_id, job_url, missed, timezone, **options)
