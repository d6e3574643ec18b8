"""HTTP beside what is no HTTP: neither waits for the other, and they share their slots."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from cassata.courier import CourierSettings
from cassata.courier.mixed import MixedCourier
from cassata.courier.pool import PoolCourier
from cassata.model import Delivery, Destination, ErrorKind, Outcome
from cassata.plugins import Opened, Surroundings, ended
from tests.courier.receivers import Receiver, answering
from tests.courier.sending import deliver, delivery

Receive = Callable[..., Receiver]
LONG_SECONDS = 100.0
"""No test may last so long: a wait for that is one that something has ended."""


@dataclass
class Gate:
    """A type whose deliveries wait until they may go on."""

    opened: threading.Event = field(default_factory=threading.Event)

    def __call__(self, delivery: Delivery, _started_at: int) -> Outcome:
        self.opened.wait(LONG_SECONDS)
        return ended(delivery, None, None, "through")


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


@pytest.fixture(params=["curl", "requests"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """A function: a courier as a worker has it, by the name of the one for HTTP."""
    made: list[Any] = []

    def start(others: Any, **settings: Any) -> Any:
        asked = CourierSettings(**settings)
        made.append(MixedCourier(asked, others) if request.param == "curl" else PoolCourier(asked, others=others))
        return made[-1]

    yield start
    for courier in made:
        courier.close()


def elsewhere(**changes: Any) -> Delivery:
    return delivery("odd:x", destination=Destination("odd", {}), timeout_ms=60_000, **changes)


def test_what_is_no_http_is_delivered_by_its_type_and_wakes_whoever_waits(make: Callable[..., Any], gate: Gate) -> None:
    courier = make(gate)
    courier.submit(elsewhere(), started_at=77)
    threading.Timer(0.2, gate.opened.set).start()

    (outcome,) = courier.poll(LONG_SECONDS)

    assert (outcome.succeeded, outcome.excerpt, outcome.started_at) == (True, "through", 77)
    assert (courier.busy, outcome.duration_ms > 0) == (0, True)


def test_requests_come_back_while_something_else_is_under_way(make: Callable[..., Any], gate: Gate, receive: Receive) -> None:
    courier = make(gate)
    receiver = receive(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    courier.submit(elsewhere(), started_at=1)
    outcomes = deliver(courier, *(delivery(receiver.url(), timeout_ms=20_000) for _ in range(5)))
    assert [outcome.status_code for outcome in outcomes] == [200] * 5
    assert courier.busy == 1


def test_slots_are_shared(make: Callable[..., Any], gate: Gate) -> None:
    courier = make(gate, slots=3)
    assert (courier.free, courier.busy) == (3, 0)
    for number in range(3):
        courier.submit(elsewhere(application=number), started_at=1)
    assert (courier.free, courier.busy) == (0, 3)
    gate.opened.set()
    ended_: list[Outcome] = []
    while len(ended_) < 3:
        ended_ += courier.poll(LONG_SECONDS)
    assert (courier.free, courier.busy) == (3, 0)


def test_one_that_never_comes_back_times_out(make: Callable[..., Any], gate: Gate) -> None:
    courier = make(gate)
    courier.submit(delivery("odd:x", destination=Destination("odd", {}), timeout_ms=100), started_at=1)
    (outcome,) = courier.poll(LONG_SECONDS)
    assert outcome.error is ErrorKind.TIMEOUT
    assert (courier.busy, courier.free) == (0, 99)  # its thread is still gone


def test_what_may_not_be_sent_any_more_ends_with_that_reason(make: Callable[..., Any]) -> None:
    from cassata.config import Settings

    courier = make(Opened(Surroundings(Settings())))
    (outcome,) = deliver(courier, delivery("kafka:x", refusal="no longer allowed"))
    assert (outcome.error, outcome.detail) == (ErrorKind.REFUSED, "no longer allowed")


def test_no_pool_is_made_for_http_alone(receive: Receive) -> None:
    receiver = receive(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    courier = MixedCourier(CourierSettings(), lambda *_: pytest.fail("nothing else"))
    try:
        assert deliver(courier, delivery(receiver.url()))[0].status_code == 200
        assert courier._pool is None
    finally:
        courier.close()
