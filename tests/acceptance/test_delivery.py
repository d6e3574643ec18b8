"""The main job with real processes on every database: what goes in over HTTP comes out on time, and survives a crash."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from cassata.client import Client
from cassata.receiver import Receiver
from tests.conftest import MariaDB, Running, wait_until

Start = Callable[..., Running]
HASTE = {
    "CASSATA_WORKER__RETRYBACKOFFINITIALSECONDS": "0.2",
    "CASSATA_WORKER__RETRYBACKOFFMULTIPLIER": "1",
    "CASSATA_WORKER__HTTPRETRYCOUNT": "3",
}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(port=0) as running:
        yield running


@pytest.fixture
def service(database_url: str, service_process: Start) -> Running:
    return service_process(database_url)


@pytest.fixture
def client(service: Running) -> Iterator[Client]:
    with closing(Client(service.url)) as client:
        yield client


def add_all(service: Running, events: list[dict[str, Any]]) -> None:
    for start in range(0, len(events), 1_000):
        answer = requests.post(f"{service.url}/cassata/add/batch", json={"events": events[start : start + 1_000]}, timeout=30)
        assert [result["status-code"] for result in answer.json()["results"]] == [201] * len(events[start : start + 1_000])


def add(service: Running, **fields: Any) -> None:
    document = {"application-id": "shop", "event": {}, "delay": 0} | {name.replace("_", "-"): value for name, value in fields.items()}
    answer = requests.post(f"{service.url}/cassata/add/", json=document, timeout=30)
    assert answer.status_code == 201, answer.text


def state(service: Running, event_id: str, application_id: str = "shop") -> dict[str, Any]:
    found: dict[str, Any] = requests.get(f"{service.url}/cassata/event/{application_id}/{event_id}", timeout=30).json()
    return found


def ended(service: Running, event_id: str, timeout: float = 30) -> dict[str, Any]:
    """Wait until an event has ended; return it."""
    deadline = time.monotonic() + timeout
    while (found := state(service, event_id))["status"] not in {"COMPLETED", "FAILED", "CANCELLED"}:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def arrivals(receiver: Receiver) -> Counter[str]:
    return Counter(str(request.header("Cassata-Event-Id")) for request in receiver.requests)


# --- the main job ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("courier", ["curl", "requests"])
def test_two_thousand_events_due_at_one_second_all_arrive_once_and_none_early(
    service: Running, worker_process: Start, database_url: str, receiver: Receiver, courier: str
) -> None:
    worker_process(database_url, env={"CASSATA_WORKER__COURIER": courier})
    due = int(time.time()) + 3
    events = [
        {"application-id": f"app-{n % 4}", "event-id": f"e{n}", "event": {"n": n}, "expiry": due, "url": receiver.url} for n in range(2_000)
    ]

    add_all(service, events)

    assert receiver.wait_for(2_000, timeout=60)
    time.sleep(0.5)
    assert set(arrivals(receiver).values()) == {1}
    assert len(arrivals(receiver)) == 2_000
    assert min(request.at_ms for request in receiver.requests) >= due * 1_000
    wait_until(lambda: not requests.get(f"{service.url}/cassata/events/app-0?status=PROCESSING", timeout=30).json()["events"])
    assert len(requests.get(f"{service.url}/cassata/events/app-3?status=COMPLETED&limit=1000", timeout=30).json()["events"]) == 500


def test_a_worker_killed_in_the_middle_costs_no_event(
    service: Running, worker_process: Start, database_url: str, receiver: Receiver
) -> None:
    """A quarter is answered; the answers to the next ones are held back until the worker is dead: those must come twice."""
    terms = {"CASSATA_WORKER__LEASEMARGINSECONDS": "1", "CASSATA_WORKER__REQUESTTIMEOUTSECONDS": "5"}
    count, answered = 1_000, threading.Semaphore(250)
    killed = threading.Event()
    receiver.answer = lambda _request: 200 if answered.acquire(blocking=False) or killed.wait(30) else 500
    first = worker_process(database_url, env=terms)
    due = int(time.time()) + 2
    add_all(
        service,
        [{"application-id": "shop", "event-id": f"e{n}", "event": {"n": n}, "expiry": due, "url": receiver.url} for n in range(count)],
    )
    assert receiver.wait_for(300, timeout=30)

    first.kill()
    killed.set()
    worker_process(database_url, env=terms)

    wait_until(lambda: len(arrivals(receiver)) == count and not of_status(service, "PROCESSING"))
    assert len(of_status(service, "COMPLETED")) == count
    assert min(request.at_ms for request in receiver.requests) >= due * 1_000
    repeated = {event_id for event_id, times in arrivals(receiver).items() if times > 1}
    assert 50 <= len(repeated) <= 5 * 100 + 5 * 100  # what was under way, and what had come back and was not yet recorded
    again = [request for request in receiver.requests if request.header("Cassata-Event-Id") == min(repeated)]
    assert len({request.header("webhook-id") for request in again}) == 1
    assert [request.header("Cassata-Attempt") for request in again] == ["1", "2"]


def of_status(service: Running, status: str) -> list[dict[str, Any]]:
    url = f"{service.url}/cassata/events/shop?status={status}&limit=1000"
    events: list[dict[str, Any]] = requests.get(url, timeout=30).json()["events"]
    return events


def test_an_event_added_to_an_idle_worker_with_the_default_polling_interval_arrives_on_time(
    service: Running, worker_process: Start, database_url: str, receiver: Receiver
) -> None:
    worker_process(database_url)  # workerThreadPollingInterval is 10 s: nothing may wait for that
    time.sleep(1)

    add(service, event_id="soon", delay=1, url=receiver.url)

    assert receiver.wait_for(1, timeout=5)
    assert ended(service, "soon")["attempts"] == 1


def test_four_processes_share_the_work_and_drain_together(
    service: Running, worker_process: Start, database_url: str, receiver: Receiver
) -> None:
    worker = worker_process(database_url, "--processes", "4", "--threads", "2")
    add_all(service, [{"application-id": "shop", "event-id": f"e{n}", "event": n, "delay": 0, "url": receiver.url} for n in range(1_000)])
    assert receiver.wait_for(300, timeout=30)

    assert worker.stop() == 0

    stopped_at = len(receiver.requests)
    assert set(arrivals(receiver).values()) == {1}
    statuses = Counter(
        event["status"] for event in requests.get(f"{service.url}/cassata/events/shop?limit=1000", timeout=30).json()["events"]
    )
    assert statuses["PROCESSING"] == 0
    assert statuses["COMPLETED"] == stopped_at
    worker_process(database_url)
    assert receiver.wait_for(1_000, timeout=30)
    assert set(arrivals(receiver).values()) == {1}


def test_a_stop_that_reaches_every_process_twice_still_drains(
    service: Running, worker_process: Start, database_url: str, receiver: Receiver
) -> None:
    """As systemd does it: all processes of a unit are told, and then the supervisor tells its children."""
    receiver.answer = lambda _request: time.sleep(0.5) or 200  # type: ignore[func-returns-value]
    worker = worker_process(database_url, "--processes", "2", "--threads", "1")
    add_all(service, [{"application-id": "shop", "event-id": f"e{n}", "event": n, "delay": 0, "url": receiver.url} for n in range(20)])
    assert receiver.wait_for(20, timeout=20)

    for pid in [*children_of(worker.pid), worker.pid]:
        os.kill(pid, signal.SIGTERM)

    assert worker.process.wait(20) == 0
    events = requests.get(f"{service.url}/cassata/events/shop", timeout=30).json()["events"]
    assert {event["status"] for event in events} == {"COMPLETED"}


def test_a_second_term_stops_at_once_and_the_event_is_sent_again(
    service: Running, worker_process: Start, database_url: str, receiver: Receiver
) -> None:
    terms = {"CASSATA_WORKER__LEASEMARGINSECONDS": "0.5", "CASSATA_WORKER__REQUESTTIMEOUTSECONDS": "5"}
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        worker = worker_process(database_url, env=terms)
        add(service, event_id="hung", url=f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=3)
        wait_until(lambda: state(service, "hung")["status"] == "PROCESSING")

        worker.process.terminate()
        worker.wait_until(lambda: "worker stopping" in worker.output())
        worker.process.terminate()

        assert worker.process.wait(5) == 1
        assert state(service, "hung")["status"] == "PROCESSING"  # until its lease ends
        worker_process(database_url, env=terms)
        wait_until(lambda: state(service, "hung")["attempts"] == 2)


def children_of(pid: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the child processes through /proc")
def test_a_killed_process_is_started_again_and_all_end_with_their_supervisor(
    service: Running, worker_process: Start, database_url: str, receiver: Receiver
) -> None:
    worker = worker_process(database_url, "--processes", "2", "--threads", "1")
    worker.wait_until(lambda: len(children_of(worker.pid)) == 2)
    victim, _ = first = children_of(worker.pid)

    os.kill(victim, signal.SIGKILL)

    worker.wait_until(lambda: len(set(children_of(worker.pid)) - {victim}) == 2)
    assert "worker process died" in worker.output()
    add(service, event_id="after", url=receiver.url)
    assert receiver.wait_for(1, timeout=10)
    children = {*first, *children_of(worker.pid)} - {victim}
    worker.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))


# --- the bugs of the ancestor, as facts that hold here ---------------------------------------------------------------------


def test_an_empty_500_is_retried_and_recovers(service: Running, worker_process: Start, database_url: str, receiver: Receiver) -> None:
    answers = iter([(500, b""), (503, b""), (200, b"ok")])
    receiver.answer = lambda _request: next(answers)
    worker_process(database_url, env=HASTE)

    add(service, event_id="shaky", url=receiver.url)

    event = ended(service, "shaky")
    assert event["status"] == "COMPLETED"
    assert [attempt["status-code"] for attempt in event["attempt-log"]] == [500, 503, 200]


def test_a_refused_connection_is_retried_until_the_retries_are_spent(
    service: Running, worker_process: Start, database_url: str, free_port: Callable[[], int]
) -> None:
    worker_process(database_url, env=HASTE)

    add(service, event_id="nowhere", url=f"http://127.0.0.1:{free_port()}/")

    event = ended(service, "nowhere")
    assert (event["status"], event["attempts"]) == ("FAILED", 4)
    assert "connect failed" in event["last-error"]


def test_a_hanging_destination_is_given_up_and_delays_nobody_else(
    service: Running, worker_process: Start, database_url: str, receiver: Receiver
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0), backlog=200)) as silent:
        worker = worker_process(database_url, "--threads", "1", env={**HASTE, "CASSATA_WORKER__HTTPRETRYCOUNT": "0"})
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        hung = [{"application-id": "hung", "event-id": f"h{n}", "event": n, "delay": 0, "url": url, "timeout": 60} for n in range(50)]
        add_all(service, [{**hung[0], "timeout": 1}, *hung[1:]])
        wait_until(lambda: state(service, "h49", "hung")["status"] == "PROCESSING")

        add(service, event_id="well", url=receiver.url)

        assert receiver.wait_for(1, timeout=30)
        wait_until(lambda: state(service, "h0", "hung")["status"] == "FAILED")
        assert "timeout" in state(service, "h0", "hung")["last-error"]
        assert state(service, "h49", "hung")["status"] == "PROCESSING"
        worker.kill()


def test_a_long_answer_in_any_alphabet_is_kept_as_an_excerpt(
    service: Running, worker_process: Start, database_url: str, receiver: Receiver
) -> None:
    receiver.answer = lambda _request: (400, ("你好\U0001f600" * 5_000).encode() + b"\xff\x00")
    worker_process(database_url)

    add(service, event_id="chatty", url=receiver.url)

    event = ended(service, "chatty")
    assert event["status"] == "FAILED"
    assert event["attempt-log"][0]["response"] == ("你好\U0001f600" * 5_000)[:2_000]


def test_unicode_and_method_and_headers_arrive_as_they_were_given(
    service: Running, worker_process: Start, database_url: str, receiver: Receiver
) -> None:
    worker_process(database_url)

    add(service, event_id="posted", url=receiver.url, event="你é\U0001f389", request_headers=["Referer: http://x:1/", "X-Empty:"])
    add(service, event_id="got", url=f"{receiver.url}/path?q=1", method="GET", event=None)
    assert ended(service, "posted")["status"] == ended(service, "got")["status"] == "COMPLETED"

    requests_by_id = {request.header("Cassata-Event-Id"): request for request in receiver.requests}
    posted, got = requests_by_id["posted"], requests_by_id["got"]
    assert (posted.method, posted.body.decode()) == ("POST", "你é\U0001f389")
    assert posted.header("Referer") == "http://x:1/"
    assert posted.header("X-Empty") == ""
    assert posted.header("Content-Type") == "application/json"
    assert (got.method, urlsplit(got.path).path, urlsplit(got.path).query) == ("GET", "/path", "q=1")


def test_a_worker_survives_losing_all_its_connections(
    mariadb: MariaDB, mariadb_url: str, service_process: Start, worker_process: Start, receiver: Receiver
) -> None:
    service = service_process(mariadb_url)
    worker_process(mariadb_url)
    database = mariadb_url.rsplit("/", 1)[1]
    add(service, event_id="before", url=receiver.url)
    assert ended(service, "before")["status"] == "COMPLETED"

    for _ in range(3):
        with mariadb.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (database,))
            for (number,) in cursor.fetchall():
                cursor.execute(f"KILL {number}")
        add(service, event_id=f"after-{time.monotonic_ns()}", url=receiver.url)

    assert receiver.wait_for(4, timeout=20)
    assert set(arrivals(receiver).values()) == {1}


def test_a_wrong_zone_of_the_database_moves_nothing(
    mariadb: MariaDB, mariadb_url: str, service_process: Start, worker_process: Start, receiver: Receiver
) -> None:
    with mariadb.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SET GLOBAL time_zone = '-07:30'")
    try:
        service = service_process(mariadb_url)
        worker_process(mariadb_url)
        due = time.time() + 1.5

        add(service, event_id="zoned", delay=None, expiry=due, url=receiver.url)

        assert receiver.wait_for(1, timeout=10)
        assert receiver.requests[0].at_ms >= int(due * 1_000)
    finally:
        with mariadb.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SET GLOBAL time_zone = 'SYSTEM'")
