"""Real databases on which the same commands are run side by side, with the mishaps that a database may meet."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import pymysql
from sqlalchemy import delete, event, select

from cassata import database
from cassata.courier.retry import RetryPolicy, Verdict
from cassata.destinations import BreakerPolicy
from cassata.errors import CassataError, DatabaseUnavailable, DuplicateEvent
from cassata.limits import Hands
from cassata.model import Delivery, ErrorKind, Outcome, Status
from cassata.scheduler import Scheduler
from cassata.schema import applications, attempts, breakers, events, holdings, paces
from tests.store.model import RETRIES, Answer, Asking, Broken, Logged, Row, Seen, Sent, wait_ms
from tests.words import ManualClock

PROCESSES = 3
UNAVAILABLE = "unavailable"
IN_TRANSACTION = 1  # SERVER_STATUS_IN_TRANS, in what a MySQL server says of itself with every answer


_NAMES = select(applications.c.id, applications.c.application_id)
_EVENTS = select(*events.c)
_ATTEMPTS = select(*attempts.c)
_BREAKERS = select(*breakers.c)
_HOLDINGS = select(*holdings.c)


class Kind(Enum):
    """What may go wrong between a process and its database. On SQLite, where no connection dies, STALE is one more CONFLICT."""

    CONFLICT = "a statement meets a deadlock or waits for a lock in vain: it may be begun again"
    AWAY = "the database turns read-only, or full, before a statement, and stays so"
    STALE = "a statement finds its connection dead, which the next one is not"
    NOT_COMMITTED = "COMMIT fails"
    ANSWER_LOST = "COMMIT is carried out, and nobody is told"


class Mishap(NamedTuple):
    """Something that goes wrong in one call: at its statement of that number, so many times, or at its COMMIT."""

    kind: Kind
    statement: int = 0
    times: int = 1


_MYSQL_ERRORS = {
    Kind.CONFLICT: (1205, "Lock wait timeout exceeded"),
    Kind.AWAY: (1290, "The server is running with the --read-only option"),
    Kind.STALE: (2006, "MySQL server has gone away"),
    Kind.NOT_COMMITTED: (2013, "Lost connection to MySQL server during query (timed out)"),
    Kind.ANSWER_LOST: (2013, "Lost connection to MySQL server during query (timed out)"),
}


class Faults:
    """Has the engines of one process meet what was arranged, and watches that none of its connections stays in a transaction."""

    def __init__(self, engines: database.Engines) -> None:
        self.left_open = 0
        self._engines = engines
        self._is_sqlite = engines.write.dialect.name == "sqlite"
        self._mishap: Mishap | None = None
        self._statements = 0
        for engine in engines:
            with engine.connect():  # so that what SQLAlchemy asks at first is not counted
                pass
            event.listen(engine, "checkin", self._look_at)
        for name, many in (("do_execute", False), ("do_executemany", True)):
            event.listen(engines.write, name, self._statement_meets(commits=False, many=many))
            event.listen(engines.read, name, self._statement_meets(commits=True, many=many))
        self._commit = engines.write.dialect.do_commit
        engines.write.dialect.do_commit = self._commit_meets  # type: ignore[method-assign]

    @contextmanager
    def arranged(self, mishap: Mishap | None) -> Iterator[None]:
        self._mishap, self._statements = mishap, 0
        try:
            yield
        finally:
            self._mishap = None

    @property
    def _is_in_transaction(self) -> bool:
        return bool(self._engines.write.pool.checkedout())  # type: ignore[attr-defined]

    @property
    def checked_out(self) -> int:
        return sum(engine.pool.checkedout() for engine in self._engines)  # type: ignore[attr-defined]

    def _look_at(self, connection: Any, _record: Any) -> None:
        if connection is not None:
            self.left_open += bool(connection.in_transaction if self._is_sqlite else connection.server_status & IN_TRANSACTION)

    def _statement_meets(self, *, commits: bool, many: bool) -> Callable[..., bool]:
        """Answer SQLAlchemy: has the statement been run? Where no transaction is begun an INSERT is its own COMMIT."""

        def run(cursor: Any, statement: str, parameters: Any, _context: Any) -> bool:
            if self._mishap is None or statement.startswith("BEGIN"):
                return False
            self._statements += 1
            self._meet(cursor.connection)
            if commits and statement.startswith("INSERT") and not self._is_in_transaction:
                self._commit_meets(cursor.connection, lambda: (cursor.executemany if many else cursor.execute)(statement, parameters))
                return True
            return False

        return run

    def _meet(self, connection: Any) -> None:
        mishap = self._mishap
        if mishap is None or mishap.kind in {Kind.NOT_COMMITTED, Kind.ANSWER_LOST} or self._statements <= mishap.statement:
            return
        if mishap.kind is not Kind.AWAY:
            self._mishap = mishap._replace(times=mishap.times - 1) if mishap.times > 1 else None
        if mishap.kind is not Kind.CONFLICT:
            self._die(connection)
        raise self._error(mishap.kind)

    def _commit_meets(self, connection: Any, commit: Callable[[], Any] | None = None) -> None:
        kind = self._mishap.kind if self._mishap else None
        if kind is Kind.NOT_COMMITTED:
            self._mishap = None
            self._die(connection)
            raise self._error(kind)
        (commit or (lambda: self._commit(connection)))()
        if kind is Kind.ANSWER_LOST:
            self._mishap = None
            raise self._error(kind)

    def _die(self, connection: Any) -> None:
        """A server forgets the transaction of a connection that is gone: here at once, so that what others see does not depend on luck."""
        if not self._is_sqlite:
            connection.rollback()

    def _error(self, kind: Kind) -> Exception:
        if self._is_sqlite:
            is_begun_again = kind in {Kind.CONFLICT, Kind.STALE}
            return sqlite3.OperationalError("database is locked" if is_begun_again else "disk I/O error")
        return pymysql.err.OperationalError(*_MYSQL_ERRORS[kind])


class FixedWaits(RetryPolicy):
    """Without jitter, so that the same commands lead to the same instants."""

    def verdict(self, outcome: Outcome) -> Verdict:
        verdict = RetryPolicy.verdict(self, outcome)
        if verdict.wait_ms is None:
            return verdict
        return verdict._replace(wait_ms=wait_ms(outcome.delivery.number, is_proxys=outcome.error is ErrorKind.PROXY_FAILED))


@dataclass
class World:
    """A database, and the processes on it. Workers speak of deliveries by numbers that are the same in every world."""

    url: str
    clock: ManualClock
    processes: list[Scheduler] = field(default_factory=list)
    deliveries: dict[int, Delivery] = field(default_factory=dict)
    handed: Sequence[Delivery] = ()
    names: Mapping[int, str] = field(default_factory=dict)  # of the applications, by their numbers, as they were seen last

    def __post_init__(self) -> None:
        self._observer = database.open_engines(self.url)
        self._engines = [database.open_engines(self.url) for _ in range(PROCESSES)]
        self._faults = [Faults(engines) for engines in self._engines]

    def close(self) -> None:
        for engines in (self._observer, *self._engines):
            engines.dispose()

    def begin_anew(self) -> None:
        with self._observer.write.begin() as conn:
            for table in (events, attempts, holdings, paces, breakers, applications):
                conn.execute(delete(table))
        self.processes = [self._start(number) for number in range(PROCESSES)]
        self.deliveries = {}

    def restart(self, process: int) -> None:
        """Have a process lose all it had in mind."""
        self.processes[process] = self._start(process)

    def _start(self, process: int) -> Scheduler:
        breaker = BreakerPolicy(minimum_requests=3, open_ms=2_000)
        return Scheduler(self._engines[process], clock=self.clock, retry=FixedWaits(count=RETRIES), breaker=breaker)

    # --- commands ----------------------------------------------------------------------------------------------------

    def do(self, process: int, command: Callable[[World, Scheduler], Any], mishap: Mishap | None = None) -> Any:
        """Return what a command comes to, in words that are the same in every world."""
        try:
            with self._faults[process].arranged(mishap):
                return command(self, self.processes[process])
        except DatabaseUnavailable:
            return UNAVAILABLE
        except CassataError as error:
            return word_for(error)

    def exchange(
        self, scheduler: Scheduler, holder: str, held: Sequence[int], outcomes: Sequence[tuple[int, Answer]], asking: Asking
    ) -> tuple[int, int, int, list[Sent]]:
        hands = Hands(holder, Counter(self.deliveries[claim].application for claim in held))
        ended = [self._outcome(claim, answer) for claim, answer in outcomes]
        scheduler.destinations.ended(ended)
        asked = sorted(self.names, key=self.names.__getitem__)  # whose turn it is, is the workers' business
        rotation = asked[asking.turn :] + asked[: asking.turn]
        recorded, claimed = scheduler.record_and_claim(ended, rotation, asking.limit, asking.terms, hands, suspects=asking.suspects)
        self.handed = sorted(claimed.deliveries, key=lambda delivery: (delivery.application_id, delivery.event_id))
        return recorded.kept, recorded.fenced, claimed.buried, [_sent(delivery) for delivery in self.handed]

    def _outcome(self, claim: int, answer: Answer) -> Outcome:
        return Outcome(self.deliveries[claim], answer.started_at, 5, answer.status_code, answer.error, detail="so it is")

    def agenda(self, scheduler: Scheduler) -> dict[str, int]:
        return {self.names[number]: wake_at for number, wake_at in scheduler.agenda().items()}

    # --- what there is to see ----------------------------------------------------------------------------------------

    def look(self) -> Seen:
        with self._observer.read.connect() as conn:
            self.names = {row.id: row.application_id for row in conn.execute(_NAMES)}
            rows = conn.execute(_EVENTS).all()
            keys = {row.id: (self.names[row.application], row.event_id) for row in rows}
            logged = conn.execute(_ATTEMPTS).all()
            opened = conn.execute(_BREAKERS).all()
            held = conn.execute(_HOLDINGS).all()
        return Seen(
            rows={keys[row.id]: _row(row) for row in rows},
            log=_log(logged, keys),
            reasons={keys[row.id]: row.last_error for row in rows},
            breakers={(self.names[row.application], row.destination): Broken(row.retry_at, row.openings, row.probing) for row in opened},
            holdings={(self.names[row.application], row.holder): (row.events, row.held_until) for row in held},
            errors=tuple(self._errors({row.event for row in logged} - keys.keys())),
        )

    def _errors(self, orphans: Collection[int]) -> Iterator[str]:
        if sum(faults.left_open for faults in self._faults):
            yield "a connection was given back in the midst of a transaction"
        if sum(faults.checked_out for faults in self._faults):
            yield "a connection was not given back"
        if orphans:
            yield "there are attempts of no event"


def word_for(added: Any) -> str:
    if isinstance(added, DuplicateEvent):
        return "identical" if added.identical else "different"
    return type(added).__name__ if isinstance(added, CassataError) else "added"


def _row(row: Any) -> Row:
    return Row(
        status=Status(row.status),
        due_at=row.due_at,
        wake_at=row.wake_at,
        fence=row.fence,
        attempts=row.attempts,
        lost_leases=row.lost_leases,
        cancel_requested=bool(row.cancel_requested),
        created_at=row.created_at,
        finished_at=row.finished_at,
        request_hash=bytes(row.request_hash),
        payload=row.payload,
    )


def _log(rows: Iterable[Any], keys: Mapping[int, tuple[str, str]]) -> dict[tuple[str, str], dict[int, Logged]]:
    log: dict[tuple[str, str], dict[int, Logged]] = {}
    for row in rows:
        if row.event in keys:
            log.setdefault(keys[row.event], {})[row.fence] = Logged(row.number, row.status_code, row.error)
    return log


def _sent(delivery: Delivery) -> Sent:
    return Sent(
        key=(delivery.application_id, delivery.event_id),
        fence=delivery.fence,
        number=delivery.number,
        send_at=delivery.send_at,
        previous=delivery.previous,
        suspect=delivery.suspect,
        payload=delivery.payload,
        signatures=len(delivery.signing_keys),
    )
