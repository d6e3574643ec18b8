"""How MariaDB runs the statements that matter: by index, without sorting, without reading what is not wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from cassata import database, recurrence, store
from cassata.model import UNFINISHED, Action, Cursor, Filter, NewOperation, Status
from cassata.recurrence import Rule
from cassata.retention import Retention
from cassata.scheduler import Scheduler, Terms
from cassata.series import NewSeries
from tests.words import NOON, ManualClock, new_event, outcome

ROWS = 3_000


@pytest.fixture(scope="module")
def filled(mariadb: Any) -> Iterator[tuple[database.Engines, Scheduler, ManualClock]]:
    """A table with much that is finished, much that is far ahead, and something due for each of 30 applications."""
    name = mariadb.create_database([])
    url = mariadb.url(name)
    database.upgrade(url)
    engines = database.open_engines(url)
    clock = ManualClock()
    scheduler = Scheduler(engines, clock=clock)
    for start in range(0, ROWS, 500):
        numbers = range(start, start + 500)
        scheduler.add_all([new_event(f"e{n}", f"app-{n % 30}", due_at=NOON + (0 if n % 7 else 86_400_000 + n)) for n in numbers])
    agenda = list(scheduler.agenda())
    for _ in range(10):
        claimed = scheduler.record_and_claim((), agenda, 100, Terms())[1]
        scheduler.record([outcome(delivery) for delivery in claimed.deliveries])
    for number in range(300):
        rule = Rule(every_ms=60_000, start_at=NOON + (0 if number % 10 == 0 else 86_400_000 + number * 1_000))
        scheduler.timetable.create(NewSeries(f"app-{number % 30}", rule, "http://127.0.0.1/", series_id=f"s{number}"))
    for number in range(300, 400):
        rule = Rule(every_ms=1_000, start_at=NOON - 3_600_000, count=1)  # these have ended
        scheduler.timetable.create(NewSeries(f"app-{number % 30}", rule, "http://127.0.0.1/", series_id=f"s{number}"))
    with engines.write.begin() as conn:
        conn.execute(text("ANALYZE TABLE events, attempts, applications, series"))
    yield engines, scheduler, clock
    scheduler.close()
    mariadb.drop_database(name)


@contextmanager
def statements(engines: database.Engines) -> Iterator[list[tuple[str, Any]]]:
    """Collect what is sent to the database."""
    seen: list[tuple[str, Any]] = []

    def remember(_conn: Connection, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        seen.append((statement, parameters[0] if many else parameters))

    for engine in engines:
        event.listen(engine, "before_cursor_execute", remember)
    yield seen
    for engine in engines:
        event.remove(engine, "before_cursor_execute", remember)


def explain(engines: database.Engines, statement: str, parameters: Any) -> list[dict[str, Any]]:
    with engines.write.begin() as conn:
        return [dict(row._mapping) for row in conn.exec_driver_sql(f"EXPLAIN {statement}", parameters)]


Acts = dict[str, Callable[[Scheduler], Any]]

ACTS: Acts = {
    "agenda": lambda scheduler: scheduler.agenda(),
    "claim": lambda scheduler: scheduler.record_and_claim((), list(scheduler.agenda()), 90, Terms()),
    "record": lambda scheduler: scheduler.record(
        [
            outcome(delivery, 200 if delivery.id % 2 else 503)
            for delivery in scheduler.record_and_claim((), list(scheduler.agenda()), 20, Terms())[1].deliveries
        ]
    ),
    "status": lambda scheduler: scheduler.status("app-7", "e7"),
    "event": lambda scheduler: scheduler.event("app-7", "e7"),
    "cancel": lambda scheduler: scheduler.cancel("app-19", "e2989"),
    "change": lambda scheduler: scheduler.change("app-18", "e2988", {"payload": b"new", "delay_ms": 5_000}),
    "search what waits": lambda scheduler: scheduler.events("app-7", Filter(UNFINISHED, due_until=NOON + 9_999), after=Cursor(NOON, 40)),
    "search what was answered": lambda scheduler: scheduler.events("app-7", Filter(host="127.0.0.1", last_status=200)),
    "list": lambda scheduler: scheduler.events("app-7", limit=50),
    "newest first": lambda scheduler: scheduler.events("app-7", Filter(last_status=200), after=Cursor(NOON, 40), newest_first=True),
    "next page": lambda scheduler: scheduler.events("app-7", limit=20, after=Cursor(NOON, 40)),
    "list by status": lambda scheduler: scheduler.events("app-7", Filter(frozenset({Status.PENDING}), NOON, NOON + 99_999_999)),
    "count": lambda scheduler: scheduler.operations.preview(NewOperation("app-7", Action.CANCEL, Filter(host="receiver.example"))),
    "operation": lambda scheduler: operate(scheduler, Action.RESCHEDULE, shift_ms=1_000),
    "operation on what has ended": lambda scheduler: operate(scheduler, Action.RECONCILE),
    "retry": lambda scheduler: retry(scheduler),
    "tail": lambda scheduler: scheduler.tail("app-7").poll(),
    "prune": lambda scheduler: scheduler.pruning(Retention(completed_ms=1, attempts_ms=1), dry_run=True).run(),
}  # fmt: skip


def operate(scheduler: Scheduler, action: Action, **facts: int) -> None:
    begun = scheduler.operations.begin(NewOperation("app-8", action, Filter(due_from=NOON), **facts))
    while scheduler.operations.step(events_per_second=1_000_000_000):
        pass
    assert scheduler.operations.get("app-8", begun.operation_id).changed > 0


def retry(scheduler: Scheduler) -> None:
    scheduler.cancel("app-19", "e2989")
    scheduler.retry("app-19", "e2989")


def test_what_waits_is_counted_by_index_and_no_further_than_asked(filled: tuple[database.Engines, Scheduler, ManualClock]) -> None:
    engines, scheduler, _ = filled
    with statements(engines) as seen:
        scheduler.backlog(named=20, most=10)

    counted = [(s, p) for s, p in seen if "AS count" in s or "count(*)" in s]
    assert len(counted) == 21
    for statement, parameters in counted:
        awake, asleep = (step for step in explain(engines, statement, parameters) if step["table"] == "events")
        assert (awake["key"], awake["type"]) == ("events_wake", "range"), (statement, awake)
        assert (asleep["key"], asleep["type"] in {"ref", "range"}) == ("events_wake", True), (statement, asleep)
        assert "Using index" in str(asleep["Extra"])
        assert "filesort" not in str(awake["Extra"])


def test_an_id_alone_costs_one_dive_for_each_application(filled: tuple[database.Engines, Scheduler, ManualClock]) -> None:
    engines, scheduler, _ = filled
    with statements(engines) as seen:
        assert scheduler.application_of("e7") == "app-7"

    ((statement, parameters),) = [(s, p) for s, p in seen if "events" in s]
    step = next(step for step in explain(engines, statement, parameters) if step["table"] == "events")
    assert (step["key"], step["type"], int(step["rows"])) == ("events_event_id", "eq_ref", 1), step


def test_runs_are_read_backwards_without_sorting(filled: tuple[database.Engines, Scheduler, ManualClock]) -> None:
    engines, scheduler, _ = filled
    with statements(engines) as seen:
        scheduler.timetable.runs("app-0", "s0", 0, NOON * 2)

    ((statement, parameters),) = [(s, p) for s, p in seen if "FROM events" in s]
    (step,) = explain(engines, statement, parameters)
    assert (step["key"], step["type"]) == ("events_event_id", "range"), step
    assert "filesort" not in str(step["Extra"])


def test_a_series_is_paused_without_looking_at_its_past(filled: tuple[database.Engines, Scheduler, ManualClock]) -> None:
    engines, scheduler, clock = filled
    scheduler.timetable.create(NewSeries("app-1", Rule(every_ms=60_000, start_at=clock.instant), "http://127.0.0.1/", series_id="long"))
    with statements(engines) as seen:
        scheduler.timetable.pause("app-1", "long")

    begins = [list(parameters.values() if isinstance(parameters, dict) else parameters) for s, parameters in seen if "FROM events" in s]
    assert len(begins) == 1
    assert recurrence.occurrence_id("long", clock.instant) in begins[0]


@pytest.mark.parametrize("act", ACTS)
def test_no_statement_sorts_or_scans(filled: tuple[database.Engines, Scheduler, ManualClock], act: str) -> None:
    engines, scheduler, _ = filled
    with statements(engines) as seen:
        ACTS[act](scheduler)

    examined = [(s, p) for s, p in seen if s.lstrip().startswith(("SELECT", "UPDATE")) and "events" in s]
    assert examined
    for statement, parameters in examined:
        for step in explain(engines, statement, parameters):
            assert step["type"] not in {"ALL", "index"}, (statement, step)
            assert step["key"] is not None or "optimized away" in str(step["Extra"]), (statement, step)
            assert "filesort" not in str(step["Extra"]), (statement, step)
            assert "temporary" not in str(step["Extra"]), (statement, step)


@pytest.mark.parametrize(
    ("act", "index"),
    [
        ("claim", "events_wake"),
        ("list", "events_due"),
        ("list by status", "events_due"),
        ("search what waits", "events_wake"),
        ("search what was answered", "events_due"),
        ("added", "PRIMARY"),
        ("prune", "events_due"),
    ],
)
def test_no_statement_that_could_read_too_much_may_choose_its_index(
    filled: tuple[database.Engines, Scheduler, ManualClock], act: str, index: str
) -> None:
    """In this table the database chooses well by itself. It does not with every table: one plan that sorts starves all workers."""
    engines, scheduler, _ = filled
    with statements(engines) as seen:
        {**ACTS, "added": lambda scheduler: scheduler.added_after(0)}[act](scheduler)

    ordered = [statement for statement, _ in seen if "FROM events" in statement and ("LIMIT" in statement or "GROUP BY" in statement)]
    asked = [statement for statement in ordered if "min(events.wake_at)" not in statement or act == "added"]
    assert asked
    assert all(f"FORCE INDEX ({index})" in statement for statement in asked), asked


def test_the_agenda_is_a_loose_scan(filled: tuple[database.Engines, Scheduler, ManualClock]) -> None:
    engines, scheduler, _ = filled
    with statements(engines) as seen:
        scheduler.agenda()

    ((statement, parameters),) = [(s, p) for s, p in seen if "GROUP BY" in s]
    (step,) = explain(engines, statement, parameters)

    assert "Using index for group-by" in step["Extra"]
    assert int(step["rows"]) < ROWS / 10


def test_a_claim_locks_little_more_than_it_takes_and_leaves_the_next_ones_to_others(
    filled: tuple[database.Engines, Scheduler, ManualClock],
) -> None:
    engines, scheduler, _ = filled
    application = next(application for application, wake_at in scheduler.agenda().items() if wake_at <= NOON)

    def due(conn: Connection) -> list[int]:
        return [row.id for row in store.lock_due(conn, {application: store.BOTTOM}, NOON, NOON, {application: 5})]

    with engines.write.connect() as one, engines.write.connect() as two:
        mine, yours = due(one), due(two)
        locked = one.execute(
            text("SELECT trx_rows_locked FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = CONNECTION_ID()")
        ).scalar_one()
        one.rollback()
        two.rollback()

    assert (len(mine), len(yours)) == (5, 5)
    assert not set(mine) & set(yours)
    assert locked <= 2 * 5 + 2


def test_what_was_added_is_found_by_row_number(filled: tuple[database.Engines, Scheduler, ManualClock]) -> None:
    engines, scheduler, _ = filled
    with statements(engines) as seen:
        scheduler.added_after(ROWS - 10)

    (step,) = explain(engines, *seen[0])

    assert (step["key"], step["type"]) == ("PRIMARY", "range")
    assert int(step["rows"]) <= 20


def test_when_many_applications_have_more_is_found_without_reading_what_they_have(
    filled: tuple[database.Engines, Scheduler, ManualClock],
) -> None:
    engines, scheduler, _ = filled
    numbers = list(scheduler.agenda())
    with statements(engines) as seen, engines.read.connect() as conn:
        many = store.next_wakes(conn, numbers, NOON)
        one = store.next_wakes(conn, numbers[:1], NOON)

    assert many.items() >= one.items()
    assert "Using index for group-by" in explain(engines, *seen[0])[0]["Extra"]
    assert "optimized away" in explain(engines, *seen[1])[0]["Extra"]


SERIES_ACTS: Acts = {
    "next wake": lambda scheduler: scheduler.timetable.next_wake(),
    "advance": lambda scheduler: scheduler.timetable.advance(),
    "get": lambda scheduler: scheduler.timetable.get("app-7", "s7"),
    "list": lambda scheduler: scheduler.timetable.series("app-7", after="s100"),
    "instances": lambda scheduler: scheduler.timetable.instances("app-0", "s0", NOON, NOON + 600_000),
    "change one": lambda scheduler: scheduler.timetable.change_instance("app-0", "s0", "s0_20270115T090000Z", {"payload": b"x"}),
    "cancel one": lambda scheduler: scheduler.timetable.cancel_instance("app-0", "s0", "s0_20270115T090100Z"),
    "pause": lambda scheduler: scheduler.timetable.pause("app-0", "s0"),
    "resume": lambda scheduler: scheduler.timetable.resume("app-0", "s0"),
    "cancel": lambda scheduler: scheduler.timetable.cancel("app-0", "s0"),
    "delete": lambda scheduler: scheduler.timetable.delete("app-0", "s0"),
}


@pytest.mark.parametrize("act", SERIES_ACTS)
def test_no_statement_about_series_sorts_or_scans(filled: tuple[database.Engines, Scheduler, ManualClock], act: str) -> None:
    engines, scheduler, _ = filled
    with statements(engines) as seen:
        SERIES_ACTS[act](scheduler)

    examined = [(s, p) for s, p in seen if s.lstrip().startswith(("SELECT", "UPDATE", "DELETE")) and ("series" in s or "events" in s)]
    assert examined
    for statement, parameters in examined:
        for step in explain(engines, statement, parameters):
            assert step["type"] not in {"ALL", "index"}, (statement, step)
            no_table = ("optimized away", "no matching row", "Impossible WHERE", "Deleting all rows")
            assert step["key"] is not None or any(reason in str(step["Extra"]) for reason in no_table), (statement, step)
            assert "filesort" not in str(step["Extra"]), (statement, step)
            assert "temporary" not in str(step["Extra"]), (statement, step)


def test_due_series_are_found_at_the_end_of_an_index(filled: tuple[database.Engines, Scheduler, ManualClock]) -> None:
    engines, scheduler, clock = filled
    with statements(engines) as seen, engines.write.connect() as conn:
        scheduler.timetable.next_wake()
        store.lock_due_series(conn, clock.instant, 5)
        conn.rollback()

    (wake,), (due,) = (explain(engines, *each) for each in seen)
    assert "optimized away" in wake["Extra"]
    assert (due["key"], due["type"]) == ("series_wake", "range")
    assert int(due["rows"]) <= 50
