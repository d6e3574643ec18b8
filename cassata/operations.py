"""Work on many events of an application at a time: counted first, then done by the workers in steps, each a transaction.

A step changes a few hundred events and moves the operation's place on, all in one COMMIT: whoever is killed in it has done
nothing, and whoever comes next goes on from there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row

from cassata import chains, database, store, telemetry
from cassata.chains import Judged
from cassata.errors import InvalidOperation, OperationExists, OperationFinished, Problem, UnknownApplication, UnknownOperation
from cassata.limits import Limiter
from cassata.model import (
    APPLIES_TO,
    MEANT_BY,
    Action,
    Application,
    Count,
    Cursor,
    Filter,
    Milestone,
    NewOperation,
    Operation,
    OperationStatus,
    Status,
)
from cassata.outbox import Outbox
from cassata.store import Lane
from cassata.tenants import Tenants

STEP_EVENTS = 500
"""So many events a step changes at most."""
STEP_EXAMINED = 2_000
"""So many it looks at."""
EVENTS_PER_SECOND = 2_000
"""The usual pace."""
COUNT_EVENTS = 10_000
COUNT_EXAMINED = 50_000
"""Up to there events are counted exactly."""


class Step(NamedTuple):
    """What a step has done."""

    operation_id: str
    examined: int
    changed: int
    skipped: int
    status: OperationStatus


@dataclass(frozen=True, slots=True)
class Search:
    """What an operation looks for, as it is kept with it: what it was asked, and the number of the series."""

    action: Action
    filter: Filter
    due_at: int | None = None
    shift_ms: int | None = None
    series: int | None = None

    @property
    def statuses(self) -> frozenset[Status]:
        return self.filter.statuses or MEANT_BY[self.action]

    def lane(self, application: int) -> Lane:
        """Choose where to look for the events, of which more may be found there than are meant."""
        wanted = replace(self.filter, statuses=self.statuses)
        return store.lane(application, wanted) if self.series is None else store.lane_of_series(application, self.series, wanted)


@dataclass(frozen=True, slots=True)
class Place:
    """How far an operation has come: beyond which event, and for which time.

    Events move in the order of their wake_at while it goes through them, also to where it has been. So that is done again until
    there is nothing to change.
    """

    after: Cursor | None = None
    round: int = 1
    changed: int = 0  # in this round

    @classmethod
    def read(cls, text: str) -> Place:
        after, round_, changed = json.loads(text)
        return cls(Cursor(*after) if after else None, round_, changed)

    def written(self) -> str:
        return json.dumps([self.after, self.round, self.changed])


@dataclass(slots=True)
class Chunk:
    """What one look at a stretch has found: rows that may be changed, and how far it has come."""

    examined: int = 0
    skipped: int = 0
    chosen: list[Row[Any]] = field(default_factory=list)
    after: Cursor | None = None
    at_end: bool = False


class Operations:
    """Begins, tells of, and carries out operations in one database. Safe to share between threads."""

    def __init__(self, engines: database.Engines, clock: database.Clock, tenants: Tenants, limiter: Limiter, outbox: Outbox) -> None:
        self._transactions = database.Transactions(engines)
        self._clock = clock
        self._tenants = tenants
        self._limiter = limiter
        self._outbox = outbox

    # --- what clients do -------------------------------------------------------------------------------------------------

    def preview(self, new: NewOperation) -> Count:
        """Count what an operation would change now. Raises InvalidOperation, UnknownApplication."""
        return self._transactions.read(lambda conn: self._count(conn, *self._searched(conn, new)))

    def begin(self, new: NewOperation) -> Operation:
        """Store an operation, for the workers to carry out; the same one again is the one that is stored.

        Raises InvalidOperation, UnknownApplication, OperationExists for another one with the same id.
        """
        count: Count | None = None

        def work(conn: Connection, _tries: int) -> Operation:
            application, search = self._searched(conn, new)
            there = store.operation(conn, application.number, new.operation_id)
            if there is not None:
                return _identical(_to_operation(there, new.application_id), new)
            assert count is not None
            store.lock_application(conn, new.application_id)  # so that whoever comes later has the larger number, and waits
            row = _row(new, search, count, application.number, self._clock.now(conn), store.newest_row(conn))
            store.insert_operation(conn, row)
            stored = store.operation(conn, application.number, new.operation_id)
            assert stored is not None
            return _to_operation(stored, new.application_id)

        if (begun := self._there(new)) is not None:
            return _identical(begun, new)
        count = self.preview(new)
        return self._transactions.write(work, retry_duplicates=True)

    def get(self, application_id: str, operation_id: str) -> Operation:
        """Raises UnknownApplication, UnknownOperation."""
        return self._transactions.read(lambda conn: _to_operation(self._found(conn, application_id, operation_id), application_id))

    def list(self, application_id: str, *, after: str | None = None, limit: int = 100) -> list[Operation]:
        """List an application's operations, the newest first, beginning after the one with that id."""

        def work(conn: Connection) -> list[Operation]:
            before = None if after is None else self._found(conn, application_id, after).id
            rows = store.operations_of(conn, self._known(conn, application_id).number, before, limit)
            return [_to_operation(row, application_id) for row in rows]

        return self._transactions.read(work)

    def cancel(self, application_id: str, operation_id: str) -> Operation:
        """Change no more events. What has been changed stays so. To cancel what is cancelled is no error.

        Raises UnknownApplication, UnknownOperation, OperationFinished.
        """

        def work(conn: Connection, _tries: int) -> tuple[Operation, bool]:
            row = self._found(conn, application_id, operation_id)
            ended = store.end_operation(conn, row.id, OperationStatus.CANCELLED, self._clock.now(conn))
            return _to_operation(self._found(conn, application_id, operation_id), application_id), ended

        operation, ended = self._transactions.write(work)
        if operation.status is OperationStatus.DONE:
            raise OperationFinished(f"operation {operation_id!r} has already changed all it was to change")
        if ended:
            _tell_end(operation)
        return operation

    # --- what workers do -------------------------------------------------------------------------------------------------

    def next_wake(self) -> int | None:
        """Tell when the first operation is to go on (ms); None if there is none."""
        return self._transactions.read(store.next_operation_at)

    def step(self, *, events_per_second: float = EVENTS_PER_SECOND) -> Step | None:
        """Do the next part of one operation that is to go on by now; None if there is none that nobody else is at."""
        ended: Operation | None = None
        judged = Judged()

        def work(conn: Connection, _tries: int) -> Step | None:
            nonlocal ended, judged
            ended = None
            now = self._clock.now(conn)
            row = store.lock_due_operation(conn, now)
            if row is None:
                return None
            step, columns, judged = self._taken(conn, row, now, events_per_second)
            store.change_operation(conn, row.id, columns)
            if step.status is OperationStatus.DONE:
                ended = replace(self._named(conn, row), status=step.status, changed=columns["changed"], skipped=columns["skipped"])
            return step

        step = self._transactions.write(work)
        if judged:
            chains.tell(judged, self._name_of)
        if ended is not None:
            _tell_end(ended)
        return step

    def _taken(self, conn: Connection, row: Row[Any], now: int, events_per_second: float) -> tuple[Step, dict[str, Any], Judged]:
        """Do a part, and return what has become of the operation, of its row, and of what waited for the events that it ended."""
        try:
            search, place = _read_search(row), Place.read(row.place)
        except (ValueError, TypeError, KeyError) as error:
            # One that cannot be read must not stop the others.
            telemetry.emit("operation unreadable", level="error", operation_id=row.operation_id, error=repr(error))
            end = {"status": OperationStatus.CANCELLED, "wake_at": None, "finished_at": now}
            return Step(row.operation_id, 0, 0, 0, OperationStatus.CANCELLED), end, Judged()
        lane = search.lane(row.application)
        chunk = _next_chunk(conn, row, search, lane, place)
        changed, skipped, judged = self._change(conn, row, search, chunk, now)
        place = replace(place, after=chunk.after, changed=place.changed + changed)
        goes_round = lane.moves and place.changed > 0
        first = place.round == 1  # what is passed over is counted once
        step = Step(
            row.operation_id,
            chunk.examined if first else changed,
            changed,
            skipped if first else 0,
            OperationStatus.DONE if chunk.at_end and not goes_round else OperationStatus.RUNNING,
        )
        if chunk.at_end:
            place = Place(round=place.round + 1)
        done = step.status is OperationStatus.DONE
        columns = {
            "status": step.status,
            "place": place.written(),
            "examined": row.examined + step.examined,
            "changed": row.changed + changed,
            "skipped": row.skipped + step.skipped,
            "wake_at": None if done else now + round(changed * 1000 / events_per_second),
            "finished_at": now if done else None,
        }
        return step, columns, judged

    def _change(self, conn: Connection, row: Row[Any], search: Search, chunk: Chunk, now: int) -> tuple[int, int, Judged]:
        """Lock what was found, judge it as it is now, and change it. Return how much was changed, how much passed over, and what has
        become of what waited for it.
        """
        if not chunk.chosen:
            return 0, chunk.skipped, Judged()
        locked = store.lock_examined(conn, [event.id for event in chunk.chosen])
        meant = [event for event in locked if event.operation != row.id and _is_meant(event, search)]
        chosen = [event for event in meant if _applies(event, search)]
        if search.action is Action.REMOVE:
            needed = store.still_needed(conn, chosen)
            chosen = [event for event in chosen if event.id not in needed]
        if chosen:
            _act(conn, row.id, search, chosen, now)
            if milestone := _TOLD_AS.get(search.action):  # how what is removed has ended was told when it did
                self._outbox.write_of(conn, row.application, milestone, _told_of(chosen, search))
        over = [event.id for event in chosen if event.followed and event.status != Status.PROCESSING]
        judged = chains.settle(conn, over, now) if over and search.action is Action.CANCEL else Judged()
        self._outbox.write_judged(conn, judged)
        return len(chosen), chunk.skipped + len(meant) - len(chosen), judged

    # --- what both need --------------------------------------------------------------------------------------------------

    def _searched(self, conn: Connection, new: NewOperation) -> tuple[Application, Search]:
        """Say what an operation looks for. Raises InvalidOperation for what this application cannot ask."""
        application = self._known(conn, new.application_id)
        search = Search(new.action, new.filter, new.due_at, new.shift_ms)
        if new.filter.series_id is not None:
            search = replace(search, series=store.series_number(conn, application.number, new.filter.series_id))
            if search.series is None:
                raise InvalidOperation([Problem("filter.series_id", "is not the id of a series of this application")])
        horizon_ms = self._limiter.of(application).horizon_ms
        ahead = {"due_at": new.due_at and new.due_at - self._clock.now(conn), "shift_ms": new.shift_ms}
        problems = [name for name, ms in ahead.items() if ms is not None and ms > horizon_ms]
        if problems:
            raise InvalidOperation(Problem(name, f"must not lead more than {horizon_ms // 1000} seconds ahead") for name in problems)
        return application, search

    def _count(self, conn: Connection, application: Application, search: Search) -> Count:
        found: Counter[Status] = Counter()
        lane = search.lane(application.number)
        applies, examined, after = 0, 0, None
        while examined < COUNT_EXAMINED and applies < COUNT_EVENTS:
            rows = store.examine(conn, lane, after, STEP_EXAMINED)
            meant = [row for row in rows if _is_meant(row, search)]
            found.update(Status(row.status) for row in meant)
            applies += sum(1 for row in meant if _applies(row, search))
            examined += len(rows)
            if len(rows) < STEP_EXAMINED:
                return Count(applies, True, dict(found))
            after = lane.cursor(rows[-1])
        return Count(applies, False, dict(found))

    def _there(self, new: NewOperation) -> Operation | None:
        def work(conn: Connection) -> Operation | None:
            row = store.operation(conn, self._known(conn, new.application_id).number, new.operation_id)
            return None if row is None else _to_operation(row, new.application_id)

        return self._transactions.read(work)

    def _known(self, conn: Connection, application_id: str) -> Application:
        application = self._tenants.known(conn, application_id)
        if application is None:
            raise UnknownApplication
        return application

    def _found(self, conn: Connection, application_id: str, operation_id: str) -> Row[Any]:
        row = store.operation(conn, self._known(conn, application_id).number, operation_id)
        if row is None:
            raise UnknownOperation
        return row

    def _name_of(self, number: int) -> str | None:
        application = self._tenants.in_mind(number)
        return application.application_id if application else None

    def _named(self, conn: Connection, row: Row[Any]) -> Operation:
        application = self._tenants.of_numbers(conn, {row.application}).get(row.application)
        return _to_operation(row, application.application_id if application else "")


