"""`cassata series`: make, look at, pause and cancel series through the HTTP service."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, BinaryIO

import click

from cassata.cli.event import (
    Reported,
    change_options,
    changes_of,
    destination_option,
    retry_of,
    service_options,
    text_of,
)
from cassata.cli.options import Delay, Instant, output_option
from cassata.cli.output import in_words, print_json, print_table, show
from cassata.client import Client, Conflict, NewSeries, Series
from cassata.model import METHODS, On, RetryOn, new_event_id

Command = Callable[..., Any]

_OPTIONS = (
    "cron recurrence every timezone scheduled-at ends-at until count name description metadata catch-up catch-up-window overlap jitter "
    "method timeout max-lateness priority"
)
WORDS = {
    **{f"/{name}": f"--{name}" for name in _OPTIONS.split()},
    "/after": "--after",
    "/after/series-id": "--after",
    "/application-id": "--app",
    "/delay": "--in",
    "/expiry": "--at",
    "/series-id": "--id",
    "/event": "--payload",
    "/request-headers": "--header",
    "/retry/count": "--retry-count",
    "/retry/on": "--retry-on",
    "/identity-headers": "--identity-header",
    "/destination": "--destination",
    "/url": "the URL",
    "instance-id": "--instance",
    "application-id": "--app",
    "series-id": "--id",
    "from": "--from",
    "until": "--until",
}
"""What the places of a request are called on the command line."""


class Wall(click.ParamType[str]):
    """An instant, or a time of day and date in the series' own zone: what it means is left to the service."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return datetime.fromisoformat(value).isoformat()
        except ValueError:
            self.fail(f"{value!r} is not ISO 8601 such as 2030-01-31T12:00:00 (in the series' zone) or 2030-01-31T12:00:00Z", param, ctx)


def rule_options(command: Command) -> Command:
    """When a series happens."""
    for option in reversed(
        [
            click.option("--cron", metavar="EXPRESSION", help="Five fields as in crontab, or @hourly, @daily, ..."),
            click.option("--recurrence", multiple=True, metavar="LINE", help="RRULE, RDATE or EXDATE as in RFC 5545; may be repeated."),
            click.option("--every", metavar="TIME", help="A fixed distance: 90s, 15m, 1h30m, PT15M."),
            click.option("--timezone", metavar="ZONE", help="Such as Europe/Berlin.  [default: UTC]"),
            click.option("--scheduled-at", type=Wall(), help="The first instant; without an offset it is in the zone."),
            click.option("--ends-at", type=Wall(), help="When what begins at --scheduled-at ends; each instance lasts as long."),
            click.option("--until", "until_at", type=Wall(), help="The last instant there may be."),
            click.option("--count", type=int, help="So many instants at most."),
        ]
    ):
        command = option(command)
    return command


class _ReportedSeries(Reported):
    words = WORDS


def series_arguments(command: Command) -> Command:
    """Which series is meant."""
    return click.argument("application_id", metavar="APP")(click.argument("series_id", metavar="SERIES")(command))


version_option = click.option("--if-version", "version", type=int, help="Only if that is still its version.")


@click.group(cls=_ReportedSeries)
@service_options
@click.pass_context
def series(ctx: click.Context, service: str, key: str | None, retries: int) -> None:
    """Make, look at, pause and cancel series, which make events by a rule."""
    ctx.obj = ctx.with_resource(Client(service, key=key, retries=retries))


