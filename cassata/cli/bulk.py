"""`cassata bulk`: cancel, retry, send again and reschedule many events through the HTTP service."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any

import click

from cassata.cli.event import Reported, filter_options, service_options
from cassata.cli.meter import Meter, counted
from cassata.cli.options import Delay, Instant, output_option
from cassata.cli.output import print_json, print_table, show
from cassata.client import Client, Count, NewOperation, Operation

Command = Callable[..., Any]

LOOK_SECONDS = 0.3
PATIENCE_SECONDS = 10.0
"""After so long without any progress it is said that perhaps no worker runs."""

WORDS = {
    "/action": "the action",
    "/expiry": "--at",
    "/filter": "the filter (--status, --from, --until, --host, --last-status, --series, --tried)",
    "/filter/expiry-from": "--from",
    "/filter/expiry-until": "--until",
    "/filter/host": "--host",
    "/filter/last-status": "--last-status",
    "/filter/series": "--series",
    "/filter/status": "--status",
    "/filter/tried": "--tried",
    "/shift": "--shift",
}
"""What the places of a request are called on the command line."""

OF_SERIES = "Only the occurrences of this series, those that are stored; the series itself goes on: see 'series pause', 'series cancel'."


class Shift(Delay):
    """A duration that may be negative: 1h, +30m, -2d."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if not isinstance(value, str) or value[:1] not in {"+", "-"}:
            return super().convert(value, param, ctx)
        length = super().convert(value[1:], param, ctx)
        return -length if value[0] == "-" else length


class _ReportedBulk(Reported):
    words = WORDS


@click.group(cls=_ReportedBulk)
@service_options
@click.pass_context
def bulk(ctx: click.Context, service: str, key: str | None, retries: int) -> None:
    """Cancel, retry, send again and reschedule many events at a time."""
    ctx.obj = ctx.with_resource(Client(service, key=key, retries=retries))


def _begins(command: Command) -> Command:
    """What all commands take that begin an operation."""
    options: list[Command] = [
        click.argument("application_id", metavar="APP"),
        partial(filter_options, of_series=OF_SERIES),
        click.option("-y", "--yes", is_flag=True, help="Do not ask."),
        click.option("--wait/--no-wait", default=True, help="Whether to stay until it is done.  [default: wait]"),
        output_option,
        click.pass_obj,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@bulk.command()
@_begins
def cancel(client: Client, application_id: str, yes: bool, wait: bool, output: str, **wanted: Any) -> None:
    """Cancel what has not ended. What is being sent at the moment is only not tried again."""
    _begin(client, NewOperation(application_id, "cancel", **wanted), yes, wait, output)


@bulk.command()
@_begins
def retry(client: Client, application_id: str, yes: bool, wait: bool, output: str, **wanted: Any) -> None:
    """Send what failed or was cancelled once more."""
    _begin(client, NewOperation(application_id, "retry", **wanted), yes, wait, output)


@bulk.command()
@_begins
def reconcile(client: Client, application_id: str, yes: bool, wait: bool, output: str, **wanted: Any) -> None:
    """Send once more whatever has been sent, also what was delivered."""
    _begin(client, NewOperation(application_id, "reconcile", **wanted), yes, wait, output)


@bulk.command()
@click.option("--at", type=Instant(), help="The new expiry of all of them.")
@click.option("--shift", type=Shift(), metavar="DURATION", help="How much later to send each: 1h, 30m; earlier: --shift=-1h.")
@_begins
def reschedule(
    client: Client,
    application_id: str,
    at: datetime | None,
    shift: timedelta | None,
    yes: bool,
    wait: bool,
    output: str,
    **wanted: Any,
) -> None:
    """Send what waits at another time."""
    if (at is None) == (shift is None):
        raise click.UsageError("Give one of --at and --shift.")
    _begin(client, NewOperation(application_id, "reschedule", at=at, shift=shift, **wanted), yes, wait, output)


@bulk.command()
@_begins
def remove(client: Client, application_id: str, yes: bool, wait: bool, output: str, **wanted: Any) -> None:
    """Remove what has ended, for good, with its log."""
    _begin(client, NewOperation(application_id, "remove", **wanted), yes, wait, output)


@bulk.command(name="list")
@click.argument("application_id", metavar="APP")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@output_option
@click.pass_obj
def list_operations(client: Client, application_id: str, limit: int, output: str) -> None:
    """List operations, the newest first."""
    found = [operation.document for operation in islice(client.iter_operations(application_id, page_length=min(limit, 1_000)), limit)]
    if output == "json":
        print_json(found)
    elif found:
        names = ("operation-id", "action", "status", "expected", "changed", "skipped", "created-at", "finished-at")
        print_table(names, found)
    else:
        click.echo(f"no operations of {application_id!r}")


@bulk.command(name="show")
@click.argument("application_id", metavar="APP")
@click.argument("operation_id", metavar="OPERATION")
@click.option("--wait", is_flag=True, help="Stay until it is done.")
@output_option
@click.pass_obj
def show_operation(client: Client, application_id: str, operation_id: str, wait: bool, output: str) -> None:
    """Show how far an operation has come."""
    found = client.operation(application_id, operation_id)
    show(_followed(client, found).document if wait else found.document, output)


@bulk.command()
@click.argument("application_id", metavar="APP")
@click.argument("operation_id", metavar="OPERATION")
@output_option
@click.pass_obj
def stop(client: Client, application_id: str, operation_id: str, output: str) -> None:
    """Have an operation change no more. What it has changed stays so."""
    show(client.cancel_operation(application_id, operation_id).document, output)


def _begin(client: Client, new: NewOperation, yes: bool, wait: bool, output: str) -> None:
    count = client.count(new)
    if not count.expected:
        if output == "json":
            print_json({"expected": 0, "statuses": {status.name: number for status, number in count.statuses.items()}})
        else:
            click.echo(f"nothing to {new.action}{_passed_over(count)}")
        return
    question = f"{new.action} {_expected(count)} of {new.application_id!r} ({_by_status(count)})"
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"This would {question}. Where nobody can be asked, give --yes.")
        click.confirm(f"{question}?", abort=True, err=True)
    begun = client.begin(new)
    ended = _followed(client, begun) if wait else begun
    if output == "json":
        print_json(ended.document)
    else:
        click.echo(_in_words(ended))
    if wait and ended.status != "DONE":
        raise click.exceptions.Exit(1)


