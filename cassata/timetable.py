"""The whole life of a series, in one room: each method of Timetable is one use-case and one transaction.

Any worker may advance any series: in one transaction it inserts the occurrences as events and moves the series on. Whoever changes
a series locks its row first, and so does whoever advances it.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, takewhile
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row

from cassata import chains, database, recurrence, store, telemetry
from cassata.batches import Batches
from cassata.errors import (
    ApplicationRefused,
    CassataError,
    DuplicateEvent,
    InstanceChanged,
    InstanceGone,
    InvalidEvent,
    InvalidSeries,
    Problem,
    RecurrenceError,
    SeriesChanged,
    SeriesExists,
    SeriesFinished,
    SeriesUnreadable,
    UnknownApplication,
    UnknownInstance,
    UnknownSeries,
)
from cassata.limits import Limiter, excess
from cassata.model import LATEST_INSTANT, UNFINISHED, UNSENT, Application, Event, Milestone, NewEvent, Status
from cassata.outbox import Outbox
from cassata.recurrence import Occurrence, Rule
from cassata.series import CatchUp, Content, Instance, NewSeries, Overlap, Series, SeriesStatus
from cassata.tenants import Tenants

LEAD_MS = 10_000
"""So long before its instant an occurrence is an event, which is why it is as punctual as any other."""
REACH_MS = 15_000
"""Whoever sees to a series makes all that comes within this time: of one that fires every second, several at a time."""
GRACE_MS = 10_000
"""An occurrence that is made no later than this after its instant was not missed."""
JUST_BEGUN_MS = 60_000
"""A first occurrence is made even if it lay so far in the past when its series came: clients' clocks, and the way here, differ."""
INACTIVE_MS = 10_000
"""So soon the series of an application that is deactivated are looked at again."""
UNREADABLE_MS = 600_000
SERIES_AT_ONCE = 100
EVENTS_AT_ONCE = 1_000
"""So many series are advanced, and so many events made, in one transaction."""
ROWS_AT_ONCE = 1_000
PAGE_BYTES = 4 * 1024 * 1024
ALIKE = 1_000
"""So many series are looked at that have the same id, or one that begins with the same 48 bits: they would have to be made for it."""
LATE_AFTER_MS = 60_000
LATEST_LOOKED_AT = 5
LONGEST_CHAIN = 32
"""So many series may come one after another."""

CHANGEABLE = frozenset(spec.name for spec in fields(NewEvent)) - {"application_id", "event_id", "delay_ms", "after"}
"""What may be changed of a single occurrence."""


@dataclass(frozen=True, slots=True)
class Advanced:
    """What came of seeing to so many `series`: the occurrences that were made (`fired`), those of them that had been missed
    (`caught_up`), and those that were left out.
    """

    series: int = 0
    fired: int = 0
    caught_up: int = 0
    skipped: int = 0


@dataclass(slots=True)
class Plan:
    """What becomes of one series: the rows of the occurrences to make, how far it has come, and when it is to be seen to next."""

    series: Series
    application: int
    place: Occurrence
    rows: list[dict[str, Any]] = field(default_factory=list)
    wake_at: int | None = None
    finished_at: int | None = None
    caught_up: int = 0
    skipped: int = 0
    taken: list[str] = field(default_factory=list)
    """Ids of occurrences that were not made, because events that are not of this series have them."""

    def pass_over(self, place: Occurrence, skipped: int | None) -> None:
        self.place = place
        self.skipped += skipped or 0