@series.command()
@click.argument("url", required=False)
@destination_option
@click.option("--app", "application_id", required=True, envvar="CASSATA_APPLICATION", show_envvar=True, help="Its application.")
@click.option("--id", "series_id", help="Its id, unique in its application.  [default: a new one]")
@rule_options
@click.option("--payload", help="The body, sent as it is.")
@click.option("--payload-file", type=click.File("rb"), help="A file that holds the body; - is standard input.")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A request header; may be repeated.")
@click.option("--method", type=click.Choice(METHODS, case_sensitive=False), default="POST", show_default=True)
@click.option("--timeout", type=Delay(), help="How long a whole request may take.")
@click.option("--retry-count", type=int, help="How often to try again.")
@click.option(
    "--retry-on", type=click.Choice([word.value for word in RetryOn]), help="Try again after what may pass, or after any answer but a 2xx."
)
@click.option("--max-lateness", type=Delay(), help="What is later than that is not sent any more.")
@click.option("--priority", type=int, help="From 0 (usual) to 100: what is sent first of what the application has due.")
@click.option("--after", metavar="SERIES", help="In place of a rule: one after each occurrence of this series.")
@click.option("--on", type=click.Choice([on.value for on in On]), help="How that one is to end; otherwise this one is cancelled.")
@click.option("--input", "input_", type=click.Choice(["previous"]), help="Hand its answer over, beside the payload.")
@click.option("--keep-output", is_flag=True, help="Keep what is answered: see 'cassata event output'.")
@click.option("--catch-up", type=click.Choice(["latest", "all", "none"]), help="What is made of instants that no worker was there for.")
@click.option("--catch-up-window", metavar="TIME", help="How far back that goes.")
@click.option("--overlap", type=click.Choice(["allow", "skip"]), help="Whether to make one while the one before is unfinished.")
@click.option("--jitter", metavar="TIME", help="Send each up to so much later.")
@click.option(
    "--identity-header",
    "identity",
    multiple=True,
    metavar="WHAT=NAME",
    help="A header that tells each who it is: event=X-Run-Id; may be repeated.",
)
@click.option("--name", help="What it is called in lists.")
@click.option("--description", help="What it is for.")
@click.option("--if-version", "version", type=int, help="Put it in the place of the one with this --id, if that is at this version.")
@click.option("--version", "if_version", type=int, hidden=True)  # what it was called
@output_option
@click.pass_obj
def add(
    client: Client,
    /,
    url: str | None,
    destination: Mapping[str, Any] | None,
    series_id: str | None,
    payload: str | None,
    payload_file: BinaryIO | None,
    version: int | None,
    if_version: int | None,
    output: str,
    after: str | None,
    on: str | None,
    input_: str | None,
    keep_output: bool,
    **given: Any,
) -> None:
    """Make a series that sends a request to URL, or something else to a --destination, again and again."""
    if (url is None) == (destination is None):
        raise click.UsageError("Give one of URL and --destination.")
    if after is None and (on or input_):
        raise click.UsageError("Give --on and --input only together with --after.")
    if payload is not None and payload_file is not None:
        raise click.UsageError("Give only one of --payload and --payload-file.")
    version = if_version if version is None else version
    if version is not None and series_id is None:
        raise click.UsageError("--if-version goes with --id: say which series is to be replaced.")
    retry, timeout = retry_of(given.pop("retry_count"), given.pop("retry_on")), given.pop("timeout")
    new = NewSeries(
        url=url,
        destination=destination,
        series_id=series_id or new_event_id(),
        payload=text_of(payload_file) if payload_file else payload,
        headers=given.pop("headers") or None,
        timeout=None if timeout is None else timeout.total_seconds(),
        retry=retry,
        identity_headers=dict(pair.split("=", 1) if "=" in pair else (pair, "") for pair in given.pop("identity")) or None,
        after=after and {"series-id": after, "on": on or "success", "input": input_},
        keep_output=keep_output or None,
        **_rule(given),
        **given,
    )
    try:
        made = client.schedule_series(new, version=version)
    except Conflict as error:
        raise click.ClickException(_how_to_replace(error)) from error
    _show(made.document, output)


def _how_to_replace(error: Conflict) -> str:
    """Say which version is in the way, if one is."""
    version = error.problem.get("version")
    if not str(error.problem.get("type")).endswith(":series-exists") or version is None:
        return str(error)
    return f"{error}; it is at version {version}: give --if-version {version} to replace it"


def _rule(given: dict[str, Any]) -> dict[str, Any]:
    """Take the options of a rule out of all of them."""
    rule = {name: given.pop(name) for name in ("cron", "every", "timezone", "scheduled_at", "ends_at", "count")}
    return rule | {"recurrence": given.pop("recurrence") or None, "until": given.pop("until_at")}


