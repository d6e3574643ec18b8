"""Compares what was acknowledged, what the destination saw and what the database says. Reads only, and needs nothing running."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cassata import schema
from cassata.model import FINISHED, ErrorKind, Status
from tests.faults.ledger import Ledger
from tests.faults.receiver import Arrival, arrivals

Id = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Stored:
    """One event of the database, and the log of its attempts."""

    event: Any
    attempts: list[Any]

    @property
    def is_ended(self) -> bool:
        return Status(self.event.status) in FINISHED

    @property
    def deliveries(self) -> int:
        """How many attempts were recorded as answered 2xx."""
        return sum(1 for attempt in self.attempts if attempt.error is None and 200 <= (attempt.status_code or 0) < 300)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a fault did. The lists say to whom, for whoever looks for the cause."""

    acknowledged: int = 0
    delivered: int = 0
    lost: list[Id] = field(default_factory=list)
    duplicates: int = 0
    repeated: list[Id] = field(default_factory=list)
    early: list[Id] = field(default_factory=list)
    stuck: list[Id] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    worker_lost: list[Id] = field(default_factory=list)
    timed_out: int = 0  # attempts whose answer was not waited for: their destination may well have seen them
    fenced: int = 0
    latest_ms: int = 0

    def __str__(self) -> str:
        return (
            f"acknowledged {self.acknowledged}, delivered {self.delivered}, lost {len(self.lost)}, duplicates {self.duplicates}, "
            f"early {len(self.early)}, stuck {len(self.stuck)}, contradictions {len(self.contradictions)}, fenced {self.fenced}"
        )

    @property
    def is_sound(self) -> bool:
        """Whether the figures that must be zero whatever happens are zero."""
        return not (self.lost or self.early or self.stuck or self.contradictions)

    @property
    def needless(self) -> int:
        """How many were sent twice for no reason: a busy machine answers some after their deadline, and these are sent again."""
        return max(0, self.duplicates - self.timed_out)


def check(
    ledger: Ledger,
    receiver_log: Path,
    database_url: str,
    *,
    worker_logs: Iterable[Path] = (),
    slack_ms: int = 4_200,
    clock_ahead_ms: int = 0,
) -> Figures:
    """Compare. `slack_ms`: how late a worker may look (lease, look-ahead and a second); `clock_ahead_ms`: of the database's clock."""
    seen: dict[Id, list[Arrival]] = defaultdict(list)
    for arrival in arrivals(receiver_log):
        seen[arrival.application_id, arrival.event_id].append(arrival)
    stored = read(database_url)
    answered = {key: sum(arrival.is_delivered for arrival in many) for key, many in seen.items()}
    overdue = int(time.time() * 1000) + clock_ahead_ms - slack_ms
    acknowledged = ledger.ids
    return Figures(
        acknowledged=len(acknowledged),
        delivered=sum(1 for key in acknowledged if answered.get(key)),
        lost=sorted(key for key in acknowledged if not answered.get(key) and not _has_ended_for_a_reason(stored.get(key))),
        duplicates=sum(times - 1 for times in answered.values() if times > 1),
        repeated=sorted(key for key, times in answered.items() if times > 1),
        early=sorted(key for key, many in seen.items() if key in stored and _lateness(stored[key], many, clock_ahead_ms) < 0),
        stuck=sorted(key for key, each in stored.items() if not each.is_ended and (each.event.wake_at or 0) < overdue),
        contradictions=[f"{'/'.join(key)}: {what}" for key, each in stored.items() for what in _contradictions(each, answered.get(key, 0))],
        timed_out=sum(log.error == ErrorKind.TIMEOUT for each in stored.values() for log in each.attempts),
        worker_lost=sorted(key for key, each in stored.items() if any(log.error == ErrorKind.WORKER_LOST for log in each.attempts)),
        fenced=sum(map(fenced, worker_logs)),
        latest_ms=max((_lateness(stored[key], many, clock_ahead_ms) for key, many in seen.items() if key in stored), default=0),
    )


def read(database_url: str) -> Mapping[Id, Stored]:
    """Return all events there are. Raises what the database raises."""
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    columns = [column for column in schema.events.c if column.name not in {"payload", "headers", "url"}]
    joined = schema.events.join(schema.applications, schema.applications.c.id == schema.events.c.application)
    with engine.connect() as conn:
        logged = defaultdict(list)
        events = conn.execute(sa.select(*columns, schema.applications.c.application_id).select_from(joined)).all()
        for attempt in conn.execute(sa.select(schema.attempts).order_by(schema.attempts.c.fence)):
            logged[attempt.event].append(attempt)
    engine.dispose()
    return {(event.application_id, event.event_id): Stored(event, logged[event.id]) for event in events}


def unfinished(database_url: str) -> int:
    """Return how many events have not ended. Raises what the database raises."""
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with engine.connect() as conn:
        return int(conn.execute(sa.select(sa.func.count()).where(schema.events.c.wake_at.is_not(None))).scalar_one())


def latenesses(receiver_log: Path, database_url: str) -> dict[Id, tuple[int, int]]:
    """Return for each event that was sent when that was to be, and how much later it was, by the clock of this machine (ms)."""
    first: dict[Id, Arrival] = {}
    for arrival in arrivals(receiver_log):
        first.setdefault((arrival.application_id, arrival.event_id), arrival)
    stored = read(database_url)
    return {key: (stored[key].event.due_at, _lateness(stored[key], [arrival], 0)) for key, arrival in first.items() if key in stored}


def fenced(worker_log: Path) -> int:
    """Return how many outcomes a worker says came too late. It logs JSON."""
    return sum(record["count"] for record in told(worker_log) if record.get("message") == "outcomes fenced")


def told(log: Path) -> Iterator[dict[str, Any]]:
    """Read what a process of ours has logged as JSON; what is not JSON (a last cry) is left out."""
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("{") and line.endswith("}"):
            yield json.loads(line)


def _has_ended_for_a_reason(found: Stored | None) -> bool:
    if found is None:
        return False
    return found.event.status == Status.CANCELLED or (found.event.status == Status.FAILED and bool(found.event.last_error))


def _lateness(found: Stored, seen: list[Arrival], clock_ahead_ms: int) -> int:
    return min(arrival.at_ms for arrival in seen) + clock_ahead_ms - int(found.event.due_at)


def _contradictions(found: Stored, answered: int) -> Iterator[str]:
    """Name what cannot be true together of an event, the log of its attempts, and the times it was answered 2xx."""
    event, status = found.event, Status(found.event.status)
    if found.deliveries > 1:
        yield f"{found.deliveries} deliveries are recorded"
    if found.deliveries > answered:
        yield "a delivery is recorded that the destination has not answered"
    if (status is Status.COMPLETED) != (found.deliveries > 0):
        yield f"it is {status.name}, with {found.deliveries} deliveries recorded"
    if found.is_ended != (event.wake_at is None) or found.is_ended != (event.finished_at is not None):
        yield f"it is {status.name}, wakes at {event.wake_at} and finished at {event.finished_at}"
    if found.is_ended and len(found.attempts) != event.attempts:
        yield f"it has had {event.attempts} attempts, of which {len(found.attempts)} are recorded"
    if any(count > 1 for count in Counter(attempt.number for attempt in found.attempts).values()):
        yield "two attempts have the same number"
