"""docs/migrating.md: its demonstrations work as printed, and what is moved is sent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cassata.receiver import Receiver
from tests.conftest import MariaDB, Running
from tests.service.ancestors import GoScheduler, schedule_id, serving

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "migrating.md").read_text()
ADDRESSES = {"/cassata": "", "/goscheduler": "goscheduler", "/events": "recurring", "/v1": "jobs"}
Start = Callable[..., Running]
Run = Callable[..., subprocess.CompletedProcess[str]]
SPEAKING = {"CASSATA_SERVICE__DIALECTS": "goscheduler,recurring,jobs"}


def demonstrations() -> list[tuple[str, str]]:
    """Each block for a shell, and the dialect it is in."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [(next(name for begin, name in ADDRESSES.items() if f"8085{begin}" in block), block) for block in blocks]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_each_demonstration_works_as_printed(sqlite_url: str, service_process: Start) -> None:
    service = service_process(sqlite_url, env=SPEAKING)
    shown = demonstrations()
    assert {dialect for dialect, _ in shown} == set(ADDRESSES.values())
    for _, block in shown:
        command = block.replace("curl -X", "curl -sS --fail-with-body -X").replace("http://127.0.0.1:8085", service.url)
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert json.loads(done.stdout)


def test_the_table_names_every_dialect_and_what_imports_from_it(run_cassata: Run) -> None:
    for name in ("goscheduler", "recurring", "jobs"):
        assert f"| `{name}` | `cassata import {name}` |" in PAGE
        assert run_cassata("import", name, "--help").returncode == 0
    told = run_cassata("import", "--help").stdout
    assert set(re.findall(r"cassata import (\w+)", PAGE)) <= set(re.findall(r"^  (\w+)", told, re.MULTILINE))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


def test_what_is_moved_out_of_goscheduler_is_sent_at_its_time(
    database_url: str, service_process: Start, worker_process: Start, run_cassata: Run, receiver: Receiver
) -> None:
    service = service_process(database_url)
    worker_process(database_url)
    old = GoScheduler(apps=[{"appId": "shop", "partitions": 2, "active": False, "configuration": {}}])
    due = int(time.time()) + 8
    details = {"url": receiver.url, "method": "PUT", "headers": {"X-One": "1"}}
    for number in range(20):
        old.schedule(number, due - 300 * (number % 2), payload=f"#{number}", callback={"type": "http", "details": details})

    with serving(old.served()) as url:
        first, second = (run_cassata("import", "--service", service.url, "goscheduler", "--from", url) for _ in range(2))

    assert (first.stdout, second.stdout) == ("20 moved\n", "0 moved, 20 there already\n"), first.stderr
    assert receiver.wait_for(20, timeout=60)
    assert {request.header("Schedule-Id"): request.body.decode() for request in receiver.requests} == {
        schedule_id(number): f"#{number}" for number in range(20)
    }
    assert len(receiver.requests) == 20
    assert all(request.at_ms >= due * 1000 for request in receiver.requests if int(request.body[1:]) % 2 == 0)


MADE_THERE = """
CREATE TABLE _saas_events (id int AUTO_INCREMENT PRIMARY KEY, event_id varchar(50) NOT NULL, application varchar(100),
  event_json JSON NOT NULL, http_method varchar(15), http_headers JSON, destination_url varchar(2000),
  status varchar(30) NOT NULL, expiry timestamp NULL)
"""


def test_what_waits_in_the_table_of_cassata_io_is_imported(
    mariadb: MariaDB, sqlite_url: str, service_process: Start, run_cassata: Run, tmp_path: Path
) -> None:
    statement = re.search(r'-e "(SELECT JSON_OBJECT.*?)" >', PAGE, re.DOTALL)
    assert statement is not None
    there = mariadb.create_database([MADE_THERE])
    headers = json.dumps(["Content-Type: application/json", "X-Referer: http://x/"])
    rows = [
        ("e1", "shop", '{"order": "\\u00e9"}', "PUT", headers, "http://127.0.0.1:8090/", "PENDING"),
        ("e2", "shop", '{"order": 2}', None, "null", "http://127.0.0.1:8090/", "PROCESSING"),
        ("e3", "shop", "{}", None, None, "http://127.0.0.1:8090/", "PENDING"),
        ("e4", "shop", "{}", "POST", headers, "http://127.0.0.1:8090/", "COMPLETED"),
    ]
    try:
        with mariadb.connect(there) as connection, connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO _saas_events (event_id, application, event_json, http_method, http_headers, destination_url, status, expiry)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, FROM_UNIXTIME(1893456000))",
                rows,
            )
            cursor.execute(statement[1])
            lines = [str(row[0]) for row in cursor.fetchall()]
    finally:
        mariadb.drop_database(there)
    (tmp_path / "waiting.ndjson").write_text("\n".join(lines))
    service = service_process(sqlite_url)

    done = run_cassata("event", "--service", service.url, "import", str(tmp_path / "waiting.ndjson"))

    assert (done.returncode, done.stdout) == (0, "3 lines: 3 added\n"), done.stderr
    shown = run_cassata("event", "--service", service.url, "export", "shop").stdout
    moved = {event["event-id"]: event for event in map(json.loads, shown.splitlines())}
    assert (moved["e1"]["event"], moved["e1"]["method"]) == ('{"order": "\\u00e9"}', "PUT")
    assert moved["e1"]["request-headers"] == ["Content-Type: application/json", "X-Referer: http://x/"]
    assert {urlsplit(event["url"]).port for event in moved.values()} == {8090}
    assert {event["expiry"] for event in moved.values()} == {"2030-01-01T00:00:00.000Z"}
