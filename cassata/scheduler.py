"""The whole life of an event, in one room: each method of Scheduler is one use-case and one transaction."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row
from sqlalchemy.exc import IntegrityError

from cassata import chains, config, database, plugins, store, telemetry
from cassata.batches import Batches
from cassata.chains import Judged
from cassata.courier.retry import RetryPolicy, Verdict, may_pass
from cassata.destinations import BreakerPolicy, Change, Destinations, Opened, Place, place_of
from cassata.errors import (
    ApplicationRefused,
    DatabaseUnavailable,
    DuplicateEvent,
    EventChanged,
    EventFinished,
    EventNotRetryable,
    EventUnderWay,
    InvalidEvent,
    PayloadTooLarge,
    Problem,
    UnknownApplication,
    UnknownAttempt,
    UnknownEvent,
)
from cassata.explain import Reason
from cassata.limits import Allowance, Hands, Limiter, excess
from cassata.model import (
    APPLIES_TO,
    FINISHED,
    LATEST_INSTANT,
    OUTPUT_BYTES,
    UNSENT,
    WAITING,
    Action,
    After,
    Application,
    Attempt,
    Breaker,
    Cursor,
    Delivery,
    ErrorKind,
    Event,
    Filter,
    Headers,
    KeptOutput,
    Limits,
    Milestone,
    NewEvent,
    Outcome,
    Output,
    Status,
    Successor,
)
from cassata.operations import Operations
from cassata.outbox import Outbox, Untold
from cassata.overview import Overview
from cassata.retention import Pruning, Retention
from cassata.rotation import Reach, Turn, Visit
from cassata.store import Ending
from cassata.tail import Tail
from cassata.tenants import FRESH_SECONDS, Tenants
from cassata.timetable import Timetable
from cassata.vault import Vault

Key = tuple[int, str]
Added = Event | DuplicateEvent | InvalidEvent | ApplicationRefused
"""What became of an event that was to be added."""
Closed = Mapping[str, ApplicationRefused | None]
"""By application why it takes nothing now."""

EARLY_MS = 60_000
"""By less than that may an event have been sent too early, as the clocks of workers go."""
EXAMINED = 10_000
"""So many events are looked at for one page of a list: most of them may not be what is wanted."""
PAGE_BYTES = 4 * 1024 * 1024
"""So much do the payloads of a page come to, unless the first one alone is longer."""
DAY_MS = 86_400_000
BREAKER_MEMORY_MS = 600_000
"""A breaker for whose probe there has been no event for so long is forgotten: nothing waits for it."""
CLEANING_SECONDS = 60.0
LATE_AFTER_MS = 60_000

OTHERS = ""
"""The name of what is told of many applications together: no application has it."""
MOST_COUNTED_TOGETHER = 1_000
SUCCESSORS_TOLD = 1_000

WINDOW = 1_000
"""By priority are claimed those that have waited longest, so many of an application."""
OLDEST_EVERY = 10
"""A claim that has a single place gives it to the oldest event in one of so many seconds; one with more always gives it one."""

LOST_LEASES = 3
"""So many leases in a row without an outcome end an event: it may well be what kills its workers. After the second one it is
sent by itself, so that nothing else is lost with it for the third time."""


class Page(NamedTuple):
    """Some events, without payloads, and where the list goes on (None: there are no more)."""

    events: list[Event]
    next: Cursor | None


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a worker claims: durations in ms."""

    request_timeout_ms: int = 20_000
    lease_margin_ms: int = 10_000
    look_ahead_ms: int = 200

    @property
    def claim_ahead_ms(self) -> int:
        """So long before something is due a claim is made. It takes all that is due within the look-ahead: many at a time."""
        return self.look_ahead_ms // 2

    def lease_ms(self, timeout_ms: int | None) -> int:
        """Return a lease that outlasts the wait until the event is due, and its whole deadline."""
        return self.look_ahead_ms + (timeout_ms or self.request_timeout_ms) + self.lease_margin_ms


@dataclass(slots=True)
class Claimed:
    """What one claim brought. `wakes` says when each application that was looked at has more (None: nothing known), `has_more`
    whether one of them has more already, `held_back` until when those need not be looked at that are at a limit (ms). `waits`
    says for how long limits and breakers put events off, each of them (ms). `judged` is what waited for those that it ended.
    """

    deliveries: list[Delivery] = field(default_factory=list)
    claimed_at: int = 0
    wakes: dict[int, int | None] = field(default_factory=dict)
    reaches: dict[int, Reach] = field(default_factory=dict)
    buried: int = 0
    has_more: bool = False
    held_back: dict[int, int] = field(default_factory=dict)
    queued: Sequence[tuple[Delivery, Place]] = ()
    postponed: Mapping[int, int] = field(default_factory=dict)
    waits: Sequence[int] = ()
    judged: Judged = Judged()  # noqa: RUF009  it is frozen


@dataclass(slots=True)
class HeldBack:
    """What a claim leaves for later: by row when to look again, by application when first; and what it takes for places with a limit."""

    wakes: dict[int, int] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    queued: list[tuple[Delivery, Place]] = field(default_factory=list)
    ahead: Counter[Place] = field(default_factory=Counter)

    def postpone(self, delivery: Delivery, wake_at: int) -> None:
        wake_at = max(wake_at, delivery.send_at)  # it has been looked at ahead of its time, and must not be sent before that
        self.wakes[delivery.id] = wake_at
        self.first[delivery.application] = min(wake_at, self.first.get(delivery.application, wake_at))

    def queue(self, delivery: Delivery, place: Place) -> None:
        self.queued.append((delivery, place))
        self.ahead[place] += 1


class Doubt(NamedTuple):
    """A claim that may have been committed, or not. If it was not, whoever claims the row next has the very same fence: that a
    claim is ours only the end of its lease tells then.
    """

    id: int
    fence: int
    lease_until: int


class Recorded(NamedTuple):
    """How many outcomes were written, how many were void (their lease had been taken by somebody else), which events failed,
    which were too late to be sent, and what has become of the events that waited for those that have ended.
    """

    kept: int = 0
    fenced: int = 0
    failed: tuple[tuple[Delivery, str | None], ...] = ()
    too_late: tuple[tuple[Delivery, str | None], ...] = ()
    judged: Judged = Judged()


class Backlog(NamedTuple):
    """What waits, by application, OTHERS for all that are not told by themselves: how many events, by status; how long the oldest
    one has been due (ms; 0: none is), unless the application is inactive; how many breakers are open; what their streams still have
    to tell.
    """

    counts: Mapping[str, Mapping[Status, int]]
    oldest_due_ms: Mapping[str, int]
    open_breakers: Mapping[str, int]
    untold: Mapping[str, Untold]


class Connections(NamedTuple):
    """How many connections to the database are in use, and how many there may be."""

    in_use: int
    most: int


