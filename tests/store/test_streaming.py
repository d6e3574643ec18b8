"""The thread that tells applications of their events, worked by hand, with real couriers, a real receiver and a real database."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from sqlalchemy import event, text

from cassata import store
from cassata.courier import CourierSettings
from cassata.courier.curl import CurlCourier
from cassata.courier.pool import PoolCourier
from cassata.errors import DatabaseUnavailable
from cassata.model import Egress, EgressPolicy, Stream
from cassata.receiver import Received, Receiver
from cassata.scheduler import Scheduler
from cassata.streaming import Streamer, Terms
from cassata.tenants import Changes
from tests.conftest import wait_until
from tests.words import new_event

HOUR = 3_600_000
Make = Callable[[], Streamer]


@pytest.fixture
def scheduler(database_url: str) -> Iterator[Scheduler]:
    """One with the database's own clock: these tests take real time."""
    with closing(Scheduler.open(database_url, pool_size=10)) as opened:
        yield opened


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture(params=[CurlCourier, PoolCourier])
def streamer(scheduler: Scheduler, request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Streamer] = []

    def make() -> Streamer:
        settings = CourierSettings(slots=64, request_timeout=5)
        terms = Terms(request_timeout_ms=5_000, lease_margin_ms=1_000, keep_ms=None)
        made.append(Streamer(scheduler.outbox, scheduler.clock, lambda: request.param(settings), terms, threading.Event()))
        return made[-1]

    yield make
    for each in made:
        if each._courier is not None:
            each._courier.close()


def make_shop(scheduler: Scheduler, receiver: Receiver, **changes: Any) -> None:
    scheduler.tenants.create("shop", Changes(stream=Stream(f"{receiver.url}/told"), **changes))


def add_and_change(scheduler: Scheduler, events: int, changes: int) -> None:
    scheduler.add_all([new_event(f"e{number}", delay_ms=HOUR) for number in range(events)])
    for turn in range(changes):
        for number in range(events):
            scheduler.change("shop", f"e{number}", {"payload": str(turn).encode()})


def waiting(scheduler: Scheduler) -> int:
    return scheduler.outbox.state("shop", 10_000).messages


def work(scheduler: Scheduler, *streamers: Streamer) -> None:
    """Have them make rounds until all is told."""

    def is_told() -> bool:
        for each in streamers:
            each.step()
        return waiting(scheduler) == 0 and not any(each._sendings for each in streamers)

    wait_until(is_told, explain=lambda: str(scheduler.outbox.state("shop", 10_000)))


def test_several_events_are_told_of_at_once_and_each_of_them_step_by_step(scheduler: Scheduler, receiver: Receiver, streamer: Make) -> None:
    make_shop(scheduler, receiver)
    lock, under_way, most, together = threading.Lock(), Counter[str](), Counter[str](), threading.Event()

    def answer(request: Received) -> int:
        event = str(request.header("Cassata-Event-Id"))
        with lock:
            under_way[event] += 1
            most[event] = max(most[event], under_way[event])
            if len(+under_way) > 4:
                together.set()
        together.wait(10)
        with lock:
            under_way[event] -= 1
        return 204

    receiver.answer = answer
    add_and_change(scheduler, events=6, changes=4)
    work(scheduler, streamer(), streamer())

    assert together.is_set()
    assert set(most.values()) == {1}
    versions: dict[str, list[int]] = {}
    for request in receiver.requests:
        data = json.loads(request.body)["data"]
        versions.setdefault(data["event-id"], []).append(int(data["version"].split("-")[1]))
    assert versions == {f"e{number}": [0, 1, 2, 3, 4] for number in range(6)}


