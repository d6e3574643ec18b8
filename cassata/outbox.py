"""What applications are told of the lives of their events: written in the very transaction of each step, sent by the workers later.

A message is removed only once its receiver has taken it, so that it is sent at least once. Whoever has taken over the sending of an
application's messages (a lease) sends those of one event one after the other, in the order in which they were written: each step of
an event locks its row before it writes, so that a later one has the higher number, and is never seen without those before it.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection, Row

from cassata import database, recurrence, store, telemetry
from cassata.chains import Judged
from cassata.model import ENDS, Application, Milestone, Status, rfc3339
from cassata.tenants import Tenants

READ = 200
"""So many messages are read, and sent, under one lease, ..."""
READ_AGAIN = 16
"""... and so many more that were put off: it is these few that others have to share their receiver with, however many wait."""
PROBES = 3
"""To a receiver that took nothing the last time so many."""
SET_ASIDE_MS = 3_600_000
"""What comes after a message that was put off is released when that is taken; should that have gone wrong, it is looked at after this."""
DROPPED = 1_000
"""So many are dropped in one transaction, of a stream that is gone."""
ASLEEP_MS = 60_000
"""The messages of an application that is inactive, or whose secrets cannot be read, are looked at again after that."""

Told = Row[Any] | Mapping[str, Any]
"""An event as its row says: one that was read, or one that has just been written."""


class Placed(Protocol):
    """Whatever names the row of an event, and its application's."""

    @property
    def id(self) -> int: ...

    @property
    def application(self) -> int: ...


class Message(NamedTuple):
    """A message that is to be sent: the number of its row, its own id for ever, the event it is about, and what it says.

    `tries`: so often it was refused. `was_put_off`: others of its event may be set aside behind it.
    """

    number: int
    message_id: str
    event_id: str
    body: bytes
    tries: int = 0
    was_put_off: bool = False


class PutOff(NamedTuple):
    """Messages that were not taken, by their numbers: for how long they are put off, and how often they were refused by now."""

    numbers: Collection[int]
    wait_ms: int
    tries: int


@dataclass(frozen=True, slots=True)
class Reading:
    """Messages of an application that may be sent, taken over for a lease. `failures`: so often in a row has sending failed.

    Of one event they are the first ones, in their order. `has_more`: there are more of them, or may be.
    """

    application: Application
    messages: Sequence[Message]
    failures: int
    taken_at: int
    has_more: bool = False


class Untold(NamedTuple):
    """How many messages wait (up to what was asked for), and for how long the first one has (ms)."""

    messages: int
    oldest_ms: int


class StreamState(NamedTuple):
    """How an application's stream fares. `put_off`: so many of its messages were not taken, or come after one of their event that
    was not. `retry_at`: when these, or where the last try has failed all, are tried again (ms).
    """

    application: Application
    messages: int
    oldest_at: int | None
    failures: int
    reason: str | None
    retry_at: int | None
    put_off: int = 0