# --- judging and changing events -----------------------------------------------------------------------------------------


def _next_chunk(conn: Connection, row: Row[Any], search: Search, lane: Lane, place: Place) -> Chunk:
    found = store.examine(conn, lane, place.after, STEP_EXAMINED)
    chunk = Chunk(after=place.after)
    for event in found:
        chunk.examined += 1
        chunk.after = lane.cursor(event)
        if event.id <= row.newest_row and event.operation != row.id and _is_meant(event, search):
            if _applies(event, search):
                chunk.chosen.append(event)
            else:
                chunk.skipped += 1
        if len(chunk.chosen) == STEP_EVENTS:
            break
    chunk.at_end = chunk.examined == len(found) < STEP_EXAMINED
    return chunk


def _is_meant(row: Row[Any], search: Search) -> bool:
    wanted = search.filter
    return (
        row.status in search.statuses
        and (wanted.due_from is None or row.due_at >= wanted.due_from)
        and (wanted.due_until is None or row.due_at < wanted.due_until)
        and (wanted.last_status is None or row.last_status == wanted.last_status)
        and (wanted.tried is None or wanted.tried == (row.attempts > 0))
        and (search.series is None or row.series == search.series)
        and wanted.goes_there(row.url)
    )


def _applies(row: Row[Any], search: Search) -> bool:
    """Whether there is anything to do to an event that is meant."""
    if row.status not in APPLIES_TO[search.action]:
        return False
    if search.action is Action.CANCEL:
        return not row.cancel_requested
    if search.action in {Action.RETRY, Action.RECONCILE} and row.payload_removed_at is not None:
        return False
    return search.due_at is None or row.due_at != search.due_at