def test_after_one_that_is_not_taken_none_of_its_event_is_sent_and_one_at_a_time_is_tried(
    scheduler: Scheduler, receiver: Receiver, streamer: Make
) -> None:
    make_shop(scheduler, receiver)
    receiver.answer = lambda _request: 503
    add_and_change(scheduler, events=40, changes=1)
    first = streamer()
    wait_until(lambda: bool(first.step()) or scheduler.outbox.state("shop", 1).failures == 1)
    assert {json.loads(request.body)["type"] for request in receiver.requests} == {"event.created"}
    assert len(receiver.requests) <= 16 + 2

    receiver.clear()
    wait_until(lambda: bool(first.step()) or scheduler.outbox.state("shop", 1).failures == 2)
    assert len(receiver.requests) == 1

    receiver.answer = lambda _request: 200
    receiver.clear()
    work(scheduler, first)
    assert len(receiver.requests) == 80
    assert scheduler.outbox.state("shop", 1).reason is None


def test_who_refuses_the_first_ones_is_not_asked_for_all(scheduler: Scheduler, receiver: Receiver, streamer: Make) -> None:
    make_shop(scheduler, receiver)
    receiver.answer = lambda _request: 404
    scheduler.add_all([new_event(f"e{number}", delay_ms=HOUR) for number in range(20)])
    one = streamer()
    wait_until(lambda: bool(one.step()) or scheduler.outbox.state("shop", 1).failures == 1)
    assert len(receiver.requests) <= 16 + 2
    assert scheduler.outbox.state("shop", 1).reason == "HTTP 404 Not Found"


def told(receiver: Receiver) -> dict[str, list[int]]:
    """What came, by event: the versions in the order in which they came."""
    found: dict[str, list[int]] = {}
    for request in receiver.requests:
        data = json.loads(request.body)["data"]
        found.setdefault(data["event-id"], []).append(int(data["version"].split("-")[1]))
    return found


@pytest.mark.parametrize("code", [422, 500])
def test_however_many_events_are_refused_the_others_go_on_and_those_are_told_in_order_once_they_are_taken(
    scheduler: Scheduler, receiver: Receiver, streamer: Make, code: int
) -> None:
    make_shop(scheduler, receiver)
    receiver.answer = lambda request: code if b'"bad' in request.body else 200
    bad, good = [f"bad{number}" for number in range(500)], [f"e{number}" for number in range(40)]
    scheduler.add_all([new_event(name, delay_ms=HOUR) for name in (*bad[:250], *good, *bad[250:])])
    for name in (*bad[:30], *good):
        scheduler.change("shop", name, {"payload": b"new"})
    one = streamer()
    wait_until(lambda: bool(one.step()) or {name: told(receiver).get(name) for name in good} == {name: [0, 1] for name in good}, 60)

    wait_until(lambda: bool(one.step()) or scheduler.outbox.state("shop", 10_000).put_off == 530, 60)
    scheduler.add(new_event("late", delay_ms=HOUR))
    scheduler.change("shop", "bad7", {"payload": b"newer"})
    wait_until(lambda: bool(one.step()) or ("late" in told(receiver) and waiting(scheduler) == 531))
    state = scheduler.outbox.state("shop", 10_000)
    assert state.failures == 0
    assert str(code) in (state.reason or "")
    assert [set(told(receiver)[name]) for name in bad] == [{0}] * 500

    receiver.clear()
    receiver.answer = lambda _request: 200
    with scheduler._engines.write.connect() as connection, connection.begin():
        connection.execute(text("UPDATE outbox SET wake_at = 1 WHERE tries > 0"))  # their pauses are over
        connection.execute(text("UPDATE streams SET held_until = 0"))
    work(scheduler, one, streamer())
    expected = {name: [0] for name in bad} | {name: [0, 1] for name in bad[:30]} | {"bad7": [0, 1, 2]}
    assert told(receiver) == expected
    assert scheduler.outbox.state("shop", 10_000).put_off == 0


