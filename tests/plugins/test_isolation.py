"""What an application may not have of another one's: its batches, its topics, and what only an operator may do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from cassata.client import Client
from cassata.client import NewEvent as ClientEvent
from cassata.config import Service
from cassata.errors import InvalidEvent
from cassata.model import Destination, Filter, NewEvent, Scope, Status, check_host
from cassata.scheduler import Scheduler, Terms
from cassata.service import create_app
from cassata.tenants import Changes
from tests.archives import zipped
from tests.conftest import Running, wait_until

NIGHTLY = Destination("script", {"batch": "nightly"})
ORDERS = Destination("kafka", {"topic": "orders"})


@pytest.fixture(params=["sqlite", "mariadb"])
def guarded(request: pytest.FixtureRequest) -> Iterator[Scheduler]:
    """A scheduler as a service has it where keys are needed."""
    opened = Scheduler.open(request.getfixturevalue(f"{request.param}_url"), registers=False, any_topic=False)
    for application_id in ("shop", "rival"):
        opened.tenants.create(application_id)
    yield opened
    opened.close()


def refusal(scheduler: Scheduler, application_id: str, destination: Destination) -> str:
    with pytest.raises(InvalidEvent) as refused:
        scheduler.add(NewEvent(application_id, due_at=0, destination=destination))
    return str(refused.value)


def test_a_batch_is_its_applications_alone(guarded: Scheduler) -> None:
    guarded.batches.put("shop", "nightly", zipped({"script.sh": "echo shop"}))
    number = guarded.tenants.application("shop").number
    rival = guarded.tenants.application("rival").number

    assert guarded.add(NewEvent("shop", due_at=0, destination=NIGHTLY)).url == "script:nightly"
    assert "which the application does not have" in refusal(guarded, "rival", NIGHTLY)
    assert guarded.batches.to_run(number, "nightly") is not None
    assert guarded.batches.to_run(rival, "nightly") is None
    assert guarded.batches.list("rival") == []


def test_topics_are_an_applications_own_and_none_unless_an_operator_says_so(guarded: Scheduler) -> None:
    guarded.tenants.change("shop", Changes(topics={"orders": None}))

    assert guarded.add(NewEvent("shop", due_at=0, destination=ORDERS)).url == "kafka:orders"
    assert "an operator has to add it" in refusal(guarded, "rival", ORDERS)
    guarded.tenants.change("shop", Changes(topics="default"))
    assert "an operator has to add it" in refusal(guarded, "shop", ORDERS)


def test_a_topic_that_is_taken_away_is_refused_when_its_event_is_claimed(guarded: Scheduler) -> None:
    guarded.tenants.change("shop", Changes(topics={"orders": None}))
    guarded.add(NewEvent("shop", due_at=0, destination=ORDERS, event_id="e"))
    guarded.tenants.change("shop", Changes(topics={}))
    number = guarded.tenants.application("shop").number

    _, claimed = guarded.record_and_claim([], [number], 10, Terms())

    (delivery,) = claimed.deliveries
    assert "topic 'orders' is not one of the application's topics" in (delivery.refusal or "")


def test_only_an_operator_sets_topics_and_uploads(guarded: Scheduler) -> None:
    http: FlaskClient = create_app(guarded, Service(authentication="required")).test_client()
    own = {"Authorization": f"Bearer {guarded.tenants.create_key('shop', [Scope.ADMIN])[1]}"}
    operator = {"Authorization": f"Bearer {guarded.tenants.create_key(None, [Scope.ADMIN])[1]}"}
    upload: dict[str, Any] = {"data": zipped({"script.sh": "echo"}), "content_type": "application/zip"}

    assert http.patch("/cassata/applications/shop", json={"topics": {"*": None}}, headers=own).status_code == 403
    assert http.put("/cassata/batches/shop/b", headers=own, **upload).status_code == 403
    assert http.patch("/cassata/applications/shop", json={"topics": {"shop.*": None}}, headers=operator).json["topics"] == {"shop.*": None}
    assert [http.put("/cassata/batches/shop/b", headers=operator, **upload).status_code for _ in range(2)] == [201, 200]
    assert http.get("/cassata/batches/shop/b", headers=own).json["active"] is True
    assert http.put("/cassata/batches/shop/b", headers=operator, json={}).status_code == 415
    assert http.put("/cassata/batches/shop/b", headers=operator, **{**upload, "data": b"PK"}).json["type"].endswith(":invalid-batch")
    for topics in ({"a/b": None}, {"a": "ftp://x/"}, {"a": 1}, [], {"a**": None}):
        refused = http.patch("/cassata/applications/shop", json={"topics": topics}, headers=operator)
        assert (refused.status_code, refused.json["errors"][0]["pointer"].startswith("/topics")) == (400, True), topics


@pytest.mark.parametrize("host", ["kafka:orders", "script:nightly", "kafka", "kafka:9092", "fe80::a", "[fe80::a]", "smtp:a@b.example"])
def test_what_can_be_searched_for_is_a_host_or_the_address_of_a_destination(host: str) -> None:
    wanted = Filter(host=check_host(host))
    assert wanted.goes_there("https://elsewhere.example/") is False
    if ":" in host and "fe80" not in host and "9092" not in host:
        assert wanted.goes_there(host)
        assert wanted.goes_there(host + "x") is False


def test_a_worker_that_is_told_to_stop_waits_for_its_script(
    sqlite_url: str, service_process: Callable[..., Running], worker_process: Callable[..., Running], tmp_path: Path
) -> None:
    service = service_process(sqlite_url, "--processes", "1")
    env = {"CASSATA_WORKER__SCRIPTS": "true", "CASSATA_WORKER__SCRIPTSFOLDER": str(tmp_path / "scripts")}
    worker = worker_process(sqlite_url, env=env)
    with Client(service.url) as client:
        client.schedule(ClientEvent("shop", "http://127.0.0.1:1/", delay=3600, payload="", event_id="first"))
        client.put_batch("shop", "nightly", zipped({"script.sh": f"touch {tmp_path}/begun; sleep 2; echo done"}))
        client.schedule(ClientEvent("shop", delay=0, event_id="s", destination={"type": "script", "batch": "nightly"}))
        wait_until((tmp_path / "begun").exists, 30, worker.output)
        assert worker.stop() == 0
        found = client.event("shop", "s")
        assert (found.status, found.attempt_log[0].response) == (Status.COMPLETED, "done\n")


def test_a_worker_that_is_killed_loses_its_script_which_another_runs_again(
    sqlite_url: str, service_process: Callable[..., Running], worker_process: Callable[..., Running], tmp_path: Path
) -> None:
    service = service_process(sqlite_url, "--processes", "1")
    env = {
        "CASSATA_WORKER__SCRIPTS": "true",
        "CASSATA_WORKER__SCRIPTSFOLDER": str(tmp_path / "scripts"),
        "CASSATA_WORKER__LEASEMARGINSECONDS": "0.5",
    }
    script = f"echo $CASSATA_ATTEMPT >> {tmp_path}/begun; [ $CASSATA_ATTEMPT = 2 ] || sleep 100"
    worker = worker_process(sqlite_url, env=env)
    with Client(service.url) as client:
        client.schedule(ClientEvent("shop", "http://127.0.0.1:1/", delay=3600, payload="", event_id="first"))
        client.put_batch("shop", "nightly", zipped({"script.sh": script}))
        client.schedule(ClientEvent("shop", delay=0, event_id="s", timeout=2, destination={"type": "script", "batch": "nightly"}))
        wait_until((tmp_path / "begun").exists, 30, worker.output)
        worker.kill()
        other = worker_process(sqlite_url, env=env)
        wait_until(lambda: client.event("shop", "s").status is Status.COMPLETED, 30, other.output)
        assert [attempt.error for attempt in client.event("shop", "s").attempt_log] == ["worker_lost", None]
    assert (tmp_path / "begun").read_text() == "1\n2\n"
