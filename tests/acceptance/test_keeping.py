"""What an operator does so that nothing is lost: back-up and restore, and an upgrade while everything runs."""

from __future__ import annotations

import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from cassata import schema
from cassata.model import NewEvent, Status
from cassata.receiver import Receiver
from cassata.scheduler import Scheduler
from tests.conftest import CHECKOUT, NO_DUMP, NO_HISTORY, MariaDB, Running, find_program, running_mariadb, wait_until

Start = Callable[..., Running]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    received = Receiver().start()
    yield received
    received.stop()


class Load:
    """Adds events one after the other in a few threads, and remembers which were acknowledged."""

    def __init__(self, url: str, destination: str, *, delay: float = 0, threads: int = 4) -> None:
        self._name = uuid.uuid4().hex[:6]
        self.acknowledged: list[str] = []
        self.refused: list[str] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._add, args=(url, destination, delay, number)) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def _add(self, url: str, destination: str, delay: float, number: int) -> None:
        with requests.Session() as session:
            for count in range(1_000_000):
                if self._stopping.wait(0.005):
                    return
                event_id = f"{self._name}-{number}-{count}"
                document = {"application-id": "shop", "event-id": event_id, "url": destination, "delay": delay, "event": "x"}
                try:
                    answer = session.post(f"{url}/cassata/add/", json=document, timeout=20)
                except requests.RequestException as error:
                    self.refused.append(f"{event_id}: {error!r}")
                    continue
                if answer.status_code == 201:
                    self.acknowledged.append(event_id)
                else:
                    self.refused.append(f"{event_id}: {answer.text}")

    def goes_on(self, events: int) -> None:
        before = len(self.acknowledged)
        wait_until(lambda: len(self.acknowledged) >= before + events, explain=lambda: "\n".join(self.refused[-3:]))

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


# --- back-up and restore -----------------------------------------------------------------------------------------------