_TOLD_AS = {
    Action.CANCEL: Milestone.CANCELLED,
    Action.RETRY: Milestone.REPLAYED,
    Action.RECONCILE: Milestone.REPLAYED,
    Action.RESCHEDULE: Milestone.CHANGED,
}
"""Of what is removed it has been told already how it ended."""


def _told_of(rows: Sequence[Row[Any]], search: Search) -> list[int]:
    """What is being sent now is not cancelled yet: how it ends is told when it does."""
    return [row.id for row in rows if search.action is not Action.CANCEL or row.status != Status.PROCESSING]


def _act(conn: Connection, operation: int, search: Search, rows: Sequence[Row[Any]], now: int) -> None:
    ids = [row.id for row in rows]
    match search.action:
        case Action.CANCEL:
            sent = [row.id for row in rows if row.status == Status.PROCESSING]
            if sent:
                store.request_cancel_of_all(conn, sent, operation)
            if waiting := sorted(set(ids) - set(sent)):
                store.cancel_all(conn, waiting, operation, now)
        case Action.RETRY | Action.RECONCILE:
            store.log_replays(conn, rows, now, search.action)
            store.replay(conn, ids, now, operation)
        case Action.REMOVE:
            store.remove_events(conn, ids)
        case Action.RESCHEDULE if search.due_at is not None:
            store.reschedule_all(conn, ids, operation, search.due_at, now)
        case Action.RESCHEDULE:
            store.shift_all(conn, ids, operation, search.shift_ms or 0, now)


