"""A client changes its mind, and real processes follow."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from cassata.client import Client, NewEvent
from cassata.model import Status
from cassata.receiver import Receiver
from tests.conftest import Running, wait_until


@pytest.fixture
def client(database_url: str, service_process: Callable[..., Running]) -> Client:
    from cassata import database

    database.upgrade(database_url)
    return Client(service_process(database_url, env={"CASSATA_SERVICE__LATEAFTERSECONDS": "0.2"}).url)


def test_what_is_changed_arrives_as_it_is_then_and_at_its_new_time(
    client: Client, database_url: str, worker_process: Callable[..., Running]
) -> None:
    with Receiver() as receiver:
        worker_process(database_url)
        events = [client.schedule(NewEvent("shop", receiver.url, delay=timedelta(hours=1), payload=f"old {n}")) for n in range(20)]
        time.sleep(0.5)  # the worker has looked, and knows of nothing to do for an hour

        for n, event in enumerate(events):
            client.change("shop", event.event_id, version=event.version, delay=n / 20, payload=f"new {n}")

        wait_until(lambda: len(receiver.requests) >= 20)
        assert sorted(request.body.decode() for request in receiver.requests) == sorted(f"new {n}" for n in range(20))


def test_what_came_too_late_is_not_sent_and_what_waits_is_late(
    client: Client, database_url: str, worker_process: Callable[..., Running]
) -> None:
    with Receiver() as receiver:
        url: Any = receiver.url
        urgent = client.schedule(NewEvent("shop", url, delay=0, payload="urgent", max_lateness=1))
        patient = client.schedule(NewEvent("shop", url, delay=0, payload="patient"))
        wait_until(lambda: client.status("shop", urgent.event_id).late)
        time.sleep(max(0.0, 1.1 - (time.time() - urgent.expiry.timestamp())))  # no worker was there

        worker_process(database_url)
        wait_until(
            lambda: {client.status("shop", event.event_id).status for event in (urgent, patient)} == {Status.FAILED, Status.COMPLETED}
        )

        assert [request.body for request in receiver.requests] == [b"patient"]
        failed = client.status("shop", urgent.event_id)
        assert (failed.attempts, (failed.last_error or "").partition(":")[0], failed.late) == (0, "too late", False)
