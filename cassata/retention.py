"""For how long what has ended is kept, and its removal, in small steps: each step is a transaction of its own.

A pass goes through the events of each application in the order in which they were due, up to what has been due for long enough, and
has its place in memory only: whoever is killed in the middle of it begins anew, and finds that the first part is done. An event that
has ended is as old as its end or, if that is later, the instant at which it was due.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from sqlalchemy import Connection

from cassata import database, store, telemetry
from cassata.model import Cursor, Status
from cassata.store import Aged

DAY_MS = 86_400_000
EXAMINED = 1_000
"""So many events are looked at in a step; what of them is to go is locked and removed in parts."""
REMOVED = 250
"""So many rows one transaction removes at most: what it has locked, nobody waits for longer than some milliseconds."""
PASS_MS = 3_600_000
"""So often what has become too old is removed."""
WHOLE_PASSES = 24
"""One pass in so many looks at everything that is old; the others at what has become too old since the one before."""
SLACK_MS = 2 * PASS_MS
"""What ended no later than this after it was due is found by every pass; the rest by those that look at everything."""


@dataclass(frozen=True, slots=True)
class Retention:
    """For how long events are kept once they have ended, by how they did, in ms; None: for ever.

    The logs of their attempts, and their payloads, may go before they do.
    """

    completed_ms: int | None = None
    failed_ms: int | None = None
    cancelled_ms: int | None = None
    attempts_ms: int | None = None
    payload_ms: int | None = None

    @property
    def ages(self) -> set[int]:
        """Say at which ages something goes (ms)."""
        everything = (self.completed_ms, self.failed_ms, self.cancelled_ms, self.attempts_ms, self.payload_ms)
        return {ms for ms in everything if ms is not None}

    def within(self, kept_ms: int | None) -> Retention:
        """Return what holds for an application that has what has ended kept for so long (None: it says nothing)."""
        return self if kept_ms is None else replace(self, completed_ms=kept_ms, failed_ms=kept_ms, cancelled_ms=kept_ms)

    def of(self, status: Status) -> int | None:
        return {Status.COMPLETED: self.completed_ms, Status.FAILED: self.failed_ms, Status.CANCELLED: self.cancelled_ms}.get(status)


@dataclass(slots=True)
class Pruned:
    """How many events, logs and payloads were removed, or would be."""

    examined: int = 0
    events: int = 0
    attempts: int = 0
    payloads: int = 0

    @property
    def changed(self) -> int:
        return self.events + self.attempts + self.payloads

    def add(self, other: Pruned) -> None:
        self.examined += other.examined
        self.events += other.events
        self.attempts += other.attempts
        self.payloads += other.payloads


class Stretch(NamedTuple):
    """The events of an application that were due between two instants (ms), and for how long they are kept."""

    application: int
    begin: int
    end: int
    kept: Retention


@dataclass(slots=True)
class Doomed:
    """What is to become of some events: each is named once."""

    events: list[int] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    payloads: list[int] = field(default_factory=list)

    def all(self) -> list[int]:
        return [*self.events, *{*self.attempts, *self.payloads}]


class Pruning:
    """Passes over one database. Not to be shared between threads; several at once do no harm, but each does the work of all."""

    def __init__(self, engines: database.Engines, clock: database.Clock, retention: Retention, *, dry_run: bool = False) -> None:
        self._transactions = database.Transactions(engines)
        self._clock = clock
        self._retention = retention
        self._dry_run = dry_run
        self._passes = 0
        self._began_at = 0  # the last pass (ms)
        self._stretches: list[Stretch] = []  # that are still to be seen to, the first one last
        self._place: Cursor | None = None  # how far it has come in that
        self.total = Pruned()  # of this pass

    @property
    def under_way(self) -> bool:
        return bool(self._stretches)

    def begin(self) -> None:
        """Begin a pass. Nothing is under way then if nothing is ever to be removed."""
        now = self._transactions.read(self._clock.now)
        applications = self._transactions.read(store.kept_by_application)
        stretches = (self._stretches_of(number, self._retention.within(own), now) for number, own in reversed(applications))
        self._stretches = [stretch for some in stretches for stretch in some]
        self._passes += 1
        self._began_at = now
        self._place = None
        self.total = Pruned()

    def _stretches_of(self, application: int, kept: Retention, now: int) -> list[Stretch]:
        return [Stretch(application, begin, end, kept) for begin, end in self._ranges(kept.ages, now) if end > begin]

    def _ranges(self, ages: set[int], now: int) -> list[tuple[int, int]]:
        if not ages:
            return []
        if self._passes % WHOLE_PASSES == 0:
            return [(0, now - min(ages))]
        return [(max(0, self._began_at - age - SLACK_MS), now - age) for age in sorted(ages)]

    def step(self) -> Pruned:
        """See to the next events. Nothing is under way afterwards if the pass is over."""
        stretch = self._stretches[-1]
        after = self._place or Cursor(stretch.begin, 0)
        rows = self._transactions.read(lambda conn: store.aged(conn, stretch.application, after, stretch.end, EXAMINED))
        done = Pruned(examined=len(rows))
        candidates = self._transactions.read(lambda conn: self._judged(conn, rows, stretch.kept)).all()
        for first in range(0, len(candidates), REMOVED):
            done.add(self._removed(candidates[first : first + REMOVED], stretch.kept))
        self._place = Cursor(rows[-1].due_at, rows[-1].id) if len(rows) == EXAMINED else None
        if self._place is None:
            self._stretches.pop()
        self.total.add(done)
        if not self.under_way and self.total.changed and not self._dry_run:
            telemetry.emit("pruned", events=self.total.events, attempts=self.total.attempts, payloads=self.total.payloads)
        return done

    def run(self) -> Pruned:
        """Make a whole pass at once."""
        self.begin()
        while self.under_way:
            self.step()
        return self.total

    def _removed(self, ids: Collection[int], kept: Retention) -> Pruned:
        if self._dry_run:
            return self._transactions.read(lambda conn: self._counted(conn, ids, kept))

        def work(conn: Connection, _tries: int) -> Pruned:
            doomed = self._judged(conn, store.lock_aged(conn, ids), kept)
            attempts = store.remove_attempts(conn, doomed.attempts) if doomed.attempts else 0
            if doomed.payloads:
                store.remove_payloads(conn, doomed.payloads, self._clock.now(conn))
            if doomed.events:
                store.remove_events(conn, doomed.events)
            return Pruned(events=len(doomed.events), attempts=attempts, payloads=len(doomed.payloads))

        return self._transactions.write(work)

    def _counted(self, conn: Connection, ids: Collection[int], kept: Retention) -> Pruned:
        doomed = self._judged(conn, store.aged_by_row(conn, ids), kept)
        return Pruned(events=len(doomed.events), attempts=store.count_attempts(conn, doomed.attempts), payloads=len(doomed.payloads))

    def _judged(self, conn: Connection, rows: Sequence[Aged], kept: Retention) -> Doomed:
        """Say what is to go. An event goes with its log and its payload, which then are not counted."""
        now = self._clock.now(conn)
        ended = [(row, now - max(row.finished_at, row.due_at)) for row in rows if row.finished_at is not None]
        old = {row.id for row, age in ended if _is_over(age, kept.of(Status(row.status)))}
        needed = store.still_needed(conn, [row for row, _ in ended if row.id in old])
        doomed = Doomed(events=[row.id for row, _ in ended if row.id in old - needed])
        gone = set(doomed.events)
        for row, age in ended:
            if row.id in gone:
                continue
            if _is_over(age, kept.attempts_ms):
                doomed.attempts.append(row.id)
            if row.has_payload and _is_over(age, kept.payload_ms):
                doomed.payloads.append(row.id)
        return doomed


def _is_over(age: int, allowed: int | None) -> bool:
    return allowed is not None and age >= allowed
