"""`cassata event`: add, look at, list, change, retry and delete events through the HTTP service."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, cast

import click

from cassata.cli.options import Delay, Forgiving, Instant, Object, output_option
from cassata.cli.output import A_KEY_IS_WANTED, advised, harmless, print_json
from cassata.client import DEFAULT_URL, Changes, Client, ClientError, Event, EventDetails, NewEvent, Unauthorized
from cassata.model import METHODS, On, RetryOn, Status, new_event_id

Command = Callable[..., Any]


class Reported(Forgiving):
    """Says what the service refused in one line each, and exits with 1. `words`: what the places of a request are called here."""

    words: Mapping[str, str] = {}

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ClientError as error:
            command = ctx.invoked_subcommand and self.get_command(ctx, ctx.invoked_subcommand)
            for line in _lines(error, self.words, command.params if command else ()):
                click.echo(f"Error: {line}", err=True)
            ctx.exit(1)


_WORDS = {
    "/after": "--after",
    "/after/event-id": "--after",
    "/application-id": "--app",
    "/delay": "--in",
    "/event": "--payload",
    "/event-id": "--id",
    "/expiry": "--at",
    "/max-lateness": "--max-lateness",
    "/method": "--method",
    "/priority": "--priority",
    "/request-headers": "--header",
    "/retry/count": "--retry-count",
    "/retry/on": "--retry-on",
    "/timeout": "--timeout",
    "/destination": "--destination",
    "/url": "URL",
    "application-id": "--app",
    "event-id": "--id",
    "expiry-from": "--from",
    "expiry-until": "--until",
    "host": "--host",
    "last-status": "--last-status",
    "tried": "--tried",
    "series": "--series",
}
"""What the places of a request are called on the command line."""


class _ReportedEvent(Reported):
    """Knows two more commands, which are imported only when they are called."""

    words = _WORDS
    elsewhere = ("export", "import")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.elsewhere])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.elsewhere:
            return super().get_command(ctx, cmd_name)
        from cassata.cli.transfer import COMMANDS

        return COMMANDS[cmd_name]


def _lines(error: ClientError, words: Mapping[str, str], parameters: Sequence[click.Parameter]) -> Iterator[str]:
    arguments = {parameter.name: parameter.human_readable_name for parameter in parameters if isinstance(parameter, click.Argument)}
    for fault in error.errors:
        place = fault.get("pointer") or fault.get("parameter") or "the request"
        word = arguments.get(place.replace("-", "_")) or words.get(re.sub(r"^(/request-headers)/.*", r"\1", place), place)
        detail = fault["detail"].replace('write ""', "write --payload ''")
        yield f"{word}: {detail}"
    if isinstance(error, Unauthorized):
        yield A_KEY_IS_WANTED
    elif not error.errors:
        yield advised(str(error), str(error.problem.get("type")).rpartition(":")[2])


def service_options(command: Command) -> Command:
    """Where the service is, and who asks."""
    for option in reversed(
        [
            click.option(
                "--service",
                metavar="URL",
                envvar="CASSATA_SERVICE_URL",
                default=DEFAULT_URL,
                show_default=True,
                show_envvar=True,
                help="Where it is.",
            ),
            click.option(
                "--key", metavar="TOKEN", envvar="CASSATA_KEY", show_envvar=True, help="Who asks. Others may see what stands in a command."
            ),
            click.option("--retries", type=click.IntRange(0, 100), default=2, show_default=True, help="How often to repeat what failed."),
        ]
    ):
        command = option(command)
    return command


def filter_options(command: Command, *, of_series: str = "Only the occurrences of this series.") -> Command:
    """Which events are meant: what `Client.iter_events` takes. `of_series`: what is said of the option --series."""
    statuses = click.Choice(Status.__members__, case_sensitive=False)
    for option in reversed(
        [
            click.option("--status", multiple=True, type=statuses, callback=_statuses, help="Only those in this state; may be repeated."),
            click.option("--from", "expiry_from", type=Instant(), help="Only those that expire then or later."),
            click.option("--until", "expiry_until", type=Instant(), help="Only those that expire earlier."),
            click.option("--host", metavar="HOST[:PORT]", help="Only those that go there."),
            click.option("--last-status", type=int, metavar="CODE", help="Only those whose newest answer had this status code."),
            click.option("--series", metavar="ID", help=of_series),
            click.option("--tried/--untried", default=None, help="Only those that have been tried, or have not."),
        ]
    ):
        command = option(command)
    return command


def _statuses(_context: click.Context, _parameter: click.Parameter, names: Sequence[str]) -> frozenset[Status]:
    return frozenset(Status[name] for name in names)


@click.group(cls=_ReportedEvent)
@service_options
@click.pass_context
def event(ctx: click.Context, service: str, key: str | None, retries: int) -> None:
    """Add, look at, list, change, retry, delete, import and export events."""
    ctx.obj = ctx.with_resource(Client(service, key=key, retries=retries))


destination_option = click.option(
    "--destination", type=Object(), metavar="JSON", help="""Where it goes instead: '{"type": "kafka", "topic": "orders"}'."""
)


@event.command()
@click.argument("url", required=False)
@destination_option
@click.option("--app", "application_id", required=True, envvar="CASSATA_APPLICATION", show_envvar=True, help="Its application.")
@click.option("--at", type=Instant(), help="When to send it: seconds since 1970, or ISO 8601 with an offset.")
@click.option("--in", "delay", type=Delay(), help="How long from now: 30 (seconds), 5m, 1h30m, 2d.")
@click.option("--payload", help="The body, sent as it is.")
@click.option("--payload-file", type=click.File("rb"), help="A file that holds the body; - is standard input.")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A request header; may be repeated.")
@click.option("--method", type=click.Choice(METHODS, case_sensitive=False), default="POST", show_default=True)
@click.option("--id", "event_id", default=new_event_id, show_default="a new one", help="Its id, unique in its application.")
@click.option("--timeout", type=Delay(), help="How long the whole request may take: 30 (seconds), 5m.")
@click.option("--retry-count", type=int, help="How often to try again.")
@click.option(
    "--retry-on", type=click.Choice([word.value for word in RetryOn]), help="Try again after what may pass, or after any answer but a 2xx."
)
@click.option("--max-lateness", type=Delay(), help="How late it may still be sent.")
@click.option("--priority", type=int, help="From 0 (usual) to 100: what is sent first of what the application has due.")
@click.option("--after", metavar="EVENT", help="Not before this event of the application has ended; needs neither --at nor --in.")
@click.option(
    "--on", type=click.Choice([on.value for on in On]), help="How that one is to end; otherwise this one is cancelled.  [default: success]"
)
@click.option("--input", "input_", type=click.Choice(["previous"]), help="Hand its answer over, beside the payload.")
@click.option("--keep-output", is_flag=True, help="Keep what is answered: see the command 'output'.")
@output_option
@click.pass_obj
def add(
    client: Client,
    url: str | None,
    destination: Mapping[str, Any] | None,
    application_id: str,
    at: datetime | None,
    delay: timedelta | None,
    payload: str | None,
    payload_file: BinaryIO | None,
    headers: tuple[str, ...],
    method: str,
    event_id: str,
    timeout: timedelta | None,
    retry_count: int | None,
    retry_on: str | None,
    max_lateness: timedelta | None,
    priority: int | None,
    after: str | None,
    on: str | None,
    input_: str | None,
    keep_output: bool,
    output: str,
) -> None:
    """Schedule a request to URL, or something else to a --destination."""
    if (url is None) == (destination is None):
        raise click.UsageError("Give one of URL and --destination.")
    if (at is not None and delay is not None) or (at is None and delay is None and after is None):
        raise click.UsageError("Give one of --at and --in.")
    if after is None and (on or input_):
        raise click.UsageError("Give --on and --input only together with --after.")
    if payload is not None and payload_file is not None:
        raise click.UsageError("Give only one of --payload and --payload-file.")
    new = NewEvent(
        application_id,
        url,
        at=at,
        delay=delay,
        payload=text_of(payload_file) if payload_file else payload,
        event_id=event_id,
        method=method,
        headers=headers or None,
        timeout=None if timeout is None else timeout.total_seconds(),
        retry=retry_of(retry_count, retry_on),
        max_lateness=None if max_lateness is None else max_lateness.total_seconds(),
        destination=destination,
        priority=priority,
        after=after and {"event-id": after, "on": on or "success", "input": input_},
        keep_output=keep_output or None,
    )
    _show(client.schedule(new), output)


@event.command()
@click.argument("application_id", metavar="APP")
@click.argument("event_id", metavar="EVENT")
@output_option
@click.pass_obj
def status(client: Client, application_id: str, event_id: str, output: str) -> None:
    """Show where an event is in its life."""
    _show(client.status(application_id, event_id), output)


@event.command()
@click.argument("application_id", metavar="APP")
@click.argument("event_id", metavar="EVENT")
@output_option
@click.pass_obj
def get(client: Client, application_id: str, event_id: str, output: str) -> None:
    """Show everything about an event: its request, and each attempt to send it."""
    _show(client.event(application_id, event_id), output)


@event.command(name="output")
@click.argument("application_id", metavar="APP")
@click.argument("event_id", metavar="EVENT")
@click.option("--attempt", "number", type=click.IntRange(min=1), help="Which attempt, 1 for the first.  [default: the last one]")
@click.pass_obj
def show_output(client: Client, application_id: str, event_id: str, number: int | None) -> None:
    """Write what an attempt was answered, or has written so far: what of it is kept."""
    if number is None:
        known = client.event(application_id, event_id)
        number = known.attempts or max((attempt.number for attempt in known.attempt_log), default=1)
    found = client.output(application_id, event_id, number)
    sys.stdout.buffer.write(harmless_bytes(found.body) if sys.stdout.isatty() else found.body)
    sys.stdout.flush()
    if found.is_truncated:
        click.echo(f"(the first {len(found.body):,} bytes of {found.length:,} or more)", err=True)


def harmless_bytes(body: bytes) -> bytes:
    """Take what would steer a terminal out of text, but for the ends of lines and tabs."""
    return re.sub(rb"[^\n\t\x20-\x7e\x80-\xff]", b"?", body)


@event.command()
@click.argument("application_id", metavar="APP")
@click.argument("event_id", metavar="EVENT")
@click.option("--interval", type=click.FloatRange(min=0.05), default=0.5, show_default=True, help="Seconds between two looks.")
@click.pass_context
def follow(ctx: click.Context, application_id: str, event_id: str, interval: float) -> None:
    """Follow an event until it has ended: its statuses, its attempts, and what they write.

    Exits with 0 if it was delivered, with 3 if it failed, and with 4 if it was cancelled.
    """
    from cassata.cli.follow import Follower

    follower = Follower(ctx.obj, application_id, event_id, write=_write_harmless)
    while (ended := follower.look()) is None:
        time.sleep(interval)
    ctx.exit({Status.COMPLETED: 0, Status.FAILED: 3}.get(ended, 4))


def _write_harmless(text: bytes) -> None:
    sys.stdout.buffer.write(harmless_bytes(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


@event.command(name="list")
@click.argument("application_id", metavar="APP")
@filter_options
@click.option("--newest-first", is_flag=True, help="What is due last comes first.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@output_option
@click.pass_obj
def list_events(
    client: Client,
    /,
    application_id: str,
    limit: int,
    output: str,
    **wanted: Any,
) -> None:
    """List the events of an application, by expiry."""
    found = client.iter_events(application_id, **wanted, page_length=min(limit, 1_000))
    events = [event for event, _ in zip(found, range(limit), strict=False)]
    if output == "json":
        print_json([event.document for event in events])
    elif events:
        console = _console()
        console.print(listing(events, console.width))
    else:
        click.echo(f"no events of {application_id!r}")


RESETS = ("header", "max-lateness", "method", "priority", "retry", "timeout")
"""What an event may have again as if it had never been given."""


def change_options(command: Command) -> Command:
    """What may be different in an event: what `changes_of` takes."""
    for option in reversed(
        [
            click.option("--at", type=Instant(), help="When to send it: seconds since 1970, or ISO 8601 with an offset."),
            click.option("--in", "delay", type=Delay(), help="How long from now: 30 (seconds), 5m, 1h30m, 2d."),
            click.option("--url", help="Where to send it."),
            destination_option,
            click.option("--payload", help="The body, sent as it is."),
            click.option("--payload-file", type=click.File("rb"), help="A file that holds the body; - is standard input."),
            click.option(
                "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header, in place of all there were; may be repeated."
            ),
            click.option("--method", type=click.Choice(METHODS, case_sensitive=False)),
            click.option("--timeout", type=Delay(), help="How long the whole request may take: 30 (seconds), 5m."),
            click.option("--retry-count", type=int, help="How often to try again."),
            click.option(
                "--retry-on",
                type=click.Choice([word.value for word in RetryOn]),
                help="After what may pass, or after any answer but a 2xx.",
            ),
            click.option("--max-lateness", type=Delay(), help="How late it may still be sent."),
            click.option("--priority", type=int, help="From 0 (usual) to 100: what is sent first of what the application has due."),
            click.option(
                "--reset", "resets", multiple=True, type=click.Choice(RESETS), help="As if it had never been given; may be repeated."
            ),
            click.option("--if-version", "version", metavar="VERSION", help="Only if that is still its version."),
        ]
    ):
        command = option(command)
    return command


@event.command()
@click.argument("application_id", metavar="APP")
@click.argument("event_id", metavar="EVENT")
@change_options
@output_option
@click.pass_obj
def change(client: Client, /, application_id: str, event_id: str, version: str | None, output: str, **options: Any) -> None:
    """Change an event that waits to be sent; what is not named stays as it is."""
    _show(client.change(application_id, event_id, version=version, **changes_of(**options)), output)


def changes_of(*, resets: Sequence[str], **options: Any) -> Changes:
    """Return what is to be different, as `Client.change` takes it."""
    if options["at"] is not None and options["delay"] is not None:
        raise click.UsageError("Give only one of --at and --in.")
    if options["url"] is not None and options["destination"] is not None:
        raise click.UsageError("Give only one of --url and --destination.")
    if options["payload"] is not None and options["payload_file"] is not None:
        raise click.UsageError("Give only one of --payload and --payload-file.")
    changes = _changes(**options) | {"headers" if name == "header" else name.replace("-", "_"): None for name in resets}
    if not changes:
        raise click.UsageError("Say what is to be changed.")
    return cast("Changes", changes)


def retry_of(count: int | None, on: str | None) -> dict[str, int | str] | None:
    """Return how often, and after what, to try again, as the client takes it."""
    return {name: value for name, value in (("count", count), ("on", on)) if value is not None} or None


def _changes(payload_file: BinaryIO | None, retry_count: int | None, retry_on: str | None, **options: Any) -> dict[str, Any]:
    """Return what was given, as `Client.change` takes it."""
    changes = {name: value for name, value in options.items() if value is not None and value != ()}
    if payload_file is not None:
        changes["payload"] = text_of(payload_file)
    if (retry := retry_of(retry_count, retry_on)) is not None:
        changes["retry"] = retry
    return changes


@event.command()
@click.argument("application_id", metavar="APP")
@click.argument("event_id", metavar="EVENT")
@output_option
@click.pass_obj
def retry(client: Client, application_id: str, event_id: str, output: str) -> None:
    """Send an event that failed or was cancelled once more."""
    _show(client.retry(application_id, event_id), output)


@event.command()
@click.argument("application_id", metavar="APP")
@click.argument("event_id", metavar="EVENT")
@output_option
@click.pass_obj
def delete(client: Client, application_id: str, event_id: str, output: str) -> None:
    """Cancel an event that has not been sent."""
    gone = client.cancel(application_id, event_id)
    if output == "json":
        print_json({"status": "ok" if gone else "cancel-requested"})
    else:
        click.echo("cancelled" if gone else "being sent right now; it will not be tried again")


def text_of(file: BinaryIO, named: str = "the payload") -> str:
    try:
        return file.read().decode()
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{named} is not UTF-8 at byte {error.start}") from error


def _show(shown: Event, output: str) -> None:
    if output == "json":
        print_json(shown.document)
    else:
        _print_event(shown)


# --- tables ------------------------------------------------------------------------------------------------------------

_COLOURS = {
    "COMPLETED": "green",
    "FAILED": "red",
    "SERVICE_UNAVAILABLE": "yellow",
    "PROCESSING": "cyan",
    "CANCELLED": "dim",
    "BLOCKED": "magenta",
}
_INSTANTS = {"expiry", "next-attempt-at", "created-at", "finished-at", "replayed-at", "payload-removed-at"}


def _print_event(shown: Event) -> None:
    console = _console()
    console.print(fields(shown))
    if isinstance(shown, EventDetails) and shown.attempt_log:
        console.print(attempts(shown))


def fields(shown: Event) -> Any:
    """Lay out what an event holds, one field per line; what is too long for it is continued on the next."""
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, value in _rows(shown):
        table.add_row(name, cell(value))
    return table


def _rows(shown: Event) -> Iterator[tuple[str, str]]:
    for name, value in shown.document.items():
        if name in {"attempt-log", "successors"} or value is None or value is False:
            continue
        if name in _INSTANTS:
            yield name, _time(datetime.fromisoformat(value))
        elif isinstance(value, Mapping):
            yield name, ", ".join(f"{key} {part}" for key, part in value.items() if part is not None)
        else:
            yield name, "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def attempts(shown: EventDetails) -> Any:
    """Lay out the log of attempts: one line each, and below it what was said."""
    from rich.console import Group
    from rich.padding import Padding

    parts: list[Any] = ["attempts"]
    for line in shown.attempt_log:
        answer = " ".join(str(part) for part in (line.status_code, line.error) if part is not None)
        parts.append(cell(f" {line.number:>3}  {_time(line.started_at)}  {line.duration_ms} ms  {answer}"))
        parts += [Padding(cell(said), (0, 0, 0, 6)) for said in (line.detail, line.response) if said]
    return Group(*parts)


_COLUMNS: dict[str, Callable[[Event], str]] = {
    "event": lambda event: event.event_id,
    "status": lambda event: event.status.name,
    "expiry": lambda event: _time(event.expiry),
    "attempts": lambda event: str(event.attempts),
    "request": lambda event: f"{event.method} {event.url}",
    "last error": lambda event: event.last_error or "",
}
_CUT = {"request", "last error"}
_CUT_TO = 20
_GAP = 2


def listing(events: Sequence[Event], width: int) -> Any:
    """Lay out events in so many columns of a terminal: what may be cut gets what the others leave, what has no room is left out."""
    from rich.table import Table

    cells = {name: [harmless(write(event)) for event in events] for name, write in _COLUMNS.items()}
    widths = _widths({name: max(map(len, column)) for name, column in cells.items()}, width)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
    for name, room in widths.items():
        table.add_column(name, width=room, no_wrap=name != "event")
    for row in zip(*(cells[name] for name in widths), strict=True):
        table.add_row(*(cell(value, "fold" if name == "event" else "ellipsis") for name, value in zip(widths, row, strict=True)))
    return table


def _widths(longest: Mapping[str, int], width: int) -> dict[str, int]:
    """Return how wide each column is that has room. Id and status always have: a very long id goes on in the next line."""
    wanted = {name: max(length, len(name)) for name, length in longest.items() if length}
    widths = {"event": max(1, min(wanted["event"], width - _GAP - wanted["status"])), "status": wanted["status"]}
    left = width - widths["event"] - widths["status"] - _GAP
    for name in [name for name in wanted if name not in widths]:
        least = min(wanted[name], _CUT_TO) if name in _CUT else wanted[name]
        if least + _GAP <= left:
            widths[name] = least
            left -= least + _GAP
    for name in [name for name in widths if name in _CUT]:
        more = min(left, wanted[name] - widths[name])
        widths[name] += more
        left -= more
    return widths


def cell(value: object, overflow: Any = "fold") -> Any:
    from rich.text import Text

    text = harmless("" if value is None else str(value))
    return Text(text, style=_COLOURS.get(text, ""), overflow=overflow)


def _console() -> Any:
    """Fit to the terminal; in a pipe no line is cut."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 240, highlight=False)


def _time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