class Scheduler:
    """Adds, cancels, claims and records events in one database. Safe to share between threads."""

    def __init__(
        self,
        engines: database.Engines,
        *,
        limits: Limits = Limits(),  # noqa: B008
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008
        breaker: BreakerPolicy = BreakerPolicy(),  # noqa: B008
        clock: database.Clock | None = None,
        vault: Vault = Vault(),  # noqa: B008
        registers: bool = True,
        late_after_ms: int = LATE_AFTER_MS,
        any_topic: bool = True,
    ) -> None:
        self.clock = clock or database.clock_of(engines)
        self.tenants = Tenants(engines, self.clock, vault)
        self.limiter = Limiter(self.tenants, limits)
        self.outbox = Outbox(engines, self.clock, self.tenants)
        self.operations = Operations(engines, self.clock, self.tenants, self.limiter, self.outbox)
        self.overview = Overview(engines, self.clock, self.tenants, self.limiter)
        self._registers = registers
        self._late_after_ms = late_after_ms
        self.batches = Batches(engines, self.clock, self.tenants, any_topic=any_topic)
        self.timetable = Timetable(engines, self.clock, self.tenants, self.limiter, self.batches, self.outbox, registers=registers)
        self.destinations = Destinations(breaker)
        self._breakers_at = float("-inf")  # monotonic: when they were last looked at
        self._breakers_cleaned_at = time.monotonic()
        self._engines = engines
        self._transactions = database.Transactions(engines)
        self._retry = retry
        # What a COMMIT whose answer was lost may have claimed: to be put back as soon as may be.
        self._doubtful: dict[Doubt, Delivery] = {}
        self._noted: set[tuple[int, int]] = set()  # outcomes that have been noticed, and are still to be recorded
        self._unwritten: list[Change] = []  # what they have changed: to be written with whatever is recorded next
        self._reaches: dict[int, Reach] = {}  # only hints: whoever has claimed may change them

    @classmethod
    def open(
        cls,
        url: str,
        *,
        create_tables: bool = False,
        check: bool = True,
        settings: config.Database | None = None,
        pool_size: int = 5,
        limits: Limits = Limits(),  # noqa: B008
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008
        breaker: BreakerPolicy = BreakerPolicy(),  # noqa: B008
        registers: bool = True,
        late_after_ms: int = LATE_AFTER_MS,
        any_topic: bool = True,
    ) -> Scheduler:
        """Connect, and check that the database and its tables can be used (unless told that somebody else has).

        `registers` says whether the first add of an application makes it; an event that waits for so long past its time is told to
        be late. `any_topic`: applications of which nothing is said may publish to every topic of Kafka.
        Raises ConfigError for a bad url, DatabaseUnavailable, and DatabaseUnfit or one of its kinds (TablesMissing, ...).
        """
        settings = settings or config.Database()
        vault = Vault(settings.secrets_key_file)
        engines = database.open_engines(url, settings, pool_size=pool_size)
        scheduler = cls(
            engines,
            limits=limits,
            retry=retry,
            breaker=breaker,
            vault=vault,
            registers=registers,
            late_after_ms=late_after_ms,
            any_topic=any_topic,
        )
        try:
            with database.explained():
                if create_tables:
                    database.make_tables(engines)
                if check:
                    database.check(engines, limits.payload_bytes)
                    scheduler.tenants.give_secrets()
                    scheduler.tenants.warn_of_open_secrets()
        except BaseException:
            scheduler.close()
            raise
        return scheduler

    def close(self) -> None:
        self._engines.dispose()

    def now(self) -> int:
        """Tell the time (ms) by the clock that decides what is due."""
        return self._transactions.read(self.clock.now)

    def check_ready(self) -> None:
        """Raise DatabaseUnavailable or one of DatabaseUnfit's kinds unless events can be added now."""
        self._transactions.read(database.check_version)

    # --- what clients do ---------------------------------------------------------------------------------------------

    def add(self, new: NewEvent, *, connection: Connection | None = None) -> Event:
        """Store one event. Given a connection (to the same database), it becomes part of the caller's own transaction.

        Raises DuplicateEvent, InvalidEvent (PayloadTooLarge), ApplicationRefused (ApplicationInactive, LimitReached,
        UnknownApplication), DatabaseUnavailable. After the last one the same event may be
        added again without harm; the caller's own transaction has to be rolled back and begun anew first.
        """
        added = self.add_all([new], connection=connection)[0]
        if isinstance(added, Exception):
            raise added
        return added

    def add_once(self, new: NewEvent) -> Event:
        """Store one event under an id that is new: also to what was cancelled, and to series. Raises as `add` does, and SeriesExists."""
        closed = self._transactions.read(lambda conn: self._closed_ones(conn, [new]))
        application_id, event_id = new.application_id, new.event_id

        def work(conn: Connection, _tries: int) -> Event:
            application = self.tenants.known(conn, application_id)
            row = store.lock_event(conn, application.number, event_id) if application else None
            if row is not None:
                raise DuplicateEvent(self._event(conn, row, application_id), identical=row.request_hash == new.request_hash)
            added = self._add(conn, [new], closed, looking=False)[0]
            if isinstance(added, Exception):
                raise added
            # Only now, as whoever makes such a series looks for an event once it is inserted: one of the two sees the other.
            self.timetable.check_free(conn, application_id, event_id)
            return added

        added = self._transactions.write(work, retry_duplicates=True)
        telemetry.tell("added", [added])
        return added

    def put(self, new: NewEvent) -> tuple[Event, bool]:
        """Store one event unless it is stored already: return it, and whether it is new. Raises as `add` does."""
        try:
            return self.add(new), True
        except DuplicateEvent as duplicate:
            if duplicate.identical:
                return duplicate.event, False
            raise
        except ApplicationRefused:  # what is stored already may be said to be so nevertheless: a repeated request adds nothing
            event = self._transactions.read(lambda conn: self._identical(conn, new))
            if event is None:
                raise
            return event, False

    def add_all(self, news: Sequence[NewEvent], *, connection: Connection | None = None) -> list[Added]:
        """Store many events in one transaction; return for each, in order, what became of it."""
        if connection is not None:
            return self._add_within(connection, news)
        if len(news) == 1 and news[0].after is None and self.tenants.is_in_mind(news[0].application_id):
            added = [self._add_alone(news[0])]
        else:
            added = self._add_together(news)
        telemetry.tell("added", added)
        return added

    def cancel(self, application_id: str, event_id: str) -> Event:
        """Cancel an event. While it is being sent, only further attempts can be: it stays PROCESSING, cancel_requested.

        What waits for it is judged. To cancel what is cancelled is no error. Raises UnknownEvent, EventFinished.
        """

        def work(conn: Connection, _tries: int) -> tuple[Event, Judged]:
            application = self._known_number(conn, application_id)
            judged = self._cancel(conn, application, event_id)
            return self._event(conn, self._found(conn, application_id, event_id), application_id), judged or Judged()

        event, judged = self._transactions.write(work)
        self._tell_judged(judged)
        if event.status in {Status.COMPLETED, Status.FAILED}:
            raise EventFinished(event)
        return event

    def remove(self, application_id: str, event_id: str) -> None:
        """Have an event gone, whatever it is: what waits is cancelled, what has ended is removed with its log.

        What is being sent stays, but is tried no more; so does an occurrence that its series would make once more.
        Raises UnknownEvent.
        """

        def work(conn: Connection, _tries: int) -> Judged:
            application = self._known_number(conn, application_id)
            judged = self._cancel(conn, application, event_id)
            if judged is not None:
                return judged
            row = store.lock_event(conn, application, event_id)
            if row is None:
                raise UnknownEvent
            if row.status in FINISHED and not store.still_needed(conn, [row]):
                store.remove_events(conn, [row.id])
            return Judged()

        self._tell_judged(self._transactions.write(work))

    def retry(self, application_id: str, event_id: str) -> Event:
        """Have an event that failed or was cancelled sent once more: now, or when it is due if that is later.

        To retry what has been put back already, and has not ended since, is no error. Raises UnknownEvent, EventNotRetryable.
        """

        def work(conn: Connection, _tries: int) -> Event:
            application = self._known_number(conn, application_id)
            row = store.lock_event(conn, application, event_id)
            if row is None:
                raise UnknownEvent
            if row.payload_removed_at is not None:
                raise EventNotRetryable(self._event(conn, row, application_id), "its payload has been removed")
            if row.status in APPLIES_TO[Action.RETRY]:
                now = self.clock.now(conn)
                store.log_replays(conn, [row], now, Action.RETRY)
                store.replay(conn, [row.id], now)
                self.outbox.write_of(conn, application, Milestone.REPLAYED, [row.id])
            event = self._event(conn, self._found(conn, application_id, event_id), application_id)
            if event.status in FINISHED or event.replayed_at is None:
                raise EventNotRetryable(event)
            return event

        return self._transactions.write(work)

    def change(self, application_id: str, event_id: str, changes: Mapping[str, Any], versions: Collection[str] | None = None) -> Event:
        """Change what an event asks for, while it waits. `changes` holds fields of NewEvent; `versions` those of the event that
        may be changed (None: whatever it is by now).

        It is tried again when it would have been, unless its time is changed. What is asked for already is no error, whatever the
        version: a call may be repeated. Raises UnknownEvent, EventFinished, EventUnderWay, EventChanged, InvalidEvent
        (PayloadTooLarge).
        """

        def work(conn: Connection, _tries: int) -> Event:
            application = self.tenants.known(conn, application_id)
            row = store.lock_event(conn, application.number, event_id) if application else None
            if row is None:
                raise UnknownEvent
            event, now = self._event(conn, row, application_id), self.clock.now(conn)
            asked = _changed(event, changes)
            if asked.destination is not None and asked.destination != event.destination:
                asked = self.batches.aimed(conn, asked, application)
            if asked == event.asked():
                return event
            if versions is not None and event.version not in versions:
                raise EventChanged(event)
            self._check_changes(asked, changes, application, now)
            if asked.priority:
                self.tenants.prioritize(conn, row.application, now)
            due_at = asked.due_at if asked.due_at is not None else now + (asked.delay_ms or 0)
            wake_at = event.wake_at if due_at == event.due_at else None
            store.change_event(conn, row.id, asked, due_at, max(due_at, now) if wake_at is None else wake_at)  # unless it is blocked
            changed = self._found(conn, application_id, event_id)
            self.outbox.write(conn, row.application, Milestone.CHANGED, [changed])
            return self._event(conn, changed, application_id)

        return self._transactions.write(work)

    def status(self, application_id: str, event_id: str) -> Event:
        """Return an event without its payload. Raises UnknownEvent, also for one that was cancelled."""
        event = self._transactions.read(lambda conn: self._event(conn, self._found(conn, application_id, event_id), application_id))
        if event.status is Status.CANCELLED:
            raise UnknownEvent
        return event

    def application_of(self, event_id: str) -> str:
        """Say whose event has that id; where several applications have one, whose is the oldest. Raises UnknownEvent."""
        found = self._transactions.read(lambda conn: store.application_with_event(conn, event_id))
        if found is None:
            raise UnknownEvent
        return found

    def event(self, application_id: str, event_id: str) -> tuple[Event, list[Attempt]]:
        """Return an event, cancelled or not, and the log of its attempts, oldest first. Raises UnknownEvent."""

        def work(conn: Connection) -> tuple[Event, list[Attempt]]:
            row = self._found(conn, application_id, event_id, with_payload=True)
            return self._event(conn, row, application_id), store.attempts_of(conn, row.id)

        return self._transactions.read(work)

    def successors(self, application_id: str, event_id: str) -> list[Successor]:
        """Return the events that come after one, judged already or not, SUCCESSORS_TOLD at most. Raises UnknownEvent."""

        def work(conn: Connection) -> list[Successor]:
            row = self._found(conn, application_id, event_id)
            found = store.successors_of(conn, row.id, SUCCESSORS_TOLD) if row.followed else []
            return [Successor(each.event_id, store.wanted(each.wanted), bool(each.input), Status(each.status)) for each in found]

        return self._transactions.read(work)

    def output(self, application_id: str, event_id: str, number: int) -> KeptOutput:
        """Return what is kept of the answer to an attempt, the last one of that number, or the excerpt in the log.

        That of an attempt which is under way may still grow. Raises UnknownEvent, UnknownAttempt.
        """

        def work(conn: Connection) -> KeptOutput:
            row = self._found(conn, application_id, event_id)
            if row.status == Status.PROCESSING and row.attempts == number:
                return KeptOutput(store.output_of(conn, row.id, row.fence) or Output(b"", 0), is_excerpt=False, is_whole=False)
            answered = store.last_answer(conn, row.id, number)
            if answered is None:
                raise UnknownAttempt
            output, is_excerpt = chains.kept_output(conn, row.id, answered)
            return KeptOutput(output, is_excerpt, is_whole=True)

        return self._transactions.read(work)

    def events(
        self,
        application_id: str,
        wanted: Filter = Filter(),  # noqa: B008
        *,
        after: Cursor | None = None,
        limit: int = 100,
        full: bool = False,
        newest_first: bool = False,
    ) -> Page:
        """List an application's events: by due time; those of a series by their original instants; where only events are wanted
        that have not ended, by when they are looked at next. `newest_first`: from the end of that order, and so on backwards; the
        cursor `after` has to be of a list that goes the same way. `full`: with their payloads, up to PAGE_BYTES together.

        At most EXAMINED events are looked at for one page. So it may hold fewer than `limit`, even none, and still not be the last.
        """

        def work(conn: Connection) -> Page:
            application = self.tenants.known(conn, application_id)
            lane = self._lane(conn, application.number, wanted) if application else None
            if lane is None:
                return Page([], None)
            if newest_first:
                lane = self._from_its_end(conn, lane, wanted)
            last = store.further(conn, lane, after, EXAMINED) if lane.judged else None
            rows = store.page(conn, lane, after, last, limit + 1)
            shown = rows[:limit]
            payloads: Mapping[int, bytes | None] = {}
            if full and shown:
                shown = _up_to(PAGE_BYTES, shown, store.payload_lengths(conn, [row.id for row in shown]))
                payloads = store.payloads(conn, [row.id for row in shown])
            found = [self._event(conn, row, application_id, payloads.get(row.id)) for row in shown if wanted.goes_there(row.url)]
            return Page(found, lane.cursor(shown[-1]) if len(rows) > len(shown) else last)

        return self._transactions.read(work)

    def log(
        self,
        application_id: str,
        wanted: Filter = Filter(),  # noqa: B008
        *,
        after: str | None = None,
        limit: int = 100,
    ) -> list[tuple[Event, list[Attempt]]]:
        """List events as `events` does, with the logs of their attempts, those after the event with that id. Raises UnknownEvent for it.

        At most EXAMINED events are looked at.
        """

        def work(conn: Connection) -> list[tuple[Event, list[Attempt]]]:
            application = self.tenants.known(conn, application_id)
            lane = self._lane(conn, application.number, wanted) if application else None
            if lane is None:
                return []
            place = lane.cursor(self._found(conn, application_id, after)) if after is not None else None
            last = store.further(conn, lane, place, EXAMINED) if lane.judged else None
            rows = store.page(conn, lane, place, last, limit)
            logs = store.attempts_of_all(conn, [row.id for row in rows])
            return [(self._event(conn, row, application_id), logs[row.id]) for row in rows]

        return self._transactions.read(work)

    def _lane(self, conn: Connection, application: int, wanted: Filter) -> store.Lane | None:
        """Choose where to look for events; None if there can be none."""
        if wanted.series_id is None:
            return store.lane(application, wanted)
        series = store.series_number(conn, application, wanted.series_id)
        return None if series is None else store.lane_of_series(application, series, wanted)

    def _from_its_end(self, conn: Connection, lane: store.Lane, wanted: Filter) -> store.Lane:
        """Go backwards. What was delivered or has failed was due by now: what is still to come, which may be much, need not be passed."""
        if wanted.statuses and wanted.statuses <= {Status.COMPLETED, Status.FAILED} and isinstance(lane.high, int | None):
            by_now = self.clock.now(conn) + EARLY_MS
            return replace(lane, backwards=True, high=by_now if lane.high is None else min(lane.high, by_now))
        return replace(lane, backwards=True)

    def pruning(self, retention: Retention, *, dry_run: bool = False) -> Pruning:
        """Make passes that remove what has ended, and been kept for long enough. For one thread."""
        return Pruning(self._engines, self.clock, retention, dry_run=dry_run)

    def tail(self, application_id: str) -> Tail:
        """Follow the events of an application as they end, from now on. For one thread. Raises UnknownApplication."""
        return Tail(self._engines, self.clock, self.tenants, application_id)

    def explain(self, application_id: str, event_id: str) -> list[Reason]:
        """Say why an event has not been sent yet, or how it ended: the weightiest reason first. Raises UnknownEvent."""
        event, _ = self.event(application_id, event_id)
        return self.overview.explain(event, self.breakers(application_id))

    def breakers(self, application_id: str) -> list[Breaker]:
        """Return the circuit breakers of an application that are open. Raises UnknownApplication."""
        number = self.tenants.application(application_id).number
        opened = self._transactions.read(lambda conn: store.open_breakers(conn, self.clock.now(conn) - BREAKER_MEMORY_MS, number))
        return [Breaker(application_id, place.destination, *each) for place, each in opened.items()]

    def backlog(self, named: int, most: int) -> Backlog:
        """Tell what waits, of the first `named` applications by themselves, and count up to `most` events of each."""

        def work(conn: Connection) -> Backlog:
            now = self.clock.now(conn)
            wakes = store.agenda(conn, LATEST_INSTANT)
            tenants = self.tenants.of_numbers(conn, wakes.keys())
            known = {number: wake_at for number, wake_at in wakes.items() if number in tenants}
            groups = {tenants[number].application_id: [number] for number in known if number <= named}
            if others := [number for number in known if number > named]:
                groups[OTHERS] = others
            counts = {name: store.waiting_by_status(conn, numbers[:MOST_COUNTED_TOGETHER], most) for name, numbers in groups.items()}
            late = {
                name: max((now - known[number] for number in numbers if tenants[number].active and known[number] <= now), default=0)
                for name, numbers in groups.items()
            }
            opened = Counter(place.application for place in store.open_breakers(conn, now - BREAKER_MEMORY_MS))
            breakers: Counter[str] = Counter()
            for number, application in self.tenants.of_numbers(conn, opened.keys()).items():
                if number in opened:
                    breakers[application.application_id if number <= named else OTHERS] += opened[number]
            return Backlog(counts, late, breakers, self._untold(conn, named, most, now))

        return self._transactions.read(work)

    def _untold(self, conn: Connection, named: int, most: int, now: int) -> Mapping[str, Untold]:
        found: dict[str, Untold] = {}
        for number, (count, first) in store.backlogs(conn, None, most).items():
            application = self.tenants.of_number(conn, number)
            name = application.application_id if application and number <= named else OTHERS
            before = found.get(name, Untold(0, 0))
            found[name] = Untold(before.messages + count, max(before.oldest_ms, now - first))
        return found

    def connections(self) -> Connections:
        """Tell how many connections to the database are in use in this process."""
        return Connections(*self._engines.use())

    # --- what workers do ---------------------------------------------------------------------------------------------

    def agenda(self, within_ms: int = LATEST_INSTANT) -> dict[int, int]:
        """Return for every application (by its number) with something to do within that time when it may next be looked at (ms)."""

        def work(conn: Connection) -> dict[int, int]:
            self._refresh(conn)
            return store.agenda(conn, self.clock.now(conn) + within_ms)

        return self._transactions.read(work)

    def newest_row(self) -> int:
        """Return the row number of the event that was added last, 0 if there is none."""
        return self._transactions.read(store.newest_row)

    def added_after(self, row: int) -> tuple[dict[int, int], int]:
        """Return for the applications to which events were added after that row what `agenda` would, and the newest row."""
        found = self._transactions.read(lambda conn: store.added_after(conn, row))
        newest = max((newest for _, newest in found.values()), default=row)
        return {application: wake_at for application, (wake_at, _) in found.items()}, newest

    def record(self, outcomes: Sequence[Outcome]) -> Recorded:
        """Write how deliveries ended, and log the attempts."""
        return self.record_and_claim(outcomes, (), 0, Terms())[0]

    def record_and_claim(
        self,
        outcomes: Sequence[Outcome],
        applications: Sequence[int],
        limit: int,
        terms: Terms,
        hands: Hands = Hands(),  # noqa: B008
        *,
        suspects: bool = True,
    ) -> tuple[Recorded, Claimed]:
        """Write how deliveries ended and claim up to `limit` more, shared out among the applications, in one transaction.

        At most one of what it claims is a suspect, none if `suspects` is false: a process should have one at a time.

        Nothing of it may be sent before this has returned: on a cluster a claim is decided at COMMIT. If it raises, what it may
        have claimed is put back by the next call, or is due again when its lease ends; the outcomes may be recorded again.
        """
        doubtful, claimed = dict(self._doubtful), Claimed()
        unwritten, self._unwritten = self._unwritten, []
        breakers = [*unwritten, *(self._note(outcomes) if outcomes else ())]

        def work(conn: Connection, tries: int) -> Recorded:
            nonlocal claimed
            now = self.clock.now(conn)
            if tries > 1:
                self.limiter.doubt(hands)
            released = Judged()
            if doubtful:
                released = self._release_doubtful(conn, doubtful)
                self.limiter.settle_ended(conn, {delivery.application for delivery in doubtful.values()}, (), hands)
            recorded = self._record(conn, outcomes, now, looking=tries > 1) if outcomes else Recorded()
            self.limiter.settle_ended(conn, {outcome.delivery.application for outcome in outcomes}, applications, hands)
            for change in breakers:
                store.change_breaker(conn, change)
            may_claim = applications and limit > 0
            claimed = self._claim(conn, applications, limit, now, terms, hands, suspects=suspects) if may_claim else Claimed()
            claimed.judged += released
            return recorded

        try:
            recorded = self._transactions.write(work)
        except BaseException as error:
            self.limiter.doubt(hands)
            self._noted.update(map(_claim_of, outcomes))
            self._unwritten += breakers
            if isinstance(error, DatabaseUnavailable) and not database.is_conflict(error.__cause__):
                self._doubtful.update({_doubt(delivery, claimed.claimed_at, terms): delivery for delivery in claimed.deliveries})
            raise
        self._noted.difference_update(map(_claim_of, outcomes))
        for doubt in doubtful:
            self._doubtful.pop(doubt, None)
        self._reaches.update(claimed.reaches)  # only now: what a rolled back claim took is still there
        if claimed.queued:
            self.destinations.claimed(claimed.queued)
        _tell(recorded)
        self._tell_judged(recorded.judged + claimed.judged)
        if outcomes:
            failed = Counter(delivery.application for delivery, _ in recorded.failed)
            self.overview.tallies.note(outcomes, failed, self.clock.estimate())
        self._tell_of(breakers)
        return recorded, claimed

    def keep_output(self, delivery: Delivery, body: bytes, length: int, headers: Headers = ()) -> bool:
        """Keep what a delivery under way has written so far, in place of what was kept of it; say whether it still is ours.

        `body` is the part to be kept, OUTPUT_BYTES of it at most, `length` how long all of it is by now.
        """

        def work(conn: Connection, _tries: int) -> bool:
            if not store.has_claim(conn, delivery.id, delivery.fence):
                return False
            store.keep_output(conn, delivery.id, delivery.fence, Output(body[:OUTPUT_BYTES], length, headers), self.clock.now(conn))
            return True

        return self._transactions.write(work)

    def release(self, deliveries: Sequence[Delivery], hands: Hands = Hands()) -> int:  # noqa: B008
        """Put back deliveries that were claimed and never begun, and still are among what is in hand; return how many still were ours."""
        taken = Counter(delivery.application for delivery in deliveries)
        left = replace(hands, held={number: count - taken[number] for number, count in hands.held.items()})
        breakers = self.destinations.given_back(deliveries, self.clock.estimate())

        def work(conn: Connection, _tries: int) -> tuple[int, Judged]:
            self.limiter.settle_ended(conn, taken, (), left)
            for change in breakers:
                store.change_breaker(conn, change)
            return self._release(conn, deliveries)

        try:
            released, judged = self._transactions.write(work)
        except BaseException:
            self.limiter.doubt(hands)
            raise
        self._tell_judged(judged)
        return released

    def let_go(self, hands: Hands) -> None:
        """Say that a worker thread has nothing in hand any more, and is not coming back."""
        if self.limiter.has_shares(hands):
            self._transactions.write(lambda conn, _tries: self.limiter.let_go(conn, hands))

    def refresh(self) -> bool:
        """Notice which applications others have changed, if nobody has for a second; say whether there were any."""
        return self._transactions.read(self.tenants.refresh)

    # --- the steps of what clients do ----------------------------------------------------------------------------------

    def _cancel(self, conn: Connection, application: int, event_id: str) -> Judged | None:
        """Cancel what waits, and return what has become of what came after it. None: it did not wait, and is sent no more after this."""
        now = self.clock.now(conn)
        if not store.cancel_waiting(conn, application, event_id, now):
            store.request_cancel(conn, application, event_id)
            return None
        row = store.find(conn, application, event_id, with_payload=False)
        assert row is not None  # it has just been changed
        self.outbox.write(conn, application, Milestone.CANCELLED, [row])
        return self._settle(conn, [row.id], now) if row.followed else Judged()

    # --- the steps of add ----------------------------------------------------------------------------------------------

    def _add_alone(self, new: NewEvent) -> Added:
        """Insert one event of a known application by a statement that is a transaction of its own: one round trip, not two.

        What does not go that way goes the usual one, which also tells what is wrong.
        """
        stored: Event | None = None
        try:
            with database.explained(), self._engines.read.connect() as conn:
                now = self.clock.now(conn)
                application = self.tenants.known(conn, new.application_id)
                if refusal := self._closed(conn, application, 1, now) or self._refusal(new, application, now):
                    return refusal
                assert application is not None  # an application is never removed
                if new.priority and not application.prioritized:
                    return self._add_admitted([new], {})[0]
                if new.destination is not None:
                    new = self.batches.aimed(conn, new, application)
                row = store.new_row(new, application.number, now)
                stored = _stored(new, row)
                if application.stream is None:
                    store.insert_events(conn, [row])
                    return stored
            return self._add_admitted([new], {})[0]  # with its message, or not at all
        except InvalidEvent as error:
            return error
        except IntegrityError:
            return self._add_admitted([new], {})[0]
        except DatabaseUnavailable as error:
            if not (error.__cause__ and (database.is_stale(error.__cause__) or database.is_conflict(error.__cause__))):
                raise
            if stored is None:  # nobody has said yet that the application may add it
                return self._add_together([new])[0]
            added = self._add_admitted([new], {})[0]
            # The answer may have been lost after the row was stored: then the duplicate that was found is this very one.
            is_ours = isinstance(added, DuplicateEvent) and added.identical and added.event.created_at == stored.created_at
            return stored if is_ours else added

    def _add_together(self, news: Sequence[NewEvent]) -> list[Added]:
        """Ask whether the applications may add so many, each by statements of their own, and then add in one transaction."""
        return self._add_admitted(news, self._transactions.read(lambda conn: self._closed_ones(conn, news)))

    def _add_admitted(self, news: Sequence[NewEvent], closed: Closed) -> list[Added]:
        def work(conn: Connection, tries: int) -> list[Added]:
            # At first in the hope that nothing is there yet: the unique key tells, and the second try looks before it inserts.
            return self._add(conn, news, closed, looking=tries > 1)

        try:
            return self._transactions.write(work, retry_duplicates=True)
        except IntegrityError as error:
            raise DatabaseUnavailable("others add and cancel the same events at this moment: try again") from error

    def _add_within(self, conn: Connection, news: Sequence[NewEvent]) -> list[Added]:
        """Add inside a transaction that is not ours to begin again. A failed INSERT leaves it as it was, so look once more."""
        with database.explained():
            # Limits of many adds are not kept here: what is drawn would lock others out until the transaction of the caller ends.
            closed = self._closed_ones(conn, news, counting=False)
            try:
                return self._add(conn, news, closed, looking=True)
            except IntegrityError:
                try:
                    return self._add(conn, news, closed, looking=True)
                except IntegrityError as error:
                    raise DatabaseUnavailable("somebody else adds the same at this moment: begin the transaction anew") from error

    def _add(self, conn: Connection, news: Sequence[NewEvent], closed: Closed, *, looking: bool) -> list[Added]:
        now = self.clock.now(conn)
        tenants = {application_id: self.tenants.known(conn, application_id) for application_id in {new.application_id for new in news}}
        refused: dict[int, Added] = {}
        for index, new in enumerate(news):
            if refusal := closed.get(new.application_id) or self._refusal(new, tenants[new.application_id], now):
                refused[index] = refusal
        if any(new.destination for new in news):
            news = [new if index in refused else self._aimed(conn, new, tenants, index, refused) for index, new in enumerate(news)]
        keys = self._keys(conn, {index: new for index, new in enumerate(news) if index not in refused}, tenants, now)
        chained = [index for index in keys if news[index].after]
        there, cancelled = self._there(conn, news, keys) if (looking or chained) and keys else ({}, {})
        wanted = {_key_before(news[index].after, keys[index]) for index in chained} - cancelled.keys()
        before = store.find_all(conn, wanted) if wanted else {}  # none of them ends before these are there, as they are locked
        rows: list[dict[str, Any]] = []
        added: list[Added] = []
        for index, new in enumerate(news):
            added.append(refused.get(index) or _place(new, keys[index], there, before, rows, now))
        if replaced := [id_ for key, id_ in cancelled.items() if key in there]:
            store.remove_cancelled(conn, replaced)
        if rows:
            store.insert_events(conn, rows)
            self._tell_created(conn, rows, tenants.values())
        if chained and any(row["status"] == Status.BLOCKED for row in rows):
            self._link(conn, news, keys, added, before, now)
        return added

    def _keys(self, conn: Connection, news: Mapping[int, NewEvent], tenants: Mapping[str, Application | None], now: int) -> dict[int, Key]:
        """Name the places of new events, and register what is needed for them: applications, and that one knows priorities."""
        numbers = {application_id: application.number for application_id, application in tenants.items() if application}
        for new in news.values():
            if new.application_id not in numbers:
                numbers[new.application_id] = self.tenants.register(conn, new.application_id, now)
        for application_id in {new.application_id for new in news.values() if new.priority}:
            self.tenants.prioritize(conn, numbers[application_id], now)
        return {index: (numbers[new.application_id], new.event_id) for index, new in news.items()}

    def _tell_created(self, conn: Connection, rows: Sequence[Mapping[str, Any]], applications: Iterable[Application | None]) -> None:
        for application in applications:
            if application and application.stream:
                created = [row for row in rows if row["application"] == application.number]
                self.outbox.write(conn, application.number, Milestone.CREATED, created)

    def _aimed(
        self, conn: Connection, new: NewEvent, tenants: Mapping[str, Application | None], index: int, refused: dict[int, Added]
    ) -> NewEvent:
        if new.destination is not None:
            try:
                return self.batches.aimed(conn, new, tenants[new.application_id])
            except InvalidEvent as error:
                refused[index] = error
        return new

    def _link(
        self,
        conn: Connection,
        news: Sequence[NewEvent],
        keys: Mapping[int, Key],
        added: list[Added],
        before: Mapping[Key, Row[Any]],
        now: int,
    ) -> None:
        """Tie new events to those they come after, and judge those at once whose predecessor has ended already."""
        placed = {
            index: (keys[index], _key_before(new.after, keys[index]), new.after)
            for index, new in enumerate(news)
            if new.after and isinstance(added[index], Event)
        }
        numbers = store.rows_of(conn, {key for own, other, _ in placed.values() for key in (own, other)})
        links = [store.Link(numbers[own], numbers[other], after.on, after.input) for own, other, after in placed.values()]
        store.insert_links(conn, links)
        store.follow(conn, {link.predecessor for link in links})
        over = {row.id for row in before.values() if row.status in FINISHED}
        late = [link for link in links if link.predecessor in over]
        if not late:
            return
        self.outbox.write_judged(conn, chains.judge(conn, late, now))
        rows = store.find_all(conn, {own for own, *_ in placed.values()})
        for index, (own, *_) in placed.items():
            added[index] = self._event(conn, rows[own], news[index].application_id)

    def _identical(self, conn: Connection, new: NewEvent) -> Event | None:
        """Return the event that this one repeats, if there is one."""
        application = self.tenants.known(conn, new.application_id)
        row = store.find(conn, application.number, new.event_id, with_payload=False) if application else None
        if row is None or row.request_hash != new.request_hash or row.status == Status.CANCELLED:
            return None
        return self._event(conn, row, new.application_id)

    def _closed_ones(self, conn: Connection, news: Sequence[NewEvent], *, counting: bool = True) -> Closed:
        now = self.clock.now(conn)
        counts = Counter(new.application_id for new in news)
        return {name: self._closed(conn, self.tenants.known(conn, name), adds if counting else 0, now) for name, adds in counts.items()}

    def _closed(self, conn: Connection, application: Application | None, adds: int, now: int) -> ApplicationRefused | None:
        """Say why an application takes no events now, or not that many."""
        if application is None and not self._registers:
            return UnknownApplication()
        return self.limiter.refusal(conn, application, adds, now)

    def _refusal(self, new: NewEvent, application: Application | None, now: int) -> InvalidEvent | None:
        """Say what an event asks for that its application may not have."""
        limits = self.limiter.of(application)
        too_large = excess(new.payload, new.headers, limits)
        if isinstance(too_large, PayloadTooLarge):
            return too_large
        problems = list(too_large.problems) if too_large else []
        wait_ms = new.delay_ms if new.due_at is None else new.due_at - now
        if wait_ms is not None and wait_ms > limits.horizon_ms:
            field_name = "delay_ms" if new.due_at is None else "due_at"
            problems.append(Problem(field_name, f"must not be more than {_duration(limits.horizon_ms)} ahead"))
        return InvalidEvent(problems) if problems else None

    def _check_changes(self, asked: NewEvent, changes: Mapping[str, Any], application: Application | None, now: int) -> None:
        """Raise InvalidEvent for what is changed to what the application may not have. What it had before it may keep."""
        refusal = self._refusal(asked if "payload" in changes else replace(asked, payload=None), application, now)
        if refusal and (problems := [problem for problem in refusal.problems if problem.field in changes]):
            raise type(refusal)(problems)

    def _there(
        self, conn: Connection, news: Sequence[NewEvent], keys: Mapping[int, Key]
    ) -> tuple[dict[Key, tuple[Event, bytes]], dict[Key, int]]:
        """Return the events that have these keys already, with their fingerprints; and the rows of cancelled ones, which make room."""
        found = store.find_all(conn, set(keys.values()))
        names = {key[0]: news[index].application_id for index, key in keys.items()}
        cancelled = {key: row.id for key, row in found.items() if row.status == Status.CANCELLED}
        there = {key: (self._event(conn, row, names[key[0]]), row.request_hash) for key, row in found.items() if key not in cancelled}
        return there, cancelled

    # --- the steps of record and claim ---------------------------------------------------------------------------------

    def _record(self, conn: Connection, outcomes: Sequence[Outcome], now: int, *, looking: bool) -> Recorded:
        """Write how deliveries ended, but for those that somebody else has taken meanwhile.

        Nearly all were delivered and are still ours, so unless `looking` only the others are looked up first. The statement that
        completes them tells if that was wrong (BeginAnew): then all of it has to be done again, looking.
        """
        verdicts = [(outcome, self._retry.verdict(outcome)) for outcome in outcomes]
        unsure = [
            outcome for outcome, verdict in verdicts if looking or verdict.status is not Status.COMPLETED or outcome.delivery.followed
        ]
        owned = store.lock_claimed(conn, [outcome.delivery.id for outcome in unsure]) if unsure else {}
        lost = {_claim_of(outcome) for outcome in unsure if not _owns(owned.get(outcome.delivery.id), outcome.delivery)}
        kept = [(outcome, verdict) for outcome, verdict in verdicts if _claim_of(outcome) not in lost]
        followed = {id_ for id_, each in owned.items() if each.followed}
        self._complete(conn, [outcome for outcome, verdict in kept if verdict.status is Status.COMPLETED], followed, now)
        endings = [_ending(outcome, verdict, owned, now) for outcome, verdict in kept if verdict.status is not Status.COMPLETED]
        if endings:
            store.end(conn, endings, now)
        if kept:
            store.log_attempts(conn, [outcome for outcome, _ in kept])
            self.outbox.write_ended(conn, [outcome.delivery for outcome, _ in kept])
        for outcome, _ in kept:
            if outcome.output is not None:
                store.keep_output(conn, outcome.delivery.id, outcome.delivery.fence, outcome.output, now)
        judged = Judged()
        if followed:
            gone = {ending.id for ending in endings if ending.wake_at is None}
            gone |= {outcome.delivery.id for outcome, verdict in kept if verdict.status is Status.COMPLETED}
            judged = self._settle(conn, gone & followed, now)
        # The same fence, but no longer PROCESSING: an earlier COMMIT of ours whose answer was lost has written it.
        fenced = sum(1 for outcome in unsure if not _same_claim(owned.get(outcome.delivery.id), outcome.delivery))
        failed = [(outcome, verdict.reason) for outcome, verdict in kept if verdict.status is Status.FAILED]
        too_late = tuple((outcome.delivery, reason) for outcome, reason in failed if outcome.error is ErrorKind.TOO_LATE)
        others = tuple((outcome.delivery, reason) for outcome, reason in failed if outcome.error is not ErrorKind.TOO_LATE)
        return Recorded(len(kept), fenced, others, too_late, judged)

    def _complete(self, conn: Connection, outcomes: Iterable[Outcome], followed: Collection[int], now: int) -> None:
        """Write that these were delivered. Of those not known to be `followed` none may be, nor become so meanwhile."""

        def kind(outcome: Outcome) -> tuple[int, int, bool]:
            delivery = outcome.delivery
            return delivery.fence, outcome.status_code or 0, delivery.id in followed  # 0: of a type that knows no codes

        # Most have been claimed once, and answered with 200: they share their fence, and the code.
        for (fence, status_code, is_followed), same in groupby(sorted(outcomes, key=kind), kind):
            ids = [outcome.delivery.id for outcome in same]
            if store.complete(conn, ids, fence, status_code or None, now, followed=is_followed) != len(ids):
                raise database.BeginAnew

    def _settle(self, conn: Connection, ended: Collection[int], now: int) -> Judged:
        """Judge what comes after events that have just ended, and write of it to whoever is told of their lives."""
        judged = chains.settle(conn, ended, now)
        self.outbox.write_judged(conn, judged)
        return judged

    def _release_doubtful(self, conn: Connection, doubtful: Mapping[Doubt, Delivery]) -> Judged:
        there = store.lock_claimed(conn, [doubt.id for doubt in doubtful])
        leases = {(id_, owned.fence, owned.wake_at) for id_, owned in there.items()}
        mine = [delivery for doubt, delivery in doubtful.items() if doubt in leases]
        return self._release(conn, mine)[1] if mine else Judged()

    def _release(self, conn: Connection, deliveries: Sequence[Delivery]) -> tuple[int, Judged]:
        owned = store.lock_claimed(conn, [delivery.id for delivery in deliveries])
        mine = [delivery for delivery in deliveries if _owns(owned.get(delivery.id), delivery)]
        endings = [_put_back(delivery, cancelled=owned[delivery.id].cancel_requested) for delivery in mine]
        now = self.clock.now(conn)
        if endings:
            store.release(conn, endings, now)
            self.outbox.write_ended(conn, mine)
        over = [ending.id for ending in endings if ending.wake_at is None and owned[ending.id].followed]
        return len(endings), self._settle(conn, over, now) if over else Judged()

    def _claim(
        self, conn: Connection, applications: Sequence[int], limit: int, now: int, terms: Terms, hands: Hands, *, suspects: bool
    ) -> Claimed:
        self._refresh(conn)
        until = now + terms.look_ahead_ms
        lease_ms = terms.lease_ms(None)
        allowances = self.limiter.allowances(conn, applications, limit, hands, now, until, lease_ms)
        prioritized = [number for number in applications if (known := self.tenants.in_mind(number)) and known.prioritized]
        visit = Visit(applications, self._reaches, allowances, now, limit, suspects=suspects, prioritized=prioritized)
        while turn := visit.next_turn():
            if turn.by_priority:
                visit.note(turn, _lock_by_priority(conn, turn, visit.rows, now, until))
            elif turn.together:
                visit.note(turn, store.lock_due_of_many(conn, turn.floors, turn.lowest.wake_at, now, until, visit.room))
            else:
                visit.note(turn, store.lock_due(conn, turn.floors, now, until, turn.most))
        visit.fill()
        if suspects and (asked := visit.suspected()):
            visit.note_suspect(asked, store.lock_suspect(conn, asked, now))
        wakes = store.next_wakes(conn, visit.emptied, until) if visit.emptied else {}
        claimed = self._take(conn, visit.rows, now, terms, allowances)
        claimed.claimed_at = now
        taken = Counter(delivery.application for delivery in claimed.deliveries)
        held_until = now + max((terms.lease_ms(delivery.timeout_ms) for delivery in claimed.deliveries), default=0)
        self.limiter.settle(conn, allowances, taken, hands, now, held_until, lease_ms)
        used_up = {number for number, allowance in allowances.items() if taken[number] >= allowance.most < limit}
        again = {number: allowances[number].ask_again_at(now) for number in used_up}
        claimed.held_back = {number: at for number, at in again.items() if at is not None}
        claimed.reaches = visit.seen()
        unfinished = visit.unfinished()
        claimed.has_more = not unfinished.keys() <= used_up
        gone = {application for application in applications if self.tenants.in_mind(application) is None}  # their events are nobody's
        earlier = {number: at for number, at in claimed.postponed.items() if number in wakes and at < (wakes[number] or LATEST_INSTANT)}
        claimed.wakes = wakes | earlier | unfinished | dict.fromkeys(gone)
        return claimed

    def _take(self, conn: Connection, rows: Sequence[Row[Any]], now: int, terms: Terms, allowances: Mapping[int, Allowance]) -> Claimed:
        """Decide for each locked row what becomes of it, and write that in as few statements as there are kinds."""
        tenants = self.tenants.of_numbers(conn, {row.application for row in rows})
        lateness = {
            number: self.limiter.of(tenants[number]).max_lateness_ms for number in {row.application for row in rows} & tenants.keys()
        }
        found = [
            (_resolved(store.to_delivery(row, tenants[row.application], now, lateness[row.application]), tenants), row)
            for row in rows
            if row.application in lateness
        ]
        lost = [(delivery, row) for delivery, row in found if _is_lost(delivery)]
        if lost:
            store.log_attempts(conn, [_lost_attempt(delivery, terms) for delivery, _ in lost])
        unwanted = {row.id for _, row in lost if row.cancel_requested}
        dead = {row.id for _, row in lost if row.lost_leases + 1 >= LOST_LEASES} - unwanted
        if unwanted:
            store.bury(conn, unwanted, Status.CANCELLED, "worker lost: cancelled while it was being sent", now)
        if dead:
            store.bury(conn, dead, Status.FAILED, f"worker lost: {LOST_LEASES} in a row took it and never told how it ended", now)
        if unwanted or dead:
            self.outbox.write_ended(conn, [delivery for delivery, _ in lost])
        over = [row.id for _, row in lost if row.followed and row.id in unwanted | dead]
        judged = self._settle(conn, over, now) if over else Judged()
        held = self._hold_back(conn, [delivery for delivery, _ in found if not _is_lost(delivery)], tenants, now, terms)
        gone = unwanted | dead | held.wakes.keys()
        kept = [delivery for delivery, _ in found if delivery.id not in gone]
        taken = [(_paced(delivery, allowances), _is_lost(delivery)) for delivery in kept]
        waits = [wake_at - now for wake_at in held.wakes.values()]
        if allowances:
            waits += [paced.send_at - before.send_at for (paced, _), before in zip(taken, kept, strict=True) if paced is not before]

        def kind(pair: tuple[Delivery, bool]) -> tuple[int, bool]:
            return terms.lease_ms(pair[0].timeout_ms), pair[1]

        taken.sort(key=kind)
        for (lease_ms, is_lost), same in groupby(taken, key=kind):
            store.claim(conn, [delivery.id for delivery, _ in same], now + lease_ms, lost=is_lost)
        deliveries = [delivery for delivery, _ in taken]
        buried = len(unwanted) + len(dead)
        return Claimed(deliveries, buried=buried, queued=held.queued, postponed=held.first, waits=waits, judged=judged)

    def _hold_back(
        self, conn: Connection, deliveries: Sequence[Delivery], tenants: Mapping[int, Application], now: int, terms: Terms
    ) -> HeldBack:
        """Postpone what would go to a destination that is left alone, or for which enough is claimed. It is no attempt.

        One event for each open breaker goes out nevertheless, once its time has come: the probe.
        """
        widths = {number: self.limiter.of(tenants[number]).max_in_flight_per_host for number in {each.application for each in deliveries}}
        held = HeldBack()
        if not self.destinations.any_open and not any(widths.values()):
            return held
        for delivery in deliveries:
            place, most = place_of(delivery), widths[delivery.application]
            wake_at = self.destinations.put_off(place, most, held.ahead[place], now) if most is not None else None
            opened = self.destinations.opened(place)
            if wake_at is None and opened and not self._begins_probe(conn, place, opened, delivery, now, terms):
                wake_at = self.destinations.held_back_until(place, opened, now)
            if wake_at is not None:
                held.postpone(delivery, wake_at)
            elif most is not None:
                held.queue(delivery, place)
        if held.wakes:
            store.postpone(conn, held.wakes)
        return held

    def _begins_probe(self, conn: Connection, place: Place, opened: Opened, delivery: Delivery, now: int, terms: Terms) -> bool:
        until = now + terms.lease_ms(delivery.timeout_ms)
        if now < opened.retry_at or not store.take_probe(conn, place, opened, until):
            return False
        self.destinations.began_probe(place, opened._replace(retry_at=until, probing=True), delivery)
        return True

    def _note(self, outcomes: Sequence[Outcome]) -> list[Change]:
        """Take notice of how destinations fare; return what is to be written about it."""
        fresh = [outcome for outcome in outcomes if not self._noted or _claim_of(outcome) not in self._noted]
        return self.destinations.note([(outcome, may_pass(outcome)) for outcome in fresh], self.clock.estimate())

    def _tell_judged(self, judged: Judged) -> None:
        def name_of(number: int) -> str | None:
            application = self.tenants.in_mind(number)
            return application.application_id if application else None

        if judged:
            chains.tell(judged, name_of)

    def _tell_of(self, breakers: Sequence[Change]) -> None:
        for place, opened in breakers:
            application = self.tenants.in_mind(place.application)
            facts = {"application_id": application and application.application_id, "destination": place.destination}
            if opened is None:
                telemetry.emit("breaker closed", **facts)
            else:
                telemetry.emit("breaker opened", level="warning", **facts, reason=opened.reason, openings=opened.openings)

    def _refresh(self, conn: Connection) -> None:
        """Look once a second at what others may have changed: applications, and breakers."""
        self.tenants.refresh(conn)
        now = time.monotonic()
        if self.destinations.has_breakers and now - self._breakers_at >= FRESH_SECONDS:
            since = self.clock.now(conn) - BREAKER_MEMORY_MS
            if now - self._breakers_cleaned_at >= CLEANING_SECONDS:
                store.forget_breakers(conn, since)
                self._breakers_cleaned_at = now
            self.destinations.replace(store.open_breakers(conn, since))
            self._breakers_at = now

    # --- applications --------------------------------------------------------------------------------------------------

    def _known_number(self, conn: Connection, application_id: str) -> int:
        application = self.tenants.known(conn, application_id)
        if application is None:
            raise UnknownEvent
        return application.number

    def _event(self, conn: Connection, row: Row[Any], application_id: str, payload: bytes | None = None) -> Event:
        return store.to_event(row, application_id, self.clock.now(conn) - self._late_after_ms, payload)

    def _found(self, conn: Connection, application_id: str, event_id: str, *, with_payload: bool = False) -> Row[Any]:
        row = store.find(conn, self._known_number(conn, application_id), event_id, with_payload=with_payload)
        if row is None:
            raise UnknownEvent
        return row


