"""Conflicts with other sessions, at every statement of every use-case: none of them is seen from outside, and none leaves a half."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pymysql
import pytest
from sqlalchemy import Connection, Engine, event, text

from cassata import database
from cassata.courier.retry import RetryPolicy
from cassata.destinations import BreakerPolicy
from cassata.limits import Hands
from cassata.model import Delivery, ErrorKind, Event, NewEvent, Outcome, Status
from cassata.scheduler import Scheduler, Terms
from cassata.tenants import Changes

pytestmark = pytest.mark.faults

NOON = 1_800_000_000_000
TERMS = Terms(look_ahead_ms=0)
LIMITS = {"max_in_flight": 50, "deliveries_per_second": 50_000, "max_in_flight_per_host": 40, "max_pending": 900, "adds_per_second": 900}
CONFLICTS: dict[str, Callable[[], Exception]] = {
    "1213": lambda: pymysql.err.OperationalError(1213, "Deadlock found when trying to get lock; try restarting transaction"),
    "1205": lambda: pymysql.err.OperationalError(1205, "Lock wait timeout exceeded; try restarting transaction"),
    "1020": lambda: pymysql.err.OperationalError(1020, "Record has changed since last read in table 'events'"),
    "locked": lambda: sqlite3.OperationalError("database is locked"),
}
ROLLS_BACK = {"1213"}
"""Where the server has ended the whole transaction; after the others it is open still, with all that was written before."""


class AskedClock:
    """A clock that tests set, and that asks the database each time: as a statement of its own, at which something may go wrong."""

    def __init__(self) -> None:
        self.instant = NOON

    def now(self, connection: Connection) -> int:
        connection.execute(text("SELECT 1"))
        return self.instant

    def estimate(self) -> int:
        return self.instant


@dataclass
class Injector:
    """Raises an error of the driver at the statement whose turn it is: the COMMIT of a transaction counts as one."""

    kind: str = ""
    countdown: int = 0  # 0: nothing happens
    struck: bool = False
    rollbacks: int = 0
    dirty: set[int] = field(default_factory=set)  # connections in which a conflict has struck, and nobody has rolled back yet
    used_dirty: int = 0  # statements on such a connection

    def listen(self, engine: Engine) -> None:
        dialect = engine.dialect
        commit, rollback = dialect.do_commit, dialect.do_rollback
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            event.listen(engine, name, lambda cursor, *_: self.before(cursor.connection))

        def do_commit(connection: Any) -> None:
            self.before(connection.dbapi_connection if hasattr(connection, "dbapi_connection") else connection)
            commit(connection)

        def do_rollback(connection: Any) -> None:
            raw = connection.dbapi_connection if hasattr(connection, "dbapi_connection") else connection
            self.rollbacks += 1
            self.dirty.discard(id(raw))
            rollback(connection)

        dialect.do_commit, dialect.do_rollback = do_commit, do_rollback  # type: ignore[method-assign]

    @contextmanager
    def striking_at(self, position: int, kind: str) -> Iterator[None]:
        self.struck, self.countdown, self.kind = False, position, kind
        yield
        self.countdown = 0

    def before(self, connection: Any) -> None:
        if id(connection) in self.dirty:
            self.used_dirty += 1
        if not self.countdown:
            return
        self.countdown -= 1
        if self.countdown:
            return
        self.struck = True
        if self.kind in ROLLS_BACK:
            connection.rollback()
        elif _in_transaction(connection):
            self.dirty.add(id(connection))
        raise CONFLICTS[self.kind]()


def _in_transaction(connection: Any) -> bool:
    return bool(connection.in_transaction) if isinstance(connection, sqlite3.Connection) else not connection.get_autocommit()


@pytest.fixture
def clock() -> AskedClock:
    return AskedClock()


@pytest.fixture
def injector() -> Injector:
    return Injector()


@pytest.fixture
def scheduler(database_url: str, clock: AskedClock, injector: Injector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scheduler]:
    monkeypatch.setattr("cassata.tenants.FRESH_SECONDS", 0.0)  # so that what is asked once a second is asked each time
    monkeypatch.setattr("cassata.scheduler.FRESH_SECONDS", 0.0)
    engines = database.open_engines(database_url)
    for engine in engines:
        injector.listen(engine)
    opened = Scheduler(engines, clock=clock, retry=RetryPolicy(count=5), breaker=BreakerPolicy(minimum_requests=2))
    yield opened
    opened.close()


# --- use-cases -----------------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """Where a use-case is played: an application of its own, so that it can be played again and again."""

    scheduler: Scheduler
    clock: AskedClock
    application: str
    limited: bool
    hands: Hands = field(default_factory=lambda: Hands("thread", {}, lambda _application: 100))

    def new(self, event_id: str) -> NewEvent:
        return NewEvent(self.application, f"http://{self.application}.test/hook", due_at=NOON, event_id=event_id)

    def add(self, count: int = 3) -> None:
        if self.limited:
            self.scheduler.tenants.create(self.application, Changes(limits=LIMITS))
        self.scheduler.add_all([self.new(f"e{n}") for n in range(count)])

    def claim(self, outcomes: Sequence[Outcome] = ()) -> list[Delivery]:
        number = self.scheduler.tenants.application(self.application).number
        self.scheduler.agenda()
        return self.scheduler.record_and_claim(outcomes, [number], 10, TERMS, self.hands)[1].deliveries

    def open_breaker(self) -> None:
        """Have it opened by two refusals, whose events then wait for another try; time passes until a probe may be sent."""
        self.scheduler.add_all([self.new(f"refused{n}") for n in range(2)])
        self.scheduler.record([refused(delivery) for delivery in self.claim()])
        self.clock.instant += 20_000

    def statuses(self) -> list[Status]:
        return [each.status for each in self.scheduler.events(self.application).events]

    def logged(self) -> list[int]:
        """How many attempts of each event are in its log."""
        events = self.scheduler.events(self.application).events
        return [len(self.scheduler.event(self.application, each.event_id)[1]) for each in events]


def answered(delivery: Delivery, code: int = 200) -> Outcome:
    return Outcome(delivery, started_at=NOON, duration_ms=5, status_code=code)


def refused(delivery: Delivery) -> Outcome:
    return Outcome(delivery, started_at=NOON, duration_ms=5, error=ErrorKind.CONNECT_FAILED, detail="refused")


# Each prepares what it needs, does one thing between its two yields, during which a conflict strikes, and then says what must be so.


def first_add(stage: Stage) -> Iterator[None]:
    yield
    stage.scheduler.add(stage.new("e0"))
    yield
    assert stage.statuses() == [Status.PENDING]


def single_add(stage: Stage) -> Iterator[None]:
    stage.add(1)
    yield
    stage.scheduler.add(stage.new("single"))
    yield
    assert stage.statuses() == [Status.PENDING] * 2


def batch(stage: Stage) -> Iterator[None]:
    stage.add(1)
    yield
    added = stage.scheduler.add_all([stage.new(f"b{n}") for n in range(3)])
    yield
    assert [each.event_id for each in added if isinstance(each, Event)] == ["b0", "b1", "b2"]
    assert stage.statuses() == [Status.PENDING] * 4


def add_again_what_was_cancelled(stage: Stage) -> Iterator[None]:
    stage.add(1)
    stage.scheduler.cancel(stage.application, "e0")
    yield
    stage.scheduler.add(stage.new("e0"))
    yield
    assert stage.statuses() == [Status.PENDING]


def cancel(stage: Stage) -> Iterator[None]:
    stage.add(1)
    yield
    assert stage.scheduler.cancel(stage.application, "e0").status is Status.CANCELLED
    yield
    assert stage.statuses() == [Status.CANCELLED]


def cancel_while_sent(stage: Stage) -> Iterator[None]:
    stage.add(1)
    (delivery,) = stage.claim()
    yield
    assert stage.scheduler.cancel(stage.application, "e0").cancel_requested
    yield
    stage.scheduler.record([answered(delivery, 500)])
    assert stage.statuses() == [Status.CANCELLED]


def look(stage: Stage) -> Iterator[None]:
    stage.add(1)
    yield
    assert stage.scheduler.agenda()
    assert stage.scheduler.status(stage.application, "e0").status is Status.PENDING
    assert len(stage.scheduler.events(stage.application).events) == 1
    yield


def claim(stage: Stage) -> Iterator[None]:
    stage.add()
    yield
    deliveries = stage.claim()
    yield
    assert [(each.event_id, each.fence, each.number) for each in deliveries] == [(f"e{n}", 1, 1) for n in range(3)]
    assert stage.scheduler.record([answered(each) for each in deliveries]).kept == 3


def claim_what_was_lost(stage: Stage) -> Iterator[None]:
    stage.add(2)
    stage.claim()
    stage.clock.instant += TERMS.lease_ms(None)
    yield
    deliveries = stage.claim()
    yield
    assert [(each.fence, each.number) for each in deliveries] == [(2, 2)] * 2
    assert stage.logged() == [1, 1]


def bury(stage: Stage) -> Iterator[None]:
    stage.add(1)
    for _ in range(3):
        assert len(stage.claim()) == 1
        stage.clock.instant += TERMS.lease_ms(None)
    yield
    assert stage.claim() == []
    yield
    assert stage.statuses() == [Status.FAILED]
    assert stage.logged() == [3]


def record(stage: Stage) -> Iterator[None]:
    stage.add()
    deliveries = stage.claim()
    yield
    recorded = stage.scheduler.record([answered(each) for each in deliveries])
    yield
    assert (recorded.kept, recorded.fenced) == (3, 0)
    assert stage.statuses() == [Status.COMPLETED] * 3
    assert stage.logged() == [1] * 3


def record_of_all_kinds_and_claim(stage: Stage) -> Iterator[None]:
    stage.add(3)
    ok, bad, later = stage.claim()
    stage.scheduler.add(stage.new("next"))
    yield
    deliveries = stage.claim([answered(ok), answered(bad, 400), answered(later, 503)])
    yield
    assert [each.event_id for each in deliveries] == ["next"]
    assert stage.statuses() == [Status.COMPLETED, Status.FAILED, Status.SERVICE_UNAVAILABLE, Status.PROCESSING]
    assert stage.logged() == [1, 1, 1, 0]


def release(stage: Stage) -> Iterator[None]:
    stage.add(2)
    deliveries = stage.claim()
    yield
    assert stage.scheduler.release(deliveries) == 2
    yield
    assert stage.statuses() == [Status.PENDING] * 2
    assert [each.attempts for each in stage.scheduler.events(stage.application).events] == [0, 0]


def refusals_open_a_breaker(stage: Stage) -> Iterator[None]:
    stage.add(2)
    deliveries = stage.claim()
    yield
    stage.scheduler.record([refused(each) for each in deliveries])
    yield
    assert [each.openings for each in stage.scheduler.breakers(stage.application)] == [1]


def claim_behind_an_open_breaker(stage: Stage) -> Iterator[None]:
    """One of them goes out, the probe, at once or when the breaker has been looked at again; the others are put off."""
    stage.add(0)
    stage.open_breaker()
    yield
    deliveries = stage.claim()
    yield
    if not deliveries:  # whoever had begun a probe in vain takes notice a second later
        stage.clock.instant += 5_000
        deliveries = stage.claim()
    assert len(deliveries) == 1
    stage.scheduler.record([answered(each) for each in deliveries])
    assert stage.scheduler.breakers(stage.application) == []


USE_CASES = [
    first_add,
    single_add,
    batch,
    add_again_what_was_cancelled,
    cancel,
    cancel_while_sent,
    look,
    claim,
    claim_what_was_lost,
    bury,
    record,
    record_of_all_kinds_and_claim,
    release,
    refusals_open_a_breaker,
    claim_behind_an_open_breaker,
]


@pytest.mark.parametrize("limited", [False, True], ids=["unlimited", "limited"])
def test_a_conflict_at_any_statement_is_seen_by_nobody_and_leaves_no_half(
    seed: str, scheduler: Scheduler, clock: AskedClock, injector: Injector, limited: bool, figure: Callable[[str], None]
) -> None:
    """Each position has one of the conflicts in a round, and another one in the next round."""
    kinds = itertools.cycle(["locked"] if scheduler._engines.write.dialect.name == "sqlite" else ["1213", "1205", "1020"])
    struck = 0
    for _ in range(int(seed.rsplit(":", 1)[1]) + limited):
        next(kinds)
    for use_case in USE_CASES:
        for position in itertools.count(1):
            play = use_case(Stage(scheduler, clock, f"{use_case.__name__}-{position}".replace("_", "-"), limited))
            next(play)
            with injector.striking_at(position, next(kinds)):
                next(play)
            next(play, None)
            if not injector.struck:
                assert position > 1, f"{use_case.__name__} makes no statement"
                break
            struck += 1
    what = "with limits" if limited else "without limits"
    figure(f"B7 conflicts at {struck} positions of {len(USE_CASES)} use-cases, {what}: surfaced 0, half commits 0")
    assert injector.used_dirty == 0  # whatever had been struck was rolled back before it was used again
    assert injector.dirty == set()


# --- real ones -------------------------------------------------------------------------------------------------------------


def test_a_record_that_is_the_victim_of_a_real_deadlock_is_written_all_the_same(mariadb_url: str, figure: Callable[[str], None]) -> None:
    scheduler, other = Scheduler.open(mariadb_url), database.open_engines(mariadb_url)
    codes: list[int] = []
    event.listen(scheduler._engines.write, "handle_error", lambda context: codes.append(context.original_exception.args[0]))
    scheduler.add_all([NewEvent("shop", "http://shop.test/", due_at=1_000, event_id=f"e{n}") for n in range(60)])
    deliveries = scheduler.record_and_claim((), list(scheduler.agenda()), 2, Terms())[1].deliveries
    low, high = sorted(delivery.id for delivery in deliveries)
    with ThreadPoolExecutor(1) as pool, other.write.begin() as conn:
        # Whoever has changed less is the victim: this session makes itself heavy.
        conn.execute(text("UPDATE events SET lost_leases = 0, attempts = attempts + 7 WHERE id > :high"), {"high": high})
        conn.execute(text("SELECT id FROM events WHERE id = :high FOR UPDATE"), {"high": high})
        recording = pool.submit(scheduler.record, [answered(delivery) for delivery in deliveries])
        time.sleep(0.5)  # by now it has locked the lower row, and waits for the higher one
        conn.execute(text("SELECT id FROM events WHERE id = :low FOR UPDATE"), {"low": low})
        conn.rollback()
        assert recording.result().kept == 2
    other.dispose()
    scheduler.close()
    figure(f"B7 a real deadlock: errors {codes}, surfaced 0")
    assert codes == [1213]
