"""The lifecycle stream with real processes on every database: what is told arrives, in order, signed, and once where nothing fails."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from cassata.receiver import Received, Receiver
from tests.conftest import Running, wait_until

Start = Callable[..., Running]
QUICK = {"CASSATA_WORKER__REQUESTTIMEOUTSECONDS": "2", "CASSATA_WORKER__LEASEMARGINSECONDS": "1"}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture
def service(database_url: str, service_process: Start) -> Running:
    return service_process(database_url)


def make(service: Running, url: str, application_id: str = "shop", **stream: Any) -> None:
    document = {"application-id": application_id, "stream": {"url": f"{url}/lifecycle/{application_id}", **stream}}
    answer = requests.post(f"{service.url}/cassata/applications", json=document, timeout=30)
    assert answer.status_code == 201, answer.text


def add(service: Running, receiver: Receiver, *names: str, application_id: str = "shop", **facts: Any) -> None:
    events = [
        {"application-id": application_id, "event-id": name, "url": f"{receiver.url}/event", "event": "x", "delay": 0, **facts}
        for name in names
    ]
    answer = requests.post(f"{service.url}/cassata/add/batch", json={"events": events}, timeout=30)
    assert {item["status-code"] for item in answer.json()["results"]} == {201}


def messages(receiver: Receiver, application_id: str = "shop") -> list[Received]:
    return [request for request in receiver.requests if request.path == f"/lifecycle/{application_id}"]


def told(receiver: Receiver, application_id: str = "shop") -> dict[str, list[str]]:
    """What came, by event, in the order in which it came."""
    found: dict[str, list[str]] = {}
    for request in messages(receiver, application_id):
        message = json.loads(request.body)
        found.setdefault(message["data"]["event-id"], []).append(message["type"].removeprefix("event."))
    return found


def state(service: Running, application_id: str = "shop") -> Any:
    return requests.get(f"{service.url}/cassata/applications/{application_id}/stream", timeout=30).json()


def test_the_lives_of_events_are_told_in_order_signed_and_once(
    service: Running, database_url: str, worker_process: Start, receiver: Receiver
) -> None:
    workers = [worker_process(database_url) for _ in range(2)]
    make(service, receiver.url, **{"request-headers": ["Authorization: Bearer of the stream"]})
    receiver.answer = lambda request: 404 if request.path == "/event" and b"bad" in request.body else 200
    names = [f"e{number}" for number in range(60)]
    add(service, receiver, *names)
    add(service, receiver, "bad", event="bad")
    add(service, receiver, "later", delay=3600)
    event = f"{service.url}/cassata/event/shop/later"
    assert requests.patch(event, json={"event": "changed"}, timeout=30).status_code == 200
    assert requests.delete(f"{service.url}/cassata/delete/shop/later", timeout=30).status_code == 200

    expected = {name: ["created", "completed"] for name in names}
    expected |= {"bad": ["created", "failed"], "later": ["created", "changed", "cancelled"]}
    wait_until(lambda: told(receiver) == expected, explain=lambda: f"{told(receiver)}\n{workers[0].output()}")
    wait_until(lambda: state(service)["messages"] == 0)
    assert [worker.stop() for worker in workers] == [0, 0]
    assert told(receiver) == expected  # none came twice

    secret = requests.get(f"{service.url}/cassata/applications/shop/secrets", timeout=30).json()["secrets"][0]["secret"]
    key = base64.b64decode(secret.removeprefix("whsec_"))
    found = messages(receiver)
    assert len({request.header("webhook-id") for request in found}) == len(found)
    for request in found:
        signed = f"{request.header('webhook-id')}.{request.header('webhook-timestamp')}.".encode() + request.body
        assert request.header("webhook-signature") == "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        assert request.header("webhook-id") == json.loads(request.body)["id"]
        assert request.header("Authorization") == "Bearer of the stream"
        assert (request.method, request.header("Content-Type")) == ("POST", "application/json")
        assert (request.header("Cassata-Application-Id"), request.header("Cassata-Attempt")) == ("shop", None)
    assert not any("Bearer" in running.output() for running in (service, *workers))


def test_a_receiver_that_was_down_is_told_everything_in_order_once_it_is_back(
    service: Running, database_url: str, worker_process: Start, receiver: Receiver
) -> None:
    make(service, receiver.url)
    receiver.answer = lambda request: 503 if request.path.startswith("/lifecycle") else 200
    worker = worker_process(database_url)
    names = [f"e{number}" for number in range(20)]
    add(service, receiver, *names)
    wait_until(lambda: state(service)["failures"] > 1, explain=worker.output)
    assert state(service)["last-error"] == "HTTP 503 Service Unavailable"
    wait_until(lambda: state(service)["messages"] == 40, explain=worker.output)
    before = len(messages(receiver))
    assert before < 60  # it is asked with more and more patience, not with everything at a time

    receiver.clear()
    receiver.answer = lambda _request: 200
    wait_until(lambda: state(service)["messages"] == 0, 60, worker.output)
    assert told(receiver) == {name: ["created", "completed"] for name in names}
    assert "stream not taken" in worker.output()
    wait_until(lambda: "stream taken again" in worker.output(), explain=worker.output)  # it is told once all is removed


def test_one_message_that_is_refused_keeps_its_own_event_waiting_and_no_other(
    service: Running, database_url: str, worker_process: Start, receiver: Receiver
) -> None:
    make(service, receiver.url)
    receiver.answer = lambda request: 422 if b'"e3"' in request.body else 200
    worker = worker_process(database_url)
    names = [f"e{number}" for number in range(9)]
    add(service, receiver, *names)
    others = {name: ["created", "completed"] for name in names if name != "e3"}
    wait_until(lambda: {name: kinds for name, kinds in told(receiver).items() if name != "e3"} == others, explain=worker.output)
    assert set(told(receiver)["e3"]) == {"created"}

    receiver.answer = lambda _request: 200
    wait_until(lambda: state(service)["messages"] == 0, explain=worker.output)
    assert told(receiver)["e3"][-2:] == ["created", "completed"]


def test_hundreds_of_events_that_are_refused_hold_nobody_up_and_outlive_a_worker_that_is_killed(
    service: Running, database_url: str, worker_process: Start, receiver: Receiver
) -> None:
    make(service, receiver.url)
    receiver.answer = lambda request: 422 if request.path.startswith("/lifecycle") and b'"bad' in request.body else 200
    bad, good = [f"bad{number}" for number in range(500)], [f"e{number}" for number in range(20)]
    add(service, receiver, *bad)
    add(service, receiver, *good)
    worker = worker_process(database_url, env=QUICK)
    wait_until(lambda: {name: told(receiver).get(name) for name in good} == {name: ["created", "completed"] for name in good}, 60)
    wait_until(lambda: state(service)["put-off"] == state(service)["messages"] == 1_000, 60, worker.output)
    assert "stream messages put off" in worker.output()
    assert state(service)["last-error"] == "HTTP 422 Unprocessable Entity"
    worker.process.send_signal(signal.SIGKILL)
    worker.process.wait()

    second = worker_process(database_url, env=QUICK)
    add(service, receiver, "late")
    wait_until(lambda: told(receiver).get("late") == ["created", "completed"], 60, second.output)
    receiver.answer = lambda _request: 200
    wait_until(lambda: state(service)["messages"] == 0, 300, second.output)
    assert {tuple(dict.fromkeys(told(receiver)[name])) for name in bad} == {("created", "completed")}


def test_nobodys_slow_receiver_delays_what_others_are_told(
    service: Running, database_url: str, worker_process: Start, receiver: Receiver
) -> None:
    ended = threading.Event()
    with Receiver(answer=lambda request: 200 if request.path == "/event" or ended.wait(30) else 503) as silent:
        make(service, silent.url, "slow")
        make(service, receiver.url)
        worker = worker_process(database_url)
        add(service, receiver, *(f"s{number}" for number in range(80)), application_id="slow")
        wait_until(lambda: len(messages(silent, "slow")) > 0, explain=worker.output)

        add(service, receiver, "e1")

        wait_until(lambda: told(receiver) == {"e1": ["created", "completed"]}, explain=worker.output)
        assert not ended.is_set()
        assert state(service, "slow")["messages"] > 0
        ended.set()


def test_a_worker_that_is_killed_while_it_sends_loses_nothing_and_the_next_one_goes_on(
    service: Running, database_url: str, worker_process: Start, receiver: Receiver
) -> None:
    make(service, receiver.url)
    names = [f"e{number}" for number in range(100)]
    worker = worker_process(database_url, env=QUICK)
    killed: list[bool] = []

    def kill(request: Received) -> None:
        if request.path.startswith("/lifecycle") and len(messages(receiver)) > 30 and not killed:
            killed.append(True)
            worker.process.send_signal(signal.SIGKILL)

    receiver._on_request = kill
    add(service, receiver, *names)
    wait_until(lambda: bool(killed))
    worker.process.wait()

    second = worker_process(database_url, env=QUICK)
    wait_until(lambda: state(service)["messages"] == 0 and len(told(receiver)) == 100, 60, second.output)
    wait_until(lambda: all("completed" in kinds for kinds in told(receiver).values()), 60, second.output)
    ids = [request.header("webhook-id") for request in messages(receiver)]
    assert len(set(ids)) == 200
    assert len(ids) - len(set(ids)) <= 100  # what was under way, or not written down yet
    for name, kinds in told(receiver).items():
        assert kinds[0] == "created", name
        assert kinds[-1] == "completed", name