def _up_to(most: int, rows: Sequence[Row[Any]], lengths: Mapping[int, int]) -> Sequence[Row[Any]]:
    """Return the first rows whose payloads are not too much together, the very first one in any case."""
    sizes = accumulate(lengths.get(row.id, 0) for row in rows)
    return rows[: max(1, sum(1 for size in sizes if size <= most))]


def _place(
    new: NewEvent, key: Key, there: dict[Key, tuple[Event, bytes]], before: Collection[Key], rows: list[dict[str, Any]], now: int
) -> Event | DuplicateEvent | InvalidEvent:
    """Put a new event among the rows to insert, unless its key is taken: in the database, or earlier in the same call; or what it
    comes after is neither here nor there.
    """
    row = store.new_row(new, key[0], now)
    if key in there:
        event, request_hash = there[key]
        return DuplicateEvent(event, identical=request_hash == row["request_hash"])
    if new.after and (other := _key_before(new.after, key)) not in there and other not in before:
        return InvalidEvent([Problem("after", f"there is no event {new.after.event_id!r} of this application")])
    event = _stored(new, row)
    there[key] = event, row["request_hash"]
    rows.append(row)
    return event


def _key_before(after: After | None, own: Key) -> Key:
    """Return the key of the event after which another one comes: it is of the same application."""
    assert after is not None
    return own[0], after.event_id