class Outbox:
    """Writes messages in the transactions of others, and hands them to whoever sends them. Safe to share between threads."""

    def __init__(self, engines: database.Engines, clock: database.Clock, tenants: Tenants) -> None:
        self._transactions = database.Transactions(engines)
        self._clock = clock
        self._tenants = tenants
        self.news = threading.Event()  # set when this process has written something; whoever sends clears it

    # --- in the transactions of others -----------------------------------------------------------------------------------

    def wants(self, conn: Connection, application: int, *milestones: Milestone) -> bool:
        """Whether an application, as it was a second ago at most, is told of one of these. It costs no question, nearly always."""
        found = self._tenants.of_number(conn, application)
        return found is not None and found.stream is not None and any(map(found.stream.wants, milestones))

    def write(self, conn: Connection, application: int, milestone: Milestone | None, events: Sequence[Told]) -> None:
        """Write a message for each of these events of an application, if that is told of it. None: of how each has ended.

        The rows of the events are as they are now, and locked by this transaction.
        """
        found = self._tenants.of_number(conn, application)
        if not events or found is None or found.stream is None:
            return
        facts: list[Mapping[str, Any]] = [event if isinstance(event, Mapping) else dict(event._mapping) for event in events]
        told = [(milestone or ENDS[Status(each["status"])], each) for each in facts if milestone or each["status"] in ENDS]
        wanted = [(which, each) for which, each in told if found.stream.wants(which)]
        if not wanted:
            return
        now = self._clock.now(conn)
        names = _series_of(conn, [each for _, each in wanted])
        messages = [_message(found.application_id, which, each, names, now) for which, each in wanted]
        rows = [_row(application, message, now) for message in messages]
        store.insert_messages(conn, rows)
        self.news.set()

    def write_of(self, conn: Connection, application: int, milestone: Milestone | None, ids: Collection[int]) -> None:
        """Write likewise for events that this transaction has just changed, by their row numbers."""
        if ids and self.wants(conn, application, *([milestone] if milestone else ENDS.values())):
            self.write(conn, application, milestone, store.told_of(conn, ids))

    def write_ended(self, conn: Connection, events: Collection[Placed]) -> None:
        """Write of those that have ended, among events of any applications that this transaction has just changed."""
        for application in {event.application for event in events}:  # of nearly all batches that is all that is done
            if self.wants(conn, application, *ENDS.values()):
                self.write_of(conn, application, None, [event.id for event in events if event.application == application])

    def write_removed(self, conn: Connection, application: int, ids: Collection[int]) -> None:
        """Write that events are cancelled that are about to be removed. Of those that are cancelled already that has been told."""
        if ids and self.wants(conn, application, Milestone.CANCELLED):
            now = self._clock.now(conn)
            gone = {"status": Status.CANCELLED, "finished_at": now}
            waiting = [row._mapping for row in store.told_of(conn, ids) if row.status != Status.CANCELLED]
            self.write(conn, application, Milestone.CANCELLED, [{**row, **gone} for row in waiting])

    def write_judged(self, conn: Connection, judged: Judged) -> None:
        """Write of what came after events that have ended in this transaction: it was released, which is a change, or cancelled."""
        for milestone, places in ((Milestone.CHANGED, judged.released), (Milestone.CANCELLED, judged.aborted)):
            for application in {place.application for place in places}:
                self.write_of(conn, application, milestone, [place.id for place in places if place.application == application])

    # --- what whoever sends does -----------------------------------------------------------------------------------------

    def unsent(self) -> list[int]:
        """Tell which applications (by their numbers) have messages that may be sent now."""

        def work(conn: Connection) -> list[int]:
            return store.unsent(conn, self._clock.now(conn))

        return self._transactions.read(work)

    def take(self, application: int, holder: str, lease_ms: int, keep_ms: int | None) -> Reading | None:
        """Take over the sending of an application's messages, and return some of them; None: somebody else has.

        What is older than `keep_ms` is dropped, and all of it where the application has no stream any more.
        """
        dropped: tuple[str, str, int] | None = None

        def work(conn: Connection, _tries: int) -> Reading | None:
            nonlocal dropped
            dropped = None
            now = self._clock.now(conn)
            row = next(iter(store.applications_by_number(conn, [application])), None)
            failures = store.hold_stream(conn, application, holder, now, now + lease_ms)
            if row is None or failures is None:
                return None
            found = self._tenants.read_row(row)
            if row.stream is None:
                rows = store.messages(conn, application, DROPPED)
                store.delete_messages(conn, [each.id for each in rows])
                store.leave_stream(conn, application, holder, now, 0, None)
                dropped = found.application_id, "the application has no stream any more", len(rows)
                return Reading(found, (), 0, now, has_more=len(rows) == DROPPED)
            is_failing, put_off = failures > 0, store.has_put_off(conn, application)
            rows, has_more = _next(conn, application, now, is_failing=is_failing, put_off=put_off)
            old = {each.id: each for each in rows if keep_ms is not None and now - each.created_at > keep_ms}
            if old:
                store.delete_messages(conn, old)
                _release(conn, application, {each.event_id for each in old.values() if each.wake_at})
                dropped = found.application_id, "older than worker.keepStreamDays", len(old)
            if not found.active or found.is_sealed or found.stream is None:
                store.leave_stream(conn, application, holder, now + ASLEEP_MS, failures, None)
                return Reading(found, (), failures, now)
            kept = [each for each in rows if each.id not in old]
            mixed = is_failing or put_off
            messages = _sendable(conn, application, kept, now, is_failing=is_failing) if mixed else list(map(_read, kept))
            if not messages:
                store.leave_stream(conn, application, holder, now, failures, None)
            return Reading(found, messages, failures, now, has_more)

        reading = self._transactions.write(work)
        if dropped is not None:
            application_id, reason, count = dropped
            telemetry.emit("stream messages dropped", level="warning", application_id=application_id, reason=reason, count=count)
        return reading

    def sent(self, application: int, holder: str, sent: Collection[Message]) -> None:
        """Remove messages of an application that their receiver has taken."""

        def work(conn: Connection, _tries: int) -> None:
            is_ours = any(message.was_put_off for message in sent) and store.holds_stream(conn, application, holder)
            store.delete_messages(conn, [message.number for message in sent])
            if is_ours:
                _release(conn, application, _put_off(sent))

        self._transactions.write(work)

    def leave(
        self,
        application: int,
        holder: str,
        sent: Collection[Message],
        put_off: Collection[PutOff] = (),
        *,
        wait_ms: int,
        failures: int,
        reason: str | None,
    ) -> None:
        """Remove what was sent, put off what was not taken, and leave the rest to anybody after so long."""

        def work(conn: Connection, _tries: int) -> None:
            now = self._clock.now(conn)
            is_ours = store.leave_stream(conn, application, holder, now + wait_ms, failures, reason)
            if sent:
                store.delete_messages(conn, [message.number for message in sent])
            if not is_ours:  # it is for another to say what waits for what
                return
            _release(conn, application, _put_off(sent))
            for part in put_off:
                store.put_off_messages(conn, part.numbers, now + part.wait_ms, part.tries)

        self._transactions.write(work)

    # --- what people ask ---------------------------------------------------------------------------------------------------

    def state(self, application_id: str, most: int) -> StreamState:
        """Tell how an application's stream fares, counting up to `most` messages. Raises UnknownApplication."""
        application = self._tenants.application(application_id)

        def work(conn: Connection) -> StreamState:
            count, first = store.backlogs(conn, [application.number], most).get(application.number, (0, None))
            put_off, next_at = store.put_off(conn, application.number, most)
            row = store.stream_state(conn, application.number)
            if row is None or not (row.failures or put_off):
                return StreamState(application, count, first, 0, None, None)
            return StreamState(application, count, first, row.failures, row.reason, row.held_until if row.failures else next_at, put_off)

        return self._transactions.read(work)