def _followed(client: Client, operation: Operation) -> Operation:
    """Stay with an operation until it has ended."""
    moved_at: float | None = time.monotonic()  # None: it has been said that it does not move
    total = operation.expected if operation.exact else None
    try:
        with Meter(operation.action, total) as meter:
            while not operation.has_ended:
                time.sleep(LOOK_SECONDS)
                before, operation = operation, client.operation(operation.application_id, operation.operation_id)
                if operation.examined != before.examined:
                    moved_at = moved_at and time.monotonic()
                if moved_at is not None and time.monotonic() - moved_at > PATIENCE_SECONDS:
                    meter.tell("nothing happens: is a worker running?")
                    moved_at = None
                meter.show(operation.changed, f"{operation.changed:,} of {_most(operation)}")
    except KeyboardInterrupt:
        names = f"{operation.application_id} {operation.operation_id}"
        click.echo(f"It goes on without you: cassata bulk show {names}; to end it: cassata bulk stop {names}", err=True)
        raise
    return operation


def _in_words(operation: Operation) -> str:
    facts = f"{counted(operation.changed, 'event')} changed"
    if operation.skipped:
        facts += f", {operation.skipped:,} passed over"
    match operation.status:
        case "DONE":
            return f"{operation.action}: {facts}"
        case "CANCELLED":
            return f"{operation.action}: stopped by somebody; {facts}"
    return f"{operation.action}: begun; look at it with: cassata bulk show {operation.application_id} {operation.operation_id}"


def _expected(count: Count) -> str:
    expected = counted(count.expected, "event")
    return expected if count.exact else f"{expected} or more"


def _most(operation: Operation) -> str:
    """How many there will be: what was added meanwhile may make it more than were expected."""
    most = counted(max(operation.expected, operation.changed), "event")
    return most if operation.exact else f"{most} or more"


def _by_status(count: Count) -> str:
    return ", ".join(f"{number:,} {status.name}" for status, number in count.statuses.items())


def _passed_over(count: Count) -> str:
    return f": {_by_status(count)}, for which it is not" if count.statuses else ""
