"""A worker's thread may stay away from its courier for a while: its database does not answer, or the process was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable

from cassata.courier import Courier
from cassata.model import ErrorKind, Outcome
from tests.courier.receivers import OK, Connection, Receiver, after_the_request, answering
from tests.courier.sending import delivery

Receive = Callable[..., Receiver]


def come_back_after(seconds: float, courier: Courier, url: str) -> Outcome:
    courier.submit(delivery(url, timeout_ms=400), started_at=0)
    courier.poll(0.05)  # the request is on its way
    time.sleep(seconds)
    outcomes: list[Outcome] = []
    while not outcomes:
        outcomes = courier.poll(1)
    return outcomes[0]


def answer_a_little_later(connection: Connection) -> None:
    time.sleep(0.1)
    connection.send(OK)


def test_an_answer_that_came_while_nobody_looked_counts(courier: Courier, receive: Receive) -> None:
    receiver = receive(after_the_request(answer_a_little_later))

    assert come_back_after(1.2, courier, receiver.url()).status_code == 200


def test_a_destination_that_stays_silent_is_still_given_up(courier: Courier, receive: Receive) -> None:
    receiver = receive(after_the_request(Connection.hold))

    assert come_back_after(1.2, courier, receiver.url()).error is ErrorKind.TIMEOUT


def test_what_was_submitted_before_the_first_poll_has_its_whole_deadline(courier: Courier, receive: Receive) -> None:
    courier.poll(0)
    time.sleep(0.7)

    courier.submit(delivery(receive(answering(OK)).url(), timeout_ms=400), started_at=0)

    assert courier.poll(2)[0].status_code == 200