def _series_of(conn: Connection, events: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    numbers = {each["series"] for each in events if each.get("series") is not None}
    return store.series_names(conn, numbers) if numbers else {}


def _message(application_id: str, milestone: Milestone, event: Mapping[str, Any], names: Mapping[int, str], now: int) -> dict[str, Any]:
    """Write one, as standardwebhooks.com has it: its type, when it came to pass, and what is to be known; never a payload."""
    data: dict[str, Any] = {
        "application-id": application_id,
        "event-id": event["event_id"],
        "status": Status(event["status"]).name,
        "version": f"{event['created_at']:x}-{event['fence']}",
        "attempts": event["attempts"],
        "expiry": rfc3339(event["due_at"]),
        "last-status": event.get("last_status"),
        "last-error": event.get("last_error"),
    }
    if event.get("series") is not None:
        original = recurrence.original_of(event["event_id"])
        data["series-id"] = names.get(event["series"], original[0] if original else None)
    return {"id": f"msg_{uuid.uuid4().hex}", "type": f"event.{milestone}", "timestamp": rfc3339(now), "data": data}


def _row(application: int, message: Mapping[str, Any], now: int) -> dict[str, Any]:
    which = {"application": application, "event_id": message["data"]["event-id"]}
    return {**which, "wake_at": 0, "tries": 0, "message": json.dumps(message), "created_at": now}


def _next(conn: Connection, application: int, now: int, *, is_failing: bool, put_off: bool) -> tuple[list[Row[Any]], bool]:
    """Read what may come next, in the order in which it is tried, and say whether there may be more.

    Where all has failed every other one is from the end of the queue: so a receiver that takes some shows it, whatever stands at the
    head. Every fourth is one that was put off: neither keep the others waiting.
    """
    most = PROBES if is_failing else READ_AGAIN
    new = store.new_messages(conn, application, READ)
    again = store.messages_again(conn, application, now, most) if put_off else ()
    rows = list(new)
    if is_failing:
        newest = store.new_messages(conn, application, READ, last=True)
        rows = [row for pair in zip(newest, new, strict=False) for row in pair]
    for place, row in enumerate(again):
        rows.insert(4 * place + 3, row)
    return list({row.id: row for row in rows}.values()), len(new) == READ or len(again) == most


def _sendable(conn: Connection, application: int, rows: Sequence[Row[Any]], now: int, *, is_failing: bool) -> list[Message]:
    """Read those that may be sent, where not all may: of an event that is put off the first one alone, and not before its time.

    What comes after that is set aside, out of the way of other events' messages.
    """
    firsts = {row.event_id: row for row in store.first_messages(conn, application, {row.event_id for row in rows})}
    found: dict[int, Row[Any]] = {}
    aside = []
    for row in rows:
        first = firsts.get(row.event_id)
        if first is None:  # whoever has lost the lease has just told that all of this event was taken
            continue
        is_behind = row.id != first.id
        if is_behind and (first.wake_at or row.wake_at):
            aside.append(row.id)
        elif is_behind and is_failing:  # one from the end of the queue: what comes between the two may not have been read
            found[first.id] = first
        else:
            found[row.id] = row
    if aside:
        store.put_off_messages(conn, aside, now + SET_ASIDE_MS, 0)
    return list(map(_read, found.values()))


def _put_off(messages: Iterable[Message]) -> set[str]:
    """Return those events behind whose messages others may be set aside."""
    return {message.event_id for message in messages if message.was_put_off}


def _release(conn: Connection, application: int, events: Collection[str]) -> None:
    if events:
        store.release_messages(conn, application, events)


def _read(row: Row[Any]) -> Message:
    return Message(row.id, json.loads(row.message)["id"], row.event_id, row.message.encode(), row.tries, row.wake_at > 0)