# --- rows and values -----------------------------------------------------------------------------------------------------


def _row(new: NewOperation, search: Search, count: Count, application: int, now: int, newest_row: int) -> dict[str, Any]:
    return {
        "application": application,
        "operation_id": new.operation_id,
        "action": new.action,
        "status": OperationStatus.RUNNING,
        "wake_at": now,
        "filter": json.dumps(dict(_written_filter(new.filter))),
        "parameters": json.dumps({"due_at": new.due_at, "shift_ms": new.shift_ms, "series": search.series}),
        "place": Place().written(),
        "newest_row": newest_row,
        "expected": count.events,
        "exact": count.exact,
        "examined": 0,
        "changed": 0,
        "skipped": 0,
        "created_at": now,
    }


def _written_filter(written: Filter) -> Iterator[tuple[str, Any]]:
    if written.statuses:
        yield "statuses", [status.name for status in sorted(written.statuses)]
    for name in ("due_from", "due_until", "host", "last_status", "series_id", "tried"):
        if (value := getattr(written, name)) is not None:
            yield name, value


def _read_search(row: Row[Any]) -> Search:
    written = json.loads(row.filter)
    statuses = frozenset(Status[name] for name in written.pop("statuses", ()))
    return Search(Action(row.action), Filter(statuses=statuses, **written), **json.loads(row.parameters))


def _to_operation(row: Row[Any], application_id: str) -> Operation:
    search = _read_search(row)
    return Operation(
        application_id=application_id,
        operation_id=row.operation_id,
        action=search.action,
        filter=search.filter,
        due_at=search.due_at,
        shift_ms=search.shift_ms,
        status=OperationStatus(row.status),
        expected=row.expected,
        exact=row.exact,
        examined=row.examined,
        changed=row.changed,
        skipped=row.skipped,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )


def _identical(there: Operation, new: NewOperation) -> Operation:
    asked = (new.action, new.filter, new.due_at, new.shift_ms)
    if (there.action, there.filter, there.due_at, there.shift_ms) != asked:
        raise OperationExists(f"operation {new.operation_id!r} exists already, and does something else")
    return there


def _tell_end(operation: Operation) -> None:
    facts = {"application_id": operation.application_id, "operation_id": operation.operation_id, "action": operation.action.value}
    ended = "operation done" if operation.status is OperationStatus.DONE else "operation cancelled"
    telemetry.emit(ended, **facts, changed=operation.changed, skipped=operation.skipped)