def _changed(event: Event, changes: Mapping[str, Any]) -> NewEvent:
    """Return what an event asks for once it is changed. Raises EventFinished, EventUnderWay, InvalidEvent."""
    if event.status is Status.PROCESSING:
        raise EventUnderWay(event)
    if event.status not in UNSENT:
        raise EventFinished(event)
    other_time = {"due_at": None, "delay_ms": None} if changes.keys() & {"due_at", "delay_ms"} else {}
    return replace(event.asked(), **{**other_time, **changes})


def _resolved(delivery: Delivery, tenants: Mapping[int, Application]) -> Delivery:
    return delivery if delivery.destination is None else plugins.resolved(delivery, tenants[delivery.application])


def _stored(new: NewEvent, row: Mapping[str, Any]) -> Event:
    return Event(
        application_id=new.application_id,
        event_id=new.event_id,
        status=Status.BLOCKED if new.after else Status.PENDING,
        due_at=row["due_at"],
        wake_at=None if new.after else row["wake_at"],
        attempts=0,
        cancel_requested=False,
        last_error=None,
        method=new.method,
        url=new.url,
        headers=new.headers,
        payload=new.payload,
        timeout_ms=new.timeout_ms,
        retry=new.retry,
        created_at=row["created_at"],
        finished_at=None,
        max_lateness_ms=new.max_lateness_ms,
        duration_ms=new.duration_ms,
        destination=new.destination,
        priority=new.priority,
        after=new.after,
        keep_output=new.keep_output,
    )