@series.command()
@rule_options
@click.option("--from", "begin", type=Instant(), help="Begin there, and not now.")
@click.option("--limit", type=int, default=10, show_default=True, help="At most so many.")
@output_option
def preview(begin: datetime | None, limit: int, output: str, **given: Any) -> None:
    """Show the next instants of a rule. Needs no service, and stores nothing."""
    from cassata.service import series_wire

    rule = NewSeries("", "", **_rule(given)).rule()
    with in_words():
        asked = series_wire.read_preview(rule | {"limit": limit, "from": begin and begin.isoformat()})
        found = series_wire.preview(asked, time.time_ns() // 1_000_000)
    _list(found["occurrences"], ["index", "local-time", "original-time", "ends-at"], output, "no instants")


@series.command(name="list")
@click.argument("application_id", metavar="APP")
@click.option(
    "--status", type=click.Choice(["ACTIVE", "PAUSED", "ENDED", "CANCELLED"], case_sensitive=False), help="Only those in this state."
)
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@output_option
@click.pass_obj
def list_series(client: Client, application_id: str, status: str | None, limit: int, output: str) -> None:
    """List the series of an application."""
    found = client.iter_series(application_id, status=status, page_length=min(limit, 1_000))
    documents = [series.document for series in islice(found, limit)]
    if output != "json":
        documents = [{**document, "rule": _rule_in_words(document)} for document in documents]
    _list(documents, ["series-id", "status", "rule", "next-occurrence", "name", "url"], output, f"no series of {application_id!r}")


@series.command(name="show")
@series_arguments
@output_option
@click.pass_obj
def show_series(client: Client, application_id: str, series_id: str, output: str) -> None:
    """Show everything about a series."""
    _show(client.series(application_id, series_id).document, output)


@series.command()
@series_arguments
@click.option("--from", "begin", type=Instant(), help="Begin there, and not now.")
@click.option("--until", "end", type=Instant(), help="End before that.")
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="At most so many.")
@output_option
@click.pass_obj
def instances(
    client: Client, application_id: str, series_id: str, begin: datetime | None, end: datetime | None, limit: int, output: str
) -> None:
    """Show the instances of a series, those to come unless told otherwise."""
    found = client.iter_instances(application_id, series_id, begin=begin, end=end, page_length=min(limit, 1_000))
    documents = [instance.document for instance in islice(found, limit)]
    _list(documents, ["event-id", "index", "local-time", "expiry", "ends-at", "status", "exception"], output, "no instances")


@series.command()
@series_arguments
@version_option
@output_option
@click.pass_obj
def pause(client: Client, application_id: str, series_id: str, version: int | None, output: str) -> None:
    """Let a series make no more events until it is resumed."""
    _tell(client.pause_series(application_id, series_id, version=version), "paused", output)


@series.command()
@series_arguments
@version_option
@output_option
@click.pass_obj
def resume(client: Client, application_id: str, series_id: str, version: int | None, output: str) -> None:
    """Let a paused series go on, at the next instant of its rule."""
    _tell(client.resume_series(application_id, series_id, version=version), "resumed", output)


@series.command()
@series_arguments
@output_option
@click.pass_obj
def run(client: Client, application_id: str, series_id: str, output: str) -> None:
    """Send what a series sends once more, now."""
    event = client.run_series(application_id, series_id)
    if output == "json":
        print_json(event.document)
    else:
        click.echo(event.event_id)


@series.command()
@series_arguments
@click.option("--instance", "instance_id", metavar="INSTANCE", required=True, help="Which one: an event-id that 'series instances' shows.")
@click.option("--following", is_flag=True, help="Go on from there with another series, by another rule.")
@click.option("--id", "new_id", metavar="NEW", help="With --following: the id of that one.")
@rule_options
@change_options
@output_option
@click.pass_obj
def change(
    client: Client,
    /,
    application_id: str,
    series_id: str,
    instance_id: str,
    following: bool,
    new_id: str | None,
    version: str | None,
    output: str,
    **options: Any,
) -> None:
    """Change one instance that is still to be sent; what is not named stays as it is, and so do all others.

    With --following, that instance and all that follow: the series ends before it, and the one with the id NEW goes on by the
    rule that is given, which begins at --scheduled-at. What it sends is as it was, but for what is named.

    For all of a series: add --id SERIES --if-version VERSION.
    """
    rule = _rule(options)
    if following:
        new = _following(client.series(application_id, series_id), new_id, rule, options)
        _show(client.change_following(application_id, series_id, instance_id, new, version=_number(version)).document, output)
        return
    if new_id is not None or any(value is not None for value in rule.values()):
        raise click.UsageError("--id and the options of a rule go with --following.")
    changed = client.change_instance(application_id, series_id, instance_id, version=version, **changes_of(**options))
    _show(changed.document, output)