class Timetable:
    """Keeps series in one database, and makes their occurrences. Safe to share between threads."""

    def __init__(
        self,
        engines: database.Engines,
        clock: database.Clock,
        tenants: Tenants,
        limiter: Limiter,
        batches: Batches,
        outbox: Outbox,
        *,
        registers: bool,
    ) -> None:
        self._batches = batches
        self._transactions = database.Transactions(engines)
        self._clock = clock
        self._tenants = tenants
        self._limiter = limiter
        self._outbox = outbox
        self._registers = registers

    # --- what clients do with a series -----------------------------------------------------------------------------------

    def create(self, new: NewSeries, *, final: bool = False, paused: bool = False) -> Series:
        """Store a series, in place of a cancelled one if there is one. Its first occurrence is the first from now on.

        `final`: what has ended is final. The id must be new, also to events, and there must be an occurrence to come.
        `paused`: it makes none until `resume`.
        Raises SeriesExists, InvalidEvent (PayloadTooLarge), ApplicationRefused, DatabaseUnavailable, and if `final` DuplicateEvent.
        To repeat it does no harm.
        """
        new = self._transactions.read(lambda conn: self._admit(conn, new))

        def work(conn: Connection, _tries: int) -> Series:
            now = self._clock.now(conn)
            return self._create(conn, self._registered(conn, new.application_id, now), new, now, final=final, paused=paused)

        return self._transactions.write(work, retry_duplicates=True)

    def put(self, new: NewSeries) -> tuple[Series, bool]:
        """Store a series unless it is stored already: return it, and whether it is new. Raises as `create` does."""
        try:
            return self.create(new), True
        except SeriesExists as there:
            if there.identical:
                return there.series, False
            raise
        except ApplicationRefused:  # a repeated request adds nothing
            there_is = self._transactions.read(lambda conn: self._identical(conn, new))
            if there_is is None:
                raise
            return there_is, False

    def get(self, application_id: str, series_id: str) -> Series:
        """Return a series, cancelled or not. Raises UnknownSeries, SeriesUnreadable."""

        def work(conn: Connection) -> Series:
            application = self._number(conn, application_id)
            return self._read(store.find_series(conn, application, series_id), application_id, self._clock.now(conn))

        return self._transactions.read(work)

    def application_of(self, series_id: str) -> str:
        """Say whose series has that id; where several applications have one, whose is the oldest. Raises UnknownSeries."""
        beyond = f"{series_id}!"  # which comes before whatever an id may go on with; spaces and less are padding to MariaDB
        found = self._transactions.read(lambda conn: store.applications_with_series(conn, series_id, beyond, ALIKE))
        if not found:
            raise UnknownSeries
        return found[0][0]

    def occurrence_of(self, uuid: str) -> tuple[str, str]:
        """Return the application, and the id of the event, that the UUID of an occurrence names. Raises UnknownSeries."""
        named = recurrence.named_by(uuid)
        if named is None:
            raise UnknownSeries
        begins = named.begins
        alike = self._transactions.read(lambda conn: store.applications_with_series(conn, begins, f"{begins}~", ALIKE))
        found = [(application_id, series_id + named.ends) for application_id, series_id in alike if named.is_of(series_id)]
        if not found:
            raise UnknownSeries
        return found[0]

    def series(
        self, application_id: str, *, statuses: Collection[SeriesStatus] = (), after: str = "", limit: int = 100, full: bool = False
    ) -> list[Series]:
        """List series by their ids. One that cannot be read is left out.

        `full`: with their payloads, and no more of them than have PAGE_BYTES together. There may be more unless there are none.
        """

        def work(conn: Connection) -> list[Series]:
            application = self._tenants.known(conn, application_id)
            if application is None:
                return []
            now = self._clock.now(conn)
            rows = store.series_after(conn, application.number, statuses, after, limit)
            found = [series for row in rows if (series := self._read_if_possible(row, application_id, now))]
            return _with_payloads(conn, found) if full and found else found

        return self._transactions.read(work)

    def newest_events(self, application_id: str, series: Collection[Series], *, limit: int = 3) -> dict[str, list[Event]]:
        """Tell by series id of up to `limit` of its events, without payloads, the newest first; those of `run_now` come last."""

        def work(conn: Connection) -> dict[str, list[Event]]:
            application = self._tenants.known(conn, application_id)
            if application is None:
                return {}
            found = {}
            for each in series:
                ids = recurrence.id_range(each.series_id)
                rows = store.newest_occurrences(conn, application.number, each.number, *ids, limit)
                found[each.series_id] = [store.to_event(row, application_id) for row in rows]
            return found

        return self._transactions.read(work)

    def replace(self, new: NewSeries, *, version: int | None = None, final: bool = False) -> Series:
        """Give a series another content, for all that is still to come; one that is paused stays so.

        What it is to do already is no error, whatever the version: a call may be repeated. By the same rule it goes on from where
        it is, and catches up as the new content says; another rule begins now.
        Occurrences that were changed or cancelled by themselves stay as they are, if the new rule makes their instants too.
        Raises UnknownSeries, SeriesFinished for one that was cancelled (if `final` also for one that has come to its end),
        SeriesChanged unless it is at that version, and as `create` does.
        """
        new = self._transactions.read(lambda conn: self._admit(conn, new, adds=0))

        def work(conn: Connection, _tries: int) -> Series:
            now = self._clock.now(conn)
            series, application = self._locked(conn, new.application_id, new.series_id, now)
            if series.content_hash == new.content_hash and series.status is not SeriesStatus.CANCELLED:
                return series
            if _is_final(series, final=final):
                raise SeriesFinished(series)
            _check_version(series, version)
            self._prioritize(conn, application, new.priority, now)
            if (series.content.after is None) != (new.after is None):
                raise InvalidSeries([Problem("after", "a series keeps its rule, or its place after another: make another one instead")])
            if new.after is not None:
                columns = store.series_row(new, application) | {"follows": self._followed(conn, application, new, series.number)}
                return self._changed(conn, series, columns, now)
            content = _anchored(new, now, series.rule)
            self._remove_unmade(conn, application, series, content.rule, now)
            columns = store.series_row(content, application) | {"request_hash": new.content_hash}
            if _is_behind(series, content.rule, now):
                columns |= {"wake_at": now}
            else:  # also where nothing comes any more, another rule does not count from what the one before has counted
                passed = {} if content.rule == series.rule else {"last_at": now, "last_index": None}
                columns |= passed | _begun(content.rule, now)
            if series.status is SeriesStatus.PAUSED:
                columns |= _PAUSED
            return self._changed(conn, series, columns, now)

        return self._transactions.write(work)

    def pause(self, application_id: str, series_id: str, *, version: int | None = None) -> Series:
        """Make no more occurrences until `resume`, and take back what is not due yet. To pause what is paused is no error.

        Raises UnknownSeries, SeriesFinished, SeriesChanged.
        """

        def work(conn: Connection, _tries: int) -> Series:
            now = self._clock.now(conn)
            series, application = self._locked(conn, application_id, series_id, now)
            if series.status is SeriesStatus.PAUSED:
                return series
            _check_version(series, version)
            if series.status is not SeriesStatus.ACTIVE:
                raise SeriesFinished(series)
            self._lock_before(conn, series.follows)
            self._remove_untouched(conn, application, series, now)
            return self._changed(conn, series, _PAUSED, now)

        return self._transactions.write(work)

    def resume(self, application_id: str, series_id: str, *, version: int | None = None) -> Series:
        """Go on with the first occurrence from now on: what lay in the pause is not caught up with.

        One that comes after another follows what that has made ahead already, too.
        Raises UnknownSeries, SeriesFinished, SeriesChanged.
        """

        def work(conn: Connection, _tries: int) -> Series:
            now = self._clock.now(conn)
            series, application = self._locked(conn, application_id, series_id, now)
            if series.status is SeriesStatus.ACTIVE:
                return series
            _check_version(series, version)
            if series.status is not SeriesStatus.PAUSED:
                raise SeriesFinished(series)
            columns = _FOLLOWING if series.content.after else _begun(series.rule, now, series.last)
            resumed = self._changed(conn, series, columns, now)
            self._follow_made(conn, resumed, application, now)
            return resumed

        return self._transactions.write(work)

    def cancel(self, application_id: str, series_id: str, *, version: int | None = None, final: bool = False) -> Series:
        """Cancel a series and its events that have not ended. To cancel what is cancelled is no error.

        Raises UnknownSeries, SeriesChanged, and if `final` SeriesFinished for one that has come to its end.
        """

        def work(conn: Connection, _tries: int) -> Series:
            now = self._clock.now(conn)
            series, application = self._locked(conn, application_id, series_id, now)
            if series.status is SeriesStatus.CANCELLED:
                return series
            if _is_final(series, final=final):
                raise SeriesFinished(series)
            _check_version(series, version)
            self._lock_before(conn, series.follows)
            unfinished = store.unfinished_occurrences(conn, application, series.number, *recurrence.id_range(series_id))
            self._cancel_events(conn, application, [row.id for row in unfinished], now)
            return self._changed(conn, series, {"status": SeriesStatus.CANCELLED, "wake_at": None, "finished_at": now}, now)

        return self._transactions.write(work)

    def delete(self, application_id: str, series_id: str, *, version: int | None = None) -> None:
        """Remove a series and its events that were never sent; those that were stay. Raises UnknownSeries, SeriesChanged."""

        def work(conn: Connection, _tries: int) -> None:
            now = self._clock.now(conn)
            application = self._number(conn, application_id)
            row = _there(store.lock_series(conn, application, series_id))
            if version is not None and version != row.version:
                raise SeriesChanged(self._read(row, application_id, now))
            self._lock_before(conn, row.follows)
            self._clear(conn, application, row.id, series_id, now)
            store.delete_series(conn, row.id)

        self._transactions.write(work)

    def run_now(self, application_id: str, series_id: str) -> Event:
        """Have the request of a series sent once more, now, whatever its rule says; also while it is paused, and after its end.

        Raises UnknownSeries, SeriesFinished for one that was cancelled, ApplicationRefused.
        """

        def admit(conn: Connection) -> None:
            if refusal := self._limiter.refusal(conn, self._tenants.known(conn, application_id), 1, self._clock.now(conn)):
                raise refusal

        def work(conn: Connection, _tries: int) -> Event:
            now = self._clock.now(conn)
            series, application = self._locked(conn, application_id, series_id, now)
            if series.status is SeriesStatus.CANCELLED:
                raise SeriesFinished(series)
            event = series.content.event(_run_id(series_id, now), now)
            row = store.new_row(event, application, now, series.number)
            store.insert_events(conn, [row])
            self._outbox.write(conn, application, Milestone.CREATED, [row])
            self._insert_followers(conn, [(series, row)], now)
            return store.to_event(_found(store.find(conn, application, event.event_id)), application_id)

        self._transactions.read(admit)
        return self._transactions.write(work)

    def check_free(self, conn: Connection, application_id: str, series_id: str) -> None:
        """Raise SeriesExists if there is a series with that id, cancelled or not, and lock its row."""
        application = self._tenants.known(conn, application_id)
        if application and (row := store.lock_series(conn, application.number, series_id)):
            raise SeriesExists(self._read(row, application_id, self._clock.now(conn)), identical=False)

    # --- its occurrences -----------------------------------------------------------------------------------------------

    def instances(
        self,
        application_id: str,
        series_id: str,
        begin: int,
        end: int,
        *,
        limit: int = 100,
        known: Occurrence | None = None,
        full: bool = False,
    ) -> list[Instance]:
        """Compute the first `limit` occurrences with `begin <= original instant < end` (ms), past and to come, with what is stored of them.

        Indexes are counted from `known`, where the caller has an occurrence that is nearer than how far the series has come.
        `full`: with the payloads of their events; then only so many, at least one, as send no more than PAGE_BYTES together.

        Also those are told that the rule does not make any more and that have an event. Raises UnknownSeries.
        """

        def work(conn: Connection) -> list[Instance]:
            application = self._number(conn, application_id)
            series = self._read(store.find_series(conn, application, series_id), application_id, self._clock.now(conn))
            rule = self._rule_of(conn, series)
            made = recurrence.between(rule, begin, end, limit, known=known or series.last) if rule else []
            first, last = series.content.event_id(max(0, begin)), series.content.event_id(max(0, min(end, LATEST_INSTANT + 1) - 1))
            rows = store.occurrences(conn, application, series.number, first, last, limit)
            stored = {at: row for row in rows if (at := _original(row.event_id)) is not None and begin <= at < end}
            indexes = dict(made)
            instants = sorted(stored.keys() | indexes)[:limit]
            payloads: Mapping[int, bytes | None] = {}
            if full:
                instants = _up_to(PAGE_BYTES, instants, self._payload_lengths(conn, series, instants, stored))
                payloads = store.payloads(conn, [stored[at].id for at in instants if at in stored])
            return [_instance(series, at, indexes.get(at), stored.get(at), payloads) for at in instants]

        return self._transactions.read(work)

    def _payload_lengths(self, conn: Connection, series: Series, instants: Sequence[int], stored: Mapping[int, Row[Any]]) -> Iterator[int]:
        usual = len(series.content.payload or b"")
        lengths = store.payload_lengths(conn, [stored[at].id for at in instants if at in stored])
        return (lengths.get(stored[at].id, 0) if at in stored else usual for at in instants)

    def runs(self, application_id: str, series_id: str, begin: int, end: int, *, limit: int = 100) -> list[Event]:
        """List what there is of a series' occurrences with `begin <= original instant < end` (ms), the newest first, without payloads.

        Raises UnknownSeries.
        """

        def work(conn: Connection) -> list[Event]:
            application = self._number(conn, application_id)
            series = self._read(store.find_series(conn, application, series_id), application_id, self._clock.now(conn))
            first, before = (series.content.event_id(max(0, min(-(-at // 1000) * 1000, LATEST_INSTANT))) for at in (begin, end))
            rows = store.newest_occurrences(conn, application, series.number, first, before, limit)
            return [store.to_event(row, application_id, self._clock.now(conn) - LATE_AFTER_MS) for row in rows]

        return self._transactions.read(work)

    def change_instance(
        self, application_id: str, series_id: str, instance_id: str, changes: Mapping[str, Any], *, version: str | None = None
    ) -> Instance:
        """Change one occurrence that is still to be sent. `changes` are fields of NewEvent (CHANGEABLE); others stay as they are.

        `version` is that of its event. Raises UnknownSeries, SeriesFinished, UnknownInstance, InstanceGone,
        InstanceChanged, InvalidEvent.
        """

        def work(conn: Connection, _tries: int) -> Instance:
            now = self._clock.now(conn)
            series, application, made, row = self._locked_instance(conn, application_id, series_id, instance_id, now, version)
            before = series.content.occurrence(made.at) if row is None else store.to_event(row, application_id).asked()
            changed = replace(before, **_known(changes))
            changed = replace(changed, headers=series.content.identified(instance_id, changed.headers))
            self._check_size(conn, changed, now)
            if changed.destination != before.destination:
                changed = self._batches.aimed(conn, changed, self._tenants.known(conn, application_id))
            self._prioritize(conn, application, changed.priority, now)
            columns = store.new_row(changed, application, now, series.number)
            if row is None:
                store.insert_events(conn, [columns | {"request_hash": store.EXCEPTION_HASH, "fence": 1}])
            else:
                # A retry that waits stays where it is, unless the event is to be sent at another time. What came after another one
                # and has been released still says so: unless it is blocked, that does not keep it asleep.
                wake_at = row.wake_at if columns["due_at"] == row.due_at else max(columns["due_at"], now)
                store.change_event(conn, row.id, changed, columns["due_at"], wake_at)
            stored = _found(store.find(conn, application, instance_id))
            self._outbox.write(conn, application, Milestone.CREATED if row is None else Milestone.CHANGED, [stored])
            return _instance(series, made.at, made.index, stored)

        return self._transactions.write(work, retry_duplicates=True)

    def cancel_instance(self, application_id: str, series_id: str, instance_id: str, *, version: str | None = None) -> Instance:
        """Cancel one occurrence. While it is being sent, only further attempts can be. To cancel what is cancelled is no error.

        Raises UnknownSeries, SeriesFinished, UnknownInstance, InstanceGone, InstanceChanged.
        """

        def work(conn: Connection, _tries: int) -> Instance:
            now = self._clock.now(conn)
            found = self._locked_instance(conn, application_id, series_id, instance_id, now, version, or_cancelled=True)
            series, application, made, row = found
            if row is None:
                columns = store.new_row(series.content.occurrence(made.at), application, now, series.number)
                store.insert_events(conn, [columns | {"request_hash": store.EXCEPTION_HASH}])
                row = _found(store.find(conn, application, instance_id))
                self._outbox.write(conn, application, Milestone.CREATED, [row])
            elif row.status in UNSENT:
                store.mark_exception(conn, row.id)
            self._cancel_events(conn, application, [row.id], now)
            return _instance(series, made.at, made.index, store.find(conn, application, instance_id))

        return self._transactions.write(work, retry_duplicates=True)

    def change_following(
        self, application_id: str, series_id: str, instance_id: str, new: NewSeries, *, version: int | None = None
    ) -> tuple[Series, Series]:
        """End a series before one of its occurrences, and begin another one; return both. `version` is that of the first.

        A repeated call returns what the first one made, whatever the version.
        Raises UnknownSeries, SeriesFinished, UnknownInstance, SeriesChanged, and as `create` does.
        """
        if new.application_id != application_id or new.series_id == series_id:
            raise InvalidSeries([Problem("series_id", "must be another one than that of the series it follows")])
        new = self._transactions.read(lambda conn: self._admit(conn, new))

        def work(conn: Connection, _tries: int) -> tuple[Series, Series]:
            now = self._clock.now(conn)
            series, _ = self._locked(conn, application_id, series_id, now)
            if _ends_before(series, instance_id) and (there := self._identical(conn, new)):
                return series, there
            trimmed, application = self._trim(conn, application_id, series_id, instance_id, now, version)
            return trimmed, self._create(conn, application, new, now)

        return self._transactions.write(work, retry_duplicates=True)

    def cancel_following(self, application_id: str, series_id: str, instance_id: str, *, version: int | None = None) -> Series:
        """End a series before one of its occurrences. Raises UnknownSeries, SeriesFinished, UnknownInstance, SeriesChanged."""

        def work(conn: Connection, _tries: int) -> Series:
            now = self._clock.now(conn)
            series, _ = self._locked(conn, application_id, series_id, now)
            if _ends_before(series, instance_id):
                return series
            return self._trim(conn, application_id, series_id, instance_id, now, version)[0]

        return self._transactions.write(work)

    # --- what workers do -----------------------------------------------------------------------------------------------

    def next_wake(self) -> int | None:
        """Tell when a worker is to see to a series next (ms by the database's clock); None: there is nothing to see to."""

        def work(conn: Connection) -> int | None:
            self._clock.now(conn)  # whoever waits until then has to know the time
            return store.next_series_wake(conn)

        return self._transactions.read(work)

    def advance(self) -> Advanced:
        """See to some series that are due: make the occurrences that are, or soon will be, and move the series on.

        Killed at any instant it has done all of it or nothing, and however many do so at a time, each occurrence is made once.
        """

        def work(conn: Connection, _tries: int) -> tuple[list[Plan], int]:
            self._tenants.refresh(conn)
            now = self._clock.now(conn)
            rows = store.lock_due_series(conn, now, SERIES_AT_ONCE)
            by_number = self._tenants.of_numbers(conn, {row.application for row in rows})
            # Others forget applications meanwhile. A series whose application has just been forgotten stays due.
            found = [(row, application) for row in rows if (application := by_number.get(row.application))]
            resting = [row.id for row, application in found if not application.active]
            if resting:  # once their application is active again, they catch up as they say
                store.postpone_series(conn, resting, now + INACTIVE_MS)
            plans = list(self._plans(conn, [(row, application) for row, application in found if application.active], now))
            self._insert_missing(conn, plans, now)
            if plans:
                store.move_series(conn, [_columns(plan) for plan in plans])
            return plans, len(plans) + len(resting)

        plans, seen_to = self._transactions.write(work, retry_duplicates=True)
        advanced = Advanced(
            series=seen_to,
            fired=sum(len(plan.rows) for plan in plans),
            caught_up=sum(plan.caught_up for plan in plans),
            skipped=sum(plan.skipped for plan in plans),
        )
        _tell(plans, advanced)
        return advanced

    # --- the steps of advance ------------------------------------------------------------------------------------------

    def _plans(self, conn: Connection, rows: Sequence[tuple[Row[Any], Application]], now: int) -> Iterator[Plan]:
        """Decide what becomes of locked series. Those for which there is no more room stay due."""
        room = EVENTS_AT_ONCE
        for row, application in rows:
            if room <= 0:
                return
            try:
                series = store.to_series(row, application.application_id)
                plan = Plan(series, row.application, series.last or Occurrence(series.created_at, None))
                self._plan(conn, plan, now, room)
            except (CassataError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
                names = {"application_id": application.application_id, "series_id": row.series_id}
                telemetry.emit("series cannot be advanced", level="error", **names, error=str(error), exc_info=error)
                store.postpone_series(conn, [row.id], now + UNREADABLE_MS)  # it must not stop the others
                continue
            room -= len(plan.rows)
            yield plan

    def _plan(self, conn: Connection, plan: Plan, now: int, room: int) -> None:
        _pass_over_missed(plan, now)
        if plan.series.content.overlap is Overlap.SKIP:
            self._make_one_by_one(conn, plan, now, room)
        else:
            _make_all(plan, now, room)

    def _make_one_by_one(self, conn: Connection, plan: Plan, now: int, room: int) -> None:
        """Make an occurrence only if the one before it has ended; whether it has is decided at its instant at the latest."""
        series = plan.series
        content = series.content
        first, last = content.event_id(plan.place.at + 1), content.event_id(now + LEAD_MS)
        there = store.statuses_of_occurrences(conn, plan.application, series.number, first, last)
        busy: bool | None = None
        for _ in range(room):
            made = recurrence.after(series.rule, plan.place)
            if made is None or made.at > now + LEAD_MS:
                _wait_for(plan, made, now)
                return
            if busy is None:
                busy = self._is_busy(conn, plan, made)
            if busy and made.at > now:
                plan.wake_at = made.at
                return
            if busy:
                plan.pass_over(made, 1)
            elif (status := there.get(content.event_id(made.at))) is not None:  # it was changed or cancelled ahead of its time
                plan.pass_over(made, None)
                busy = _is_unfinished(status)
            else:
                _make(plan, made, now)
                busy = True
        plan.wake_at = now

    def _is_busy(self, conn: Connection, plan: Plan, made: Occurrence) -> bool:
        """Whether an occurrence shortly before that one has not ended."""
        content = plan.series.content
        first, before = content.event_id(0), content.event_id(made.at)
        latest = store.latest_occurrences(conn, plan.application, plan.series.number, first, before, LATEST_LOOKED_AT)
        return any(map(_is_unfinished, latest))

    def _insert_missing(self, conn: Connection, plans: Sequence[Plan], now: int) -> None:
        """Insert what is not there already: an occurrence that was changed or cancelled by itself is there before its time."""
        made = [(plan.series, row) for plan in plans for row in plan.rows]
        if not any(plan.rows for plan in plans):
            return
        there = store.ids_there(conn, {(row["application"], row["event_id"]) for plan in plans for row in plan.rows})
        for plan in plans:
            keys = [(row["application"], row["event_id"]) for row in plan.rows]
            plan.taken = [key[1] for key in keys if key in there and there[key] != plan.series.number]
            plan.rows = [row for row in plan.rows if (row["application"], row["event_id"]) not in there]
        rows = [row for plan in plans for row in plan.rows]
        if rows:
            store.insert_events(conn, rows)
        self._tell_created(conn, rows)
        foreign = {event_id for plan in plans for event_id in plan.taken}
        self._insert_followers(conn, [(series, row) for series, row in made if row["event_id"] not in foreign], now)

    def _insert_followers(self, conn: Connection, made: Sequence[tuple[Series, dict[str, Any]]], now: int) -> None:
        """Make, of each series that comes after one of these, an occurrence after each of theirs; and so on for what follows those."""
        links: list[store.Link] = []
        while made:
            made = list(self._followers(conn, made, now))
            there = store.ids_there(conn, {(row["application"], row["event_id"]) for _, row in made}) if made else {}
            made = [each for each in made if (each[1]["application"], each[1]["event_id"]) not in there]
            if not made:
                break
            store.insert_events(conn, [row for _, row in made])
            self._tell_created(conn, [row for _, row in made])
            links += self._linked(conn, made)
        over = store.followed_ones(conn, {link.predecessor for link in links}) if links else []
        if over:  # one that was cancelled ahead of its time
            self._outbox.write_judged(conn, chains.settle(conn, over, now))

    def _follow_made(self, conn: Connection, series: Series, application: int, now: int) -> None:
        """Make, of a series that follows from now on, the occurrences after those that have been made ahead already."""
        before = self._before(conn, series)
        first = self._lock_before(conn, series.follows)
        if before is None or first is None or first.last_at is None:
            return
        ahead = self._stored_from(conn, application, before.number, before.series_id, now)
        made_ahead = takewhile(lambda each: each[0] <= first.last_at, ahead)  # others are still to be made
        keys = {(application, row.event_id) for _, row in made_ahead}
        made = store.find_all(conn, keys).values() if keys else ()
        self._insert_followers(conn, [(before, dict(row._mapping)) for row in made], now)

    def _lock_before(self, conn: Connection, follows: int | None) -> Row[Any] | None:
        """Lock the series of a chain before one that is locked, from there on; return the first of them.

        Whoever makes occurrences of these has one of them locked: either we see what it made, or it sees what becomes of ours.
        """
        first = None
        while follows is not None and (row := store.series_by_number(conn, follows, lock=True)):
            first, follows = row, row.follows
        return first

    def _followers(
        self, conn: Connection, made: Sequence[tuple[Series, dict[str, Any]]], now: int
    ) -> Iterator[tuple[Series, dict[str, Any]]]:
        before: dict[int, list[tuple[Series, dict[str, Any]]]] = {}
        for series, row in made:
            before.setdefault(series.number, []).append((series, row))
        for found in store.series_following(conn, before.keys()):
            follower = self._read_if_possible(found, before[found.follows][0][0].application_id, now)
            for series, row in before[found.follows] if follower else ():
                assert follower is not None
                suffix = row["event_id"].removeprefix(series.series_id)
                event = follower.content.event(follower.series_id + suffix, row["due_at"], row["event_id"])
                yield follower, store.new_row(event, row["application"], now, follower.number)

    def _linked(self, conn: Connection, made: Sequence[tuple[Series, dict[str, Any]]]) -> list[store.Link]:
        """Tie occurrences that have just been made to those they come after."""
        keys = []
        for series, row in made:
            after = series.content.after
            assert after is not None
            own = (row["application"], row["event_id"])
            keys.append((own, (own[0], after.series_id + own[1].removeprefix(series.series_id)), after))
        numbers = store.rows_of(conn, {key for own, before, _ in keys for key in (own, before)})
        links = [store.Link(numbers[own], numbers[before], after.on, after.input) for own, before, after in keys]
        store.insert_links(conn, links)
        store.follow(conn, {link.predecessor for link in links})
        return links

    def _tell_created(self, conn: Connection, rows: Sequence[dict[str, Any]]) -> None:
        for application in {row["application"] for row in rows}:
            self._outbox.write(conn, application, Milestone.CREATED, [row for row in rows if row["application"] == application])

    # --- the steps of what clients do ------------------------------------------------------------------------------------

    def _admit(self, conn: Connection, new: NewSeries, *, adds: int = 1) -> NewSeries:
        """Return a series as it is to be stored, or raise why it cannot be taken now.

        One counts as one add; its occurrences count as none: they were admitted with it.
        """
        application = self._tenants.known(conn, new.application_id)
        if application is None and not self._registers:
            raise UnknownApplication
        if refusal := self._limiter.refusal(conn, application, adds, self._clock.now(conn)):
            raise refusal
        if too_large := excess(new.payload, new.headers, self._limiter.of(application)):
            raise too_large
        return self._batches.aimed(conn, new, application)

    def _check_size(self, conn: Connection, changed: NewEvent, now: int) -> None:
        limits = self._limiter.of(self._tenants.known(conn, changed.application_id))
        if too_large := excess(changed.payload, changed.headers, limits):
            raise too_large
        if (changed.due_at or 0) - now > limits.horizon_ms:
            raise InvalidEvent([Problem("due_at", f"must not be more than {limits.horizon_ms // 86_400_000} days ahead")])

    def _identical(self, conn: Connection, new: NewSeries) -> Series | None:
        application = self._tenants.known(conn, new.application_id)
        row = store.find_series(conn, application.number, new.series_id) if application else None
        if row is None or row.request_hash != new.content_hash or row.status == SeriesStatus.CANCELLED:
            return None
        return self._read(row, new.application_id, self._clock.now(conn))

    def _registered(self, conn: Connection, application_id: str, now: int) -> int:
        application = self._tenants.known(conn, application_id)
        return self._tenants.register(conn, application_id, now) if application is None else application.number

    def _prioritize(self, conn: Connection, application: int, priority: int, now: int) -> None:
        if priority:
            self._tenants.prioritize(conn, application, now)

    def _number(self, conn: Connection, application_id: str) -> int:
        application = self._tenants.known(conn, application_id)
        if application is None:
            raise UnknownSeries
        return application.number

    def _create(self, conn: Connection, application: int, new: NewSeries, now: int, *, final: bool = False, paused: bool = False) -> Series:
        row = store.lock_series(conn, application, new.series_id)
        if row is not None and (final or row.status != SeriesStatus.CANCELLED):
            there = self._read(row, new.application_id, now)
            raise SeriesExists(there, identical=row.request_hash == new.content_hash)
        self._prioritize(conn, application, new.priority, now)
        content = new if new.after else _anchored(new, now)
        columns = store.series_row(content, application) | {"request_hash": new.content_hash}
        columns |= {"follows": self._followed(conn, application, new, row.id if row is not None else None)}
        columns |= _FOLLOWING if new.after else _begun(content.rule, now, begin=_begin(content.rule, now))
        columns |= {"created_at": now, "changed_at": now}
        if final and columns["status"] is SeriesStatus.ENDED:
            raise InvalidSeries([Problem(_source_of(content.rule), "has no occurrence from now on")])
        if paused:
            columns |= _PAUSED
        if row is None:
            store.insert_series(conn, columns | {"version": 1})
            # Only now, as whoever adds such an event looks for a series once it has inserted it: one of the two sees the other.
            if final and (event := store.lock_event(conn, application, new.series_id)):
                raise DuplicateEvent(store.to_event(event, new.application_id), identical=False)
        else:
            self._clear(conn, application, row.id, new.series_id, now)
            store.change_series(conn, row.id, columns | {"version": row.version + 1})
        created = self._read(store.find_series(conn, application, new.series_id), new.application_id, now)
        self._follow_made(conn, created, application, now)
        return created

    def _locked(self, conn: Connection, application_id: str, series_id: str, now: int) -> tuple[Series, int]:
        application = self._number(conn, application_id)
        return self._read(store.lock_series(conn, application, series_id), application_id, now), application

    def _read(self, row: Row[Any] | None, application_id: str, now: int) -> Series:
        """Read a series, and compute when it fires next."""
        series = store.to_series(_there(row), application_id)
        if series.status is not SeriesStatus.ACTIVE or series.content.after is not None:
            return series
        try:
            following = _first_from(series.rule, now, series.last)
        except RecurrenceError:  # as by a zone that is no more: it can be looked at, and replaced
            return series
        return replace(series, next_at=following.at if following else None)

    def _followed(self, conn: Connection, application: int, new: NewSeries, own: int | None) -> int | None:
        """Find, and lock, the series after which another one is to come. Raises InvalidSeries where there is none, and for a circle."""
        if new.after is None:
            return None
        found = store.lock_series(conn, application, new.after.series_id)
        if found is None or found.status == SeriesStatus.CANCELLED:
            raise InvalidSeries([Problem("after", f"there is no series {new.after.series_id!r} of this application")])
        row: Row[Any] | None = found
        steps = 0
        while row is not None and row.follows is not None:
            steps += 1
            if row.follows == own or steps >= LONGEST_CHAIN:
                raise InvalidSeries([Problem("after", "leads back to this series" if row.follows == own else "is too long a chain")])
            row = store.series_by_number(conn, row.follows)
        return int(found.id)

    def _rule_of(self, conn: Connection, series: Series) -> Rule | None:
        """Return the rule by which a series has its instants: that of the first one of its chain. None where that is gone."""
        while series.content.after is not None:
            if (before := self._before(conn, series)) is None:
                return None
            series = before
        return series.rule

    def _before(self, conn: Connection, series: Series) -> Series | None:
        """Return the series after which another one comes, if it is there."""
        row = store.series_by_number(conn, series.follows) if series.follows is not None else None
        return row and store.to_series(row, series.application_id)

    def _read_if_possible(self, row: Row[Any], application_id: str, now: int) -> Series | None:
        try:
            return self._read(row, application_id, now)
        except SeriesUnreadable as error:
            telemetry.emit("series cannot be read", level="error", error=str(error))
            return None

    def _changed(self, conn: Connection, series: Series, columns: Mapping[str, Any], now: int) -> Series:
        store.change_series(conn, series.number, {**columns, "version": series.version + 1, "changed_at": now})
        application = self._number(conn, series.application_id)
        return self._read(store.find_series(conn, application, series.series_id), series.application_id, now)

    def _trim(
        self, conn: Connection, application_id: str, series_id: str, instance_id: str, now: int, version: int | None
    ) -> tuple[Series, int]:
        series, application = self._locked(conn, application_id, series_id, now)
        _check_version(series, version)
        if series.status is SeriesStatus.CANCELLED:
            raise SeriesFinished(series)
        first_cut = self._made(series, instance_id)
        content = replace(series.content, rule=replace(series.rule, until_at=first_cut.at - 1))
        self._remove_unmade(conn, application, series, content.rule, first_cut.at)
        place = series.last or Occurrence(now, None)
        place = _place_before(first_cut) if place.at >= first_cut.at else place  # what was made ahead from there on is taken back
        columns = store.series_row(content, application) | {"last_at": place.at, "last_index": place.index}
        if _first_from(content.rule, min(now, place.at + 1), place) is None:
            columns |= {"status": SeriesStatus.ENDED, "wake_at": None, "finished_at": series.finished_at or now}
        elif series.status is SeriesStatus.ACTIVE:
            columns |= {"wake_at": now}
        return self._changed(conn, series, columns, now), application

    # --- the events of a series ------------------------------------------------------------------------------------------

    def _remove_untouched(self, conn: Connection, application: int, series: Series, since: int) -> None:
        """Take back occurrences from an instant on that were made ahead and that nobody has touched."""
        range_ahead = (series.content.event_id(since), recurrence.id_range(series.series_id)[1])
        ahead = store.unfinished_occurrences(conn, application, series.number, *range_ahead)  # the past may be long
        self._remove(conn, application, [row.id for row in ahead if _is_untouched(row) and _lies_from(row, since)], self._clock.now(conn))

    def _remove_unmade(self, conn: Connection, application: int, series: Series, rule: Rule, since: int) -> None:
        """Take back what was made ahead from an instant on, and the unsent exceptions whose instants the new rule does not make."""
        ahead = list(self._stored_from(conn, application, series.number, series.series_id, since))
        ahead += self._put_off(conn, application, series, since)
        made = recurrence.made_of(rule, [at for at, row in ahead if not _is_untouched(row)], known=_known_of(series, rule))
        self._remove(conn, application, [row.id for at, row in ahead if at not in made], self._clock.now(conn))

    def _put_off(self, conn: Connection, application: int, series: Series, until: int) -> list[tuple[int, Row[Any]]]:
        """Read the exceptions still to be sent whose original instants are before that one."""
        first, last = recurrence.id_range(series.series_id)[0], series.content.event_id(until)
        rows = store.unfinished_occurrences(conn, application, series.number, first, last)
        instants = ((_original(row.event_id), row) for row in rows if store.is_exception(row))
        return [(at, row) for at, row in instants if at is not None and at < until]

    def _clear(self, conn: Connection, application: int, number: int, series_id: str, now: int) -> None:
        """Remove what was not sent, and what was cancelled ahead of its time: nothing is to stand in the way of a new beginning."""
        unfinished = store.unfinished_occurrences(conn, application, number, *recurrence.id_range(series_id))
        ahead = self._stored_from(conn, application, number, series_id, now)
        self._remove(
            conn, application, [row.id for row in unfinished] + [row.id for _, row in ahead if row.status == Status.CANCELLED], now
        )
        self._cancel_events(conn, application, [row.id for row in unfinished], now)

    def _stored_from(self, conn: Connection, application: int, number: int, series_id: str, since: int) -> Iterator[tuple[int, Row[Any]]]:
        """Read the events of occurrences from an instant on, each with its original instant."""
        place, last = recurrence.occurrence_id(series_id, since), recurrence.id_range(series_id)[1]
        while rows := store.occurrences(conn, application, number, place, last, ROWS_AT_ONCE):
            instants = ((_original(row.event_id), row) for row in rows)
            yield from ((at, row) for at, row in instants if at is not None and at >= since)
            place = f"{rows[-1].event_id}."  # longer than that one, and before the next

    def _remove(self, conn: Connection, application: int, ids: Sequence[int], now: int) -> None:
        """Remove what was never sent. Occurrences of series that come after these go with them, other events are judged."""
        for start in range(0, len(ids), ROWS_AT_ONCE):
            locked = store.lock_unsent(conn, ids[start : start + ROWS_AT_ONCE])
            links = store.links_from(conn, locked) if locked else []
            made = store.made_by_series(conn, [link.successor for link in links]) if links else frozenset()
            if others := [link for link in links if link.successor not in made]:
                self._outbox.write_judged(conn, chains.orphan(conn, others, now))
            if made:
                self._remove(conn, application, sorted(made), now)
            if locked:
                self._outbox.write_removed(conn, application, locked)
                store.remove_events(conn, locked)

    def _cancel_events(self, conn: Connection, application: int, ids: Sequence[int], now: int) -> None:
        told = self._outbox.wants(conn, application, Milestone.CANCELLED)
        for start in range(0, len(ids), ROWS_AT_ONCE):
            some = ids[start : start + ROWS_AT_ONCE]
            waiting = store.lock_waiting(conn, some) if told else []
            store.cancel_by_row(conn, some, now)
            self._outbox.write_of(conn, application, Milestone.CANCELLED, waiting)
            if over := store.followed_ones(conn, some):
                self._outbox.write_judged(conn, chains.settle(conn, over, now))

    def _locked_instance(
        self,
        conn: Connection,
        application_id: str,
        series_id: str,
        instance_id: str,
        now: int,
        version: str | None,
        *,
        or_cancelled: bool = False,
    ) -> tuple[Series, int, Occurrence, Row[Any] | None]:
        """Lock a series, and return it with one of its occurrences that may still be changed, and the row of its event, if there is one."""
        series, application = self._locked(conn, application_id, series_id, now)
        if series.status is SeriesStatus.CANCELLED:
            raise SeriesFinished(series)
        row = store.lock_event(conn, application, instance_id)
        if row is not None and row.series != series.number:
            raise UnknownInstance
        made = self._made(series, instance_id, stored=row is not None)
        if version is not None and (row is None or version != store.to_event(row, application_id).version):
            raise InstanceChanged
        if row is None and made.at < now:
            raise InstanceGone("the occurrence has passed, and was not made")
        open_to = {*UNSENT, Status.PROCESSING, Status.CANCELLED} if or_cancelled else UNSENT
        if row is not None and row.status not in open_to:
            raise InstanceGone(f"the occurrence is {Status(row.status).name}: it can no longer be changed")
        return series, application, made, row

    def _made(self, series: Series, instance_id: str, *, stored: bool = False) -> Occurrence:
        """Find the occurrence of that id. Raises UnknownInstance unless the rule makes it, or it is stored."""
        parts = recurrence.original_of(instance_id)
        if parts is None or series.content.event_id(parts[1]) != instance_id:
            raise UnknownInstance
        ruled = series.content.after is None  # of others only what is stored can be told without the rest of the chain
        found = recurrence.between(series.rule, parts[1], parts[1] + 1, 1, known=series.last) if ruled else []
        if not found and not stored:
            raise UnknownInstance
        return found[0] if found else Occurrence(parts[1], None)


_PAUSED = {"status": SeriesStatus.PAUSED, "wake_at": None, "finished_at": None}
_FOLLOWING = {"status": SeriesStatus.ACTIVE, "wake_at": None, "finished_at": None, "last_at": None, "last_index": None}
"""What the row of a series says that comes after another one: no worker has to see to it."""


def _begun(rule: Rule, now: int, known: Occurrence | None = None, *, begin: int | None = None) -> dict[str, Any]:
    """Return the columns of a series that fires from now on, or from `begin`: where it is, and when it is to be seen to."""
    first = _first_from(rule, now if begin is None else begin, known)
    if first is None:
        return {"status": SeriesStatus.ENDED, "wake_at": None, "finished_at": now}
    place = _place_before(first)
    return {
        "status": SeriesStatus.ACTIVE,
        "wake_at": max(1, first.at - LEAD_MS),
        "finished_at": None,
        "last_at": place.at,
        "last_index": place.index,
    }


def _check_version(series: Series, version: int | None) -> None:
    if version is not None and version != series.version:
        raise SeriesChanged(series)


def _up_to(most: int, instants: list[int], lengths: Iterable[int]) -> list[int]:
    """Return the first instants whose payloads are not too much together, the very first one in any case."""
    return instants[: max(1, sum(1 for size in accumulate(lengths) if size <= most))]


def _is_final(series: Series, *, final: bool) -> bool:
    """Whether a series may not be changed any more. One that has come to its end may be given more to do, unless that was final."""
    return series.status is SeriesStatus.CANCELLED or (final and series.status is SeriesStatus.ENDED)


def _source_of(rule: Rule) -> str:
    return "recurrence" if rule.recurrence is not None else "cron" if rule.cron is not None else "every_ms"


def _ends_before(series: Series, instance_id: str) -> bool:
    """Whether a series was ended before that instance already."""
    at = _original(instance_id)
    if at is None or series.content.event_id(at) != instance_id:
        return False
    return series.status is not SeriesStatus.CANCELLED and series.rule.until_at == at - 1


def _is_behind(series: Series, rule: Rule, now: int) -> bool:
    """Whether a series that stays by its rule may have occurrences that have passed and were not made."""
    return series.status is SeriesStatus.ACTIVE and rule == series.rule and series.last is not None and series.last.at < now


def _place_before(following: Occurrence) -> Occurrence:
    """Return how far a series has come whose next occurrence is that one."""
    return Occurrence(following.at - 1, None if following.index is None else following.index - 1)


def _first_from(rule: Rule, begin: int, known: Occurrence | None) -> Occurrence | None:
    try:
        return next(iter(recurrence.between(rule, begin, LATEST_INSTANT, 1, known=known)), None)
    except RecurrenceError:  # of one that has a count, far from anything known: to look for one takes more patience
        return recurrence.after(rule, None, not_before=begin)


def _begin(rule: Rule, now: int) -> int:
    """Return from when on a new series fires."""
    just_begun = rule.cron is None and rule.start_at is not None and now - JUST_BEGUN_MS <= rule.start_at < now
    return rule.start_at if just_begun and rule.start_at is not None else now


def _anchored(new: NewSeries, now: int, before: Rule | None = None) -> Content:
    """Have a rule begin now where it does not say when: what is counted is counted from there. `every` waits for its time once."""
    rule = new.rule
    if rule.start_at is not None:
        return new
    if before is not None and replace(before, start_at=None) == rule:
        return replace(new, rule=before)
    whole_second = -(-now // 1000) * 1000
    return replace(new, rule=replace(rule, start_at=whole_second + (rule.every_ms or 0)))


def _pass_over_missed(plan: Plan, now: int) -> None:
    """Go on to the first occurrence that is to be made, of those that nobody was there to make in time."""
    rule, content = plan.series.rule, plan.series.content
    missed_until = now - GRACE_MS
    first = recurrence.after(rule, plan.place)
    if first is None or first.at >= missed_until:
        return
    window = LATEST_INSTANT if content.catch_up_window_ms is None else content.catch_up_window_ms
    begin = missed_until
    if content.catch_up is CatchUp.ALL:
        begin = now - window
    elif content.catch_up is CatchUp.LATEST:
        newest = _newest(rule, plan.place, now + 1)
        begin = newest if now - window <= newest < missed_until else missed_until
    if begin <= first.at:
        return
    following = recurrence.after(rule, plan.place, not_before=begin)
    if following is None:
        plan.pass_over(Occurrence(_newest(rule, plan.place, now + 1), None), None)
    else:
        plan.pass_over(_place_before(following), _distance(first, following))


def _newest(rule: Rule, place: Occurrence, until: int) -> int:
    """Find the instant of the last occurrence before another instant, of one or more that there are after a place."""
    if rule.count is not None:  # then there are not many
        return recurrence.between(rule, place.at + 1, until, rule.count, known=place)[-1].at
    at = recurrence.newest(rule, place.at + 1, until)
    assert at is not None
    return at


def _distance(first: Occurrence, following: Occurrence) -> int | None:
    return None if first.index is None or following.index is None else following.index - first.index


def _make_all(plan: Plan, now: int, room: int) -> None:
    for made in recurrence.between(plan.series.rule, plan.place.at + 1, now + REACH_MS + 1, room, known=plan.place):
        _make(plan, made, now)
    if len(plan.rows) >= room:
        plan.wake_at = now
    else:
        _wait_for(plan, recurrence.after(plan.series.rule, plan.place), now)


def _make(plan: Plan, made: Occurrence, now: int) -> None:
    new = plan.series.content.occurrence(made.at)
    plan.rows.append(store.new_row(new, plan.application, now, plan.series.number))
    plan.place = made
    plan.caught_up += made.at < now - GRACE_MS


def _wait_for(plan: Plan, following: Occurrence | None, now: int) -> None:
    """Say when to see to a series next. One that has no more occurrences ends at the instant of its last one."""
    if following is not None:
        ahead = following.at - LEAD_MS
        plan.wake_at = ahead if ahead > now else following.at
    elif plan.place.at > now:
        plan.wake_at = plan.place.at
    else:
        plan.finished_at = now


def _columns(plan: Plan) -> dict[str, Any]:
    return {
        "of": plan.series.number,
        "to": SeriesStatus.ACTIVE if plan.finished_at is None else SeriesStatus.ENDED,
        "at": plan.place.at,
        "index": plan.place.index,
        "wake": plan.wake_at,
        "ended": plan.finished_at,
    }


def _tell(plans: Sequence[Plan], advanced: Advanced) -> None:
    if advanced.fired or advanced.skipped:
        telemetry.emit("series advanced", level="debug", series=advanced.series, fired=advanced.fired)
    for plan in plans:
        names = {"application_id": plan.series.application_id, "series_id": plan.series.series_id}
        if plan.caught_up:
            telemetry.emit("series caught up", level="warning", **names, occurrences=plan.caught_up)
        if plan.skipped:
            telemetry.emit("series skipped", level="warning", **names, occurrences=plan.skipped)
        if plan.taken:
            ids = {"event_id": plan.taken[0], "occurrences": len(plan.taken)}
            telemetry.emit("other events have the ids of occurrences", level="warning", **names, **ids)
        if plan.finished_at is not None:
            telemetry.emit("series ended", **names)


# --- events and their ids ----------------------------------------------------------------------------------------------


def _run_id(series_id: str, now: int) -> str:
    """Return an id for an event beside the rule: it lies among those of the series, and is no instant's, since no year begins with 0."""
    return f"{series_id}_0{now:011x}{uuid.uuid4().hex[:4]}"


def _with_payloads(conn: Connection, found: Sequence[Series]) -> list[Series]:
    """Give series their payloads: as many as have PAGE_BYTES together, the first one in any case."""
    lengths = store.series_payload_lengths(conn, [series.number for series in found])
    sizes = accumulate(lengths.get(series.number, 0) for series in found)
    shown = found[: max(1, sum(1 for size in sizes if size <= PAGE_BYTES))]
    payloads = store.series_payloads(conn, [series.number for series in shown])
    return [replace(series, content=replace(series.content, payload=payloads.get(series.number))) for series in shown]


def _original(event_id: str) -> int | None:
    parts = recurrence.original_of(event_id)
    return None if parts is None else parts[1]


def _lies_from(row: Row[Any], since: int) -> bool:
    at = _original(row.event_id)
    return at is not None and at >= since


def _is_unfinished(status: Status) -> bool:
    return status in UNFINISHED


def _is_untouched(row: Row[Any]) -> bool:
    """Nobody has begun to send it, changed or cancelled it, by itself or with others, nor asked for it once more."""
    is_as_made = row.attempts == 0 and row.replayed_at is None and row.operation is None
    return bool(row.status in {Status.PENDING, Status.BLOCKED} and is_as_made) and not store.is_exception(row)


def _known_of(series: Series, rule: Rule) -> Occurrence | None:
    """Return how far a series has come, if it has counted the same instants as that rule does, but perhaps to another end."""
    is_same = replace(series.rule, until_at=None, count=None) == replace(rule, until_at=None, count=None)
    return series.last if is_same else None


def _known(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = sorted(changes.keys() - CHANGEABLE)
    if unknown:
        raise InvalidEvent([Problem(name, "cannot be changed") for name in unknown])
    return changes


def _instance(
    series: Series, at: int, index: int | None, row: Row[Any] | None, payloads: Mapping[int, bytes | None] = MappingProxyType({})
) -> Instance:
    event = None if row is None else store.to_event(row, series.application_id, payload=payloads.get(row.id))
    is_exception = row is not None and store.is_exception(row)
    begins_at = event.due_at if event and is_exception else at
    own_end = None if event is None or event.duration_ms is None else begins_at + event.duration_ms
    return Instance(
        instance_id=series.content.event_id(at),
        original_at=at,
        index=index,
        due_at=series.content.due_at(at) if event is None else event.due_at,
        ends_at=series.content.ends_at(begins_at) if own_end is None else own_end,
        status=None if event is None else event.status,
        is_exception=is_exception,
        version=None if event is None else event.version,
        event=event,
    )


def _there(row: Row[Any] | None) -> Row[Any]:
    if row is None:
        raise UnknownSeries
    return row


def _found(row: Row[Any] | None) -> Row[Any]:
    assert row is not None  # it was stored in this transaction
    return row