def _tell(recorded: Recorded) -> None:
    if recorded.fenced:
        telemetry.emit("outcomes fenced", level="warning", count=recorded.fenced)
    for fact, events in (("event failed", recorded.failed), ("event too late", recorded.too_late)):
        for delivery, reason in events:
            names = {"application_id": delivery.application_id, "event_id": delivery.event_id}
            telemetry.emit(fact, level="warning", **names, reason=reason)


def _paced(delivery: Delivery, allowances: Mapping[int, Allowance]) -> Delivery:
    """Put off a delivery to where it does not exceed its application's pace."""
    allowance = allowances.get(delivery.application)
    if allowance is None or not allowance.interval:
        return delivery
    send_at = allowance.begin_at(delivery.send_at)
    return delivery if send_at == delivery.send_at else replace(delivery, send_at=send_at)


def _duration(ms: int) -> str:
    return f"{ms // DAY_MS} days" if ms >= DAY_MS else f"{ms / 1000:g} s"


def _ending(outcome: Outcome, verdict: Verdict, owned: Mapping[int, store.Owned], now: int) -> Ending:
    """Say what becomes of an event that was not delivered."""
    delivery = outcome.delivery
    uncounted = 0 if verdict.counts else 1
    code = outcome.status_code if outcome.error is None else None  # an answer that broke off says nothing
    if verdict.wait_ms is None:
        return Ending(delivery.id, delivery.fence, verdict.status, None, verdict.reason, uncounted, code)
    if owned[delivery.id].cancel_requested:
        return Ending(delivery.id, delivery.fence, Status.CANCELLED, None, verdict.reason, uncounted, code)
    return Ending(delivery.id, delivery.fence, verdict.status, now + verdict.wait_ms, verdict.reason, uncounted, code)


