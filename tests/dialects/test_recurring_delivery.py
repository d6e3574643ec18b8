"""The dialect of the recurring-event scheduler with real processes: what clients schedule is published where its topic leads."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests

from cassata.receiver import Receiver
from tests.conftest import Running, wait_until
from tests.plugins.brokers import Brokers

Start = Callable[..., Running]
PAYLOAD = b"\x00\xff hello"


@dataclass(frozen=True, slots=True)
class Client:
    url: str

    def send(self, method: str, path: str, document: Any = None, status: int = 200) -> Any:
        answer = requests.request(method, f"{self.url}{path}", json=document, timeout=20)
        assert answer.status_code == status, answer.text
        return answer.json()

    def schedule(self, **facts: Any) -> str:
        usual = {
            "id": str(uuid.uuid4()),
            "timezone": "Asia/Tokyo",
            "payload": base64.b64encode(PAYLOAD).decode(),
            "destinationTopic": "hooks",
        }
        return str(self.send("POST", "/events", usual | facts, 201)["id"])

    def await_status(self, event_id: str, word: str) -> None:
        wait_until(lambda: self.send("GET", f"/events/{event_id}/status")["status"] == word, 60)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture
def client(database_url: str, service_process: Start, worker_process: Start, receiver: Receiver) -> Client:
    """Of a service beside which a worker runs, and an operator who has one topic stand for a URL."""
    client = Client(service_process(database_url, env={"CASSATA_SERVICE__DIALECTS": "recurring"}).url)
    topics = {"hooks": f"{receiver.url}/hooks", "lost-*": f"{receiver.url}/lost"}
    client.send("POST", "/cassata/applications", {"application-id": "recurring", "topics": topics}, 201)
    worker_process(database_url)
    return client


def test_events_are_published_to_what_their_topic_stands_for(client: Client, receiver: Receiver) -> None:
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    one_off = client.schedule(scheduledAt="2022-03-09T17:43:00Z")
    series = client.schedule(
        scheduledAt=soon.isoformat(), endsAt=(soon + timedelta(minutes=5)).isoformat(), recurrence="RRULE:FREQ=DAILY;COUNT=1"
    )

    client.await_status(one_off, "PUBLISHED")
    client.await_status(series, "PUBLISHED")
    sent = {request.header("Cassata-Event-Id"): request for request in receiver.requests}
    instance = f"{series}_{soon:%Y%m%dT%H%M%SZ}"
    assert sent.keys() == {one_off, instance}
    assert {(request.method, request.path, request.body) for request in sent.values()} == {("POST", "/hooks", PAYLOAD)}
    assert sent[instance].at_ms >= soon.timestamp() * 1000
    (told,) = client.send("GET", f"/events/{series}/instances")
    assert (told["id"], told["status"], told["destinationTopic"]) == (instance, "PUBLISHED", "hooks")


def test_events_are_published_to_kafka_where_the_operator_says_so(database_url: str, service_process: Start, worker_process: Start) -> None:
    """As ever: one message of a one-off event and one of each instance, with the bytes of the payload and nothing around them."""
    pytest.importorskip("confluent_kafka")
    cluster = Brokers()
    try:
        client = Client(service_process(database_url, env={"CASSATA_SERVICE__DIALECTS": "recurring"}).url)
        client.send("POST", "/cassata/applications", {"application-id": "recurring", "topics": {"notification.*": None}}, 201)
        worker_process(database_url, env={"CASSATA_WORKER__KAFKABOOTSTRAPSERVERS": cluster.address})
        soon = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
        topic = {"destinationTopic": "notification.notifications"}
        ids = [
            client.schedule(scheduledAt="2022-03-09T17:43:00Z", **topic),
            client.schedule(scheduledAt=soon.isoformat(), recurrence="RRULE:FREQ=DAILY;COUNT=1", **topic),
        ]

        for event_id in ids:
            client.await_status(event_id, "PUBLISHED")
        records = cluster.read("notification.notifications", 2)
        assert [record.value for record in records] == [PAYLOAD, PAYLOAD]
        assert {record.named("Cassata-Event-Id")[0] for record in records} == {ids[0], f"{ids[1]}_{soon:%Y%m%dT%H%M%SZ}"}
        assert client.send("POST", "/events", {"scheduledAt": "2030-01-01T00:00:00", "payload": "", "destinationTopic": "other"}, 400)
    finally:
        cluster.kill()


def test_what_is_refused_three_times_has_failed(client: Client, receiver: Receiver) -> None:
    receiver.answer = lambda _request: 404
    event_id = client.schedule(scheduledAt="2022-03-09T17:43:00Z", destinationTopic="lost-and-found")

    client.await_status(event_id, "FAILED")
    assert [request.path for request in receiver.requests] == ["/lost"] * 3
    assert client.send("PATCH", f"/events/{event_id}/cancel", status=409).keys() == {"code", "message"}


def test_a_topic_that_no_operator_has_opened_is_refused(client: Client) -> None:
    event = {"scheduledAt": "2030-03-09T17:43:00Z", "payload": "", "destinationTopic": "namespace2.topic"}

    for more in ({}, {"recurrence": "RRULE:FREQ=DAILY;COUNT=2"}):
        refused = client.send("POST", "/events", event | more, 400)
        assert refused["code"] == 400
        assert refused["message"].startswith("destinationTopic: topic 'namespace2.topic' is not one of the application's topics"), (
            json.dumps(refused)
        )


def test_one_instance_goes_to_a_topic_of_its_own(client: Client, receiver: Receiver) -> None:
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    series = client.schedule(scheduledAt=soon.isoformat(), recurrence="RRULE:FREQ=DAILY;COUNT=3")
    second = client.send("GET", f"/events/{series}/instances")[1]
    assert second["destinationTopic"] == "hooks"

    changed = second | {"destinationTopic": "lost-1", "scheduledAt": "2022-03-09T17:43:00", "payload": ""}
    assert client.send("PUT", f"/events/{second['id']}", changed)["destinationTopic"] == "lost-1"
    client.await_status(second["id"], "PUBLISHED")
    assert [(request.path, request.body) for request in receiver.requests] == [("/lost", b"")]
    client.send("PUT", f"/events/{second['id']}", changed, 409)
