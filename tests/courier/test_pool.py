"""The pool of threads, whatever its threads send with."""

from __future__ import annotations

import threading
import time

import pytest

from cassata.courier import CourierSettings
from cassata.courier.pool import PoolCourier
from cassata.model import Delivery, ErrorKind, Outcome
from tests.conftest import wait_until
from tests.courier.receivers import HOLD_SECONDS
from tests.courier.sending import deliver, deliver_one, delivery

URL = "kafka-topic:orders"


def delivered(delivery: Delivery, _started_at: int = 0) -> Outcome:
    return Outcome(delivery, started_at=0, duration_ms=0, status_code=200)


def test_any_blocking_call_can_be_the_sender() -> None:
    courier = PoolCourier(CourierSettings(), delivered)

    outcome = deliver_one(courier, URL)

    assert (outcome.status_code, outcome.error, outcome.started_at) == (200, None, 77)
    courier.close()


def test_a_sender_that_raises_is_an_outcome() -> None:
    def sender(_: Delivery, _started_at: int) -> Outcome:
        raise LookupError("no such topic")

    courier = PoolCourier(CourierSettings(slots=1), sender)

    for _ in range(3):
        outcome = deliver_one(courier, URL)
        assert (outcome.error, outcome.detail) == (ErrorKind.UNSENDABLE, "LookupError('no such topic')")
    courier.close()


def test_what_comes_after_the_deadline_is_discarded_and_its_slot_is_taken_until_then() -> None:
    let_go = threading.Event()

    def sender(delivery: Delivery, _started_at: int) -> Outcome:
        if delivery.event_id == "stuck":
            let_go.wait(HOLD_SECONDS)
        return delivered(delivery)

    courier = PoolCourier(CourierSettings(slots=2), sender)

    late = deliver_one(courier, URL, event_id="stuck", timeout_ms=200)
    assert (late.status_code, late.error, late.detail) == (None, ErrorKind.TIMEOUT, "no complete answer within 0.2 s")
    assert (courier.busy, courier.free) == (0, 1)
    assert deliver_one(courier, URL, application=2).status_code == 200
    assert (courier.busy, courier.free) == (0, 1)

    let_go.set()
    assert courier.poll(HOLD_SECONDS) == []  # early, as a slot has become free
    assert (courier.busy, courier.free) == (0, 2)
    courier.close()


def test_threads_are_started_as_they_are_needed_and_end_with_the_pool() -> None:
    others = set(threading.enumerate())

    def own() -> int:
        return len(set(threading.enumerate()) - others)

    courier = PoolCourier(CourierSettings(slots=50), delivered)
    assert own() == 0

    for _ in range(5):
        deliver_one(courier, URL)
        time.sleep(0.02)
    assert own() == 1

    deliver(courier, *(delivery(URL) for _ in range(50)))
    assert own() <= 50

    courier.close()
    wait_until(lambda: own() == 0)


@pytest.mark.parametrize("slots", [1, 7])
def test_no_more_than_the_slots_are_sent_at_once(slots: int) -> None:
    under_way, most = [0], [0]
    lock = threading.Lock()

    def sender(delivery: Delivery, _started_at: int) -> Outcome:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.005)
        with lock:
            under_way[0] -= 1
        return delivered(delivery)

    courier = PoolCourier(CourierSettings(slots=slots), sender)

    deliver(courier, *(delivery(URL, timeout_ms=4_000) for _ in range(40)))

    assert most[0] == slots
    courier.close()


def test_an_application_whose_calls_never_come_back_leaves_threads_for_the_others() -> None:
    let_go = threading.Event()
    begun: list[str] = []

    def sender(delivery: Delivery, _started_at: int) -> Outcome:
        begun.append(delivery.event_id)
        if delivery.event_id == "stuck":
            let_go.wait(HOLD_SECONDS)
        return delivered(delivery)

    courier = PoolCourier(CourierSettings(slots=8), sender)

    for _ in range(4):  # in hand it never has more than half of what is free
        stuck = [delivery(URL, application=1, event_id="stuck", timeout_ms=100) for _ in range(courier.free // 2)]
        assert {outcome.error for outcome in deliver(courier, *stuck)} == {ErrorKind.TIMEOUT}
    assert (begun.count("stuck"), courier.free) == (4, 4)
    assert [outcome.status_code for outcome in deliver(courier, *(delivery(URL, application=2) for _ in range(4)))] == [200] * 4

    refused = deliver_one(courier, URL, application=1, timeout_ms=100)
    assert refused.detail == "not sent within 0.1 s: earlier requests of this application still block their threads"
    courier.submit(delivery(URL, application=1, event_id="patient", timeout_ms=5_000), started_at=0)
    assert courier.poll(0.1) == []
    let_go.set()
    assert [outcome.status_code for outcome in courier.poll(HOLD_SECONDS) or courier.poll(HOLD_SECONDS)] == [200]
    courier.close()


def test_an_application_none_of_whose_calls_block_may_have_every_thread() -> None:
    everybody = threading.Barrier(4, timeout=HOLD_SECONDS)

    def sender(delivery: Delivery, _started_at: int) -> Outcome:
        everybody.wait()
        return delivered(delivery)

    courier = PoolCourier(CourierSettings(slots=4), sender)

    assert {outcome.status_code for outcome in deliver(courier, *(delivery(URL, timeout_ms=4_000) for _ in range(4)))} == {200}
    courier.close()
