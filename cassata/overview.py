"""What is due next, what is late, what has failed, and who is at work: numbers for people, each from a bounded question.

Nothing here reads more than a few ten thousand entries of an index, however large the tables are: counts end at a cap and say so.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection

from cassata import __version__, database, recurrence, store
from cassata.errors import CassataError, UnknownApplication
from cassata.explain import Reason, Situation, reasons
from cassata.limits import Limiter
from cassata.model import FINISHED, HOST_NAME_LENGTH, LATEST_INSTANT, UNFINISHED, Application, Breaker, Capped, Event, Status
from cassata.series import SeriesStatus
from cassata.store import Measure
from cassata.tallies import ALL, LATENESS_MEASURES, MINUTE_MS, Tallies, percentile
from cassata.tenants import Tenants

T = TypeVar("T")

EXAMINED = 10_000
"""So many events are looked at for a count by status."""
BAR_EVENTS = 1_000
"""So many are counted of a minute, hour or day ahead, of all applications that are asked for together; the rest is guessed by them."""
LEAST_PART = 0.02
"""From a smaller part of a step than that nothing is guessed."""
MOST_APPLICATIONS = 20
"""Of more applications only those are looked at that have something to do first."""
MOST_SERIES = 50
OCCURRENCES = 2_000
"""So many series are looked at, and so many of their occurrences computed."""
MADE_AHEAD_MS = 10_000
"""What comes sooner is an event already."""
FRESH_SECONDS = 1.0
"""What has been asked within that time is not asked again: however many look on, the database answers one."""
MOST_ANSWERS = 500
WORKER_FRESH_MS = 30_000
"""A worker that has not told anything for so long is not shown any more."""
WORKER_MEMORY_MS = 3_600_000
MOST_WORKERS = 200
TALLIES_KEPT_MINUTES = 8 * 24 * 60
TALLIES_AT_ONCE = 1_000
CLEANING_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Counts:
    """How many events there are by status, and how many of them are due by now. `oldest_due_at` is since when the first of these waits.

    Of those that have ended, the ones that were due before `since` are not counted (None: all are).
    """

    statuses: Mapping[Status, Capped]
    due: Capped
    oldest_due_at: int | None
    next_at: int | None
    since: int | None = None


@dataclass(frozen=True, slots=True)
class Minute:
    """What came of the attempts of one minute. `lateness` counts first attempts by the classes of `tallies.LATENESS_MS`."""

    at: int
    attempts: int = 0
    delivered: int = 0
    failed: int = 0
    lateness: Sequence[int] = ()

    def late(self, share: float) -> float | None:
        return percentile(self.lateness, share)


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is to be sent between two instants: events, and occurrences of series that are no events yet."""

    begin: int
    end: int
    events: Capped
    occurrences: Capped


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process that was alive a moment ago, and how many events it had claimed and not recorded then."""

    worker: str
    host: str
    pid: int
    version: str
    started_at: int
    seen_at: int
    in_hand: int


@dataclass(slots=True)
class Pulse:
    """Who a worker process is, as it tells others."""

    worker: str = field(default_factory=lambda: uuid.uuid4().hex)
    host: str = field(default_factory=lambda: socket.gethostname().encode("ascii", "replace").decode()[:HOST_NAME_LENGTH])
    pid: int = field(default_factory=os.getpid)
    started_at: int | None = None
    cleaned_at: float = field(default_factory=time.monotonic)


class Overview:
    """Looks at one database for people, and writes down for it what its workers tell. Safe to share between threads."""

    def __init__(self, engines: database.Engines, clock: database.Clock, tenants: Tenants, limiter: Limiter) -> None:
        self._limiter = limiter
        self.tallies = Tallies()
        self._transactions = database.Transactions(engines)
        self._clock = clock
        self._tenants = tenants
        self._lock = threading.Lock()  # of the next two
        self._answers: dict[Hashable, tuple[float, Any]] = {}
        self._asking: defaultdict[Hashable, threading.Lock] = defaultdict(threading.Lock)

    # --- what people ask -----------------------------------------------------------------------------------------------

    def now(self) -> int:
        return self._transactions.read(self._clock.now)

    def counts(self, application_id: str | None = None) -> Counts:
        """Capped the events of an application, or of all. Raises UnknownApplication."""
        return self._asked(("counts", application_id), lambda conn: self._counts(conn, application_id))

    def counts_of(self, application_ids: Sequence[str], status: Status) -> dict[str, Capped]:
        """Count the events of a status of each of these applications, looking at EXAMINED altogether. Raises UnknownApplication."""

        def work(conn: Connection) -> dict[str, Capped]:
            now, share = self._clock.now(conn), EXAMINED // max(1, len(application_ids))
            return {each: self._count(conn, self._number(conn, each), status, now, share) for each in application_ids}

        return self._asked(("counts of", tuple(application_ids), status), work)

    def _count(self, conn: Connection, number: int, status: Status, now: int, most: int) -> Capped:
        if status not in FINISHED:
            found = store.waiting_by_status(conn, [number], most)
            return Capped(found.get(status, 0), status in _cut_off(found, most))
        # Only what was cancelled may have ended before it was due.
        looked_at = [store.statuses_due(conn, number, now, most, ahead=ahead) for ahead in {False, status is Status.CANCELLED}]
        events = sum(dict(found).get(status, 0) for found in looked_at)
        return Capped(events, any(sum(dict(found).values()) >= most for found in looked_at))

    def ahead(self, step_ms: int, steps: int, application_id: str | None = None) -> list[Ahead]:
        """Say how much is to be sent in each of so many steps from now on (the first one is the rest of what has begun)."""
        return self._asked(("ahead", application_id, step_ms, steps), lambda conn: self._ahead(conn, application_id, step_ms, steps))

    def minutes(self, minutes: int, application_id: str | None = None) -> list[Minute]:
        """Say what came of the attempts of the last minutes, the oldest first; the last one is not over."""
        return self._asked(("minutes", application_id, minutes), lambda conn: self._minutes(conn, application_id, minutes))

    def workers(self) -> list[Worker]:
        """List the worker processes that are alive."""

        def work(conn: Connection) -> list[Worker]:
            since = self._clock.now(conn) - WORKER_FRESH_MS
            return [Worker(**row._mapping) for row in store.live_workers(conn, since, MOST_WORKERS)]

        return self._asked(("workers",), work)

    def _asked(self, question: Hashable, work: Callable[[Connection], T]) -> T:
        """Answer as a second ago, or ask: one thread for all that want to know the same."""
        with self._lock:
            asking = self._asking[question]
        with asking:
            found = self._answers.get(question)
            if found is not None and time.monotonic() - found[0] < FRESH_SECONDS:
                answer: T = found[1]
                return answer
            answer = self._transactions.read(work)
            with self._lock:
                if len(self._answers) >= MOST_ANSWERS:
                    self._answers.clear()
                    self._asking.clear()
                self._answers[question] = time.monotonic(), answer
            return answer

    def explain(self, event: Event, breakers: Sequence[Breaker]) -> list[Reason]:
        """Say why an event has not been sent yet. Raises UnknownApplication."""

        def work(conn: Connection) -> Situation:
            now, application = self._clock.now(conn), self._known(conn, event.application_id)
            number = application.number
            due_before = min(event.wake_at or 0, now)
            return Situation(
                now=now,
                application=application,
                limits=self._limiter.of(application),
                breakers=breakers,
                held=store.held(conn, number, now),
                next_at=store.paces_of(conn, [number], store.PaceKind.DELIVERIES).get(number, 0) // 1000,
                workers=len(store.live_workers(conn, now - WORKER_FRESH_MS, MOST_WORKERS)),
                ahead=store.overdue(conn, number, due_before - 1, EXAMINED),
            )

        return reasons(event, self._transactions.read(work))

    # --- how it is found out -------------------------------------------------------------------------------------------

    def _number(self, conn: Connection, application_id: str | None) -> int:
        return ALL if application_id is None else self._known(conn, application_id).number

    def _known(self, conn: Connection, application_id: str) -> Application:
        application = self._tenants.known(conn, application_id)
        if application is None:
            raise UnknownApplication
        return application

    def _counts(self, conn: Connection, application_id: str | None) -> Counts:
        now = self._clock.now(conn)
        wakes = self._wakes(conn, application_id)
        looked_at = sorted(wakes, key=wakes.__getitem__)[:MOST_APPLICATIONS]
        share = EXAMINED // max(1, len(looked_at))
        is_capped = len(looked_at) < len(wakes)
        capped = set(UNFINISHED) if is_capped else set()
        waiting: Counter[Status] = Counter()
        due = 0
        for number in looked_at:
            found = store.waiting_by_status(conn, [number], share)
            waiting.update(found)
            capped |= _cut_off(found, share)
            if wakes[number] <= now:
                due += (overdue := store.overdue(conn, number, now, share))
                is_capped |= overdue >= share
        ended, ended_capped = self._ended(conn, application_id, now)
        statuses = {status: Capped(waiting[status], status in capped) for status in Status if status not in FINISHED}
        since = store.due_before(conn, self._number(conn, application_id), now, EXAMINED) if application_id and ended_capped else None
        statuses |= {status: Capped(ended[status], ended_capped) for status in FINISHED}
        first = min(wakes.values(), default=None)
        is_late = first is not None and first <= now
        return Counts(statuses, Capped(due, is_capped and due > 0), first if is_late else None, first, since)

    def _ended(self, conn: Connection, application_id: str | None, now: int) -> tuple[Counter[Status], bool]:
        found: Counter[Status] = Counter()
        if application_id is None:
            found.update(dict(store.statuses_newest(conn, EXAMINED)))
            return found, found.total() >= EXAMINED
        number = self._number(conn, application_id)
        behind = dict(store.statuses_due(conn, number, now, EXAMINED, ahead=False))
        ahead = dict(store.statuses_due(conn, number, now, EXAMINED // 4, ahead=True))
        found.update(behind)
        found.update(ahead)
        return found, sum(behind.values()) >= EXAMINED or sum(ahead.values()) >= EXAMINED // 4

    def _wakes(self, conn: Connection, application_id: str | None) -> dict[int, int]:
        """Say for each application that is meant, and has something that has not ended, when a worker may look at it."""
        if application_id is None:
            return store.agenda(conn, LATEST_INSTANT)
        found = store.next_wakes(conn, [self._number(conn, application_id)], 0)
        return {number: wake_at for number, wake_at in found.items() if wake_at is not None}

    def _ahead(self, conn: Connection, application_id: str | None, step_ms: int, steps: int) -> list[Ahead]:
        now = self._clock.now(conn)
        begin = now - now % step_ms
        bounds = [begin + place * step_ms for place in range(steps + 1)]
        wakes = {number: at for number, at in self._wakes(conn, application_id).items() if at < bounds[-1]}
        looked_at = sorted(wakes, key=wakes.__getitem__)[:MOST_APPLICATIONS]
        share = BAR_EVENTS // max(1, len(looked_at))
        # What is overdue is told apart, so that the first bar is what is still to come.
        edges = [now, *bounds[1:]]
        bars = [Capped(0, len(looked_at) < len(wakes))] * steps
        for number in looked_at:
            for place, (events, last) in enumerate(store.waking(conn, number, edges, share)):
                found = Capped(events) if events < share else _guessed(events, last - edges[place], edges[place + 1] - edges[place])
                bars[place] = _together(bars[place], found)
        occurrences = self._occurrences(conn, application_id, now + MADE_AHEAD_MS, bounds)
        return [Ahead(bounds[place], bounds[place + 1], bars[place], occurrences[place]) for place in range(steps)]

    def _occurrences(self, conn: Connection, application_id: str | None, begin: int, bounds: Sequence[int]) -> list[Capped]:
        """Compute when series have occurrences: of the first ones to have any, and OCCURRENCES altogether."""
        if application_id is None:
            rows = store.series_waking(conn, bounds[-1], MOST_SERIES)
        else:
            rows = store.series_after(conn, self._number(conn, application_id), {SeriesStatus.ACTIVE}, "", MOST_SERIES)
        found: Counter[int] = Counter()
        is_capped = len(rows) == MOST_SERIES
        left = OCCURRENCES
        for row in rows:
            try:
                made = recurrence.between(store.to_series(row, "").rule, begin, bounds[-1], left)
            except CassataError:
                continue  # one that cannot be read must not hide the others
            found.update(bisect_right(bounds, occurrence.at) - 1 for occurrence in made)
            left -= len(made)
            if left <= 0:
                is_capped = True
                break
        return [Capped(found[place], is_capped and found[place] > 0) for place in range(len(bounds) - 1)]

    def _minutes(self, conn: Connection, application_id: str | None, minutes: int) -> list[Minute]:
        end = self._clock.now(conn) // MINUTE_MS + 1
        begin = end - minutes
        measures = [Measure.ATTEMPTS, Measure.DELIVERED, Measure.FAILED, *LATENESS_MEASURES]
        found = {
            (row.measure, row.minute): int(row.events)
            for row in store.tallied(conn, self._number(conn, application_id), measures, begin, end)
        }
        return [
            Minute(
                at=minute * MINUTE_MS,
                attempts=found.get((Measure.ATTEMPTS, minute), 0),
                delivered=found.get((Measure.DELIVERED, minute), 0),
                failed=found.get((Measure.FAILED, minute), 0),
                lateness=tuple(found.get((measure, minute), 0) for measure in LATENESS_MEASURES),
            )
            for minute in range(begin, end)
        ]

    # --- what workers tell ---------------------------------------------------------------------------------------------

    def tell(self, pulse: Pulse, in_hand: int) -> None:
        """Write down that a worker process is alive, how much it has in hand, and what it has counted since it told last."""

        def work(conn: Connection, _tries: int) -> None:
            now = self._clock.now(conn)
            pulse.started_at = pulse.started_at or now
            who = {"worker": pulse.worker, "host": pulse.host, "pid": pulse.pid, "version": __version__}
            store.tell_worker(conn, {**who, "started_at": pulse.started_at, "seen_at": now, "in_hand": in_hand})

        self._transactions.write(work)
        self.write_tallies()
        if time.monotonic() - pulse.cleaned_at >= CLEANING_SECONDS:
            pulse.cleaned_at = time.monotonic()
            self._transactions.write(self._clean)

    def write_tallies(self) -> None:
        """Write down what this process has counted since it did so last."""
        rows = self.tallies.take()
        try:
            if rows:
                self._transactions.write(lambda conn, _tries: store.add_tallies(conn, rows))
        except BaseException:
            self.tallies.give_back(rows)
            raise

    def _clean(self, conn: Connection, _tries: int) -> None:
        now = self._clock.now(conn)
        store.forget_tallies(conn, now // MINUTE_MS - TALLIES_KEPT_MINUTES, TALLIES_AT_ONCE)
        store.forget_workers(conn, now - WORKER_MEMORY_MS)

    def is_eldest(self, pulse: Pulse) -> bool:
        """Whether no other worker process that is alive has been so for longer: what one of them is to do for all, that one does."""

        def work(conn: Connection) -> str | None:
            return store.eldest_worker(conn, self._clock.now(conn) - WORKER_FRESH_MS)

        return self._transactions.read(work) in {None, pulse.worker}

    def leave(self, pulse: Pulse) -> None:
        """Say that a worker process is about to end."""
        self.tell(pulse, 0)
        self._transactions.write(lambda conn, _tries: store.forget_worker(conn, pulse.worker))


def _cut_off(found: Mapping[Status, int], most: int) -> frozenset[Status]:
    """Say of which statuses there may be more events, where `most` of the blocked were counted, and of all others together."""
    blocked = found.get(Status.BLOCKED, 0)
    others = sum(found.values()) - blocked
    return frozenset(status for status in UNFINISHED if (blocked if status is Status.BLOCKED else others) >= most)


def _guessed(events: int, within_ms: int, length_ms: int) -> Capped:
    """Say how many events there are about in all of a step, of which the first ones lie within its first part.

    Of those that wake at one instant, or nearly so, nothing follows for the rest.
    """
    if within_ms < length_ms * LEAST_PART:
        return Capped(events, is_capped=True)
    return Capped(round(events * length_ms / within_ms), is_guessed=True)


def _together(one: Capped, other: Capped) -> Capped:
    return Capped(one.events + other.events, one.is_capped or other.is_capped, one.is_guessed or other.is_guessed)