def _number(version: str | None) -> int | None:
    """Read the version of a series, where that of an instance could be meant as well."""
    if version is not None and not (version.isascii() and version.isdecimal()):
        raise click.UsageError("Here --if-version is that of the series: a number, which 'series show' tells.")
    return None if version is None else int(version)


def _following(series: Series, new_id: str | None, rule: Mapping[str, Any], options: Mapping[str, Any]) -> NewSeries:
    """Return the series that goes on where another one ends: by a rule of its own, with what the other one sends."""
    if new_id is None or rule["scheduled_at"] is None:
        raise click.UsageError("--following goes with --id and --scheduled-at: what the new series is called, and when it begins.")
    if options["resets"] or options["at"] is not None or options["delay"] is not None:
        raise click.UsageError("--at, --in and --reset are about one instance, and do not go with --following.")
    given: Any = changes_of(**options) if any(value not in (None, ()) for value in options.values()) else {}
    known = series.document
    if "payload" not in given and known.get("event-base64"):
        raise click.ClickException("the series sends what is no text: give --payload")
    aim = {"destination": known["destination"]} if known.get("destination") else {"url": known["url"]}
    if given.keys() & {"url", "destination"}:
        aim = {}
    sent = {
        **aim,
        "method": known["method"],
        "payload": known.get("event"),
        "headers": known["request-headers"] or None,
        "timeout": known["timeout"],
        "retry": known["retry"] and {name: value for name, value in known["retry"].items() if value is not None},
        "max_lateness": known["max-lateness"],
        "priority": known["priority"],
        "keep_output": known["keep-output"],
    } | given
    for name in ("timeout", "max_lateness"):
        sent[name] = sent[name].total_seconds() if isinstance(sent[name], timedelta) else sent[name]
    kept = {
        name: known[name.replace("_", "-")]
        for name in ("identity_headers", "name", "description", "metadata", "catch_up", "catch_up_window", "overlap", "jitter")
    }
    zone = rule["timezone"] or known["timezone"]
    return NewSeries(series.application_id, series_id=new_id, **{**rule, "timezone": zone}, **kept, **sent)


@series.command()
@series_arguments
@click.option("--instance", "instance_id", metavar="INSTANCE", help="Only this one of it.")
@click.option("--following", is_flag=True, help="With --instance: this one, and all that follow.")
@click.option("--purge", is_flag=True, help="Delete it, so that its id is free again.")
@click.option("--if-version", "version", metavar="VERSION", help="Only if that is still its version; with --instance alone, that one's.")
@output_option
@click.pass_obj
def cancel(
    client: Client,
    application_id: str,
    series_id: str,
    instance_id: str | None,
    following: bool,
    purge: bool,
    version: str | None,
    output: str,
) -> None:
    """Cancel a series with its events that have not been sent, or some of its instances."""
    if purge and instance_id:
        raise click.UsageError("--purge deletes a whole series: leave --instance out.")
    if following and not instance_id:
        raise click.UsageError("--following goes with --instance.")
    document: Mapping[str, Any] = {"status": "ok"}
    if instance_id is None:
        client.cancel_series(application_id, series_id, purge=purge, version=_number(version))
    elif following:
        document = client.cancel_following(application_id, series_id, instance_id, version=_number(version)).document
    else:
        document = client.cancel_instance(application_id, series_id, instance_id, version=version).document
    if output == "json":
        print_json(document)
    else:
        click.echo("deleted" if purge else "cancelled")


# --- what is shown -------------------------------------------------------------------------------------------------------


def _show(document: Mapping[str, Any], output: str) -> None:
    show({name: value for name, value in document.items() if output == "json" or value not in ({}, [], None)}, output)


def _tell(series: Series, word: str, output: str) -> None:
    if output == "json":
        print_json(series.document)
        return
    at = series.next_occurrence
    click.echo(word if at is None else f"{word}; the next instant is {at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}")


def _list(documents: Sequence[Mapping[str, Any]], names: Sequence[str], output: str, otherwise: str) -> None:
    if output == "json":
        print_json(documents)
    elif documents:
        print_table(names, [{**document, "exception": document.get("exception") or None} for document in documents])
    else:
        click.echo(otherwise)


def _rule_in_words(document: Mapping[str, Any]) -> str:
    every = "after another series" if document["every"] is None else f"every {document['every']} s"
    rule = document["cron"] or document["recurrence"] or every
    zone = document["timezone"]
    return rule if zone == "UTC" else f"{rule} ({zone})"
