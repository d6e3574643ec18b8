"""`cassata top`, `tail` and `explain`: what an operator sees of a running Cassata, straight from its database."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cassata.cli.db import database_option, settings_of
from cassata.cli.options import output_option
from cassata.cli.output import harmless, print_json

if TYPE_CHECKING:
    from cassata.model import Event
    from cassata.overview import Overview
    from cassata.scheduler import Scheduler

every_option = click.option(
    "--every", type=click.FloatRange(0.2, 3_600), default=1.0, show_default=True, metavar="SECONDS", help="How often to look."
)


@contextlib.contextmanager
def opened(config: Path | None, database_url: str | None) -> Iterator[Scheduler]:
    from cassata.scheduler import Scheduler

    url, settings = settings_of(config, database_url)
    scheduler = Scheduler.open(url, settings=settings.database, pool_size=1)
    try:
        yield scheduler
    finally:
        scheduler.close()


# --- explain -----------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("application_id", metavar="APP")
@click.argument("event_id", metavar="EVENT")
@output_option
@database_option
def explain(application_id: str, event_id: str, output: str, config: Path | None, database_url: str | None) -> None:
    """Say why an event has not been sent yet, or what became of it."""
    from cassata.model import rfc3339

    with opened(config, database_url) as scheduler:
        reasons = scheduler.explain(application_id, event_id)
    if output == "json":
        print_json([{"code": each.code, "text": each.text, "until": each.until and rfc3339(each.until)} for each in reasons])
        return
    for each in reasons:
        click.echo(harmless(each.text))


# --- tail --------------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("application_id", metavar="APP")
@every_option
@click.option("--for", "seconds", type=click.FloatRange(min=0), metavar="SECONDS", help="Stop after so long; default: at Ctrl-C.")
@output_option
@database_option
def tail(application_id: str, every: float, seconds: float | None, output: str, config: Path | None, database_url: str | None) -> None:
    """Show the events of an application as they end, one line each."""
    with opened(config, database_url) as scheduler:
        following = scheduler.tail(application_id)
        click.echo(f"following {application_id}: what ends from now on", err=True)
        until = None if seconds is None else time.monotonic() + seconds
        with contextlib.suppress(KeyboardInterrupt):
            while until is None or time.monotonic() < until:
                time.sleep(every)
                for event in following.poll():
                    click.echo(_line(event, output))
                sys.stdout.flush()


def _line(event: Event, output: str) -> str:
    from cassata.model import rfc3339

    ended_at = event.finished_at or event.due_at
    if output == "json":
        document = {
            "event-id": event.event_id,
            "status": event.status.name,
            "finished-at": rfc3339(ended_at),
            "expiry": rfc3339(event.due_at),
            "attempts": event.attempts,
            "last-status": event.last_status,
            "last-error": event.last_error,
            "url": event.url,
        }
        return json.dumps(document, ensure_ascii=False)
    late = f"+{(ended_at - event.due_at) / 1000:,.3f} s"
    tries = "" if event.attempts < 2 else f", {event.attempts} attempts"
    why = f" ({event.last_error})" if event.last_error and event.status.name != "COMPLETED" else ""
    return harmless(f"{rfc3339(ended_at)}  {event.status.name:<9}  {late:>12}  {event.event_id}  {event.last_status or '-'}{tries}{why}")


# --- top ---------------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--app", "application_id", metavar="APP", help="Of this application alone.")
@every_option
@click.option("--once", is_flag=True, help="Look once, and end; so it is anyway where the output is no terminal.")
@output_option
@database_option
def top(application_id: str | None, every: float, once: bool, output: str, config: Path | None, database_url: str | None) -> None:
    """Show what is due, late, sent and failed, and who is at work."""
    with opened(config, database_url) as scheduler:
        if output == "json":
            print_json(picture(scheduler.overview, application_id))
        elif once or not sys.stdout.isatty():
            click.echo("\n".join(_words(picture(scheduler.overview, application_id))))
        else:
            with contextlib.suppress(KeyboardInterrupt):
                _live(scheduler.overview, application_id, every)


def picture(overview: Overview, application_id: str | None) -> dict[str, Any]:
    """Say what there is to see as a document. Rates are those of the last whole minute, lateness (ms) that of the last five."""
    from cassata.model import Status, rfc3339
    from cassata.tallies import percentile

    now, counts = overview.now(), overview.counts(application_id)
    minutes = overview.minutes(6, application_id)
    last = minutes[-2]
    known = [minute.lateness for minute in minutes if minute.lateness]
    lateness = [sum(counts) for counts in zip(*known, strict=True)]
    return {
        "now": rfc3339(now),
        "application-id": application_id,
        "events": {status.name: _capped(counts.statuses[status]) for status in Status},
        "due": _capped(counts.due),
        "oldest-due-seconds": None if counts.oldest_due_at is None else round((now - counts.oldest_due_at) / 1000, 1),
        "next-due-at": counts.next_at and rfc3339(counts.next_at),
        "per-second": {name: round(getattr(last, name) / 60, 2) for name in ("attempts", "delivered", "failed")},
        "lateness-ms": {f"p{share * 100:.0f}": percentile(lateness, share) for share in (0.5, 0.95, 0.99)},
        "ahead": [_capped(each.events) for each in overview.ahead(60_000, 10, application_id)],
        "workers": [
            {
                "host": each.host,
                "pid": each.pid,
                "version": each.version,
                "in-hand": each.in_hand,
                "seen-seconds": round(max(0, now - each.seen_at) / 1000, 1),
            }
            for each in overview.workers()
        ],
    }


def _capped(found: Any) -> str | int:
    return f"{found.events}+" if found.is_capped else found.events


def _words(seen: dict[str, Any]) -> Iterator[str]:
    whose = f" of {seen['application-id']}" if seen["application-id"] else ""
    yield f"Cassata{whose}, {seen['now']}"
    yield ""
    yield "events    " + "   ".join(f"{name.lower()} {count}" for name, count in seen["events"].items())
    oldest = seen["oldest-due-seconds"]
    yield f"due       {seen['due']}" + (f", the oldest for {oldest:,} s" if oldest is not None else "")
    yield f"next      {seen['next-due-at'] or 'nothing'}"
    rates = seen["per-second"]
    yield f"a second  {rates['attempts']:,} attempts   {rates['delivered']:,} delivered   {rates['failed']:,} failed for good"
    lateness = {name: value for name, value in seen["lateness-ms"].items() if value is not None}
    yield "lateness  " + ("   ".join(f"{name} {value:,.0f} ms" for name, value in lateness.items()) or "nothing was sent lately")
    yield "ahead     " + " ".join(str(each) for each in seen["ahead"]) + "   (minute by minute)"
    yield ""
    yield f"workers   {len(seen['workers'])}"
    for each in seen["workers"]:
        heard = f"{each['in-hand']} in hand, heard of {each['seen-seconds']} s ago"
        yield harmless(f"  {each['host']}  pid {each['pid']}  {each['version']}  {heard}")


def _live(overview: Overview, application_id: str | None, every: float) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(screen=True, auto_refresh=False) as live:
        while True:
            live.update(Text("\n".join(_words(picture(overview, application_id)))), refresh=True)
            time.sleep(every)
