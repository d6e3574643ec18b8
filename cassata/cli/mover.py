"""Moves what waits in another scheduler here: reads it part after part, adds it, and remembers how far it has come."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from cassata.cli.meter import Meter, counted
from cassata.cli.moving import FAR_DAYS
from cassata.cli.output import print_json
from cassata.cli.transfer import HELD_SECONDS, NOBODY_TAKES_IT, PUT_OFF, replace_file
from cassata.client import BATCH_BYTES, Client, ClientError, Conflict, InvalidRequest, NotFound, Outdated, Series
from cassata.model import BATCH_LENGTH, Status
from cassata.moving import Left, Part, Pending, Why, goscheduler, jobs, recurring
from cassata.moving.source import Source
from cassata.service import series_wire, wire

PAST = timedelta(hours=1)


# --- adding --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """What has become of what was found. `refusals` say of each that was refused its id and why."""

    moved: int = 0
    there: int = 0
    ended: int = 0
    missed: int = 0
    made: int = 0
    refusals: list[dict[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        facts = {
            "moved": self.moved,
            "there already": self.there,
            "ended": self.ended,
            "missed and left out": self.missed,
            "left to their series": self.made,
            "refused": len(self.refusals),
        }
        return ", ".join(f"{count:,} {name}" for name, count in facts.items() if count or name == "moved")


class Mover:
    """Adds what is found, each at most once, and keeps count. `client` None: only looks whether it could be added."""

    def __init__(self, client: Client | None, tally: Tally, tell: Callable[[str], None]) -> None:
        self._client = client
        self._tally = tally
        self._tell = tell

    def move(self, found: Sequence[Pending | Left]) -> None:
        """Add what waits, in order, events together as far as they stand together. Raises ServiceUnavailable."""
        events: list[Pending] = []
        size = 0
        for item in found:
            if isinstance(item, Pending) and not item.is_series:
                length = len(json.dumps(item.document))
                if len(events) == BATCH_LENGTH or size + length > BATCH_BYTES:
                    self._add(events)
                    events, size = [], 0
                events.append(item)
                size += length
                continue
            self._add(events)
            events, size = [], 0
            if isinstance(item, Pending):
                self._make(item)
            else:
                self._leave(item)
        self._add(events)

    def _leave(self, item: Left) -> None:
        match item.why:
            case Why.ENDED:
                self._tally.ended += 1
            case Why.MISSED:
                self._tally.missed += 1
            case Why.MADE:
                self._tally.made += 1
            case Why.REFUSED:
                self._refuse(item.id, item.reason)

    def _refuse(self, id_: str, reason: str) -> None:
        self._tally.refusals.append({"id": id_, "reason": reason})
        self._tell(f"refused: {id_}: {reason}")

    def _add(self, events: Sequence[Pending]) -> None:
        cancelled = self._cancelled(events)
        self._tally.there += len(cancelled)
        events = [event for event in events if (event.application_id, event.id) not in cancelled]
        held = 0
        while events:
            results = self._results(events)
            _check_anybody_takes_them(results)
            put_off = [event for event, result in zip(events, results, strict=True) if result["status-code"] in PUT_OFF]
            for event, result in zip(events, results, strict=True):
                if result["status-code"] not in PUT_OFF:
                    self._count(event.id, result)
            held = held + 1 if len(put_off) == len(events) else 0
            events = put_off
            if put_off:
                problem = next(result["problem"] for result in results if result["status-code"] in PUT_OFF)
                if held >= HELD_SECONDS:
                    raise click.ClickException(f"{put_off[0].id}: {_detail(problem)} Start again to go on from there.")
                time.sleep(min(problem.get("retry-after", 1), HELD_SECONDS))

    def _cancelled(self, events: Sequence[Pending]) -> set[tuple[str, str]]:
        """Return those that an import has added before and somebody has cancelled since: their ids could be taken once more."""
        if self._client is None or not events:
            return set()
        found = set()
        for application_id in sorted({event.application_id for event in events}):
            ours = [event for event in events if event.application_id == application_id]
            ids = {event.id for event in ours}
            instants = [wire.read_instant(event.document["expiry"]) for event in ours]
            span = [datetime.fromtimestamp(at / 1000, UTC) for at in (min(instants), max(instants) + 1)]
            there = self._client.iter_events(
                application_id, status=Status.CANCELLED, expiry_from=span[0], expiry_until=span[1], page_length=BATCH_LENGTH
            )
            with suppress(InvalidRequest):  # an application that cannot be: the service says so of each event
                found |= {(application_id, event.event_id) for event in there if event.event_id in ids}
        return found

    def _results(self, events: Sequence[Pending]) -> Sequence[Mapping[str, Any]]:
        if self._client is not None:
            return self._client.add_documents([event.document for event in events])
        return [_judged(wire.read_event, event.document) for event in events]

    def _count(self, id_: str, result: Mapping[str, Any]) -> None:
        problem = result.get("problem", {})
        if result["status-code"] == 201:
            self._tally.moved += 1
        elif problem.get("identical"):
            self._tally.there += 1
        else:
            self._refuse(id_, _detail(problem))

    def _make(self, item: Pending) -> None:
        if self._client is None:
            self._count(item.id, _judged(lambda document: series_wire.read_series(document, {}), item.document))
            return
        try:
            known = self._known(self._client, item)
            if known is not None and (known.version > 1 or known.status == "CANCELLED"):
                self._tally.there += 1  # somebody has seen to it here since an import has added it
                return
            series = self._client.add_series_document(item.document)
            if item.is_paused and series.version == 1 and series.status == "ACTIVE":
                self._client.pause_series(item.application_id, item.id, version=1)
            for instance_id, change in item.changes.items():
                self._except(self._client, item, instance_id, change)
        except (Conflict, Outdated, NotFound) as error:
            self._refuse(item.id, str(error))
        except ClientError as error:
            if error.status_code is None or error.status_code >= 500 or error.status_code in {401, 403, 429}:
                raise
            self._refuse(item.id, _detail(error.problem) if error.problem else str(error))
        else:
            self._tally.there += known is not None
            self._tally.moved += known is None

    def _known(self, client: Client, item: Pending) -> Series | None:
        try:
            return client.series(item.application_id, item.id)
        except NotFound:
            return None

    def _except(self, client: Client, item: Pending, instance_id: str, change: Mapping[str, Any] | None) -> None:
        """Make an instance differ from the rest, unless it does already."""
        at = datetime.strptime(instance_id.rpartition("_")[2], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        known = next(client.iter_instances(item.application_id, item.id, begin=at, end=at + timedelta(milliseconds=1)), None)
        if known is None or known.is_exception:
            return
        try:
            if change is None:
                client.cancel_instance(item.application_id, item.id, instance_id)
            else:
                client.change_instance_document(item.application_id, item.id, instance_id, change)
        except (Conflict, NotFound) as error:
            self._refuse(instance_id, str(error))


def _check_anybody_takes_them(results: Sequence[Mapping[str, Any]]) -> None:
    """Give up where all of them are for nobody: so would be the others."""
    problems = [result.get("problem", {}) for result in results]
    kinds = {problem.get("type", "").rpartition(":")[2] for problem in problems}
    if len(results) > 1 and len(kinds) == 1 and kinds <= set(NOBODY_TAKES_IT):
        raise click.ClickException(f"{_detail(problems[0])} Put that right, and start again to go on from there.")


def _judged(read: Callable[[Any], Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what would become of a document, as far as that can be known without asking the service."""
    try:
        read(dict(document))
    except wire.InvalidDocument as error:
        return {"status-code": 400, "problem": {"errors": error.errors}}
    return {"status-code": 201}


