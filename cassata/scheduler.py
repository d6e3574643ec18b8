"""The whole life of an event, in one room: each method of Scheduler is one use-case and one transaction."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Row
from sqlalchemy.exc import IntegrityError

from cassata import config, database, store, telemetry
from cassata.courier.retry import RetryPolicy, Verdict
from cassata.errors import (
    DatabaseUnavailable,
    DuplicateEvent,
    EventFinished,
    InvalidEvent,
    PayloadTooLarge,
    Problem,
    UnknownApplication,
    UnknownEvent,
)
from cassata.model import LATEST_INSTANT, WAITING, Attempt, Delivery, ErrorKind, Event, Limits, NewEvent, Outcome, Status
from cassata.store import BOTTOM, Ending, Floor
from cassata.tenants import Tenants
from cassata.vault import Vault

T = TypeVar("T")
Key = tuple[int, str]

LOST_LEASES = 3
"""So many leases in a row without an outcome end an event: it may well be what kills its workers. After the second one it is
sent by itself, so that nothing else is lost with it for the third time."""

FLOOR_LAG_MS = 250
"""A claim looks this far behind where it has been: an add or a retry may become visible that long after its wake_at."""
BOTTOM_EVERY_MS = 1_000
"""And this often from the very beginning, for what came even later, or was locked by somebody who then let go of it."""
VISITS = 33
"""So many applications a claim visits before it has its fill, if each has enough: fairness is a matter of rotation."""


class Cursor(NamedTuple):
    """A place in a list of events."""

    due_at: int
    id: int


class Page(NamedTuple):
    """Some events by due time, without payloads, and where the next ones begin (None: there are no more)."""

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


class Reach(NamedTuple):
    """How far claims have come in the index of an application; whether the last one left something there; and when one last
    began at its very bottom, or found no suspect (ms).

    Below the floor lie only entries that earlier claims have left and that purge has not yet removed: stepping over them is
    what makes a claim dear.
    """

    floor: Floor = BOTTOM
    has_more: bool = False
    bottom_at: int = 0
    no_suspect_at: int = 0

    def start(self, now: int) -> Floor:
        """Return where to begin to look."""
        if _is_long_ago(self.bottom_at, now):
            return BOTTOM
        return min(self.floor, Floor(max(0, now - FLOOR_LAG_MS), 0))

    def visited(self, now: int, *, from_bottom: bool, found: bool, has_more: bool) -> Reach:
        """Return what is known after a claim."""
        return Reach(
            self.floor,
            has_more,
            now if from_bottom else self.bottom_at,
            now if found and self.is_new else self.no_suspect_at,  # the first time only if there is nothing else
        )

    @property
    def is_new(self) -> bool:
        return self.bottom_at == 0


def _is_long_ago(instant: int, now: int) -> bool:
    return not 0 <= now - instant < BOTTOM_EVERY_MS  # a clock may be set back, too


@dataclass(slots=True)
class Claimed:
    """What one claim brought. `wakes` says when each application that was looked at has more (None: nothing known), `has_more`
    whether one of them has more already.
    """

    deliveries: list[Delivery] = field(default_factory=list)
    wakes: dict[int, int | None] = field(default_factory=dict)
    reaches: dict[int, Reach] = field(default_factory=dict)
    buried: int = 0
    has_more: bool = False


class Recorded(NamedTuple):
    """How many outcomes were written, how many came too late (their lease had been taken by somebody else), and which events failed."""

    kept: int = 0
    fenced: int = 0
    failed: tuple[tuple[Delivery, str | None], ...] = ()


class Scheduler:
    """Adds, cancels, claims and records events in one database. Safe to share between threads."""

    def __init__(
        self,
        engines: database.Engines,
        *,
        limits: Limits = Limits(),  # noqa: B008
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008
        clock: database.Clock | None = None,
        vault: Vault = Vault(),  # noqa: B008
        registers: bool = True,
    ) -> None:
        self.clock = clock or database.clock_of(engines)
        self.tenants = Tenants(engines, self.clock, vault)
        self._limits = limits
        self._registers = registers
        self._engines = engines
        self._transactions = database.Transactions(engines)
        self._retry = retry
        # What a COMMIT whose answer was lost may have claimed, by row and fence: to be put back as soon as may be.
        self._doubtful: dict[tuple[int, int], Delivery] = {}
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
        registers: bool = True,
    ) -> Scheduler:
        """Connect, and check that the database and its tables can be used (unless told that somebody else has).

        `registers` says whether the first add of an application makes it.
        Raises ConfigError for a bad url, DatabaseUnavailable, and DatabaseUnfit or one of its kinds (TablesMissing, ...).
        """
        settings = settings or config.Database()
        vault = Vault(settings.secrets_key_file)
        engines = database.open_engines(url, settings, pool_size=pool_size)
        scheduler = cls(engines, limits=limits, retry=retry, vault=vault, registers=registers)
        try:
            with database.explained():
                if create_tables:
                    database.make_tables(engines)
                if check:
                    database.check(engines, limits.payload_bytes)
                    scheduler.tenants.give_secrets()
        except BaseException:
            scheduler.close()
            raise
        return scheduler

    def close(self) -> None:
        self._engines.dispose()

    def check_ready(self) -> None:
        """Raise DatabaseUnavailable or one of DatabaseUnfit's kinds unless events can be added now."""
        self._transactions.read(database.check_version)

    # --- what clients do ---------------------------------------------------------------------------------------------

    def add(self, new: NewEvent, *, connection: Connection | None = None) -> Event:
        """Store one event. Given a connection (to the same database), it becomes part of the caller's own transaction.

        Raises DuplicateEvent, InvalidEvent (PayloadTooLarge), DatabaseUnavailable. After the last one the same event may be
        added again without harm; the caller's own transaction has to be rolled back and begun anew first.
        """
        added = self.add_all([new], connection=connection)[0]
        if isinstance(added, Exception):
            raise added
        return added

    def put(self, new: NewEvent) -> tuple[Event, bool]:
        """Store one event unless it is stored already: return it, and whether it is new. Raises as `add` does."""
        try:
            return self.add(new), True
        except DuplicateEvent as duplicate:
            if duplicate.identical:
                return duplicate.event, False
            raise

    def add_all(self, news: Sequence[NewEvent], *, connection: Connection | None = None) -> list[Event | DuplicateEvent | InvalidEvent]:
        """Store many events in one transaction; return for each, in order, what became of it."""
        if connection is not None:
            return self._add_within(connection, news)
        if len(news) == 1 and self.tenants.is_in_mind(news[0].application_id):
            return [self._add_alone(news[0])]
        return self._add_together(news)

    def cancel(self, application_id: str, event_id: str) -> Event:
        """Cancel an event. While it is being sent, only further attempts can be: it stays PROCESSING, cancel_requested.

        To cancel what is cancelled is no error. Raises UnknownEvent, EventFinished.
        """

        def work(conn: Connection, _tries: int) -> Event:
            application = self._known_number(conn, application_id)
            now = self.clock.now(conn)
            if not store.cancel_waiting(conn, application, event_id, now):
                store.request_cancel(conn, application, event_id)
            return store.to_event(self._found(conn, application_id, event_id), application_id)

        event = self._transactions.write(work)
        if event.status in {Status.COMPLETED, Status.FAILED}:
            raise EventFinished(event)
        return event

    def status(self, application_id: str, event_id: str) -> Event:
        """Return an event without its payload. Raises UnknownEvent, also for one that was cancelled."""
        event = self._transactions.read(lambda conn: store.to_event(self._found(conn, application_id, event_id), application_id))
        if event.status is Status.CANCELLED:
            raise UnknownEvent
        return event

    def event(self, application_id: str, event_id: str) -> tuple[Event, list[Attempt]]:
        """Return an event, cancelled or not, and the log of its attempts, oldest first. Raises UnknownEvent."""

        def work(conn: Connection) -> tuple[Event, list[Attempt]]:
            row = self._found(conn, application_id, event_id, with_payload=True)
            return store.to_event(row, application_id), store.attempts_of(conn, row.id)

        return self._transactions.read(work)

    def events(
        self,
        application_id: str,
        *,
        status: Status | None = None,
        due_from: int | None = None,
        due_until: int | None = None,
        after: Cursor | None = None,
        limit: int = 100,
    ) -> Page:
        """List an application's events by due time: `due_from` is included, `due_until` is not (ms)."""

        def work(conn: Connection) -> Page:
            application = self.tenants.known(conn, application_id)
            if application is None:
                return Page([], None)
            rows = store.page(conn, application.number, status=status, due_from=due_from, due_until=due_until, after=after, limit=limit + 1)
            shown = rows[:limit]
            more = Cursor(shown[-1].due_at, shown[-1].id) if len(rows) > limit else None
            return Page([store.to_event(row, application_id) for row in shown], more)

        return self._transactions.read(work)

    # --- what workers do ---------------------------------------------------------------------------------------------

    def agenda(self, within_ms: int = LATEST_INSTANT) -> dict[int, int]:
        """Return for every application (by its number) with something to do within that time when it may next be looked at (ms)."""
        return self._transactions.read(lambda conn: store.agenda(conn, self.clock.now(conn) + within_ms))

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
        self, outcomes: Sequence[Outcome], applications: Sequence[int], limit: int, terms: Terms, *, suspects: bool = True
    ) -> tuple[Recorded, Claimed]:
        """Write how deliveries ended and claim up to `limit` more, shared out among the applications, in one transaction.

        At most one of what it claims is a suspect, none if `suspects` is false: a process should have one at a time.

        Nothing of it may be sent before this has returned: on a cluster a claim is decided at COMMIT. If it raises, what it
        claimed is put back by the next call, or is due again when its lease ends; the outcomes may be recorded again.
        """
        doubtful, claimed = dict(self._doubtful), Claimed()

        def work(conn: Connection, tries: int) -> Recorded:
            nonlocal claimed
            now = self.clock.now(conn)
            if doubtful:
                self._release(conn, list(doubtful.values()))
            recorded = self._record(conn, outcomes, now, looking=tries > 1) if outcomes else Recorded()
            claimed = self._claim(conn, applications, limit, now, terms, suspects=suspects) if applications and limit > 0 else Claimed()
            return recorded

        try:
            recorded = self._transactions.write(work)
        except DatabaseUnavailable:
            self._doubtful.update({(delivery.id, delivery.fence): delivery for delivery in claimed.deliveries})
            raise
        for claim in doubtful:
            self._doubtful.pop(claim, None)
        self._reaches.update(claimed.reaches)  # only now: what a rolled back claim took is still there
        if recorded.fenced:
            telemetry.emit("outcomes fenced", level="warning", count=recorded.fenced)
        for delivery, reason in recorded.failed:
            names = {"application_id": delivery.application_id, "event_id": delivery.event_id}
            telemetry.emit("event failed", level="warning", **names, reason=reason)
        return recorded, claimed

    def release(self, deliveries: Sequence[Delivery]) -> int:
        """Put back deliveries that were claimed and never begun; return how many still were ours."""
        return self._transactions.write(lambda conn, _tries: self._release(conn, deliveries))

    # --- the steps of add ----------------------------------------------------------------------------------------------

    def _add_alone(self, new: NewEvent) -> Event | DuplicateEvent | InvalidEvent:
        """Insert one event of a known application by a statement that is a transaction of its own: one round trip, not two.

        What does not go that way goes the usual one, which also tells what is wrong.
        """
        stored: Event | None = None
        try:
            with database.explained(), self._engines.read.connect() as conn:
                now = self.clock.now(conn)
                application = self.tenants.known(conn, new.application_id)
                if application is None:
                    raise UnknownApplication
                if refusal := self._refusal(new, now):
                    return refusal
                row = store.new_row(new, application.number, now)
                stored = _stored(new, row)
                store.insert_events(conn, [row])
                return stored
        except IntegrityError:
            return self._add_together([new])[0]
        except DatabaseUnavailable as error:
            if not (error.__cause__ and (database.is_stale(error.__cause__) or database.is_conflict(error.__cause__))):
                raise
            added = self._add_together([new])[0]
            # The answer may have been lost after the row was stored: then the duplicate that was found is this very one.
            is_ours = isinstance(added, DuplicateEvent) and added.identical and added.event.created_at == (stored and stored.created_at)
            return stored if stored and is_ours else added

    def _add_together(self, news: Sequence[NewEvent]) -> list[Event | DuplicateEvent | InvalidEvent]:
        numbers: dict[str, int] = {}

        def work(conn: Connection, tries: int) -> list[Event | DuplicateEvent | InvalidEvent]:
            numbers.clear()
            # At first in the hope that nothing is there yet: the unique key tells, and the second try looks before it inserts.
            return self._add(conn, news, numbers, looking=tries > 1)

        try:
            added = self._transactions.write(work, retry_duplicates=True)
        except IntegrityError as error:
            raise DatabaseUnavailable("others add and cancel the same events at this moment: try again") from error
        return added

    def _add(
        self, conn: Connection, news: Sequence[NewEvent], numbers: dict[str, int], *, looking: bool
    ) -> list[Event | DuplicateEvent | InvalidEvent]:
        now = self.clock.now(conn)
        refused = {index: refusal for index, new in enumerate(news) if (refusal := self._refusal(new, now))}
        keys = {
            index: (self._number_for(conn, new.application_id, numbers, now), new.event_id)
            for index, new in enumerate(news)
            if index not in refused
        }
        there = self._there(conn, news, keys) if looking and keys else {}
        rows: list[dict[str, Any]] = []
        added = [refused.get(index) or _place(new, keys[index], there, rows, now) for index, new in enumerate(news)]
        if rows:
            store.insert_events(conn, rows)
        return added

    def _add_within(self, conn: Connection, news: Sequence[NewEvent]) -> list[Event | DuplicateEvent | InvalidEvent]:
        """Add inside a transaction that is not ours to begin again. A failed INSERT leaves it as it was, so look once more."""
        with database.explained():
            try:
                return self._add(conn, news, {}, looking=True)
            except IntegrityError:
                try:
                    return self._add(conn, news, {}, looking=True)
                except IntegrityError as error:
                    raise DatabaseUnavailable("somebody else adds the same at this moment: begin the transaction anew") from error

    def _refusal(self, new: NewEvent, now: int) -> InvalidEvent | None:
        size = len(new.payload or b"")
        if size > self._limits.payload_bytes:
            return PayloadTooLarge([Problem("payload", f"is {size} bytes long; at most {self._limits.payload_bytes} are accepted")])
        problems = []
        header_bytes = sum(len(name) + len(value) for name, value in new.headers)
        if header_bytes > self._limits.header_bytes:
            problems.append(Problem("headers", f"are {header_bytes} bytes long together; at most {self._limits.header_bytes} are accepted"))
        wait_ms = new.delay_ms if new.due_at is None else new.due_at - now
        if wait_ms is not None and wait_ms > self._limits.horizon_ms:
            days = self._limits.horizon_ms // 86_400_000
            problems.append(Problem("delay_ms" if new.due_at is None else "due_at", f"must not be more than {days} days ahead"))
        return InvalidEvent(problems) if problems else None

    def _number_for(self, conn: Connection, application_id: str, numbers: dict[str, int], now: int) -> int:
        """Return the application's number, registering it if need be: `numbers` holds what this transaction has seen."""
        if application_id not in numbers:
            known = self.tenants.known(conn, application_id)
            numbers[application_id] = known.number if known else self.tenants.register(conn, application_id, now)
        return numbers[application_id]

    def _there(self, conn: Connection, news: Sequence[NewEvent], keys: Mapping[int, Key]) -> dict[Key, tuple[Event, bytes]]:
        """Return the events that have these keys already, with their fingerprints; cancelled ones make room."""
        found = store.find_all(conn, set(keys.values()))
        cancelled = [row.id for row in found.values() if row.status == Status.CANCELLED]
        if cancelled:
            store.remove_cancelled(conn, cancelled)
        names = {key[0]: news[index].application_id for index, key in keys.items()}
        return {key: (store.to_event(row, names[key[0]]), row.request_hash) for key, row in found.items() if row.status != Status.CANCELLED}

    # --- the steps of record and claim ---------------------------------------------------------------------------------

    def _record(self, conn: Connection, outcomes: Sequence[Outcome], now: int, *, looking: bool) -> Recorded:
        """Write how deliveries ended, but for those that somebody else has taken meanwhile.

        Nearly all were delivered and are still ours, so unless `looking` only the others are looked up first. The statement that
        completes them tells if that was wrong (BeginAnew): then all of it has to be done again, looking.
        """
        verdicts = [(outcome, self._retry.verdict(outcome)) for outcome in outcomes]
        unsure = [outcome for outcome, verdict in verdicts if looking or verdict.status is not Status.COMPLETED]
        owned = store.lock_claimed(conn, [outcome.delivery.id for outcome in unsure]) if unsure else {}
        lost = {_claim_of(outcome) for outcome in unsure if not _owns(owned.get(outcome.delivery.id), outcome.delivery)}
        kept = [(outcome, verdict) for outcome, verdict in verdicts if _claim_of(outcome) not in lost]
        self._complete(conn, [outcome.delivery for outcome, verdict in kept if verdict.status is Status.COMPLETED], now)
        endings = [_ending(outcome, verdict, owned, now) for outcome, verdict in kept if verdict.status is not Status.COMPLETED]
        if endings:
            store.end(conn, endings, now)
        if kept:
            store.log_attempts(conn, [outcome for outcome, _ in kept])
        # The same fence, but no longer PROCESSING: an earlier COMMIT of ours whose answer was lost has written it.
        fenced = sum(1 for outcome in unsure if not _same_claim(owned.get(outcome.delivery.id), outcome.delivery))
        failed = tuple((outcome.delivery, verdict.reason) for outcome, verdict in kept if verdict.status is Status.FAILED)
        return Recorded(len(kept), fenced, failed)

    def _complete(self, conn: Connection, deliveries: Iterable[Delivery], now: int) -> None:
        for fence, same in groupby(sorted(deliveries, key=_fence), _fence):  # most have been claimed once, and share their fence
            ids = [delivery.id for delivery in same]
            if store.complete(conn, ids, fence, now) != len(ids):
                raise database.BeginAnew

    def _release(self, conn: Connection, deliveries: Sequence[Delivery]) -> int:
        owned = store.lock_claimed(conn, [delivery.id for delivery in deliveries])
        mine = [delivery for delivery in deliveries if _owns(owned.get(delivery.id), delivery)]
        endings = [_put_back(delivery, cancelled=owned[delivery.id].cancel_requested) for delivery in mine]
        if endings:
            store.release(conn, endings, self.clock.now(conn))
        return len(endings)

    def _claim(self, conn: Connection, applications: Sequence[int], limit: int, now: int, terms: Terms, *, suspects: bool) -> Claimed:
        visit = _Visit(applications, self._reaches, now, limit, suspects=suspects)
        until = now + terms.look_ahead_ms
        while turn := visit.next_turn():
            if turn.together:
                visit.note(turn, store.lock_due_of_many(conn, turn.floors, turn.lowest.wake_at, now, until, visit.room))
            else:
                visit.note(turn, store.lock_due(conn, turn.floors, now, until, turn.share))
        visit.fill()
        if suspects and (asked := visit.suspected()):
            visit.note_suspect(asked, store.lock_suspect(conn, asked, now))
        wakes = store.next_wakes(conn, visit.emptied, until) if visit.emptied else {}
        claimed = self._take(conn, visit.rows, now, terms)
        claimed.reaches = visit.seen()
        unfinished = visit.unfinished()
        claimed.has_more = bool(unfinished)
        gone = {row.application for row in visit.rows if self.tenants.in_mind(row.application) is None}  # their events are nobody's
        claimed.wakes = wakes | unfinished | dict.fromkeys(gone)
        return claimed

    def _take(self, conn: Connection, rows: Sequence[Row[Any]], now: int, terms: Terms) -> Claimed:
        """Decide for each locked row what becomes of it, and write that in as few statements as there are kinds."""
        tenants = self.tenants.of_numbers(conn, {row.application for row in rows})
        found = [(store.to_delivery(row, tenants[row.application]), row) for row in rows if row.application in tenants]
        lost = [(delivery, row) for delivery, row in found if _is_lost(row)]
        if lost:
            store.log_attempts(conn, [_lost_attempt(delivery, terms) for delivery, _ in lost])
        unwanted = {row.id for _, row in lost if row.cancel_requested}
        dead = {row.id for _, row in lost if row.lost_leases + 1 >= LOST_LEASES} - unwanted
        if unwanted:
            store.bury(conn, unwanted, Status.CANCELLED, "worker lost: cancelled while it was being sent", now)
        if dead:
            store.bury(conn, dead, Status.FAILED, f"worker lost: {LOST_LEASES} in a row took it and never told how it ended", now)
        taken = [(delivery, _is_lost(row)) for delivery, row in found if row.id not in unwanted | dead]

        def kind(pair: tuple[Delivery, bool]) -> tuple[int, bool]:
            return terms.lease_ms(pair[0].timeout_ms), pair[1]

        taken.sort(key=kind)
        for (lease_ms, is_lost), same in groupby(taken, key=kind):
            store.claim(conn, [delivery.id for delivery, _ in same], now + lease_ms, lost=is_lost)
        return Claimed([delivery for delivery, _ in taken], buried=len(unwanted) + len(dead))

    # --- applications --------------------------------------------------------------------------------------------------

    def _known_number(self, conn: Connection, application_id: str) -> int:
        application = self.tenants.known(conn, application_id)
        if application is None:
            raise UnknownEvent
        return application.number

    def _found(self, conn: Connection, application_id: str, event_id: str, *, with_payload: bool = False) -> Row[Any]:
        row = store.find(conn, self._known_number(conn, application_id), event_id, with_payload=with_payload)
        if row is None:
            raise UnknownEvent
        return row