def _doubt(delivery: Delivery, claimed_at: int, terms: Terms) -> Doubt:
    return Doubt(delivery.id, delivery.fence, claimed_at + terms.lease_ms(delivery.timeout_ms))


def _claim_of(outcome: Outcome) -> tuple[int, int]:
    """Two claims of one event may be recorded together, by a worker that has waited for its database for longer than a lease."""
    return outcome.delivery.id, outcome.delivery.fence


def _lock_by_priority(conn: Connection, turn: Turn, taken: Sequence[Row[Any]], now: int, until: int) -> list[Row[Any]]:
    """Lock those of an application's oldest due events that have the highest priority; the last place is for the very oldest one, so
    that nothing waits for ever. What others have locked is passed over, and so is what this claim has `taken` already.
    """
    ((application, most),) = turn.most.items()
    gone = {row.id for row in taken}
    window = [(id_, priority) for id_, priority in store.due_window(conn, application, now, until, WINDOW) if id_ not in gone]
    ranked = [id_ for id_, _ in sorted(window, key=lambda due: -due[1])]  # stable: of the same priority, the oldest first
    if window and (most > 1 or now // 1_000 % OLDEST_EVERY == 0) and ranked.index(oldest := window[0][0]) >= most:
        ranked.remove(oldest)
        ranked.insert(most - 1, oldest)
    locked: list[Row[Any]] = []
    while ranked and len(locked) < most:
        wanted = most - len(locked)
        locked += store.lock_chosen(conn, ranked[:wanted], now, until)
        ranked = ranked[wanted:]
    return locked


def _is_lost(delivery: Delivery) -> bool:
    """A claim finds an event PROCESSING only when the lease of its owner has run out."""
    return delivery.previous is Status.PROCESSING


def _lost_attempt(delivery: Delivery, terms: Terms) -> Outcome:
    """Say for the log how the attempt before this delivery ended; when it began follows from the lease it was given."""
    lease_ms = terms.lease_ms(delivery.timeout_ms)
    before = replace(delivery, fence=delivery.fence - 1, number=delivery.number - 1)
    detail = "its worker was gone before the outcome was known"
    return Outcome(before, delivery.send_at - lease_ms, lease_ms, error=ErrorKind.WORKER_LOST, detail=detail)


def _same_claim(owned: store.Owned | None, delivery: Delivery) -> bool:
    return owned is not None and owned.fence == delivery.fence


def _owns(owned: store.Owned | None, delivery: Delivery) -> bool:
    return owned is not None and _same_claim(owned, delivery) and owned.status is Status.PROCESSING


def _put_back(delivery: Delivery, *, cancelled: bool) -> Ending:
    if cancelled:
        return Ending(delivery.id, delivery.fence, Status.CANCELLED, None, None)
    status = delivery.previous if delivery.previous in WAITING else Status.PENDING
    return Ending(delivery.id, delivery.fence, status, delivery.send_at, None)
