"""Every SQL statement of Cassata. Functions take a Connection first, hold one statement each, and never commit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Dialect,
    Insert,
    Row,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects import mysql, sqlite

from cassata.destinations import Change, Opened, Place
from cassata.errors import InvalidEvent, SeriesUnreadable
from cassata.model import (
    DETAIL_CHARACTERS,
    EXCERPT_CHARACTERS,
    FINISHED,
    LATEST_INSTANT,
    UNFINISHED,
    UNSENT,
    WAITING,
    After,
    Application,
    Attempt,
    Cursor,
    Delivery,
    Destination,
    ErrorKind,
    Event,
    Filter,
    Headers,
    NewEvent,
    On,
    OperationStatus,
    Outcome,
    Output,
    RetryOptions,
    Status,
)
from cassata.recurrence import Occurrence, Rule, id_range, original_of
from cassata.schema import (
    api_keys,
    applications,
    attempts,
    batches,
    breakers,
    ended_sessions,
    events,
    holdings,
    installation,
    links,
    operations,
    outbox,
    outputs,
    paces,
    series,
    streams,
    tallies,
    workers,
)
from cassata.series import AfterSeries, CatchUp, Content, Overlap, Series, SeriesStatus

ASLEEP = -1
"""The wake_at of an event that waits for another one. All that looks for work looks beyond 0; what has ended has none."""

E = events.c
_NO_PAYLOAD = null().label("payload")
_WITHOUT_PAYLOAD = [*(column for column in events.c if column is not E.payload), _NO_PAYLOAD]
_UNLISTED = {"application", "lost_leases", "payload", "request_hash", "series", "payload_removed_at", "followed"}
_LISTED = [*(column for column in events.c if column.name not in _UNLISTED), _NO_PAYLOAD]  # each column costs a microsecond a row
_FOR_DELIVERY = (
    E.id,
    E.application,
    E.fence,
    E.status,
    E.wake_at,
    E.attempts,
    E.lost_leases,
    E.cancel_requested,
    E.event_id,
    E.due_at,
    E.method,
    E.url,
    E.headers,
    E.payload,
    E.options,
    E.replayed_at,
    E.followed,
)


_IDS: BindParameter[Any] = bindparam("ids", expanding=True, literal_execute=True)
"""Row numbers are written into statements as they are: as parameters, a hundred of them cost the client twice as much."""


class Floor(NamedTuple):
    """Below this place in the hot index everything of an application has been claimed: a claim need not look there."""

    wake_at: int
    id: int


BOTTOM = Floor(0, 0)


class Ending(NamedTuple):
    """What the row of a claimed event becomes. `wake_at` None means that it is finished."""

    id: int
    fence: int
    status: Status
    wake_at: int | None
    reason: str | None
    uncounted: int = 0  # 1: the attempt is not one of those that the event has
    last_status: int | None = None  # what was answered; None leaves the code of an earlier answer


# --- applications ------------------------------------------------------------------------------------------------------


A = applications.c


def application(conn: Connection, application_id: str) -> Row[Any] | None:
    return conn.execute(select(*applications.c).where(A.application_id == application_id)).first()


_APPLICATIONS = select(*applications.c).where(A.id.in_(_IDS))


def applications_by_number(conn: Connection, numbers: Collection[int]) -> Sequence[Row[Any]]:
    return conn.execute(_APPLICATIONS, {"ids": sorted(numbers)}).all()


def applications_after(conn: Connection, application_id: str, limit: int) -> Sequence[Row[Any]]:
    """Read applications in the order of their ids, after that one."""
    return conn.execute(select(*applications.c).where(A.application_id > application_id).order_by(A.application_id).limit(limit)).all()


def changed_applications(conn: Connection, since: int) -> dict[int, int]:
    """Tell of those that have been changed since then (ms), by their numbers, when that was."""
    rows = conn.execute(select(A.id, A.changed_at).where(A.changed_at >= since))
    return {row.id: row.changed_at for row in rows}


def register_application(conn: Connection, application_id: str, now: int, **columns: Any) -> int:
    result = conn.execute(insert(applications).values(application_id=application_id, created_at=now, changed_at=now, **columns))
    return int(result.lastrowid)


def applications_without_secrets(conn: Connection, limit: int) -> list[tuple[int, str]]:
    """Read their numbers and ids."""
    rows = conn.execute(select(A.id, A.application_id).where(A.secrets.is_(None)).order_by(A.id).limit(limit))
    return [(row.id, row.application_id) for row in rows]


def give_secrets(conn: Connection, number: int, secrets: str, now: int) -> None:
    """Write secrets down, unless somebody else has."""
    conn.execute(update(applications).where(A.id == number, A.secrets.is_(None)).values(secrets=secrets, changed_at=now))


def has_secrets(conn: Connection, *, sealed: bool) -> bool:
    """Tell whether any application's secrets are sealed (an object), or whether any's are not (an array)."""
    return conn.execute(select(A.id).where(A.secrets.like("{%" if sealed else "[{%")).limit(1)).first() is not None


def lock_application(conn: Connection, application_id: str) -> Row[Any] | None:
    return conn.execute(select(*applications.c).where(A.application_id == application_id).with_for_update()).first()


def change_application(conn: Connection, number: int, now: int, columns: Mapping[str, Any]) -> None:
    """Set columns. The instant of a change only grows: by it others see that there was one."""
    later = case((A.changed_at >= now, A.changed_at + 1), else_=now)
    conn.execute(update(applications).where(A.id == number).values({**columns, "changed_at": later}))


def prioritize(conn: Connection, number: int, now: int) -> None:
    """Write down that an application has priorities, unless that is known."""
    later = case((A.changed_at >= now, A.changed_at + 1), else_=now)
    conn.execute(update(applications).where(A.id == number, A.prioritized.is_(False)).values(prioritized=True, changed_at=later))


# --- keys --------------------------------------------------------------------------------------------------------------

K = api_keys.c
_KEYS: Select[Any] = select(*api_keys.c, A.application_id).join_from(api_keys, applications, K.application == A.id, isouter=True)


def insert_key(conn: Connection, row: Mapping[str, Any]) -> None:
    conn.execute(insert(api_keys).values(row))


def key(conn: Connection, prefix: str) -> Row[Any] | None:
    return conn.execute(_KEYS.where(K.prefix == prefix)).first()


def keys(conn: Connection, application: int | None, now: int, limit: int) -> Sequence[Row[Any]]:
    """Read up to `limit` keys of an application, or (None) the operators', in the order in which they were made.

    Where there are more, those that are of no use any more are left out first, the oldest of them before others.
    """
    latest = _KEYS.where(K.application == application).order_by(case((_is_live(now), 0), else_=1), K.id.desc()).limit(limit)
    return sorted(conn.execute(latest), key=lambda row: row.id)


def live_keys(conn: Connection, application: int | None, now: int) -> int:
    """Count the keys of an application, or (None) the operators', that are of use."""
    return conn.execute(select(func.count()).where(K.application == application, _is_live(now))).scalar_one()


def operator_keys(conn: Connection, now: int) -> int:
    """Count the keys by which an operator may come in now."""
    return conn.execute(select(func.count()).where(K.application.is_(None), _is_live(now), K.scopes.contains("admin"))).scalar_one()


def _is_live(now: int) -> ColumnElement[bool]:
    return and_(K.revoked_at.is_(None), or_(K.expires_at.is_(None), K.expires_at > now))


def revoke_key(conn: Connection, prefix: str, now: int) -> None:
    conn.execute(update(api_keys).where(K.prefix == prefix, K.revoked_at.is_(None)).values(revoked_at=now))


def end_session(conn: Connection, session: str, kept_until: int) -> None:
    conn.execute(_ignoring(insert(ended_sessions)).values(session=session, kept_until=kept_until))


def has_ended(conn: Connection, session: str) -> bool:
    return conn.execute(select(ended_sessions.c.session).where(ended_sessions.c.session == session)).first() is not None


def forget_sessions(conn: Connection, now: int, limit: int) -> None:
    """Remove up to `limit` sessions that need not be kept any more."""
    old = select(ended_sessions.c.session).where(ended_sessions.c.kept_until < now).order_by(ended_sessions.c.kept_until).limit(limit)
    if found := conn.execute(old.with_for_update(skip_locked=True)).scalars().all():
        conn.execute(delete(ended_sessions).where(ended_sessions.c.session.in_(found)))


def installation_secret(conn: Connection) -> bytes | None:
    return conn.execute(select(installation.c.secret)).scalar()


def keep_installation_secret(conn: Connection, secret: bytes) -> None:
    """Store it. Raises IntegrityError if there is one."""
    conn.execute(insert(installation).values(id=1, secret=secret))


# --- batches -------------------------------------------------------------------------------------------------------------

Z = batches.c
_BATCH: Sequence[Any] = (Z.batch_id, Z.active, Z.hash, func.length(Z.archive).label("size"), Z.created_at, Z.changed_at)
_TO_RUN: Sequence[Any] = (Z.active, Z.archive, Z.hash)


def insert_batch(conn: Connection, row: Mapping[str, Any]) -> None:
    conn.execute(insert(batches).values(row))


def change_batch(conn: Connection, application: int, batch_id: str, columns: Mapping[str, Any]) -> bool:
    """Set columns of a batch; say whether there is one."""
    return conn.execute(update(batches).where(Z.application == application, Z.batch_id == batch_id).values(columns)).rowcount == 1


def delete_batch(conn: Connection, application: int, batch_id: str) -> bool:
    return conn.execute(delete(batches).where(Z.application == application, Z.batch_id == batch_id)).rowcount == 1


def count_batches(conn: Connection, application: int) -> int:
    return conn.execute(select(func.count()).where(Z.application == application)).scalar_one()


def has_batch(conn: Connection, application: int, batch_id: str) -> bool:
    return conn.execute(select(Z.id).where(Z.application == application, Z.batch_id == batch_id)).first() is not None


def batches_after(conn: Connection, application: int, only: str | None, after: str, limit: int) -> Sequence[Row[Any]]:
    """Read the batches of an application, without their archives, in the order of their ids; or only one of them."""
    which = Z.batch_id > after if only is None else Z.batch_id == only
    return conn.execute(select(*_BATCH).where(Z.application == application, which).order_by(Z.batch_id).limit(limit)).all()


def batch_to_run(conn: Connection, application: int, batch_id: str) -> Row[Any] | None:
    return conn.execute(select(*_TO_RUN).where(Z.application == application, Z.batch_id == batch_id)).first()


# --- adding, looking, cancelling ---------------------------------------------------------------------------------------


_FILLED_LATER = {
    "id",
    "cancel_requested",
    "last_error",
    "finished_at",
    "replayed_at",
    "operation",
    "last_status",
    "payload_removed_at",
    "followed",
}
_INSERT_EVENTS = insert(events).values({column.name: None for column in events.c if column.name not in _FILLED_LATER})


