"""The thread that tells applications of their events, worked by hand, with real couriers, a real receiver and a real database."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import text

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