def _detail(problem: Mapping[str, Any]) -> str:
    faults = (f"{fault.get('pointer') or fault.get('parameter') or 'it'}: {fault['detail']}" for fault in problem.get("errors", ()))
    return "; ".join(faults) or str(problem.get("detail", "was refused"))


# --- how far it has come -------------------------------------------------------------------------------------------------


class Notes:
    """The file that remembers how far an import has come, and what was asked when it began; None: nothing remembers it."""

    def __init__(self, file: Path | None, asked: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        self.place: Mapping[str, Any] = {}
        self.tally = Tally()
        self.now = now
        self._file = file
        self._asked = asked
        if file is not None and file.exists():
            self._go_on(file)

    def _go_on(self, file: Path) -> None:
        """Go on where it was, with the instants that were the present then."""
        try:
            known = json.loads(file.read_text())
            if known["asked"] != self._asked:
                raise click.ClickException(f"{file} is of another import: finish that one, name another file, or remove it")
            self.place, self.now, self.tally = known["place"], known["now"], Tally(**known["tally"])
        except (ValueError, KeyError, TypeError) as error:
            raise click.ClickException(f"{file} is not what an import has written: name another file, or remove it") from error
        click.echo(f"going on: {self.tally}", err=True)

    def remember(self, place: Mapping[str, Any]) -> None:
        self.place = place
        if self._file is not None:
            replace_file(self._file, {"asked": self._asked, "now": self.now, "place": place, "tally": asdict(self.tally)})

    def finish(self) -> None:
        if self._file is not None:
            self._file.unlink(missing_ok=True)


# --- from where ---------------------------------------------------------------------------------------------------------


def from_goscheduler(
    ctx: click.Context, applications: Sequence[str], since: datetime | None, until: datetime | None, **options: Any
) -> None:
    """Move schedules and cron schedules. `options` are those that `run` takes, and how GoScheduler is read."""
    client: Client = ctx.obj
    is_dry = options["dry_run"]

    def made_since(application_id: str, series_id: str) -> float | None:
        if is_dry:
            return time.time()
        try:
            document = client.series(application_id, series_id).document
        except (NotFound, InvalidRequest):
            return None
        return datetime.fromisoformat(document["created-at"]).timestamp()

    now = datetime.now(UTC)
    span = [since or now - PAST, until or now + timedelta(days=FAR_DAYS)]
    begin, end = int(span[0].timestamp()) // 60 * 60, -(-int(span[1].timestamp()) // 60) * 60
    if end <= begin:
        raise click.BadParameter("is not later than where it begins", param_hint="--until")
    asked = {
        "applications": list(applications),
        "since": since and since.isoformat(),
        "until": until and until.isoformat(),
        **{name: options[name] for name in ("missed", "timezone", "cron_as_written")},
    }

    def parts(source: Source, notes: Notes) -> Iterator[Part]:
        wanted = goscheduler.Asked(
            applications=applications,
            since=notes.now["since"],
            until=notes.now["until"],
            made_since=made_since,
            with_missed=options["missed"],
            timezone=options["timezone"],
            as_written=options["cron_as_written"],
        )
        return goscheduler.parts(source, wanted, notes.place)

    _run(ctx, parts, asked, {"since": begin, "until": end}, **options)


def from_recurring(ctx: click.Context, lines: str, application_id: str, **options: Any) -> None:
    """Move the events that lines name."""
    asked = {"application": application_id, "sha256": hashlib.sha256(lines.encode()).hexdigest()}

    def parts(source: Source, notes: Notes) -> Iterator[Part]:
        wanted = recurring.Asked(application_id, lines.splitlines(), notes.now["now"])
        return recurring.parts(source, wanted, notes.place)

    _run(ctx, parts, asked, {"now": time.time_ns() // 1_000_000}, **options)


def from_jobs(ctx: click.Context, application_id: str, job_url: str | None, missed: bool, timezone: str, **options: Any) -> None:
    """Move jobs."""
    asked = {"application": application_id, "url": job_url, "missed": missed, "timezone": timezone}

    def parts(source: Source, notes: Notes) -> Iterator[Part]:
        wanted = jobs.Asked(application_id, notes.now["now"], job_url, missed, timezone)
        return jobs.parts(source, wanted, notes.place)

    _run(ctx, parts, asked, {"now": time.time_ns() // 1_000_000}, **options)


def _run(
    ctx: click.Context,
    parts: Callable[[Source, Notes], Iterator[Part]],
    asked: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    url: str,
    headers: Mapping[str, str],
    rate: float,
    state: Path | None,
    dry_run: bool,
    output: str,
    **_rest: Any,
) -> None:
    """Read part after part, add it, and say how far it is and what has become of all of it."""
    service = ctx.parent.params["service"] if ctx.parent else ""
    notes = Notes(None if dry_run else state, {"command": ctx.info_name, "from": url, "service": service, **asked}, now)
    source = Source(url, headers=headers, rate=rate)
    ctx.call_on_close(source.close)
    try:
        with Meter("import") as meter:
            mover = Mover(None if dry_run else ctx.obj, notes.tally, meter.tell)
            for part in parts(source, notes):
                mover.move(part.found)
                notes.remember(part.place)
                meter.show(notes.tally.moved, f"{part.at}: {notes.tally}")
    except KeyboardInterrupt:
        again = "; the same command goes on from there" if state else "; the same command moves nothing twice"
        click.echo(f"stopped: {notes.tally}{again}", err=True)
        raise click.exceptions.Exit(1) from None
    notes.finish()
    _tell(notes.tally, output, dry_run=dry_run)


def _tell(tally: Tally, output: str, *, dry_run: bool) -> None:
    if output == "json":
        print_json({**asdict(tally), "refused": len(tally.refusals), "dry-run": dry_run})
    else:
        click.echo(f"would be: {tally}" if dry_run else str(tally))
        if tally.missed:
            click.echo(
                f"{counted(tally.missed, 'request')} should have been sent before, and not been: --missed moves them, to be sent at once"
            )
    if tally.refusals:
        raise click.exceptions.Exit(1)