def test_a_back_up_under_load_loses_nothing_that_was_acknowledged_before_it(
    mariadb: MariaDB,
    mariadb_url: str,
    service_process: Start,
    worker_process: Start,
    receiver: Receiver,
    tmp_path: Path,
    run_cassata: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    dump, client = find_program("mariadb-dump", "mysqldump"), find_program("mariadb", "mysql")
    if dump is None or client is None:
        pytest.skip(NO_DUMP)
    running, worker = service_process(mariadb_url), worker_process(mariadb_url)
    load = Load(running.url, receiver.url, delay=600)
    sent = Load(running.url, receiver.url, threads=1)  # these change while the back-up is made
    load.goes_on(200)
    before = list(load.acknowledged), list(sent.acknowledged)

    where = ["--no-defaults", "--protocol=tcp", "--host=127.0.0.1", "--user=root"]
    name = mariadb_url.rpartition("/")[2]
    file = tmp_path / "back-up.sql"
    with file.open("wb") as out:
        subprocess.run([dump, *where, f"--port={mariadb.port}", "--single-transaction", "--quick", name], stdout=out, check=True)
    load.goes_on(50)  # nobody had to stop
    load.stop()
    sent.stop()
    assert (load.refused, sent.refused) == ([], [])
    assert (running.stop(), worker.stop()) == (0, 0)

    with running_mariadb(tmp_path) as new:
        restored = new.url(new.create_database([]))
        with file.open("rb") as text:
            subprocess.run([client, *where, f"--port={new.port}", restored.rpartition("/")[2]], stdin=text, check=True)
        assert run_cassata("db", "version", "--database-url", restored).returncode == 0
        scheduler = Scheduler.open(restored)
        for event_id in before[0]:
            assert scheduler.event("shop", event_id)[0].status is Status.PENDING
        for event_id in before[1]:
            scheduler.event("shop", event_id)
        # And it goes on from there: whatever had not ended is sent.
        unsent = [event_id for event_id in before[1] if scheduler.event("shop", event_id)[0].status is not Status.COMPLETED]
        scheduler.add(NewEvent("shop", receiver.url, event_id="after", delay_ms=0, payload=b"x"))
        worker_process(restored)
        for event_id in [*unsent, "after"]:
            wait_until(lambda event_id=event_id: scheduler.event("shop", event_id)[0].status is Status.COMPLETED, 60)  # type: ignore[misc]
        scheduler.close()


# --- an upgrade while everything runs ----------------------------------------------------------------------------------


def git(*words: str) -> bytes:
    return subprocess.run(["git", "-C", str(CHECKOUT), *words], capture_output=True, check=True).stdout


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The code before the newest change of the tables."""
    try:
        introduced = git("log", f'-SVERSION = "{schema.VERSION}"', "--format=%H", "--", "cassata/schema.py").split()
        archive = git("archive", f"{introduced[-1].decode()}^", "cassata", "sql", "pyproject.toml")
    except (OSError, IndexError, subprocess.CalledProcessError):
        pytest.skip(NO_HISTORY)
    folder = tmp_path / "older"
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)  # Python's own had no filter before 3.11.4
    return folder


def test_the_tables_are_upgraded_under_processes_that_run_on(
    older: Path,
    empty_mariadb_url: str,
    service_process: Start,
    worker_process: Start,
    receiver: Receiver,
    run_cassata: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    url, old = empty_mariadb_url, {"PYTHONPATH": str(older)}
    assert run_cassata("db", "upgrade", "--database-url", url, env=old).returncode == 0
    first = run_cassata("db", "version", "--database-url", url, env=old).stdout
    old_service, old_worker = service_process(url, env=old), worker_process(url, env=old)
    load = Load(old_service.url, receiver.url)
    load.goes_on(50)

    assert run_cassata("db", "upgrade", "--database-url", url).returncode == 0
    assert run_cassata("db", "version", "--database-url", url).stdout != first
    load.goes_on(50)  # the older ones work on the newer tables
    new_service, new_worker = service_process(url), worker_process(url)
    other = Load(new_service.url, receiver.url, threads=1)
    load.goes_on(50)
    load.stop()
    assert load.refused == []
    assert (old_service.stop(), old_worker.stop()) == (0, 0)
    assert "Traceback" not in old_service.output() + old_worker.output()
    other.goes_on(50)
    other.stop()
    assert other.refused == []

    scheduler = Scheduler.open(url)
    for event_id in {*load.acknowledged, *other.acknowledged}:
        wait_until(lambda event_id=event_id: scheduler.event("shop", event_id)[0].status is Status.COMPLETED)  # type: ignore[misc]
    scheduler.close()
    assert new_worker.stop() == 0


def test_an_older_one_does_not_begin_on_newer_tables(
    older: Path, mariadb_url: str, run_cassata: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    said = run_cassata("worker", "start", "--database-url", mariadb_url, env={"PYTHONPATH": str(older)})
    assert said.returncode == 1
    assert "newer Cassata" in said.stderr


# --- what is kept no longer --------------------------------------------------------------------------------------------


def test_a_worker_removes_what_was_kept_for_long_enough(database_url: str, worker_process: Start, receiver: Receiver) -> None:
    scheduler = Scheduler.open(database_url)
    scheduler.add_all([NewEvent("shop", receiver.url, event_id="sent", delay_ms=0, payload=b"x")])
    scheduler.add(NewEvent("shop", receiver.url, event_id="waits", delay_ms=3_600_000, payload=b"x"))
    first = worker_process(database_url)
    wait_until(lambda: scheduler.event("shop", "sent")[0].status is Status.COMPLETED)
    assert first.stop() == 0

    second = worker_process(database_url, env={"CASSATA_WORKER__KEEPCOMPLETEDDAYS": "0.000001"})
    wait_until(lambda: [event.event_id for event in scheduler.events("shop").events] == ["waits"], explain=second.output)
    assert second.stop() == 0
    assert "pruned" in second.output()
    scheduler.close()
