"""Destinations as a user has them: real services, real workers, the real commands."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cassata.client import Client, Conflict, EventDetails, InvalidRequest, NewEvent, NewSeries, NotFound
from cassata.model import Status
from cassata.receiver import Receiver
from tests.archives import zipped
from tests.conftest import Running, wait_until
from tests.plugins.brokers import Brokers

Start = Callable[..., Running]
ENDED = {Status.COMPLETED, Status.FAILED, Status.CANCELLED}
SECRET = "hunter2-in-the-properties"


def ended(client: Client, event_id: str, *processes: Running, timeout: float = 60) -> EventDetails:
    wait_until(lambda: client.event("shop", event_id).status in ENDED, timeout, lambda: "\n".join(each.output() for each in processes))
    return client.event("shop", event_id)


def test_an_event_becomes_a_message_of_kafka(
    database_url: str, service_process: Start, worker_process: Start, brokers: Callable[[], Brokers]
) -> None:
    cluster = brokers()
    service = service_process(database_url, "--processes", "1")
    worker = worker_process(database_url, env={"CASSATA_WORKER__KAFKABOOTSTRAPSERVERS": cluster.address})
    with Client(service.url) as client:
        orders = {"type": "kafka", "topic": "orders", "key": "7"}
        client.schedule(NewEvent("shop", delay=0, payload={"n": 1}, event_id="k1", destination=orders, headers={"X-One": "1"}))
        found = ended(client, "k1", service, worker)
        assert (found.status, found.url, found.last_error, found.document["destination"]) == (
            Status.COMPLETED,
            "kafka:orders",
            None,
            orders,
        )
        (attempt,) = found.attempt_log
        assert (attempt.status_code, attempt.error) == (None, None)
        assert (attempt.response or "").startswith("partition ")
        assert [event.event_id for event in client.iter_events("shop", host="kafka:orders")] == ["k1"]
        assert [event.event_id for event in client.iter_events("shop", host="kafka")] == ["k1"]
    (record,) = cluster.read("orders", 1)
    assert (record.key, record.value, record.named("X-One"), record.named("Cassata-Event-Id")) == (b"7", b'{"n":1}', ["1"], ["k1"])
    assert worker.stop() == 0


def test_what_was_accepted_while_the_broker_is_away_arrives_once_there_is_one(
    sqlite_url: str, service_process: Start, worker_process: Start, brokers: Callable[[], Brokers]
) -> None:
    gone = brokers()
    service = service_process(sqlite_url, "--processes", "1")
    fast = {"CASSATA_WORKER__REQUESTTIMEOUTSECONDS": "1", "CASSATA_WORKER__RETRYBACKOFFINITIALSECONDS": "0.1"}
    worker = worker_process(sqlite_url, env={**fast, "CASSATA_WORKER__KAFKABOOTSTRAPSERVERS": gone.address})
    gone.kill()
    with Client(service.url) as client:
        client.schedule(
            NewEvent("shop", delay=0, payload="x", event_id="k1", destination={"type": "kafka", "topic": "orders"}, retry={"count": 50})
        )
        wait_until(lambda: client.event("shop", "k1").status is Status.SERVICE_UNAVAILABLE, 30, worker.output)
        assert "no broker has taken it" in str(client.event("shop", "k1").last_error)
        assert worker.stop() == 0
        back = brokers()
        worker_process(sqlite_url, env={**fast, "CASSATA_WORKER__KAFKABOOTSTRAPSERVERS": back.address})
        assert ended(client, "k1", service).status is Status.COMPLETED
    assert [record.value for record in back.read("orders", 1)] == [b"x"]


def test_topics_are_an_operators_to_give_and_may_stand_for_a_url(
    sqlite_url: str, service_process: Start, worker_process: Start, run_cassata: Callable[..., Any]
) -> None:
    def run(*words: str) -> Any:
        return run_cassata(*words, env={"CASSATA_DATABASE_URL": sqlite_url})

    with Receiver() as receiver:
        assert run("app", "create", "shop", "--topic", f"hooks={receiver.url}/in", "--topic", "shop.*").returncode == 0
        assert run("app", "create", "other", "--topics", "none").stdout.split().count("none") == 1
        assert f"hooks={receiver.url}/in, shop.*" in run("app", "get", "shop").stdout
        service = service_process(sqlite_url, "--processes", "1")
        worker = worker_process(sqlite_url)
        with Client(service.url) as client:
            for application, topic in (("other", "hooks"), ("shop", "payments")):
                with pytest.raises(InvalidRequest) as refused:
                    client.schedule(NewEvent(application, delay=0, destination={"type": "topic", "topic": topic}))
                assert refused.value.errors[0]["pointer"] == "/destination"
                assert "an operator has to add it" in refused.value.errors[0]["detail"]
            client.schedule(NewEvent("shop", delay=0, payload="x", event_id="t1", destination={"type": "topic", "topic": "hooks"}))
            found = ended(client, "t1", service, worker)
            assert (found.status, found.url, found.last_status) == (Status.COMPLETED, "topic:hooks", 200)


def test_a_script_is_uploaded_run_disabled_and_deleted(
    database_url: str, service_process: Start, worker_process: Start, run_cassata: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "nightly"
    folder.mkdir()
    (folder / "script.sh").write_text('cat; echo " $1 $REPORT $(cat more/data)"; exit "${CODE:-0}"')
    (folder / "more").mkdir()
    (folder / "more" / "data").write_text("data")
    service = service_process(database_url, "--processes", "1")
    scripts = {"CASSATA_WORKER__SCRIPTS": "true", "CASSATA_WORKER__SCRIPTSFOLDER": str(tmp_path / "scripts")}
    worker = worker_process(database_url, env=scripts)

    def run(*words: str) -> Any:
        return run_cassata("batch", *words, env={"CASSATA_SERVICE_URL": service.url})

    with Client(service.url) as client:
        client.schedule(NewEvent("shop", "http://127.0.0.1:1/", delay=3600, payload="", event_id="first"))  # makes the application
        with pytest.raises(InvalidRequest, match=r"."):
            client.schedule(NewEvent("shop", delay=0, destination={"type": "script", "batch": "nightly"}))
        uploaded = run("upload", "shop", "nightly", str(folder), "-o", "json")
        assert (uploaded.returncode, json.loads(uploaded.stdout)["active"]) == (0, True)
        assert run("run", "shop", "nightly", "all", "--env", "REPORT=r", "--payload", "in", "--id", "s1").returncode == 0
        found = ended(client, "s1", service, worker)
        assert (found.status, found.url, found.last_error, found.last_status) == (Status.COMPLETED, "script:nightly", None, None)
        assert found.attempt_log[0].response == "in all r data\n"

        client.schedule(
            NewEvent("shop", delay=0, event_id="s2", destination={"type": "script", "batch": "nightly", "environment": {"CODE": "3"}})
        )
        found = ended(client, "s2", service, worker)
        assert (found.status, found.last_error, found.attempts) == (Status.FAILED, "script failed: exit code 3", 1)

        assert "no" in run("disable", "shop", "nightly").stdout.split()
        assert run("run", "shop", "nightly", "--id", "s3").returncode == 0
        found = ended(client, "s3", service, worker)
        assert (found.status, found.last_error) == (Status.FAILED, "refused: batch 'nightly' is disabled")
        assert "nightly" in run("list", "shop").stdout
        assert run("enable", "shop", "nightly").returncode == 0
        assert run("delete", "shop", "nightly").returncode == 0
        with pytest.raises(NotFound):
            client.set_batch_active("shop", "nightly", True)
        refused = run("run", "shop", "nightly")
        assert (refused.returncode, "which the application does not have" in refused.stderr) == (1, True)
    assert worker.stop() == 0


def test_a_series_runs_a_script_and_a_bad_archive_is_refused(
    sqlite_url: str, service_process: Start, worker_process: Start, tmp_path: Path
) -> None:
    service = service_process(sqlite_url, "--processes", "1")
    worker = worker_process(sqlite_url, env={"CASSATA_WORKER__SCRIPTS": "true", "CASSATA_WORKER__SCRIPTSFOLDER": str(tmp_path / "scripts")})
    with Client(service.url) as client:
        client.schedule(NewEvent("shop", "http://127.0.0.1:1/", delay=3600, payload="", event_id="first"))
        with pytest.raises(InvalidRequest, match=r"script\.sh at its root"):
            client.put_batch("shop", "nightly", zipped({"../script.sh": "x", "a": "b"} | {"b/script.sh": ""} | {}).replace(b"../", b"aa/"))
        client.put_batch("shop", "nightly", zipped({"script.sh": "echo $CASSATA_EVENT_ID"}))
        client.schedule_series(NewSeries("shop", every=3600, series_id="s", destination={"type": "script", "batch": "nightly"}))
        run = client.run_series("shop", "s")
        found = ended(client, run.event_id, service, worker)
        assert (found.status, found.attempt_log[0].response) == (Status.COMPLETED, f"{run.event_id}\n")
        assert client.series("shop", "s").document["destination"] == {"type": "script", "batch": "nightly"}


def test_an_event_changes_between_a_url_and_a_destination(sqlite_url: str, service_process: Start) -> None:
    service = service_process(sqlite_url, "--processes", "1")
    with Client(service.url) as client:
        client.schedule(NewEvent("shop", "http://127.0.0.1:1/", delay=3600, payload="x", event_id="e"))
        changed = client.change("shop", "e", destination={"type": "kafka", "topic": "orders"})
        assert changed.url == "kafka:orders"
        with pytest.raises(InvalidRequest):
            client.change("shop", "e", destination={"type": "kafka", "topic": "a/b"})
        back = client.change("shop", "e", url="http://127.0.0.1:2/")
        assert (back.url, client.event("shop", "e").document["destination"]) == ("http://127.0.0.1:2/", None)
        new = NewEvent("shop", delay=60, payload="x", event_id="same", destination={"type": "kafka", "topic": "orders"})
        assert client.schedule(new).version == client.schedule(new).version
        with pytest.raises(Conflict):
            client.schedule(NewEvent("shop", delay=60, payload="x", event_id="same", destination={"type": "kafka", "topic": "other"}))


def test_what_is_exported_with_a_destination_can_be_imported(
    sqlite_url: str, service_process: Start, run_cassata: Callable[..., Any], tmp_path: Path
) -> None:
    service = service_process(sqlite_url, "--processes", "1")
    env = {"CASSATA_SERVICE_URL": service.url}
    destination = json.dumps({"type": "kafka", "topic": "orders"})
    added = run_cassata("event", "add", "--app", "shop", "--in", "1h", "--id", "e", "--destination", destination, env=env)
    assert (added.returncode, added.stderr) == (0, "")
    exported = run_cassata("event", "export", "shop", env=env)
    assert json.loads(exported.stdout)["destination"] == {"type": "kafka", "topic": "orders"}
    (tmp_path / "events").write_text(exported.stdout.replace('"e"', '"f"'))
    assert run_cassata("event", "import", str(tmp_path / "events"), env=env).returncode == 0
    with Client(service.url) as client:
        assert client.status("shop", "f").url == "kafka:orders"


def test_secrets_of_the_properties_are_nowhere_to_be_read(
    sqlite_url: str, worker_process: Start, run_cassata: Callable[..., Any], brokers: Callable[[], Brokers], tmp_path: Path
) -> None:
    env = {
        "CASSATA_WORKER__KAFKABOOTSTRAPSERVERS": brokers().address,
        "CASSATA_WORKER__KAFKAPROPERTIES": json.dumps({"sasl.mechanism": SECRET, "sasl.password": SECRET, "debug": "all"}),
        "CASSATA_LOGGING__LEVEL": "debug",
    }
    shown = run_cassata("config", "show", "worker", env=env)
    assert '"sasl.password": "***"' in shown.stdout
    worker = worker_process(sqlite_url, "--processes", "2", env=env)
    wait_until(lambda: "worker started" in worker.output())
    time.sleep(0.5)
    assert worker.stop() == 0
    broken = run_cassata(
        "worker", "start", "--database-url", sqlite_url, env=env | {"CASSATA_WORKER__KAFKAPROPERTIES": f"{{no.such: {SECRET}}}"}
    )
    assert (broken.returncode, "no.such" in broken.stderr) == (1, True)
    listed = run_cassata("config", "check", "worker", env=env | {"CASSATA_WORKER__KAFKAPROPERTIES": f"[{SECRET}]"})
    assert listed.returncode == 1
    for text in (shown.stdout, worker.output(), broken.stdout, broken.stderr, listed.stdout, listed.stderr):
        assert SECRET not in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may become anybody")
def test_only_root_may_run_scripts_as_somebody_else(sqlite_url: str, run_cassata: Callable[..., Any]) -> None:
    env = {"CASSATA_WORKER__SCRIPTS": "true", "CASSATA_WORKER__SCRIPTSUSER": "nobody"}
    refused = run_cassata("worker", "start", "--database-url", sqlite_url, env=env)
    assert (refused.returncode, "scriptsUser" in refused.stderr) == (1, True)