class _Turn(NamedTuple):
    """Who is asked by one statement, each from where on; what is each one's share; and whether they are asked together."""

    floors: dict[int, Floor]
    share: int
    together: bool

    @property
    def lowest(self) -> Floor:
        return min(self.floors.values())


class _Visit:
    """The way of one claim through the applications: everybody gets a fair share; what some leave goes to those who have more."""

    def __init__(self, applications: Collection[int], reaches: Mapping[int, Reach], now: int, limit: int, *, suspects: bool) -> None:
        self.rows: list[Row[Any]] = []  # to be claimed
        self.emptied: list[int] = []
        self._reaches = {application: reaches.get(application, Reach()) for application in applications}
        self._visited: set[int] = set()
        self._waiting = deque(applications)  # some of them again: those that have more
        self._rest: dict[int, list[Row[Any]]] = {}  # locked beyond the share of those who were asked together
        self._now = now
        self._most = limit
        # Now and then a place is kept for a suspect, which would otherwise wait for as long as there is a backlog.
        keeps_place = suspects and limit > 1 and any(not reach.is_new and self._may_be_suspected(reach) for reach in self._reaches.values())
        self._limit = limit - 1 if keeps_place else limit

    @property
    def room(self) -> int:
        return self._limit - len(self.rows)

    def next_turn(self) -> _Turn | None:
        """Return who is asked next: as many as fit of those that had more the last time, one by one; or the others, together.

        None if nobody is left, or so little room that it is not worth a statement.
        """
        if not self._waiting or self.room < max(1, self._limit // 4):
            return None
        first = self._waiting[0]
        had_more = self._reaches[first].has_more
        together = not had_more and len(self._waiting) > 1
        share = max(1, self.room // len(self._waiting), min(self.room, self._limit // VISITS))
        alike = [application for application in self._waiting if self._reaches[application].has_more == had_more]
        # Together they are read in the order of their numbers, for as long as there is room: whose turn it is must be reached.
        turn = [application for application in alike if application >= first] if together else alike[: self.room // share]
        asked = set(turn)
        self._waiting = deque(application for application in self._waiting if application not in asked)
        return _Turn({application: self._start(application) for application in turn}, share, together)

    def _start(self, application: int) -> Floor:
        """Go on exactly where this claim has come to: what it has locked looks unclaimed until the end."""
        reach = self._reaches[application]
        return reach.floor if application in self._visited else reach.start(self._now)

    def note(self, turn: _Turn, found: Sequence[Row[Any]]) -> None:
        """Take the share of each, and see who may have more."""
        of: dict[int, list[Row[Any]]] = {application: [] for application in turn.floors}
        for row in found:
            of[row.application].append(row)
        last = found[-1].application if turn.together and len(found) == self.room else None
        for application, rows in of.items():
            reach = self._reaches[application]
            if last is not None and application > last:  # not reached, since others have much: it is asked by itself
                self._reaches[application] = reach._replace(has_more=True)
                self._waiting.append(application)
                continue
            has_more = len(rows) > turn.share or application == last or (not turn.together and len(rows) == turn.share)
            from_bottom = (turn.lowest if turn.together else turn.floors[application]) == BOTTOM
            self._reaches[application] = reach.visited(self._now, from_bottom=from_bottom, found=bool(rows), has_more=has_more)
            self._visited.add(application)
            self._take(application, rows[: turn.share])
            if not has_more:
                self.emptied.append(application)
            elif turn.together:
                self._rest[application] = rows[turn.share :]
            else:
                self._waiting.append(application)

    def fill(self) -> None:
        """Give the places that are left to those who have more."""
        for application, rows in self._rest.items():
            self._take(application, rows[: self.room])

    def _take(self, application: int, rows: Sequence[Row[Any]]) -> None:
        if rows:
            self.rows += rows
            furthest = max(Floor(row.wake_at, row.id) for row in rows)
            self._reaches[application] = self._reaches[application]._replace(floor=furthest)

    def _may_be_suspected(self, reach: Reach) -> bool:
        return _is_long_ago(reach.no_suspect_at, self._now)

    def suspected(self) -> list[int]:
        """Return who is to be asked for suspects: nobody who had none less than a second ago."""
        if len(self.rows) == self._most:
            return []
        return [application for application in self._visited if self._may_be_suspected(self._reaches[application])]

    def note_suspect(self, asked: Iterable[int], found: Sequence[Row[Any]]) -> None:
        self.rows += found
        if not found:
            for application in asked:
                self._reaches[application] = self._reaches[application]._replace(no_suspect_at=self._now)

    def seen(self) -> dict[int, Reach]:
        """Return what is known of those that were visited."""
        return {application: self._reaches[application] for application in self._visited}

    def unfinished(self) -> dict[int, int | None]:
        """Say when those may be looked at again that have more: at once."""
        visited = (application for application in self._waiting if application in self._visited)
        return {application: self._reaches[application].floor.wake_at for application in (*visited, *self._rest)}


def _place(new: NewEvent, key: Key, there: dict[Key, tuple[Event, bytes]], rows: list[dict[str, Any]], now: int) -> Event | DuplicateEvent:
    """Put a new event among the rows to insert, unless its key is taken: in the database, or earlier in the same call."""
    row = store.new_row(new, key[0], now)
    if key in there:
        event, request_hash = there[key]
        return DuplicateEvent(event, identical=request_hash == row["request_hash"])
    event = _stored(new, row)
    there[key] = event, row["request_hash"]
    rows.append(row)
    return event


def _stored(new: NewEvent, row: Mapping[str, Any]) -> Event:
    return Event(
        application_id=new.application_id,
        event_id=new.event_id,
        status=Status.PENDING,
        due_at=row["due_at"],
        wake_at=row["wake_at"],
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
    )


def _ending(outcome: Outcome, verdict: Verdict, owned: Mapping[int, store.Owned], now: int) -> Ending:
    """Say what becomes of an event that was not delivered."""
    delivery = outcome.delivery
    if verdict.wait_ms is None:
        return Ending(delivery.id, delivery.fence, verdict.status, None, verdict.reason)
    if owned[delivery.id].cancel_requested:
        return Ending(delivery.id, delivery.fence, Status.CANCELLED, None, verdict.reason)
    return Ending(delivery.id, delivery.fence, verdict.status, now + verdict.wait_ms, verdict.reason)


def _claim_of(outcome: Outcome) -> tuple[int, int]:
    """Two claims of one event may be recorded together, by a worker that has waited for its database for longer than a lease."""
    return outcome.delivery.id, outcome.delivery.fence


def _fence(delivery: Delivery) -> int:
    return delivery.fence


def _is_lost(row: Any) -> bool:
    """A claim finds an event PROCESSING only when the lease of its owner has run out."""
    return bool(row.status == Status.PROCESSING)


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