def insert_events(conn: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    _insert(conn, _INSERT_EVENTS, rows)


def new_row(new: NewEvent, application: int, now: int, series: int | None = None) -> dict[str, Any]:
    """Lay a new event out as a row. `wake_at` is never in the past: claims do not look far behind where they have been."""
    due_at = new.due_at if new.due_at is not None else now + (new.delay_ms or 0)
    return {
        "application": application,
        "event_id": new.event_id,
        "status": (Status.BLOCKED if new.after else Status.PENDING).value,
        "due_at": due_at,
        "wake_at": ASLEEP if new.after else max(due_at, now),
        "fence": 0,
        "attempts": 0,
        "lost_leases": 0,
        "payload": new.payload,
        **_request_columns(new),
        "request_hash": new.request_hash,
        "created_at": now,
        "series": series,
        "priority": new.priority,
    }


def _options(new: NewEvent) -> str | None:
    options: dict[str, Any] = {}
    if new.timeout_ms is not None:
        options["timeout_ms"] = new.timeout_ms
    if new.retry is not None:
        options["retry"] = new.retry.plain()
    if new.max_lateness_ms is not None:
        options["max_lateness_ms"] = new.max_lateness_ms
    if new.duration_ms is not None:
        options["duration_ms"] = new.duration_ms
    if new.destination is not None:
        options["destination"] = new.destination.document
    if new.after is not None:
        options["after"] = asdict(new.after)
    if new.keep_output:
        options["keep_output"] = True
    return json.dumps(options) if options else None


def find(conn: Connection, application: int, event_id: str, *, with_payload: bool = True) -> Row[Any] | None:
    columns = events.c if with_payload else _WITHOUT_PAYLOAD
    return conn.execute(select(*columns).where(E.application == application, E.event_id == event_id)).first()


def application_with_event(conn: Connection, event_id: str) -> str | None:
    """Tell whose event has that id; where several applications have one, whose is the oldest. It costs one dive per application."""
    joined = applications.join(events, and_(E.application == applications.c.id, E.event_id == event_id))
    question = select(E.id, applications.c.application_id).select_from(joined)
    found = conn.execute(_hinted(question, "events_event_id")).all()  # asked for in order, it might go through all events
    return min(map(tuple, found))[1] if found else None


def find_all(conn: Connection, keys: Collection[tuple[int, str]]) -> dict[tuple[int, str], Row[Any]]:
    """Look up and lock events by (application, event_id), without their payloads: nobody removes them meanwhile."""
    rows = conn.execute(select(*_WITHOUT_PAYLOAD).where(_any_key(keys)).with_for_update())
    return {(row.application, row.event_id): row for row in rows}


def lock_event(conn: Connection, application: int, event_id: str) -> Row[Any] | None:
    """Look an event up, and lock it: a claim passes over it until this transaction has ended."""
    return conn.execute(select(*events.c).where(E.application == application, E.event_id == event_id).with_for_update()).first()


def change_event(conn: Connection, id_: int, asked: NewEvent, due_at: int, wake_at: int) -> None:
    """Have a locked event that waits ask for something else: a higher fence is a new version. One of a series becomes an exception."""
    columns = {
        "due_at": due_at,
        "wake_at": _unless_asleep(wake_at),
        "priority": asked.priority,
        "fence": E.fence + 1,
        "payload": asked.payload,
        **_request_columns(asked),
    }
    columns["request_hash"] = case((E.series.is_not(None), literal(EXCEPTION_HASH, E.request_hash.type)), else_=E.request_hash)
    changed = conn.execute(update(events).where(E.id == id_, E.status.in_(UNSENT)).values(columns))
    _expect(changed.rowcount, 1, "change_event")


def _unless_asleep(wake_at: Any) -> Any:
    return case((E.status == Status.BLOCKED, ASLEEP), else_=wake_at)


def _request_columns(new: NewEvent) -> dict[str, Any]:
    return {
        "method": new.method,
        "url": new.url,
        "headers": json.dumps(new.headers) if new.headers else None,
        "options": _options(new),
    }


def _any_key(keys: Collection[tuple[int, str]]) -> Any:
    by_application: dict[int, list[str]] = {}
    for application, event_id in keys:
        by_application.setdefault(application, []).append(event_id)
    return or_(*(and_(E.application == application, E.event_id.in_(ids)) for application, ids in by_application.items()))


def remove_cancelled(conn: Connection, ids: Collection[int]) -> None:
    """Make room for ids that are added again. The cancelled event's attempts go with it."""
    _remove_about(conn, ids)
    conn.execute(delete(events).where(E.id.in_(ids), E.status == Status.CANCELLED))


def cancel_waiting(conn: Connection, application: int, event_id: str, now: int) -> bool:
    """Cancel what is not being sent."""
    result = conn.execute(
        update(events).where(E.application == application, E.event_id == event_id, E.status.in_(UNSENT)).values(_cancelled(now))
    )
    return result.rowcount == 1


def _cancelled(now: int) -> dict[str, Any]:
    """Return what becomes of an event that is cancelled. A higher fence voids whatever a stale worker may still want to write."""
    return {"status": Status.CANCELLED, "fence": E.fence + 1, "wake_at": None, "finished_at": now}


def request_cancel(conn: Connection, application: int, event_id: str) -> None:
    """Ask that what is being sent now be sent no more after this. The fence stays: its outcome is still wanted."""
    conn.execute(
        update(events)
        .where(E.application == application, E.event_id == event_id, E.status == Status.PROCESSING)
        .values(cancel_requested=True)
    )


# --- searching ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lane:
    """The one range of an index in which all that is wanted lies, in the index's own order, and what is to be judged row by row.

    The range are the rows of an application whose `ordered` value is `low` at least, and less than `high` (None: no end).
    """

    application: int
    index: str
    ordered: ColumnElement[Any]
    low: Any
    high: Any
    judged: tuple[ColumnElement[bool], ...]
    backwards: bool = False

    @property
    def moves(self) -> bool:
        """Whether events change their place in it by themselves, as they are sent and tried again."""
        return self.ordered is E.wake_at

    def cursor(self, row: Row[Any]) -> Cursor:
        at = getattr(row, self.ordered.name)
        return Cursor(0, 0, at) if self.ordered is E.event_id else Cursor(at, row.id)

    def question(self, columns: Sequence[ColumnElement[Any]], after: Cursor | None, last: Cursor | None, dialect: str) -> Select[Any]:
        """Ask for what lies beyond a place, and not beyond another one. Backwards, what is beyond lies before."""
        if self.ordered is E.event_id:
            order: list[ColumnElement[Any]] = [E.event_id]
            bounds = self._ids(after, last)
        else:
            bounds = self._row_values(after, last) if dialect == "sqlite" else [or_(false(), *self._ranges(after, last))]
            order = [self.ordered, E.id]
        if self.backwards:
            order = [column.desc() for column in order]
        within = select(*columns).where(E.application == self.application, *bounds).order_by(*order)
        hinted: Select[Any] = _hinted(within, self.index)
        return hinted

    def _ids(self, after: Cursor | None, last: Cursor | None) -> list[ColumnElement[bool]]:
        if self.backwards:
            high = E.event_id < after.event_id if after else E.event_id < self.high
            return [high, E.event_id >= (last.event_id if last else self.low)]
        low = E.event_id > after.event_id if after else E.event_id >= self.low
        return [low, E.event_id <= last.event_id if last else E.event_id < self.high]

    def _row_values(self, after: Cursor | None, last: Cursor | None) -> list[ColumnElement[bool]]:
        place, bounds = tuple_(self.ordered, E.id), [self.ordered >= self.low]
        if self.high is not None:
            bounds.append(self.ordered < self.high)
        lower, upper = (last, after) if self.backwards else (after, last)
        if lower:
            first = tuple_(lower.at, lower.id)
            bounds.append(place >= first if self.backwards else place > first)
        if upper:
            end = tuple_(upper.at, upper.id)
            bounds.append(place < end if self.backwards else place <= end)
        return bounds

    def _ranges(self, after: Cursor | None, last: Cursor | None) -> Iterator[ColumnElement[bool]]:
        """Write out what a comparison of pairs means, for MariaDB: plain ranges, none of them empty, are all its optimizer can use."""
        if self.backwards:
            yield from self._ranges_backwards(after, last)
            return
        begin, end = self.low, self.high
        if after and after.at >= self.low and (end is None or after.at < end):
            begin = after.at + 1
            until = (E.id <= last.id,) if last and last.at == after.at else ()
            yield and_(self.ordered == after.at, E.id > after.id, *until)
        if last and last.at >= begin:
            yield and_(self.ordered == last.at, E.id <= last.id)
        if last:
            end = last.at
        if end is None:
            yield self.ordered >= begin
        elif begin < end:
            yield and_(self.ordered >= begin, self.ordered < end)

    def _ranges_backwards(self, after: Cursor | None, last: Cursor | None) -> Iterator[ColumnElement[bool]]:
        begin, end = self.low, self.high
        if after and after.at >= self.low and (end is None or after.at < end):
            end = after.at
            down_to = (E.id >= last.id,) if last and last.at == after.at else ()
            yield and_(self.ordered == after.at, E.id < after.id, *down_to)
        if last and (end is None or last.at < end):
            yield and_(self.ordered == last.at, E.id >= last.id)
        if last:
            begin = last.at + 1
        if end is None:
            yield self.ordered >= begin
        elif begin < end:
            yield and_(self.ordered >= begin, self.ordered < end)


def lane(application: int, wanted: Filter) -> Lane:
    """Choose the index in which the least is passed that is not wanted.

    What has not ended lies together where it waits, which is never before its due time. Where both ends of the due time are
    given, that range is taken for the smaller one.
    """
    is_window = wanted.due_from is not None and wanted.due_until is not None
    if wanted.statuses == {Status.BLOCKED} and not is_window:
        judged = (*_judged(wanted, among=wanted.statuses), *_judged_dues(wanted))
        return Lane(application, "events_wake", E.wake_at, ASLEEP, ASLEEP + 1, judged)
    if wanted.statuses and wanted.statuses <= UNFINISHED and not is_window:
        low = ASLEEP if Status.BLOCKED in wanted.statuses else max(1, wanted.due_from or 0)
        among = UNFINISHED if low == ASLEEP else UNFINISHED - {Status.BLOCKED}
        return Lane(application, "events_wake", E.wake_at, low, None, (*_judged(wanted, among), *_judged_dues(wanted)))
    return Lane(application, "events_due", E.due_at, wanted.due_from or 0, wanted.due_until, tuple(_judged(wanted)))


def lane_of_series(application: int, series: int, wanted: Filter) -> Lane:
    """Look among the ids of occurrences: that of the series (its row is `series`), and the digits of an instant."""
    judged = (E.series == series, *_judged(wanted), *_judged_dues(wanted))
    first, end = id_range(wanted.series_id or "")
    return Lane(application, "events_event_id", E.event_id, first, end, judged)


def _judged(wanted: Filter, among: frozenset[Status] = frozenset(Status)) -> Iterator[ColumnElement[bool]]:
    if wanted.statuses and not among <= wanted.statuses:
        yield E.status.in_(sorted(wanted.statuses))
    if wanted.last_status is not None:
        yield E.last_status == wanted.last_status
    if wanted.tried is not None:
        yield E.attempts > 0 if wanted.tried else E.attempts == 0
    if wanted.host is not None:
        yield _may_lead_to(wanted.host)


def _judged_dues(wanted: Filter) -> Iterator[ColumnElement[bool]]:
    due_at = E.due_at + 0  # by the name alone SQLite might take the other index, and sort
    if wanted.due_from is not None:
        yield due_at >= wanted.due_from
    if wanted.due_until is not None:
        yield due_at < wanted.due_until


def _may_lead_to(host: str) -> ColumnElement[bool]:
    """Sort out most of what leads elsewhere. `Filter.goes_there` decides, as an address may be written in many ways."""
    if re.fullmatch(r"\[.*|[0-9.]+(:[0-9]+)?", host):
        return func.substr(E.url, func.instr(E.url, "://") + 3, 1).in_(list("0123456789["))
    name = host.partition(":")[0]
    beginnings = (f"http://{name}", f"https://{name}", f"{name}:")  # the last one: of what is no URL
    return or_(*(func.lower(E.url).startswith(beginning, autoescape=True) for beginning in beginnings))


def further(conn: Connection, lane: Lane, after: Cursor | None, most: int) -> Cursor | None:
    """Return the place of the last of `most` events beyond a place, whatever they are; None if there are fewer."""
    columns = [lane.ordered] if lane.ordered is E.event_id else [lane.ordered, E.id]
    row = conn.execute(lane.question(columns, after, None, conn.dialect.name).offset(most - 1).limit(1)).first()
    return lane.cursor(row) if row is not None else None


def page(conn: Connection, lane: Lane, after: Cursor | None, last: Cursor | None, limit: int) -> Sequence[Row[Any]]:
    """Read up to `limit` of the events that are wanted, after one place and not after another one, without their payloads."""
    question = lane.question(_LISTED, after, last, conn.dialect.name).where(*lane.judged)
    return conn.execute(question.limit(limit)).all()


def payload_lengths(conn: Connection, ids: Collection[int]) -> dict[int, int]:
    """Tell how many bytes the payloads of events have, by row number."""
    rows = conn.execute(select(E.id, func.coalesce(func.length(E.payload), 0)).where(_ONE_OF_IDS), {"ids": sorted(ids)})
    return {row[0]: row[1] for row in rows}


def payloads(conn: Connection, ids: Collection[int]) -> dict[int, bytes | None]:
    return {row.id: row.payload for row in conn.execute(select(E.id, E.payload).where(_ONE_OF_IDS), {"ids": sorted(ids)})}


def applications_with_series(conn: Connection, first: str, before: str, limit: int) -> list[tuple[str, str]]:
    """Tell the (application, series) ids whose latter lies between two, the last one not included; the oldest first."""
    s = series.c
    joined = applications.join(series, and_(s.application == applications.c.id, s.series_id >= first, s.series_id < before))
    rows = conn.execute(select(s.id, applications.c.application_id, s.series_id).select_from(joined).limit(limit))
    return [(application_id, series_id) for _, application_id, series_id in sorted(map(tuple, rows))]


def series_number(conn: Connection, application: int, series_id: str) -> int | None:
    s = series.c
    return conn.execute(select(s.id).where(s.application == application, s.series_id == series_id)).scalar()


def attempts_of(conn: Connection, event: int) -> list[Attempt]:
    a = attempts.c
    rows = conn.execute(
        select(a.number, a.started_at, a.duration_ms, a.status_code, a.error, a.detail, a.excerpt).where(a.event == event).order_by(a.fence)
    )
    return [
        Attempt(number, started_at, duration_ms, status_code, ErrorKind(error) if error else None, detail, excerpt)
        for number, started_at, duration_ms, status_code, error, detail, excerpt in rows
    ]


def attempts_of_all(conn: Connection, ids: Collection[int]) -> dict[int, list[Attempt]]:
    """Read the logs of several events, by row number, the oldest attempt first."""
    a = attempts.c
    columns = (a.event, a.number, a.started_at, a.duration_ms, a.status_code, a.error, a.detail, a.excerpt)
    found: dict[int, list[Attempt]] = {id_: [] for id_ in ids}
    for event, number, started_at, duration_ms, status_code, error, detail, excerpt in conn.execute(
        select(*columns).where(a.event.in_(sorted(ids))).order_by(a.event, a.fence)
    ):
        kind = ErrorKind(error) if error else None
        found[event].append(Attempt(number, started_at, duration_ms, status_code, kind, detail, excerpt))
    return found


# --- series ------------------------------------------------------------------------------------------------------------

S = series.c
_SERIES = select(*series.c)
_SERIES_WITHOUT_PAYLOAD = select(*(column for column in series.c if column is not S.payload))
_ACTIVE_WAKE = select(func.min(S.wake_at)).where(S.wake_at > 0)


def find_series(conn: Connection, application: int, series_id: str) -> Row[Any] | None:
    return conn.execute(_SERIES.where(S.application == application, S.series_id == series_id)).first()


def lock_series(conn: Connection, application: int, series_id: str) -> Row[Any] | None:
    return conn.execute(_SERIES.where(S.application == application, S.series_id == series_id).with_for_update()).first()


def series_after(conn: Connection, application: int, statuses: Collection[SeriesStatus], after: str, limit: int) -> Sequence[Row[Any]]:
    """Read up to `limit` series of an application, of these statuses (none: of any), without payloads, by id, after that one."""
    question = _SERIES_WITHOUT_PAYLOAD.where(S.application == application, S.series_id > after).order_by(S.series_id).limit(limit)
    if statuses:
        question = question.where(S.status.in_(sorted(statuses)))
    return conn.execute(question).all()


def series_payload_lengths(conn: Connection, numbers: Collection[int]) -> dict[int, int]:
    s = series.c
    rows = conn.execute(select(s.id, func.coalesce(func.length(s.payload), 0)).where(s.id.in_(sorted(numbers))))
    return {row[0]: row[1] for row in rows}


def series_payloads(conn: Connection, numbers: Collection[int]) -> dict[int, bytes | None]:
    s = series.c
    return {row.id: row.payload for row in conn.execute(select(s.id, s.payload).where(s.id.in_(sorted(numbers))))}


def series_waking(conn: Connection, until: int, limit: int) -> Sequence[Row[Any]]:
    """Read up to `limit` series that are to be seen to by `until`, those first that come first, without payloads."""
    return conn.execute(_SERIES_WITHOUT_PAYLOAD.where(S.wake_at > 0, S.wake_at <= until).order_by(S.wake_at).limit(limit)).all()


def next_series_wake(conn: Connection) -> int | None:
    """Tell when a worker is to see to a series next (ms); None: never."""
    return conn.execute(_ACTIVE_WAKE).scalar()


def lock_due_series(conn: Connection, until: int, limit: int) -> Sequence[Row[Any]]:
    """Lock series that are to be seen to by `until`, those that wait longest first, passing over locked ones."""
    question = _SERIES.where(S.wake_at > 0, S.wake_at <= until).order_by(S.wake_at, S.id).limit(limit)
    hint = "FORCE INDEX (series_wake)"
    hinted = question.with_hint(series, hint, "mysql").with_hint(series, hint, "mariadb")
    return conn.execute(hinted.with_for_update(skip_locked=True)).all()


def insert_series(conn: Connection, row: Mapping[str, Any]) -> int:
    return int(conn.execute(insert(series).values(row)).lastrowid)


def change_series(conn: Connection, number: int, columns: Mapping[str, Any]) -> None:
    conn.execute(update(series).where(S.id == number).values(columns))


_MOVE_SERIES = (
    update(series)
    .where(S.id == bindparam("of"))
    .values(
        status=bindparam("to"),
        last_at=bindparam("at"),
        last_index=bindparam("index"),
        wake_at=bindparam("wake"),
        finished_at=bindparam("ended"),
    )
)


def move_series(conn: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write how far locked series have come."""
    _expect(conn.execute(_MOVE_SERIES, rows).rowcount, len(rows), "move series")


def postpone_series(conn: Connection, numbers: Collection[int], wake_at: int) -> None:
    conn.execute(update(series).where(S.id.in_(sorted(numbers))).values(wake_at=wake_at))


def delete_series(conn: Connection, number: int) -> None:
    conn.execute(delete(series).where(S.id == number))


def series_row(content: Content, application: int) -> dict[str, Any]:
    """Lay out what a series is to do as columns."""
    return {
        "application": application,
        "series_id": content.series_id,
        "name": content.name,
        "rule": json.dumps({name: value for name, value in asdict(content.rule).items() if value is not None}),
        "options": json.dumps(content.options) if content.options else None,
        "metadata": json.dumps(content.metadata) if content.metadata else None,
        "method": content.method,
        "url": content.url,
        "headers": json.dumps(content.headers) if content.headers else None,
        "payload": content.payload,
        "request_hash": content.content_hash,
    }


def to_series(row: Row[Any], application_id: str) -> Series:
    """Read a row; its next occurrence is left out. Raises SeriesUnreadable."""
    try:
        options = json.loads(row.options) if row.options else {}
        content = Content(
            application_id=application_id,
            series_id=row.series_id,
            rule=Rule(**json.loads(row.rule)),
            url=row.url,
            method=row.method,
            headers=tuple((name, value) for name, value in json.loads(row.headers)) if row.headers else (),
            payload=getattr(row, "payload", None),
            timeout_ms=options.get("timeout_ms"),
            retry=RetryOptions(**options["retry"]) if "retry" in options else None,
            max_lateness_ms=options.get("max_lateness_ms"),
            duration_ms=options.get("duration_ms"),
            name=row.name,
            description=options.get("description"),
            metadata=json.loads(row.metadata) if row.metadata else {},
            catch_up=CatchUp(options.get("catch_up", CatchUp.LATEST)),
            catch_up_window_ms=options.get("catch_up_window_ms"),
            overlap=Overlap(options.get("overlap", Overlap.ALLOW)),
            jitter_ms=options.get("jitter_ms", 0),
            identity_headers=options.get("identity_headers", {}),
            destination=_read_destination(options),
            priority=options.get("priority", 0),
            keep_output=options.get("keep_output", False),
            after=AfterSeries(options["after"]["series_id"], On(options["after"]["on"]), options["after"]["input"])
            if "after" in options
            else None,
        )
    except (ValueError, TypeError, AttributeError, InvalidEvent) as error:
        raise SeriesUnreadable(f"series {row.series_id!r} of {application_id!r} cannot be read: {error}") from error
    return Series(
        number=row.id,
        content=content,
        content_hash=row.request_hash,
        status=SeriesStatus(row.status),
        version=row.version,
        last=None if row.last_at is None else Occurrence(row.last_at, row.last_index),
        wake_at=row.wake_at,
        next_at=None,
        created_at=row.created_at,
        changed_at=row.changed_at,
        finished_at=row.finished_at,
        follows=row.follows,
    )


def series_by_number(conn: Connection, number: int, *, lock: bool = False) -> Row[Any] | None:
    question = _SERIES.where(S.id == number)
    return conn.execute(question.with_for_update() if lock else question).first()


def series_following(conn: Connection, numbers: Collection[int]) -> Sequence[Row[Any]]:
    """Read the active series that come after one of these, in the order of their rows."""
    found = conn.execute(_SERIES.where(S.follows.in_(sorted(numbers)), S.status == SeriesStatus.ACTIVE)).all()
    return sorted(found, key=lambda row: row.id)  # here, where it needs no look at more than was found


# --- the events of series ----------------------------------------------------------------------------------------------


def _occurrences(application: int, number: int, first: str, last: str) -> ColumnElement[bool]:
    """Those events of a series whose ids lie between two, both included: they are in the order of their original instants."""
    return and_(E.application == application, E.event_id >= first, E.event_id <= last, E.series == number)


def occurrences(conn: Connection, application: int, number: int, first: str, last: str, limit: int) -> Sequence[Row[Any]]:
    """Read up to `limit` events of a series, without payloads, whose ids lie between two, both included, in their order."""
    question = select(*_WITHOUT_PAYLOAD).where(_occurrences(application, number, first, last)).order_by(E.event_id).limit(limit)
    return conn.execute(_hinted(question, "events_event_id")).all()


def newest_occurrences(conn: Connection, application: int, number: int, first: str, before: str, limit: int) -> Sequence[Row[Any]]:
    """Read up to `limit` events of a series, without payloads, whose ids lie between two, the last one not included, backwards."""
    which = and_(E.application == application, E.event_id >= first, E.event_id < before, E.series == number)
    question = select(*_WITHOUT_PAYLOAD).where(which).order_by(E.event_id.desc()).limit(limit)
    return conn.execute(_hinted(question, "events_event_id")).all()


def unfinished_occurrences(conn: Connection, application: int, number: int, first: str, last: str) -> Sequence[Row[Any]]:
    """Read the ids, and no more, of those that have not ended, in the order of their ids."""
    which = and_(_occurrences(application, number, first, last), E.wake_at >= ASLEEP)
    columns = (E.id, E.event_id, E.status, E.attempts, E.replayed_at, E.operation, E.request_hash)
    question = select(*columns).where(which).order_by(E.event_id)
    return conn.execute(_hinted(question, "events_event_id")).all()


def latest_occurrences(conn: Connection, application: int, number: int, first: str, before: str, limit: int) -> list[Status]:
    """Tell the statuses of up to `limit` occurrences before that id, the latest first."""
    which = and_(E.application == application, E.event_id >= first, E.event_id < before, E.series == number)
    question = select(E.status).where(which).order_by(E.event_id.desc()).limit(limit)
    return [Status(status) for status in conn.execute(_hinted(question, "events_event_id")).scalars()]


def statuses_of_occurrences(conn: Connection, application: int, number: int, first: str, last: str) -> dict[str, Status]:
    """Tell the statuses of those whose ids lie between two, both included."""
    question = select(E.event_id, E.status).where(_occurrences(application, number, first, last))
    return {row.event_id: Status(row.status) for row in conn.execute(_hinted(question, "events_event_id"))}


def ids_there(conn: Connection, keys: Collection[tuple[int, str]]) -> dict[tuple[int, str], int | None]:
    """Tell which of these (application, event_id) are taken, and by an event of which series, if it is of one."""
    question = select(E.application, E.event_id, E.series).where(_any_key(keys))
    return {(row.application, row.event_id): row.series for row in conn.execute(question)}


def cancel_by_row(conn: Connection, ids: Collection[int], now: int) -> int:
    """Cancel what is not being sent, and ask that what is be sent no more after this; return how many were cancelled."""
    waiting = update(events).where(E.id.in_(sorted(ids)), E.status.in_(UNSENT))
    cancelled = conn.execute(waiting.values(_cancelled(now))).rowcount
    conn.execute(update(events).where(E.id.in_(sorted(ids)), E.status == Status.PROCESSING).values(cancel_requested=True))
    return cancelled


def lock_unsent(conn: Connection, ids: Collection[int]) -> list[int]:
    """Lock those that nobody is sending, or has begun to, and those that were cancelled."""
    which = select(E.id).where(E.id.in_(sorted(ids)), E.status.in_((Status.PENDING, Status.BLOCKED, Status.CANCELLED)))
    return list(conn.execute(which.order_by(E.id).with_for_update()).scalars())


def remove_events(conn: Connection, ids: Collection[int]) -> None:
    """Remove locked events, with the log of their attempts, and what of them is said elsewhere."""
    _remove_about(conn, sorted(ids))
    conn.execute(delete(events).where(E.id.in_(sorted(ids))))


def _remove_about(conn: Connection, ids: Collection[int]) -> None:
    conn.execute(delete(attempts).where(attempts.c.event.in_(ids)))
    conn.execute(delete(outputs).where(outputs.c.event.in_(ids)))
    conn.execute(delete(links).where(L.successor.in_(ids)))
    conn.execute(delete(links).where(L.predecessor.in_(ids)))


EXCEPTION_HASH = hashlib.sha256(b"an occurrence that was changed or cancelled by itself").digest()
"""What such an event has in place of its request's fingerprint: nobody repeats the request by which it was made."""


def mark_exception(conn: Connection, id_: int) -> None:
    conn.execute(update(events).where(E.id == id_).values(request_hash=EXCEPTION_HASH))


def is_exception(row: Row[Any]) -> bool:
    return bool(row.request_hash == EXCEPTION_HASH)


# --- what is kept no longer ----------------------------------------------------------------------------------------------


class Aged(NamedTuple):
    """What retention has to know of an event."""

    id: int
    event_id: str
    status: Status
    due_at: int
    finished_at: int | None
    series: int | None
    has_payload: bool


_AGED = (E.id, E.event_id, E.status, E.due_at, E.finished_at, E.series, E.payload.is_not(None).label("has_payload"))


def aged(conn: Connection, application: int, after: Cursor, until: int, limit: int) -> list[Aged]:
    """Read the events of an application that were due by then, the oldest first, beginning beyond a place, ended or not."""
    lane = Lane(application, "events_due", E.due_at, after.at, until + 1, ())
    return [Aged(*row) for row in conn.execute(lane.question(_AGED, after, None, conn.dialect.name).limit(limit))]


def lock_aged(conn: Connection, ids: Collection[int]) -> list[Aged]:
    """Lock those that have ended, passing over what somebody else holds, and read them as they are now."""
    which = select(*_AGED).where(E.id.in_(sorted(ids)), E.status.in_(sorted(FINISHED)), E.finished_at.is_not(None))
    return [Aged(*row) for row in conn.execute(which.order_by(E.id).with_for_update(skip_locked=True))]


def events_by_row(conn: Connection, ids: Collection[int]) -> Sequence[Row[Any]]:
    return conn.execute(select(*_LISTED).where(E.id.in_(sorted(ids)))).all()


def rows_added(conn: Connection, after: int, limit: int) -> Sequence[Row[Any]]:
    """Say of the rows beyond one whose they are and when they are due, in their order."""
    question: Select[Any] = select(E.id, E.application, E.due_at).where(E.id > after).order_by(E.id).limit(limit)
    return conn.execute(_hinted(question, "PRIMARY")).all()


def aged_by_row(conn: Connection, ids: Collection[int]) -> list[Aged]:
    return [Aged(*row) for row in conn.execute(select(*_AGED).where(E.id.in_(sorted(ids))).order_by(E.id))]


def count_attempts(conn: Connection, ids: Collection[int]) -> int:
    return conn.execute(select(func.count()).where(attempts.c.event.in_(sorted(ids)))).scalar_one()


def series_places(conn: Connection, numbers: Collection[int]) -> dict[int, int | None]:
    """Tell of these series, as far as they are there, the instant of the occurrence that was made last."""
    which = select(series.c.id, series.c.last_at).where(series.c.id.in_(sorted(numbers)))
    return {row.id: row.last_at for row in conn.execute(which)}


def still_needed(conn: Connection, rows: Iterable[Aged | Row[Any]]) -> set[int]:
    """Of events that were moved or cancelled by themselves, those that keep their series from making the same occurrence again."""
    originals = {row.id: (row.series, found[1]) for row in rows if row.series and (found := original_of(row.event_id))}
    if not originals:
        return set()
    places = series_places(conn, {number for number, _ in originals.values()})
    return {id_ for id_, (number, at) in originals.items() if number in places and at > (places[number] or 0)}


def remove_attempts(conn: Connection, ids: Collection[int]) -> int:
    """Remove the logs of locked events; return how many lines there were."""
    conn.execute(delete(outputs).where(outputs.c.event.in_(sorted(ids))))
    return conn.execute(delete(attempts).where(attempts.c.event.in_(sorted(ids)))).rowcount


def remove_payloads(conn: Connection, ids: Collection[int], now: int) -> None:
    """Remove the payloads of locked events."""
    conn.execute(update(events).where(E.id.in_(sorted(ids))).values(payload=None, payload_removed_at=now))


def kept_by_application(conn: Connection) -> list[tuple[int, int | None]]:
    """Tell of each application (its number) for how long (ms) it has what has ended kept, if it says so."""
    rows = conn.execute(select(A.id, A.limits).order_by(A.id))
    return [(row.id, json.loads(row.limits).get("kept_ms") if row.limits else None) for row in rows]


# --- the agenda and the claim ------------------------------------------------------------------------------------------


def agenda(conn: Connection, until: int) -> dict[int, int]:
    """For every application with something that a worker may look at by `until`: when it first may (ms)."""
    first = func.min(E.wake_at)
    if conn.dialect.name == "sqlite":
        # No loose index scan here; one dive per application is as good.
        dive = select(first).where(E.application == applications.c.id, E.wake_at > 0).scalar_subquery()
        rows = conn.execute(select(applications.c.id, dive))
        return {application: wake_at for application, wake_at in rows if wake_at is not None and wake_at <= until}
    rows = conn.execute(select(E.application, first).where(E.wake_at > 0).group_by(E.application).having(first <= until))
    return {row[0]: row[1] for row in rows}


def newest_row(conn: Connection) -> int:
    return conn.execute(select(func.max(E.id))).scalar() or 0


def added_after(conn: Connection, row: int) -> dict[int, tuple[int, int]]:
    """Tell of unfinished events added after that row, by application: when a worker may first look at them, and the newest one."""
    application_id = E.application + 0  # by the name alone SQLite would take the other index, and read all of it
    question = select(application_id, func.min(E.wake_at), func.max(E.id)).where(E.id > row, E.wake_at > 0).group_by(application_id)
    rows: Iterable[Any] = conn.execute(_hinted(question, "PRIMARY"))
    return {application: (wake_at, newest) for application, wake_at, newest in rows}


def _hinted(question: Any, index: str) -> Any:
    """Pin the index: one plan with a filesort locks hundreds of rows and starves every other worker."""
    hint = f"FORCE INDEX ({index})"
    return question.with_hint(events, hint, "mysql").with_hint(events, hint, "mariadb")


_FIT = or_(E.status != Status.PROCESSING, and_(E.wake_at <= bindparam("now"), E.lost_leases == 0))
_LOST_AGAIN = and_(E.wake_at > 0, E.wake_at <= bindparam("now"), E.status == Status.PROCESSING, E.lost_leases > 0)
_ONE_OF_APPLICATIONS = E.application.in_(_IDS)


def _waking(which: ColumnElement[bool], *order: ColumnElement[int]) -> Select[Any]:
    """Begin a question for events to lock, in the order of the hot index."""
    question = select(*_FOR_DELIVERY).where(which).order_by(*order, E.wake_at, E.id).limit(bindparam("most"))
    hinted: Select[Any] = _hinted(question.with_for_update(skip_locked=True), "events_wake")
    return hinted


# Two plain ranges of (wake_at, id), which is what MariaDB's range optimizer can use; a comparison of pairs is not.
_REACH = or_(
    and_(E.wake_at == bindparam("floor"), E.id > bindparam("floor_id")),
    and_(E.wake_at > bindparam("floor"), E.wake_at <= bindparam("until")),
)
_SPAN = and_(E.wake_at >= bindparam("floor"), E.wake_at <= bindparam("until"))
_DUE = _waking(and_(E.application == bindparam("of"), _REACH, _FIT))
_DUE_OF_MANY = _waking(and_(_ONE_OF_APPLICATIONS, _SPAN, _FIT), E.application)
_SUSPECT = _waking(and_(_ONE_OF_APPLICATIONS, _LOST_AGAIN), E.application)


def lock_due(conn: Connection, floors: Mapping[int, Floor], now: int, until: int, most: Mapping[int, int]) -> Sequence[Row[Any]]:
    """Lock up to `most` events of each application that may be looked at by `until`, oldest first, passing over locked ones.

    A lease is left to its owner to the end: what is being sent is taken only once its wake_at has come. Suspects are left out.
    One statement, joined from text: a UNION of 30 takes Core longer to write than the database to answer.
    """
    text, names, constants = _written_out(_DUE, conn.dialect)
    # SQLite takes no parentheses here, and locks no rows; MariaDB and MySQL lock only where the branch itself says so.
    opening = "SELECT * FROM (" if conn.dialect.name == "sqlite" else "("
    statement = " UNION ALL ".join([f"{opening}{text})"] * len(floors)) if len(floors) > 1 else text
    common = constants | {"now": now}
    parameters = []
    for application, floor in floors.items():
        # An empty second range would make MariaDB sort, and lock, everything that is due.
        asked = common | {
            "of": application,
            "most": most[application],
            "floor": floor.wake_at,
            "floor_id": floor.id,
            "until": max(until, floor.wake_at + 1),
        }
        parameters += [asked[name] for name in names]
    return conn.exec_driver_sql(statement, tuple(parameters)).all()


def lock_due_of_many(conn: Connection, applications: Collection[int], floor: int, now: int, until: int, limit: int) -> Sequence[Row[Any]]:
    """Lock likewise, from the wake_at `floor` on, the first `limit` events of many applications, by the applications' numbers.

    For applications that have little it is cheap: 10 microseconds of the database for each, where `lock_due` takes 45.
    """
    asked = {"ids": sorted(applications), "floor": floor, "now": now, "until": until, "most": limit}
    return conn.execute(_DUE_OF_MANY, asked).all()


_IN_WINDOW = and_(E.application == bindparam("of"), E.wake_at > 0, E.wake_at <= bindparam("until"), _FIT)
_WINDOW: Select[Any] = _hinted(
    select(E.id, E.priority).where(_IN_WINDOW).order_by(E.wake_at, E.id).limit(bindparam("window")), "events_wake"
)
_LOCK_CHOSEN: Select[Any] = (
    select(*_FOR_DELIVERY)
    .where(E.id.in_(_IDS), E.wake_at > 0, E.wake_at <= bindparam("until"), _FIT)
    .order_by(E.id)
    .with_for_update(skip_locked=True)
)


def due_window(conn: Connection, application: int, now: int, until: int, window: int) -> list[tuple[int, int]]:
    """Read (row, priority) of the first `window` events of an application that may be looked at by `until`, oldest first. Locks nothing."""
    asked = {"of": application, "now": now, "until": until, "window": window}
    return [(row[0], row[1]) for row in conn.execute(_WINDOW, asked)]


def lock_chosen(conn: Connection, ids: Sequence[int], now: int, until: int) -> list[Row[Any]]:
    """Lock those of these events that still may be looked at by `until`, passing over locked ones, in the order that is given."""
    found = {row.id: row for row in conn.execute(_LOCK_CHOSEN, {"ids": sorted(ids), "now": now, "until": until})}
    return [found[id_] for id_ in ids if id_ in found]


def lock_suspect(conn: Connection, applications: Collection[int], now: int) -> Sequence[Row[Any]]:
    """Lock one event, if there is one, whose owners have been lost before and that has lost another one."""
    return conn.execute(_SUSPECT, {"ids": sorted(applications), "now": now, "most": 1}).all()


_NEXT_WAKE = select(func.min(E.wake_at)).where(E.application == bindparam("of"), E.wake_at > bindparam("after"))
_NEXT_WAKES = select(E.application, func.min(E.wake_at)).where(_ONE_OF_APPLICATIONS, E.wake_at > bindparam("after")).group_by(E.application)


def next_wakes(conn: Connection, applications: Collection[int], after: int) -> dict[int, int | None]:
    """Tell for each application when its first event later than `after` may be looked at; None if there is none."""
    if len(applications) == 1:  # a single dive into the index, however much there is
        (application,) = applications
        return {application: conn.execute(_NEXT_WAKE, {"of": application, "after": after}).scalar()}
    rows = conn.execute(_NEXT_WAKES, {"ids": sorted(applications), "after": after})
    return dict.fromkeys(applications) | {row[0]: row[1] for row in rows}


_ONE_OF_IDS = E.id.in_(_IDS)
_TAKEN = {"status": Status.PROCESSING, "fence": E.fence + 1, "attempts": E.attempts + 1, "wake_at": bindparam("lease_until")}
_CLAIM = update(events).where(_ONE_OF_IDS, E.status.in_(WAITING)).values(_TAKEN)
_CLAIM_LOST = update(events).where(_ONE_OF_IDS, E.status == Status.PROCESSING).values(_TAKEN | {"lost_leases": E.lost_leases + 1})


def claim(conn: Connection, ids: Sequence[int], lease_until: int, *, lost: bool) -> None:
    """Take locked events for a lease. `lost` says that they are taken from an owner that never came back."""
    result = conn.execute(_CLAIM_LOST if lost else _CLAIM, {"ids": sorted(ids), "lease_until": lease_until})
    _expect(result.rowcount, len(ids), "claim")


def bury(conn: Connection, ids: Collection[int], status: Status, reason: str, now: int) -> None:
    """End locked events whose owner never came back, without sending them again."""
    result = conn.execute(
        update(events)
        .where(E.id.in_(sorted(ids)), E.status == Status.PROCESSING)
        .values(status=status, fence=E.fence + 1, wake_at=None, finished_at=now, last_error=reason)
    )
    _expect(result.rowcount, len(ids), "bury")


def postpone(conn: Connection, wakes: Mapping[int, int]) -> None:
    """Have locked events, that nobody is sending, looked at later: wake_at by row number. It is no attempt."""
    waiting = update(events).where(E.id.in_(sorted(wakes)), E.status.in_(WAITING))
    _expect(conn.execute(waiting.values(wake_at=case(wakes, value=E.id))).rowcount, len(wakes), "postpone")


# --- what workers and services share so that limits hold for all of them ----------------------------------------------


class PaceKind(IntEnum):
    """What there may be only so many of in a second."""

    ADDS = 0
    DELIVERIES = 1


H, P, B = holdings.c, paces.c, breakers.c


def lock_applications(conn: Connection, numbers: Collection[int]) -> set[int]:
    """Lock applications by their numbers, but for those that others have locked, and say which."""
    rows = conn.execute(select(A.id).where(A.id.in_(sorted(numbers))).order_by(A.id).with_for_update(skip_locked=True))
    return {row.id for row in rows}


def held_by_others(conn: Connection, numbers: Collection[int], holder: str, now: int) -> dict[int, int]:
    """Count what others hold of these applications, by number, but for those whose leases have run out."""
    held = func.sum(H.events)
    others = and_(H.application.in_(sorted(numbers)), H.holder != holder, H.held_until > now)
    return {row[0]: int(row[1]) for row in conn.execute(select(H.application, held).where(others).group_by(H.application))}


def hold(conn: Connection, application: int, holder: str, held: int, held_until: int) -> bool:
    """Write down how much a holder holds; say whether it is a new one. The application's row is locked: nobody else does so now."""
    own = and_(H.application == application, H.holder == holder)
    if conn.execute(update(holdings).where(own).values(events=held, held_until=held_until)).rowcount:
        return False
    conn.execute(insert(holdings).values(application=application, holder=holder, events=held, held_until=held_until))
    return True


_HOLD_LESS = update(holdings).where(H.application == bindparam("of"), H.holder == bindparam("by")).values(events=bindparam("held"))


def hold_less(conn: Connection, holder: str, held: Mapping[int, int]) -> None:
    """Write down how much a holder still holds, by application."""
    conn.execute(_HOLD_LESS, [{"of": application, "by": holder, "held": count} for application, count in held.items()])


def let_go(conn: Connection, applications: Collection[int], holder: str) -> None:
    conn.execute(delete(holdings).where(H.application.in_(sorted(applications)), H.holder == holder))


def forget_holders(conn: Connection, application: int, now: int) -> None:
    """Remove what workers have left that are gone: none of their leases lasts any more."""
    gone = and_(H.application == application, H.held_until < now)
    holders = conn.execute(select(H.holder).where(gone).with_for_update(skip_locked=True)).scalars().all()
    if holders:  # those that are alive after all are locked, or about to write something else
        conn.execute(delete(holdings).where(gone, H.holder.in_(holders)))


def paces_of(conn: Connection, numbers: Collection[int], kind: PaceKind) -> dict[int, int]:
    """Tell for applications when their next one of that kind may be (microseconds); those that are missing: at any time."""
    rows = conn.execute(select(P.application, P.next_at).where(P.application.in_(sorted(numbers)), P.kind == kind))
    return {row.application: row.next_at for row in rows}


def forget_pace(conn: Connection, application: int, kind: PaceKind) -> None:
    conn.execute(delete(paces).where(P.application == application, P.kind == kind))


def set_pace(conn: Connection, application: int, kind: PaceKind, next_at: int) -> None:
    changed = conn.execute(update(paces).where(P.application == application, P.kind == kind).values(next_at=next_at))
    if not changed.rowcount:
        conn.execute(_ignoring(insert(paces)).values(application=application, kind=kind, next_at=next_at))


def draw(conn: Connection, application: int, kind: PaceKind, now: int, cost: int, burst: int) -> bool:
    """Move the pace on by `cost`, unless it is more than `burst` ahead of `now` already (microseconds, all of them)."""
    begin = case((P.next_at > now, P.next_at), else_=now)
    own = and_(P.application == application, P.kind == kind)
    drawn = conn.execute(update(paces).where(own, P.next_at <= now + burst).values(next_at=begin + cost))
    if drawn.rowcount:
        return True
    return conn.execute(_ignoring(insert(paces)).values(application=application, kind=kind, next_at=now + cost)).rowcount == 1


def _ignoring(statement: Insert) -> Insert:
    """Have an INSERT do nothing where the row is there already."""
    return (
        statement.prefix_with("IGNORE", dialect="mysql").prefix_with("IGNORE", dialect="mariadb").prefix_with("OR IGNORE", dialect="sqlite")
    )


def pending(conn: Connection, application: int, most: int) -> int:
    """Count the events of an application that have not ended, up to `most`."""
    some = select(E.id).where(E.application == application, E.wake_at >= ASLEEP).limit(most)
    return conn.execute(select(func.count()).select_from(_hinted(some, "events_wake").subquery())).scalar_one()


def waiting_by_status(conn: Connection, numbers: Sequence[int], most: int) -> dict[Status, int]:
    """Count the events of some applications that have not ended, by status: up to `most` altogether, of each those first that wake first;
    and up to `most` that are blocked, by themselves, as they come first in the index, and might be all that is seen.
    """
    own = E.application.in_(numbers)
    awake = select(E.status).where(own, E.wake_at > ASLEEP).order_by(E.application, E.wake_at).limit(most)
    asleep: Select[Any] = select(literal_column(str(int(Status.BLOCKED))).label("status")).where(own, E.wake_at == ASLEEP).limit(most)
    parts = [_hinted(some, "events_wake").subquery() for some in (awake, asleep)]
    rows = conn.execute(union_all(*(select(some.c.status, func.count()).group_by(some.c.status) for some in parts)))
    return {Status(status): count for status, count in rows}


def open_breakers(conn: Connection, since: int, application: int | None = None) -> dict[Place, Opened]:
    """Read breakers, all or those of an application; not those for whose probe there has been no event `since` (ms)."""
    question = select(B.application, B.destination, B.opened_at, B.retry_at, B.openings, B.probing, B.reason).where(B.retry_at > since)
    rows = conn.execute(question if application is None else question.where(B.application == application))
    return {Place(application, destination): Opened(*opened) for application, destination, *opened in rows}


def forget_breakers(conn: Connection, since: int) -> None:
    """Remove those for whose probe there has been no event since then."""
    conn.execute(delete(breakers).where(B.retry_at <= since))


def change_breaker(conn: Connection, change: Change) -> None:
    own = and_(B.application == change.place.application, B.destination == change.place.destination)
    if change.opened is None:
        conn.execute(delete(breakers).where(own))
        return
    columns = {**change.opened._asdict(), "reason": _clipped(change.opened.reason, DETAIL_CHARACTERS)}
    before = or_(B.openings < change.opened.openings, and_(B.openings == change.opened.openings, B.probing))
    changed = conn.execute(update(breakers).where(own, before).values(columns))
    if not changed.rowcount and change.opened.openings == 1:  # others may have opened it just now
        conn.execute(_ignoring(insert(breakers)).values(**change.place._asdict(), **columns))


def take_probe(conn: Connection, place: Place, opened: Opened, until: int) -> bool:
    """Say whether it is us who may send the probe: `until` then nobody else sends one."""
    own = and_(B.application == place.application, B.destination == place.destination, B.retry_at == opened.retry_at)
    return conn.execute(update(breakers).where(own).values(probing=True, retry_at=until)).rowcount == 1


# --- what an overview is made of ---------------------------------------------------------------------------------------


class Measure(IntEnum):
    """What is counted minute by minute. Classes of lateness begin at LATENESS."""

    ATTEMPTS = 0
    DELIVERED = 1
    FAILED = 2
    LATENESS = 10


T, W = tallies.c, workers.c


def add_tallies(conn: Connection, rows: Sequence[Mapping[str, int]]) -> None:
    """Add counts to those that are there, in the order of the key, so that workers who do so at once do not block each other."""
    ordered = sorted(rows, key=lambda row: (row["application"], row["measure"], row["minute"]))
    if conn.dialect.name == "sqlite":
        fresh = sqlite.insert(tallies)
        conn.execute(
            fresh.on_conflict_do_update(index_elements=list(tallies.primary_key), set_={"events": T.events + fresh.excluded.events}),
            ordered,
        )
    else:
        new = mysql.insert(tallies)
        conn.execute(new.on_duplicate_key_update(events=T.events + new.inserted.events), ordered)


def tallied(conn: Connection, application: int, measures: Collection[int], begin: int, end: int) -> Sequence[Row[Any]]:
    """Read (measure, minute, events) of an application, or (0) of all together, with `begin <= minute < end`."""
    minutes = and_(T.application == application, T.measure.in_(sorted(measures)), T.minute >= begin, T.minute < end)
    question: Select[Any] = select(T.measure, T.minute, T.events).where(minutes)
    return conn.execute(question).all()


def forget_tallies(conn: Connection, before: int, limit: int) -> int:
    """Remove up to `limit` counts of minutes before that one, and return how many these were."""
    old = select(T.application, T.measure, T.minute).where(T.minute < before).order_by(T.minute).limit(limit)
    keys = conn.execute(old.with_for_update(skip_locked=True)).all()
    if keys:
        conn.execute(delete(tallies).where(tuple_(T.application, T.measure, T.minute).in_([tuple(key) for key in keys])))
    return len(keys)


def tell_worker(conn: Connection, row: Mapping[str, Any]) -> None:
    """Write down that a worker process is alive."""
    changed = conn.execute(update(workers).where(W.worker == row["worker"]).values(seen_at=row["seen_at"], in_hand=row["in_hand"]))
    if not changed.rowcount:
        conn.execute(_ignoring(insert(workers)).values(row))


def forget_workers(conn: Connection, before: int) -> None:
    """Remove those that have not been heard of since then."""
    gone = conn.execute(select(W.worker).where(W.seen_at < before).with_for_update(skip_locked=True)).scalars().all()
    if gone:
        conn.execute(delete(workers).where(W.worker.in_(gone)))


def forget_worker(conn: Connection, worker: str) -> None:
    conn.execute(delete(workers).where(W.worker == worker))


def eldest_worker(conn: Connection, since: int) -> str | None:
    """Name the worker process that has been alive the longest."""
    return conn.execute(select(W.worker).where(W.seen_at >= since).order_by(W.started_at, W.worker).limit(1)).scalar()


def live_workers(conn: Connection, since: int, limit: int) -> Sequence[Row[Any]]:
    return conn.execute(select(*workers.c).where(W.seen_at >= since).order_by(W.host, W.started_at).limit(limit)).all()


def statuses_due(conn: Connection, application: int, now: int, most: int, *, ahead: bool) -> list[tuple[Status, int]]:
    """Count by status `most` of the events of an application that were due last, or (`ahead`) of those that are due next."""
    some = select(E.status).where(E.application == application).limit(most)
    some = some.where(E.due_at > now).order_by(E.due_at) if ahead else some.where(E.due_at <= now).order_by(E.due_at.desc())
    return _counted(conn, _hinted(some, "events_due"))


def due_before(conn: Connection, application: int, now: int, most: int) -> int | None:
    """Return when the last but `most` of the events of an application that are due by now was due (ms); None: there are fewer."""
    question = select(E.due_at).where(E.application == application, E.due_at <= now).order_by(E.due_at.desc()).offset(most - 1).limit(1)
    return conn.execute(_hinted(question, "events_due")).scalar()


def statuses_newest(conn: Connection, most: int) -> list[tuple[Status, int]]:
    """Count by status `most` of the events that were added last, whosever they are."""
    return _counted(conn, _hinted(select(E.status).order_by(E.id.desc()).limit(most), "PRIMARY"))


def _counted(conn: Connection, some: Any) -> list[tuple[Status, int]]:
    found = some.subquery()
    rows = conn.execute(select(found.c.status, func.count()).group_by(found.c.status))
    return [(Status(status), count) for status, count in rows]


def waking(conn: Connection, application: int, bounds: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Count the events of an application that wake between each two bounds (ms), up to `most` each, and say when the last one does
    that was counted. One statement.
    """
    parts: list[Any] = []
    for place, (begin, end) in enumerate(pairwise(bounds)):
        some = select(E.wake_at).where(E.application == application, E.wake_at >= begin, E.wake_at < end).order_by(E.wake_at).limit(most)
        counted = _hinted(some, "events_wake").subquery(f"s{place}")
        number: ColumnElement[int] = literal_column(str(place))
        last = func.coalesce(func.max(counted.c.wake_at), begin).label("last")
        parts.append(select(number.label("place"), func.count().label("events"), last).select_from(counted))
    found = {row.place: (row.events, row.last) for row in conn.execute(union_all(*parts))}
    return [found[place] for place in range(len(parts))]


def held(conn: Connection, application: int, now: int) -> int:
    """Count what all workers have to themselves of an application's limit."""
    question = select(func.coalesce(func.sum(H.events), 0)).where(H.application == application, H.held_until > now)
    return int(conn.execute(question).scalar_one())


def overdue(conn: Connection, application: int, now: int, most: int) -> int:
    """Count the events of an application whose time to wake has come, up to `most`."""
    some = select(E.id).where(E.application == application, E.wake_at > 0, E.wake_at <= now).limit(most)
    return conn.execute(select(func.count()).select_from(_hinted(some, "events_wake").subquery())).scalar_one()


# --- operations on many events ---------------------------------------------------------------------------------------


OP = operations.c


_EXAMINED = (
    E.id,
    E.event_id,
    E.status,
    E.due_at,
    E.wake_at,
    E.fence,
    E.attempts,
    E.cancel_requested,
    E.url,
    E.series,
    E.operation,
    E.last_status,
    E.payload_removed_at,
    E.followed,
)


def examine(conn: Connection, lane: Lane, after: Cursor | None, limit: int) -> Sequence[Row[Any]]:
    """Read the first events of a lane beyond a place, whatever they are, without their payloads."""
    return conn.execute(lane.question(_EXAMINED, after, None, conn.dialect.name).limit(limit)).all()


_LOCK_EXAMINED: Select[Any] = select(*_EXAMINED).where(_ONE_OF_IDS).order_by(E.id).with_for_update()


def lock_examined(conn: Connection, ids: Collection[int]) -> Sequence[Row[Any]]:
    """Lock events by row number, and read them as they are now."""
    return conn.execute(_LOCK_EXAMINED, {"ids": sorted(ids)}).all()


def cancel_all(conn: Connection, ids: Collection[int], operation: int, now: int) -> None:
    """Cancel locked events that nobody is sending."""
    _change_all(conn, ids, UNSENT, {**_cancelled(now), "operation": operation}, "cancel_all")


def request_cancel_of_all(conn: Connection, ids: Collection[int], operation: int) -> None:
    """Ask that locked events that are being sent now be sent no more after this."""
    _change_all(conn, ids, {Status.PROCESSING}, {"cancel_requested": True, "operation": operation}, "request_cancel_of_all")


def replay(conn: Connection, ids: Collection[int], now: int, operation: int | None = None) -> None:
    """Have locked events sent once more, now, or when they are due if that is later; all their attempts are theirs again."""
    columns: dict[str, Any] = {
        "status": Status.PENDING,
        "fence": E.fence + 1,
        "wake_at": case((E.due_at > now, E.due_at), else_=now),
        "attempts": 0,
        "lost_leases": 0,
        "cancel_requested": False,
        "finished_at": None,
        "replayed_at": now,
    }
    _change_all(conn, ids, FINISHED | {Status.SERVICE_UNAVAILABLE}, columns | ({"operation": operation} if operation else {}), "replay")


def reschedule_all(conn: Connection, ids: Collection[int], operation: int, due_at: int, now: int) -> None:
    """Have locked events, that nobody is sending, sent at another instant."""
    columns = {"fence": E.fence + 1, "due_at": due_at, "wake_at": _unless_asleep(max(due_at, now)), "operation": operation}
    _change_all(conn, ids, UNSENT, columns, "reschedule_all")


def shift_all(conn: Connection, ids: Collection[int], operation: int, shift_ms: int, now: int) -> None:
    """Have locked events, that nobody is sending, sent so much later, or (negative) earlier; an attempt that waits moves with them."""
    columns = {
        "fence": E.fence + 1,
        "due_at": _within(E.due_at + shift_ms, 0),
        # Never in the past: claims do not look far behind where they have been.
        "wake_at": _unless_asleep(_within(E.wake_at + shift_ms, now)),
        "operation": operation,
    }
    _change_all(conn, ids, UNSENT, columns, "shift_all")


def _within(instant: ColumnElement[int], earliest: int) -> ColumnElement[int]:
    return case((instant < earliest, earliest), (instant > LATEST_INSTANT, LATEST_INSTANT), else_=instant)


def _change_all(conn: Connection, ids: Collection[int], sources: Collection[Status], columns: Mapping[str, Any], what: str) -> None:
    changed = conn.execute(update(events).where(_ONE_OF_IDS, E.status.in_(sources)).values(columns), {"ids": sorted(ids)})
    _expect(changed.rowcount, len(ids), what)


def log_replays(conn: Connection, rows: Iterable[Row[Any]], now: int, reason: str) -> None:
    """Write into the logs of locked events, that are about to be replayed, what they were until then.

    The line takes the fence that the replay gives: no claim has it.
    """
    lines = [
        {
            "event": row.id,
            "fence": row.fence + 1,
            "number": 0,
            "started_at": now,
            "duration_ms": 0,
            "status_code": None,
            "error": ErrorKind.REPLAYED,
            "detail": f"{reason}: was {Status(row.status).name} after {row.attempts} attempt{'' if row.attempts == 1 else 's'}",
            "excerpt": None,
        }
        for row in rows
    ]
    _insert(conn, _INSERT_ATTEMPTS, lines)


def insert_operation(conn: Connection, row: Mapping[str, Any]) -> None:
    conn.execute(insert(operations).values(row))


def operation(conn: Connection, application: int, operation_id: str) -> Row[Any] | None:
    return conn.execute(select(*OP).where(OP.application == application, OP.operation_id == operation_id)).first()


def operations_of(conn: Connection, application: int, before: int | None, limit: int) -> Sequence[Row[Any]]:
    """Read operations, the newest first, those before that row."""
    question = select(*OP).where(OP.application == application).order_by(OP.id.desc()).limit(limit)
    return conn.execute(question if before is None else question.where(OP.id < before)).all()


def next_operation_at(conn: Connection) -> int | None:
    """Tell when the first operation is to go on (ms); None if there is none."""
    return conn.execute(select(func.min(OP.wake_at))).scalar()


def lock_due_operation(conn: Connection, now: int) -> Row[Any] | None:
    """Lock the operation that has waited longest to go on, passing over those that others have locked.

    Those of one application follow each other: an event remembers only the last one that has changed it.
    """
    before = operations.alias()
    is_first = ~exists().where(before.c.application == OP.application, before.c.id < OP.id, before.c.wake_at.is_not(None))
    due = select(*OP).where(OP.wake_at <= now, is_first).order_by(OP.wake_at, OP.id).limit(1)
    return conn.execute(due.with_for_update(skip_locked=True)).first()


def change_operation(conn: Connection, number: int, columns: Mapping[str, Any]) -> None:
    conn.execute(update(operations).where(OP.id == number).values(columns))


def end_operation(conn: Connection, number: int, status: OperationStatus, now: int) -> bool:
    """End it, unless it has ended."""
    running = update(operations).where(OP.id == number, OP.status == OperationStatus.RUNNING)
    return conn.execute(running.values(status=status, wake_at=None, finished_at=now)).rowcount == 1


# --- chains ------------------------------------------------------------------------------------------------------------

L = links.c
_WANTED = (On.SUCCESS, On.FAILURE, On.ALWAYS)
"""The numbers by which the database knows them."""


class Link(NamedTuple):
    """What a successor, by its row, waits for."""

    successor: int
    predecessor: int
    on: On
    input: bool


class Ended(NamedTuple):
    event_id: str
    status: Status


def insert_links(conn: Connection, new: Collection[Link]) -> None:
    rows = [{"successor": s, "predecessor": p, "wanted": _WANTED.index(on), "input": input_} for s, p, on, input_ in new]
    conn.execute(insert(links), rows)


_FOLLOWED_ANEW: ColumnElement[bool] = case((E.followed == true(), literal_column("2")), else_=true())
"""On a cluster two nodes may lock the same row. What is written on both is noticed, so this is never what it was before."""


def follow(conn: Connection, ids: Collection[int]) -> None:
    """Note of locked events that others wait for them."""
    conn.execute(update(events).where(_ONE_OF_IDS).values(followed=_FOLLOWED_ANEW), {"ids": sorted(ids)})


def rows_of(conn: Connection, keys: Collection[tuple[int, str]]) -> dict[tuple[int, str], int]:
    """Tell the row numbers of events by (application, event_id)."""
    rows = conn.execute(select(E.application, E.event_id, E.id).where(_any_key(keys)))
    return {(row.application, row.event_id): row.id for row in rows}


_LINKS = select(L.successor, L.predecessor, L.wanted, L.input).join_from(links, events, E.id == L.successor)
_BY_PREDECESSOR = "FORCE INDEX (links_predecessor)"
_LINKS_FROM = (
    _LINKS.where(L.predecessor.in_(_IDS), E.status == Status.BLOCKED)
    .with_hint(links, _BY_PREDECESSOR, "mysql")
    .with_hint(links, _BY_PREDECESSOR, "mariadb")
)


def links_from(conn: Connection, predecessors: Collection[int]) -> list[Link]:
    """Read the links to what waits for these events. Of those whose rows are locked nobody adds one meanwhile."""
    rows = sorted(conn.execute(_LINKS_FROM, {"ids": sorted(predecessors)}), key=lambda row: row.successor)
    return [Link(successor, predecessor, _WANTED[wanted], bool(input_)) for successor, predecessor, wanted, input_ in rows]


def followers_below(conn: Connection, ids: Collection[int], depth: int, most: int) -> list[int]:
    """Name events that come after these, those after them, and so on for `depth` steps, up to `most`: a guess, nothing is locked."""
    below = select(L.successor.label("event"), literal(1).label("depth")).where(L.predecessor.in_(sorted(ids))).cte("below", recursive=True)
    step = select(L.successor, below.c.depth + 1).where(L.predecessor == below.c.event, below.c.depth < depth)
    return list(conn.execute(select(below.union_all(step).c.event).limit(most)).scalars())


_BLOCKED = select(E.id, E.application, E.event_id, E.followed).where(_ONE_OF_IDS, E.status == Status.BLOCKED)
_LOCK_BLOCKED: Select[Any] = _BLOCKED.order_by(E.id).with_for_update()


def lock_blocked(conn: Connection, ids: Collection[int]) -> Sequence[Row[Any]]:
    """Lock those of these events that wait for another one."""
    return conn.execute(_LOCK_BLOCKED, {"ids": sorted(ids)}).all()


def endings(conn: Connection, ids: Collection[int]) -> dict[int, Ended]:
    rows = conn.execute(select(E.id, E.event_id, E.status).where(_ONE_OF_IDS), {"ids": sorted(ids)})
    return {row.id: Ended(row.event_id, Status(row.status)) for row in rows}


def _released(now: int) -> dict[str, Any]:
    """Return what becomes of an event that need not wait any more. It is not late: until now it could not be sent."""
    due_at = case((E.due_at > now, E.due_at), else_=now)
    return {"status": Status.PENDING, "due_at": due_at, "wake_at": due_at}


def unblock(conn: Connection, ids: Collection[int], now: int) -> None:
    """Have locked events sent that waited for another one."""
    changed = conn.execute(update(events).where(_ONE_OF_IDS, E.status == Status.BLOCKED).values(_released(now)), {"ids": sorted(ids)})
    _expect(changed.rowcount, len(ids), "unblock")


def unblock_with(conn: Connection, payloads: Mapping[int, bytes], now: int) -> None:
    """Likewise, each with another payload: it is a new version."""
    one = update(events).where(E.id == bindparam("of"), E.status == Status.BLOCKED)
    changed = one.values({**_released(now), "fence": E.fence + 1, "payload": bindparam("content")})
    rows = [{"of": id_, "content": payload} for id_, payload in payloads.items()]
    _expect(conn.execute(changed, rows).rowcount, len(rows), "unblock_with")


def abort(conn: Connection, reasons: Mapping[int, str], now: int) -> None:
    """End locked events that waited for another one, without ever sending them."""
    ids: dict[str, list[int]] = {}
    for id_, reason in reasons.items():
        ids.setdefault(_clipped(reason, DETAIL_CHARACTERS) or "", []).append(id_)
    which = case(*((E.id.in_(sorted(same)), reason) for reason, same in ids.items()), else_=None)
    blocked = update(events).where(_ONE_OF_IDS, E.status == Status.BLOCKED).values({**_cancelled(now), "last_error": which})
    _expect(conn.execute(blocked, {"ids": sorted(reasons)}).rowcount, len(reasons), "abort")


def followed_ones(conn: Connection, ids: Collection[int]) -> list[int]:
    """Tell which of these events have ended, and are followed."""
    which = select(E.id).where(_ONE_OF_IDS, E.followed != false(), E.status.in_(sorted(FINISHED)))
    return list(conn.execute(which, {"ids": sorted(ids)}).scalars())


def made_by_series(conn: Connection, ids: Collection[int]) -> frozenset[int]:
    """Tell which of these events a series has made."""
    return frozenset(conn.execute(select(E.id).where(_ONE_OF_IDS, E.series.is_not(None)), {"ids": sorted(ids)}).scalars())


def successors_of(conn: Connection, predecessor: int, limit: int) -> Sequence[Row[Any]]:
    """Read up to `limit` events that come after one, judged or not, in the order in which they were added."""
    question: Select[Any] = select(E.event_id, E.status, L.wanted, L.input).join_from(links, events, E.id == L.successor)
    return conn.execute(question.where(L.predecessor == predecessor).order_by(L.successor).limit(limit)).all()


def wanted(number: int) -> On:
    return _WANTED[number]


# --- outputs -----------------------------------------------------------------------------------------------------------

O = outputs.c  # noqa: E741


def keep_output(conn: Connection, event: int, fence: int, output: Output, now: int) -> None:
    """Keep what one attempt has answered or written so far, in place of what was kept of it before."""
    columns = {
        "headers": json.dumps(output.headers) if output.headers else None,
        "body": output.body,
        "length": output.length,
        "changed_at": now,
    }
    if conn.dialect.name == "sqlite":
        fresh = sqlite.insert(outputs).values(event=event, fence=fence, **columns)
        conn.execute(fresh.on_conflict_do_update(index_elements=list(outputs.primary_key), set_=columns))
    else:
        conn.execute(mysql.insert(outputs).values(event=event, fence=fence, **columns).on_duplicate_key_update(columns))


def output_of(conn: Connection, event: int, fence: int) -> Output | None:
    row = conn.execute(select(O.headers, O.body, O.length).where(O.event == event, O.fence == fence)).first()
    if row is None:
        return None
    return Output(row.body or b"", row.length, tuple((name, value) for name, value in json.loads(row.headers or "[]")))


def has_claim(conn: Connection, event: int, fence: int) -> bool:
    """Lock an event, and say whether it is still the one of a claim."""
    own = select(E.id).where(E.id == event, E.fence == fence, E.status == Status.PROCESSING)
    return conn.execute(own.with_for_update()).first() is not None


class Answered(NamedTuple):
    """What is known of an attempt that has ended."""

    fence: int
    status_code: int | None
    excerpt: str | None


def last_answer(conn: Connection, event: int, number: int | None = None) -> Answered | None:
    """Tell how the last attempt of an event ended, or the last one of that number."""
    a = attempts.c
    which = select(a.fence, a.status_code, a.excerpt).where(a.event == event, a.number > 0)
    row = conn.execute((which if number is None else which.where(a.number == number)).order_by(a.fence.desc()).limit(1)).first()
    return Answered(*row) if row is not None else None


# --- recording ---------------------------------------------------------------------------------------------------------


class Owned(NamedTuple):
    fence: int
    status: Status
    cancel_requested: bool
    wake_at: int | None
    followed: bool


_LOCK_CLAIMED = (
    select(E.id, E.fence, E.status, E.cancel_requested, E.wake_at, E.followed).where(_ONE_OF_IDS).order_by(E.id).with_for_update()
)


def lock_claimed(conn: Connection, ids: Collection[int]) -> dict[int, Owned]:
    """Lock events by row number and say who owns them now."""
    rows = conn.execute(_LOCK_CLAIMED, {"ids": sorted(ids)})
    return {id_: Owned(fence, Status(status), *others) for id_, fence, status, *others in rows}


_COMPLETE = (
    update(events)
    .where(_ONE_OF_IDS, E.fence == bindparam("owner"), E.status == Status.PROCESSING)
    .values(status=Status.COMPLETED, wake_at=None, finished_at=bindparam("now"), lost_leases=0, last_status=bindparam("code"))
)
_COMPLETE_UNFOLLOWED = _COMPLETE.where(E.followed == false())


def complete(conn: Connection, ids: Collection[int], fence: int, status_code: int | None, now: int, *, followed: bool = False) -> int:
    """Finish those that the claims with this fence still own, and that were all answered alike; return how many these are.

    Those that others follow are not among those that nobody does: somebody has to see to the others, too.
    """
    asked = {"ids": sorted(ids), "owner": fence, "code": status_code, "now": now}
    return conn.execute(_COMPLETE if followed else _COMPLETE_UNFOLLOWED, asked).rowcount


_END = (
    update(events)
    .where(E.id == bindparam("of"), E.fence == bindparam("owner"), E.status == Status.PROCESSING)
    .values(
        status=bindparam("to"),
        wake_at=bindparam("wake"),
        finished_at=bindparam("finished"),
        last_error=bindparam("reason"),
        lost_leases=0,
        attempts=E.attempts - bindparam("uncounted"),
        last_status=func.coalesce(bindparam("code", type_=E.last_status.type), E.last_status),
    )
)


def end(conn: Connection, endings: Iterable[Ending], now: int) -> None:
    """Write how attempts ended that need another one, or can have none."""
    rows = [
        {
            **_parameters(ending, now),
            "reason": _clipped(ending.reason, DETAIL_CHARACTERS),
            "uncounted": ending.uncounted,
            "code": ending.last_status,
        }
        for ending in endings
    ]
    _expect(conn.execute(_END, rows).rowcount, len(rows), "end")


_RELEASE = (
    update(events)
    .where(E.id == bindparam("of"), E.fence == bindparam("owner"), E.status == Status.PROCESSING)
    .values(status=bindparam("to"), wake_at=bindparam("wake"), finished_at=bindparam("finished"), attempts=E.attempts - 1)
)


def release(conn: Connection, endings: Iterable[Ending], now: int) -> None:
    """Put back what was claimed and never begun: the claim does not count as an attempt."""
    rows = [_parameters(ending, now) for ending in endings]
    _expect(conn.execute(_RELEASE, rows).rowcount, len(rows), "release")


def _parameters(ending: Ending, now: int) -> dict[str, Any]:
    return {
        "of": ending.id,
        "owner": ending.fence,
        "to": ending.status.value,
        "wake": ending.wake_at,
        "finished": now if ending.wake_at is None else None,
    }


_INSERT_ATTEMPTS = insert(attempts)


def log_attempts(conn: Connection, outcomes: Iterable[Outcome]) -> None:
    rows = [
        {
            "event": outcome.delivery.id,
            "fence": outcome.delivery.fence,
            "number": outcome.delivery.number,
            "started_at": outcome.started_at,
            "duration_ms": outcome.duration_ms,
            "status_code": outcome.status_code,
            "error": outcome.error,
            "detail": _clipped(outcome.detail, DETAIL_CHARACTERS),
            "excerpt": _clipped(outcome.excerpt, EXCERPT_CHARACTERS),
        }
        for outcome in outcomes
    ]
    _insert(conn, _INSERT_ATTEMPTS, rows)


def _insert(conn: Connection, statement: Insert, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows. Core's own executemany takes several times as long for each row."""
    text, names, _ = _written_out(statement, conn.dialect)
    conn.exec_driver_sql(text, list(map(itemgetter(*names), rows)))


@lru_cache
def _written_out(statement: Insert | Select[Any], dialect: Dialect) -> tuple[str, Sequence[str], dict[str, Any]]:
    """Write a statement as its driver takes it, name its parameters in their order, and give those that are constants.

    SQLAlchemy's dialect for PyMySQL names parameters; one that counts them is made for the occasion.
    """
    by_place = dialect if dialect.positional else type(dialect)(paramstyle="format")  # type: ignore[call-arg]
    compiled = statement.compile(dialect=by_place)
    return str(compiled), compiled.positiontup or (), compiled.params


def _clipped(text: str | None, longest: int) -> str | None:
    """A text that is too long for its column would keep its outcome from ever being recorded."""
    return text[:longest] if text is not None else None


def _expect(changed: int, expected: int, what: str) -> None:
    """The rows are locked and were looked at in this transaction: any other count is a defect, and must not be committed."""
    if changed != expected:
        raise AssertionError(f"{what} changed {changed} rows, not {expected}")


# --- what applications are told of the lives of their events ------------------------------------------------------------

M, ST = outbox.c, streams.c
_TOLD = (
    E.id,
    E.application,
    E.event_id,
    E.status,
    E.due_at,
    E.fence,
    E.attempts,
    E.created_at,
    E.finished_at,
    E.last_status,
    E.last_error,
    E.series,
)


def told_of(conn: Connection, ids: Collection[int]) -> Sequence[Row[Any]]:
    """Read what is told of events, by row number."""
    question: Select[Any] = select(*_TOLD).where(_ONE_OF_IDS).order_by(E.id)
    return conn.execute(question, {"ids": sorted(ids)}).all()


def lock_waiting(conn: Connection, ids: Collection[int]) -> list[int]:
    """Lock those that nobody is sending, and that have not ended."""
    which = select(E.id).where(E.id.in_(sorted(ids)), E.status.in_(UNSENT))
    return list(conn.execute(which.order_by(E.id).with_for_update()).scalars())


def series_names(conn: Connection, numbers: Collection[int]) -> dict[int, str]:
    """Tell the ids of series by their numbers, as far as they are there."""
    rows = conn.execute(select(S.id, S.series_id).where(S.id.in_(sorted(numbers))))
    return {row.id: row.series_id for row in rows}


MOST_BACKLOGS = 1_000
_INSERT_MESSAGES = insert(outbox).values(dict.fromkeys(("application", "event_id", "wake_at", "tries", "message", "created_at")))
_MESSAGES: Select[Any] = select(M.id, M.event_id, M.wake_at, M.tries, M.message, M.created_at)


def insert_messages(conn: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    _insert(conn, _INSERT_MESSAGES, rows)


def messages(conn: Connection, application: int, limit: int) -> Sequence[Row[Any]]:
    """Read some messages of an application, whichever they are."""
    return conn.execute(_MESSAGES.where(M.application == application).limit(limit)).all()


def new_messages(conn: Connection, application: int, limit: int, *, last: bool = False) -> Sequence[Row[Any]]:
    """Read the first (or last) messages of an application that are not put off. There is no place to go on from: what has a lower
    number may be committed later.
    """
    which = _MESSAGES.where(M.application == application, M.wake_at == 0)
    return conn.execute(which.order_by(M.id.desc() if last else M.id).limit(limit)).all()


def has_put_off(conn: Connection, application: int) -> bool:
    """Tell whether any message of an application is put off, or set aside."""
    return conn.execute(select(M.id).where(M.application == application, M.wake_at > 0).limit(1)).first() is not None


def messages_again(conn: Connection, application: int, now: int, limit: int) -> Sequence[Row[Any]]:
    """Read those that were put off, or set aside, and are to be looked at again."""
    which = _MESSAGES.where(M.application == application, M.wake_at > 0, M.wake_at <= now)
    return conn.execute(which.order_by(M.wake_at, M.id).limit(limit)).all()


def first_messages(conn: Connection, application: int, events: Collection[str]) -> Sequence[Row[Any]]:
    """Read of each of these events the first message."""
    own = and_(M.application == application, M.event_id.in_(sorted(events)))
    first = select(func.min(M.id).label("id")).where(own).group_by(M.event_id).subquery()
    return conn.execute(_MESSAGES.join(first, M.id == first.c.id)).all()


def put_off_messages(conn: Connection, ids: Collection[int], wake_at: int, tries: int) -> None:
    conn.execute(update(outbox).where(M.id.in_(_IDS)).values(wake_at=wake_at, tries=tries), {"ids": sorted(ids)})


def release_messages(conn: Connection, application: int, events: Collection[str]) -> None:
    """Let the messages of events be sent that are set aside behind one that is gone."""
    # Asked for by event alone: SQLite would rather look at all that are put off.
    conn.execute(update(outbox).where(M.application == application, M.event_id.in_(sorted(events))).values(wake_at=0))


def delete_messages(conn: Connection, ids: Collection[int]) -> int:
    return conn.execute(delete(outbox).where(M.id.in_(_IDS)), {"ids": sorted(ids)}).rowcount


def unsent(conn: Connection, now: int) -> list[int]:
    """Tell which applications have messages that may be sent, by their numbers, but for those that are left to somebody, or left alone
    for a while.
    """
    numbers = _with_messages(conn, now)
    if not numbers:
        return []
    left = set(conn.execute(select(ST.application).where(ST.held_until > now)).scalars())
    return [number for number in numbers if number not in left]


def _with_messages(conn: Connection, until: int) -> list[int]:
    """Tell which applications have messages that are put off until then at most."""
    if conn.dialect.name == "sqlite":  # as for the agenda: no loose index scan here
        dive = exists().where(M.application == A.id, M.wake_at <= until)
        return list(conn.execute(select(A.id).where(dive)).scalars())
    first = select(M.application, func.min(M.wake_at)).group_by(M.application)
    return [number for number, wake_at in conn.execute(first) if wake_at <= until]


def backlogs(conn: Connection, numbers: Collection[int] | None, most: int) -> dict[int, tuple[int, int]]:
    """Tell for these applications (None: for a thousand at most) with messages how many there are, up to `most`, and when the first
    one was written (ms): of more than `most` the first one of those that are not put off, or of the ones put off for longest.
    """
    found = {}
    new = select(M.created_at).where(M.wake_at == 0).order_by(M.id).limit(1)
    for number in _with_messages(conn, LATEST_INSTANT)[:MOST_BACKLOGS] if numbers is None else numbers:
        some = select(M.id).where(M.application == number).order_by(M.wake_at.desc(), M.id.desc()).limit(most).subquery()
        lowest = select(func.min(some.c.id)).scalar_subquery()  # in one statement with what it finds: messages go all the time
        asked = select(M.created_at).where(M.id == lowest), new.where(M.application == number)
        first = [at for question in asked for at in conn.execute(question).scalars()]
        count = conn.execute(select(func.count()).select_from(some)).scalar_one()
        if first and count:
            found[number] = count, min(first)
    return found


def put_off(conn: Connection, application: int, most: int) -> tuple[int, int | None]:
    """Tell how many messages of an application are put off or set aside, up to `most`, and when the next one is looked at (ms)."""
    some = select(M.wake_at).where(M.application == application, M.wake_at > 0).order_by(M.wake_at).limit(most).subquery()
    count, first = conn.execute(select(func.count(), func.min(some.c.wake_at))).one()
    return count, first


def hold_stream(conn: Connection, application: int, holder: str, now: int, held_until: int) -> int | None:
    """Take over the sending of an application's messages, unless somebody else has it; return how often it has failed in a row."""
    free = and_(ST.application == application, or_(ST.held_until <= now, ST.holder == holder))
    if conn.execute(update(streams).where(free).values(holder=holder, held_until=held_until)).rowcount:
        return int(conn.execute(select(ST.failures).where(ST.application == application)).scalar_one())
    new = _ignoring(insert(streams)).values(application=application, holder=holder, held_until=held_until, failures=0)
    return 0 if conn.execute(new).rowcount else None


def holds_stream(conn: Connection, application: int, holder: str) -> bool:
    """Tell whether it is still whose it was, and let nobody take it over before this transaction ends."""
    own = and_(ST.application == application, ST.holder == holder)
    return conn.execute(select(ST.application).where(own).with_for_update()).first() is not None


def leave_stream(conn: Connection, application: int, holder: str, held_until: int, failures: int, reason: str | None) -> bool:
    """Leave it to anybody from then on, unless somebody has taken it over; say which. Without a reason the last one stays."""
    own = and_(ST.application == application, ST.holder == holder)
    columns: dict[str, Any] = {"held_until": held_until, "failures": failures}
    if reason is not None:
        columns["reason"] = _clipped(reason, DETAIL_CHARACTERS)
    return conn.execute(update(streams).where(own).values(columns)).rowcount == 1


def stream_state(conn: Connection, application: int) -> Row[Any] | None:
    question: Select[Any] = select(ST.held_until, ST.failures, ST.reason).where(ST.application == application)
    return conn.execute(question).first()


# --- rows become values ------------------------------------------------------------------------------------------------


def to_event(row: Row[Any], application_id: str, late_before: int = 0, payload: bytes | None = None) -> Event:
    """Read a row, and its payload if that is not a part of it. It is late if it has never been tried, and should have been before
    that instant (ms).
    """
    request = _read_request(row)
    should_begin_at = max(row.due_at, row.created_at, row.replayed_at or 0)
    return Event(
        application_id=application_id,
        event_id=row.event_id,
        status=Status(row.status),
        due_at=row.due_at,
        wake_at=None if row.wake_at == ASLEEP else row.wake_at,
        attempts=row.attempts,
        cancel_requested=row.cancel_requested,
        last_error=row.last_error,
        method=row.method,
        url=request.url,
        headers=request.headers,
        payload=payload if row.payload is None else row.payload,
        timeout_ms=request.timeout_ms,
        retry=request.retry,
        created_at=row.created_at,
        finished_at=row.finished_at,
        replayed_at=row.replayed_at,
        payload_removed_at=getattr(row, "payload_removed_at", None),  # lists do without
        max_lateness_ms=request.max_lateness_ms,
        duration_ms=request.duration_ms,
        last_status=row.last_status,
        fence=row.fence,
        late=row.status in WAITING and row.attempts == 0 and should_begin_at < late_before,
        destination=request.destination,
        priority=row.priority,
        after=request.after,
        keep_output=request.keep_output,
    )


def to_delivery(row: Row[Any], application: Application, now: int, max_lateness_ms: int | None = None) -> Delivery:
    """Read a row of `lock_due` as it is once `claim` has taken it. `max_lateness_ms` holds where the event has none of its own."""
    request, followed = _read_request(row), bool(row.followed)
    return Delivery(
        id=row.id,
        fence=row.fence + 1,
        application_id=application.application_id,
        event_id=row.event_id,
        number=row.attempts + 1,
        due_at=row.due_at,
        send_at=row.wake_at,
        previous=Status(row.status),
        suspect=row.status == Status.PROCESSING and row.lost_leases > 0,
        method=row.method,
        url=request.url,
        headers=request.headers,
        payload=row.payload,
        timeout_ms=request.timeout_ms,
        retry=request.retry,
        application=row.application,
        signing_keys=application.signing_keys(max(row.wake_at, now)),
        egress=application.egress,
        max_lateness_ms=max_lateness_ms if request.max_lateness_ms is None else request.max_lateness_ms,
        replayed_at=row.replayed_at or 0,
        destination=request.destination,
        followed=followed,
        keeps_output=followed or request.keep_output,
    )


class _Request(NamedTuple):
    url: str
    headers: Headers = ()
    timeout_ms: int | None = None
    retry: RetryOptions | None = None
    max_lateness_ms: int | None = None
    duration_ms: int | None = None
    destination: Destination | None = None
    after: After | None = None
    keep_output: bool = False


def _read_request(row: Row[Any]) -> _Request:
    """Read what is kept as JSON.

    A row that cannot be read loses its URL, so that it ends as unsendable instead of stopping every claim and list it is in.
    """
    try:
        headers = tuple((name, value) for name, value in json.loads(row.headers)) if row.headers else ()
        if not row.options:
            return _Request(row.url, headers)
        options = json.loads(row.options)
        retry = RetryOptions(**options["retry"]) if "retry" in options else None
        return _Request(
            row.url,
            headers,
            options.get("timeout_ms"),
            retry,
            options.get("max_lateness_ms"),
            options.get("duration_ms"),
            _read_destination(options),
            After(options["after"]["event_id"], On(options["after"]["on"]), options["after"]["input"]) if "after" in options else None,
            options.get("keep_output", False),
        )
    except (ValueError, TypeError, AttributeError, LookupError, InvalidEvent):
        return _Request("")


def _read_destination(options: Mapping[str, Any]) -> Destination | None:
    """Read one. Raises what a damaged document leads to: ValueError, TypeError, AttributeError."""
    document = options.get("destination")
    return document and Destination(document.get("type"), {name: value for name, value in document.items() if name != "type"})
