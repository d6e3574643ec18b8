"""Series with real processes on every database: they fire, are delivered, and do what they are told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from cassata.client import Client, Instance, NewSeries
from cassata.model import Status
from cassata.receiver import Received, Receiver
from tests.conftest import Running, wait_until

Start = Callable[..., Running]
FAR = datetime(2030, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture
def client(database_url: str, service_process: Start, worker_process: Start) -> Iterator[Client]:
    """Of a service beside which a worker runs."""
    service = service_process(database_url)
    worker_process(database_url)
    with closing(Client(service.url)) as client:
        yield client


def expiry(request: Received) -> datetime:
    return datetime.fromisoformat(request.header("Cassata-Expiry") or "")


def test_a_series_of_every_second_is_delivered_until_it_is_paused_and_again_when_it_is_resumed(client: Client, receiver: Receiver) -> None:
    client.schedule_series(NewSeries("shop", receiver.url, every=1, payload={"tick": True}, series_id="tick"))
    assert receiver.wait_for(4, timeout=30)

    client.pause_series("shop", "tick")
    paused_at = datetime.now(UTC)
    time.sleep(3)

    before = sorted(receiver.requests, key=expiry)
    assert [later - earlier for earlier, later in zip(map(expiry, before), map(expiry, before[1:]), strict=False)] == [
        timedelta(seconds=1)
    ] * (len(before) - 1)
    assert all(expiry(request) <= paused_at + timedelta(seconds=1) for request in before)  # what was claimed ahead still goes
    assert all(request.at_ms >= expiry(request).timestamp() * 1000 for request in before)
    assert {request.body for request in before} == {b'{"tick":true}'}
    assert {request.header("Cassata-Event-Id") for request in before} == {f"tick_{expiry(request):%Y%m%dT%H%M%SZ}" for request in before}

    client.resume_series("shop", "tick")
    assert receiver.wait_for(len(before) + 2, timeout=30)
    assert not any(paused_at + timedelta(seconds=1) < expiry(request) < paused_at + timedelta(seconds=3) for request in receiver.requests)


def test_one_instance_arrives_with_a_payload_of_its_own_and_one_does_not_arrive(client: Client, receiver: Receiver) -> None:
    client.schedule_series(NewSeries("shop", receiver.url, every=1, payload={"as": "usual"}, series_id="tick"))
    ahead = stored_ahead(client, at_least=5)
    changed, cancelled = ahead[-2:]
    client.change_instance("shop", "tick", changed.event_id, payload={"only": "this"})
    client.cancel_instance("shop", "tick", cancelled.event_id)

    wait_until(lambda: any(expiry(request) > cancelled.at for request in receiver.requests))
    bodies = {request.header("Cassata-Event-Id"): json.loads(request.body) for request in receiver.requests}
    assert bodies.pop(changed.event_id) == {"only": "this"}
    assert cancelled.event_id not in bodies
    assert list(bodies.values()) == [{"as": "usual"}] * len(bodies)
    told = {instance.event_id: instance for instance in client.iter_instances("shop", "tick", begin=ahead[0].at, end=cancelled.at)}
    assert (told[changed.event_id].status, told[changed.event_id].is_exception) == (Status.COMPLETED, True)


def stored_ahead(client: Client, at_least: int) -> list[Instance]:
    """Wait until so many instances are events already; return those that still wait."""
    found: list[Instance] = []

    def are_there() -> bool:
        until = datetime.now(UTC) + timedelta(seconds=20)
        found[:] = [instance for instance in client.iter_instances("shop", "tick", end=until) if instance.status is Status.PENDING]
        return len(found) >= at_least

    wait_until(are_there)
    return found


def test_an_instance_of_the_far_future_can_be_brought_forward(client: Client, receiver: Receiver) -> None:
    client.schedule_series(NewSeries("shop", receiver.url, cron="0 12 * * *", scheduled_at=FAR, series_id="noon"))
    client.change_instance("shop", "noon", "noon_20300201T120000Z", at=datetime.now(UTC), payload={"sooner": True})
    assert receiver.wait_for(1, timeout=30)
    assert (receiver.requests[0].header("Cassata-Event-Id"), receiver.requests[0].body) == ("noon_20300201T120000Z", b'{"sooner":true}')


def test_a_series_can_be_run_now(client: Client, receiver: Receiver) -> None:
    client.schedule_series(NewSeries("shop", receiver.url, cron="0 12 * * *", scheduled_at=FAR, payload="x", series_id="noon"))
    event = client.run_series("shop", "noon")
    assert receiver.wait_for(1, timeout=30)
    assert receiver.requests[0].header("Cassata-Event-Id") == event.event_id