def test_one_event_over_which_a_receiver_breaks_off_does_not_keep_the_others(
    scheduler: Scheduler, receiver: Receiver, streamer: Make
) -> None:
    make_shop(scheduler, receiver)
    receiver.answer = lambda request: 503 if b'"bad"' in request.body else 200
    add_and_change(scheduler, events=1, changes=1)
    scheduler.add(new_event("bad", delay_ms=HOUR))
    scheduler.change("shop", "bad", {"payload": b"new"})
    one = streamer()
    wait_until(lambda: bool(one.step()) or scheduler.outbox.state("shop", 1).failures > 0)
    scheduler.add_all([new_event(f"late{number}", delay_ms=HOUR) for number in range(40)])
    wait_until(lambda: bool(one.step()) or len(told(receiver)) == 42, 60)
    assert set(told(receiver)["bad"]) == {0}


def test_after_a_kill_those_who_were_refused_are_still_told_step_by_step(scheduler: Scheduler, receiver: Receiver, streamer: Make) -> None:
    make_shop(scheduler, receiver)
    receiver.answer = lambda _request: 422
    add_and_change(scheduler, events=2, changes=3)
    killed = streamer()
    wait_until(lambda: bool(killed.step()) or scheduler.outbox.state("shop", 100).put_off > 0)
    goes_on = threading.Event()
    receiver.answer = lambda _request: 422 if goes_on.wait(30) else 500
    wait_until(lambda: bool(killed.step()) or len(killed._messages) > 0)  # it has taken them over once more

    receiver.answer = lambda _request: 200
    receiver.clear()
    with scheduler._engines.write.connect() as connection, connection.begin():
        connection.execute(text("UPDATE streams SET held_until = 0"))  # its lease has run out
    work(scheduler, streamer())
    goes_on.set()
    assert told(receiver) == {"e0": [0, 1, 2, 3], "e1": [0, 1, 2, 3]}


