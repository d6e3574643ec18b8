"""Follows the events of an application as they end, by asking again and again: no index is in the order of their ends.

What is asked: which events have become due since the last time, and which have been added; and of those that had not ended, which
have since. One that is cancelled ahead of its time is told when that time has come; one that had ended before and is sent once more
is not told.
"""

from __future__ import annotations

from sqlalchemy import Connection

from cassata import database, store
from cassata.errors import UnknownApplication
from cassata.model import FINISHED, UNFINISHED, Cursor, Event, Filter, Status
from cassata.tenants import Tenants

AT_ONCE = 1_000
"""So many are read by one question."""
MOST_OPEN = 20_000
"""Of more that are due and have not ended the rest is not followed."""


class Tail:
    """Follows one application from the moment on at which it is made. For one thread."""

    def __init__(self, engines: database.Engines, clock: database.Clock, tenants: Tenants, application_id: str) -> None:
        """Raises UnknownApplication."""
        self._transactions = database.Transactions(engines)
        self._clock = clock
        self._application_id = application_id
        self._open: set[int] = set()
        application = self._transactions.read(lambda conn: tenants.known(conn, application_id))
        if application is None:
            raise UnknownApplication
        self._number = application.number
        self._place, self._newest = self._transactions.read(self._begin)

    def _begin(self, conn: Connection) -> tuple[Cursor, int]:
        now, newest = self._clock.now(conn), store.newest_row(conn)
        lane, after = store.lane(self._number, Filter(frozenset(UNFINISHED))), None
        while len(self._open) < MOST_OPEN:
            rows = store.page(conn, lane, after, None, AT_ONCE)
            self._open |= {row.id for row in rows if row.due_at <= now}
            if len(rows) < AT_ONCE or rows[-1].wake_at > now:
                break
            after = lane.cursor(rows[-1])
        return Cursor(now, 2**63 - 1), newest

    def poll(self) -> list[Event]:
        """Return what has ended since the last time, in the order in which it did."""
        return self._transactions.read(self._poll)

    def _poll(self, conn: Connection) -> list[Event]:
        now = self._clock.now(conn)
        found = [*self._due(conn, now), *self._added(conn, now)]
        self._open |= set(found[: max(0, MOST_OPEN - len(self._open))])
        ended = []
        waiting = sorted(self._open)
        for first in range(0, len(waiting), AT_ONCE):
            rows = store.events_by_row(conn, waiting[first : first + AT_ONCE])
            self._open -= set(waiting[first : first + AT_ONCE]) - {row.id for row in rows}  # they have been removed
            ended += [row for row in rows if Status(row.status) in FINISHED]
        self._open -= {row.id for row in ended}
        return [store.to_event(row, self._application_id) for row in sorted(ended, key=lambda row: (row.finished_at, row.id))]

    def _due(self, conn: Connection, now: int) -> list[int]:
        lane = store.lane(self._number, Filter(due_from=self._place.at, due_until=now + 1))
        rows = store.page(conn, lane, self._place, None, AT_ONCE)
        if rows:
            self._place = lane.cursor(rows[-1])
        return [row.id for row in rows]

    def _added(self, conn: Connection, now: int) -> list[int]:
        """Name those that were added with a time in the past: they are behind the place that the others have come to."""
        rows = store.rows_added(conn, self._newest, AT_ONCE)
        if rows:
            self._newest = rows[-1].id
        return [row.id for row in rows if row.application == self._number and row.due_at <= now]