def test_what_was_taken_and_cannot_be_written_down_is_repeated_with_the_same_id(
    scheduler: Scheduler, receiver: Receiver, streamer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shop(scheduler, receiver)
    scheduler.add(new_event("e1", delay_ms=HOUR))
    dying = streamer()

    def fails(*_: Any, **__: Any) -> None:
        raise DatabaseUnavailable("away")

    with monkeypatch.context() as away:
        away.setattr(scheduler.outbox, "leave", fails)
        with pytest.raises(DatabaseUnavailable):
            wait_until(lambda: bool(dying.step()))
    assert waiting(scheduler) == 1
    with scheduler._engines.write.connect() as connection, connection.begin():
        connection.execute(text("UPDATE streams SET held_until = 0"))  # its lease has run out

    work(scheduler, streamer())
    first, second = receiver.requests
    assert first.header("webhook-id") == second.header("webhook-id")
    assert first.body == second.body


def test_a_stream_goes_nowhere_but_where_the_application_may_send(scheduler: Scheduler, receiver: Receiver, streamer: Make) -> None:
    make_shop(scheduler, receiver, egress=Egress(EgressPolicy.PUBLIC))
    scheduler.add(new_event("e1", delay_ms=HOUR))
    one = streamer()
    wait_until(lambda: bool(one.step()) or scheduler.outbox.state("shop", 1).failures == 1)

    assert "blocked address" in (scheduler.outbox.state("shop", 1).reason or "")
    assert receiver.requests == []
    assert waiting(scheduler) == 1


def test_what_is_told_is_signed_with_the_secrets_of_now(scheduler: Scheduler, receiver: Receiver, streamer: Make) -> None:
    make_shop(scheduler, receiver)
    scheduler.add(new_event("e1", delay_ms=HOUR))
    scheduler.tenants.rotate_secret("shop", overlap_ms=HOUR)
    work(scheduler, streamer())

    (request,) = receiver.requests
    assert str(request.header("webhook-signature")).count("v1,") == 2


def test_a_streamer_that_is_told_to_stop_finishes_what_is_under_way_and_leaves_the_rest_at_once(
    scheduler: Scheduler, receiver: Receiver, streamer: Make
) -> None:
    make_shop(scheduler, receiver)
    begun, goes_on = threading.Event(), threading.Event()

    def answer(_request: Received) -> int:
        begun.set()
        goes_on.wait(10)
        return 200

    receiver.answer = answer
    add_and_change(scheduler, events=2, changes=2)
    one = streamer()
    one.start()
    assert begun.wait(10)
    one._stopping.set()
    goes_on.set()
    one.join(10)

    assert not one.is_alive()
    left = waiting(scheduler)
    assert 0 < left == 6 - len(receiver.requests)
    receiver.clear()
    work(scheduler, streamer())  # it need not wait for a lease to end
    assert len(receiver.requests) == left


@contextmanager
def statements(scheduler: Scheduler) -> Iterator[list[tuple[str, Any]]]:
    seen: list[tuple[str, Any]] = []

    def see(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    engines = [scheduler._engines.read, scheduler._engines.write]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", see)
    yield seen
    for engine in engines:
        event.remove(engine, "before_cursor_execute", see)


def test_no_read_of_the_outbox_looks_at_more_than_it_wants_however_many_wait(scheduler: Scheduler, database_url: str) -> None:
    for number in range(3):
        scheduler.tenants.create(f"app-{number}", Changes(stream=Stream("http://127.0.0.1:9/")))
    numbers = [application.number for application in scheduler.tenants.applications()]
    messages = [
        {"application": number, "event_id": f"e{row // 3}", "wake_at": 0 if row % 2 else 1 + row % 900, "tries": 0,
         "message": json.dumps({"id": f"msg_{row}"}), "created_at": 0}
        for number in numbers for row in range(20_000)
    ]  # fmt: skip
    with scheduler._engines.write.begin() as connection:
        store.insert_messages(connection, messages)
        if not database_url.startswith("sqlite"):
            connection.execute(text("ANALYZE TABLE outbox"))
    outbox, shop = scheduler.outbox, numbers[1]
    with statements(scheduler) as seen:
        outbox.unsent()
        taken = outbox.take(shop, "one", 1_000, None)
        assert taken is not None
        outbox.leave(shop, "one", taken.messages, wait_ms=0, failures=1, reason="")
        outbox.take(shop, "two", 1_000, None)
    plans = [plan for statement, parameters in seen if "outbox" in statement for plan in explained(scheduler, statement, parameters)]
    by_event = [plan for asked in seen if "outbox.event_id IN" in asked[0] for plan in explained(scheduler, *asked)]
    assert by_event
    assert not [plan for plan in by_event if "outbox_wake" in plan]  # that is where all lie that are put off
    assert len(plans) > 8
    assert not [plan for plan in plans if "SCAN outbox" in plan or "TEMP B-TREE" in plan or "filesort" in plan or "ALL" in plan.split()]


def explained(scheduler: Scheduler, statement: str, parameters: Any) -> list[str]:
    """How the database finds what a statement asks for: a line for each table, whatever is in it."""
    with scheduler._engines.write.begin() as connection:
        if connection.dialect.name == "sqlite":
            return [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
        if statement.lstrip().startswith(("UPDATE", "DELETE", "INSERT")):
            return []
        rows = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).mappings()
        return [f"{row['table']} {row['type']} {row['key']} {row['Extra']}" for row in rows if not str(row["table"]).startswith("<")]


def test_the_lowest_messages_are_found_by_index(scheduler: Scheduler, database_url: str) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("it dives for each application")
    for number in range(1, 40):
        scheduler.tenants.create(f"app-{number}", Changes(stream=Stream("http://127.0.0.1:9/")))
        scheduler.add_all([new_event(f"e{event}", f"app-{number}", delay_ms=HOUR) for event in range(40)])
    with scheduler._engines.write.connect() as connection, connection.begin():
        connection.execute(text("ANALYZE TABLE outbox"))
        plan = connection.execute(text("EXPLAIN SELECT application, MIN(wake_at) FROM outbox GROUP BY application")).mappings().one()
    assert "Using index for group-by" in plan["Extra"]
