"""Each user of `sql/grants.mysql.sql` can do its work, and no more."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pymysql
import pytest
import requests

from cassata import database, schema
from cassata.errors import DatabaseUnavailable
from cassata.model import LATEST_INSTANT
from cassata.receiver import Receiver
from cassata.recurrence import Rule
from cassata.retention import Retention
from cassata.scheduler import Scheduler, Terms
from cassata.series import NewSeries, Overlap
from cassata.tenants import Changes
from tests.conftest import MariaDB, Running, wait_until
from tests.words import new_event, outcome

FILE = (Path(__file__).parents[2] / "sql" / "grants.mysql.sql").read_text()
USERS = ("admin", "service", "worker")
REFUSED = (1044, 1142, 1143, 1227)  # no access to the database, the table, the column; a privilege is missing


class Users:
    """The users of one database. Their password is `p` and their name."""

    def __init__(self, server: MariaDB, name: str) -> None:
        self.server, self.name = server, name

    def apply(self) -> None:
        script = FILE
        for user in USERS:
            script = script.replace(f"{user.upper()}_PASSWORD", f"p{user}")
        # What the file says of its one line where a _ is a wildcard.
        script = script.replace("`DATABASE_NAME`.*", f"`{self.name.replace('_', chr(92) + '_')}`.*").replace("DATABASE_NAME", self.name)
        statements = [part.strip() for part in re.sub(r"(?m)^--.*$", "", script).split(";")]
        with self.server.connect() as root, root.cursor() as cursor:
            for statement in filter(None, statements):
                cursor.execute(statement)

    def drop(self) -> None:
        with self.server.connect() as root, root.cursor() as cursor:
            for user in USERS:
                cursor.execute(f"DROP USER IF EXISTS 'cassata_{user}'@'%'")

    def url(self, user: str) -> str:
        return f"mysql+pymysql://cassata_{user}:p{user}@127.0.0.1:{self.server.port}/{self.name}"

    def run(self, user: str, statement: str) -> None:
        with (
            pymysql.connect(
                host="127.0.0.1",
                port=self.server.port,
                user=f"cassata_{user}",
                password=f"p{user}",
                database=self.name,
                ssl_disabled=True,
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(statement)


@pytest.fixture
def users(mariadb: MariaDB, mariadb_url: str) -> Iterator[Users]:
    users = Users(mariadb, mariadb_url.rpartition("/")[2])
    users.apply()
    yield users
    users.drop()


def test_a_service_and_a_worker_need_no_more_than_their_users_may(
    users: Users, service_process: Callable[..., Running], worker_process: Callable[..., Running]
) -> None:
    service = service_process(users.url("service"))
    worker = worker_process(users.url("worker"))

    def add(event_id: str, url: str, delay: float = 0) -> int:
        document = {"application-id": "shop", "event-id": event_id, "event": "x", "delay": delay, "url": url, "retry": {"count": 0}}
        return requests.post(f"{service.url}/cassata/add/", json=document, timeout=30).status_code

    def status(event_id: str) -> str:
        return str(requests.get(f"{service.url}/cassata/event/shop/{event_id}", timeout=30).json()["status"])

    with Receiver() as receiver:
        receiver.answer = lambda request: 500 if request.path == "/bad" else 200
        assert [add("good", receiver.url), add("bad", f"{receiver.url}/bad"), add("later", receiver.url, 3600)] == [201, 201, 201]
        assert requests.delete(f"{service.url}/cassata/delete/shop/later", timeout=30).status_code == 200
        assert add("later", receiver.url) == 201
        wait_until(lambda: [status(event) for event in ("good", "bad", "later")] == ["COMPLETED", "FAILED", "COMPLETED"])
        receiver.answer = lambda _request: 200
        assert requests.post(f"{service.url}/cassata/event/shop/bad/retry", timeout=30).status_code == 200
        wait_until(lambda: status("bad") == "COMPLETED")
        again = {"action": "reconcile", "filter": {"status": "COMPLETED"}}
        operation = requests.post(f"{service.url}/cassata/bulk/shop", json=again, timeout=30)
        assert operation.status_code == 202
        progress = f"{service.url}{operation.headers['Location']}"
        wait_until(lambda: requests.get(progress, timeout=30).json()["changed"] == 3, explain=worker.output)

    assert requests.get(f"{service.url}/readyz", timeout=30).status_code == 200
    assert requests.get(f"{service.url}/cassata/events/shop", timeout=30).status_code == 200
    assert [service.stop(), worker.stop()] == [0, 0]
    assert "denied" not in service.output() + worker.output()


def test_limits_and_breakers_need_no_more_either(
    users: Users, service_process: Callable[..., Running], worker_process: Callable[..., Running]
) -> None:
    limits = {"max-pending": 100, "adds-per-second": 1_000, "max-in-flight": 5, "deliveries-per-second": 1_000, "max-in-flight-per-host": 5}
    service = service_process(users.url("service"))
    worker = worker_process(users.url("worker"), env={"CASSATA_WORKER__BREAKERMINIMUMREQUESTS": "2"})
    shop = f"{service.url}/cassata/applications/shop"

    made = requests.post(f"{service.url}/cassata/applications", json={"application-id": "shop", "limits": limits}, timeout=30)
    assert made.status_code == 201, made.text
    with Receiver(answer=lambda _request: 500) as receiver:
        event = {"application-id": "shop", "event": "x", "delay": 0, "url": receiver.url, "retry": {"count": 0}}
        for _ in range(2):
            requests.post(f"{service.url}/cassata/add/batch", json=[event] * 5, timeout=30)
        wait_until(lambda: requests.get(f"{shop}/breakers", timeout=30).json()["breakers"] != [], explain=worker.output)

    assert requests.patch(shop, json={"limits": {"max-pending": 1}}, timeout=30).status_code == 200
    assert requests.post(f"{shop}/keys", timeout=30).status_code == 201
    assert [service.stop(), worker.stop()] == [0, 0]
    assert "denied" not in service.output() + worker.output()


def test_series_are_the_services_to_keep_and_the_workers_to_advance(users: Users) -> None:
    service, worker = (Scheduler.open(users.url(user)) for user in ("service", "worker"))
    every_second = NewSeries("shop", Rule(every_ms=1_000), "http://127.0.0.1/", series_id="s")
    service.timetable.create(every_second)
    service.timetable.create(replace(every_second, series_id="v"), final=True)
    service.timetable.cancel("shop", "v")
    service.add_once(new_event("once"))
    service.timetable.create(replace(every_second, series_id="t", overlap=Overlap.SKIP))

    assert worker.timetable.advance().fired > 1
    first, *_, last = service.timetable.instances("shop", "s", 0, LATEST_INSTANT, limit=30)
    service.timetable.cancel_instance("shop", "s", first.instance_id)
    service.timetable.change_instance("shop", "s", last.instance_id, {"payload": b"x"})
    service.timetable.replace(replace(every_second, payload=b"y"))
    service.timetable.pause("shop", "s")
    service.timetable.resume("shop", "s")
    service.timetable.change_following("shop", "s", last.instance_id, replace(every_second, series_id="u"))
    service.timetable.run_now("shop", "u")
    service.tenants.change("shop", Changes(active=False))
    worker.timetable.advance()
    service.timetable.cancel("shop", "t")
    service.timetable.delete("shop", "s")
    service.close()
    worker.close()


def test_what_ended_long_ago_is_the_workers_to_remove_and_the_services_to_watch(users: Users) -> None:
    service, worker = (Scheduler.open(users.url(user)) for user in ("service", "worker"))
    service.add_all([new_event(name, payload=b"x", due_at=None, delay_ms=0) for name in ("a", "b")])
    following = service.tail("shop")
    taken = worker.record_and_claim((), list(worker.agenda()), 10, Terms())[1]
    worker.record([outcome(delivery) for delivery in taken.deliveries])
    assert {event.event_id for event in following.poll()} == {"a", "b"}
    assert [reason.code for reason in service.explain("shop", "a")] == ["completed"]

    time.sleep(0.01)  # they are as old as that
    assert worker.pruning(Retention(payload_ms=1, attempts_ms=1)).run().payloads == 2
    assert worker.pruning(Retention(completed_ms=1)).run().events == 2
    service.close()
    worker.close()


def test_applications_and_keys_are_the_services_to_keep(users: Users) -> None:
    scheduler = Scheduler.open(users.url("service"))
    scheduler.add(new_event(due_at=None, delay_ms=3_600_000))
    _, token = scheduler.tenants.create_key("shop", ["read"])  # type: ignore[list-item]
    scheduler.tenants.rotate_secret("shop", overlap_ms=1_000)

    assert scheduler.tenants.authenticate(token) is not None
    assert scheduler.tenants.revoke_key(token.split("_")[1]).revoked_at is not None
    scheduler.tenants.end_session("old", kept_ms=-60_000)  # which it also removes
    scheduler.tenants.end_session("new", kept_ms=60_000)
    assert (scheduler.tenants.has_ended("old"), scheduler.tenants.has_ended("new")) == (False, True)
    scheduler.close()


def test_the_admin_brings_the_tables_up_to_date_and_the_others_cannot(users: Users) -> None:
    with users.server.connect(users.name) as root, root.cursor() as cursor:
        cursor.execute("UPDATE alembic_version SET version_num = '0001'")
        for table in ("api_keys", "installation", "paces", "holdings", "breakers"):
            cursor.execute(f"DROP TABLE {table}")
        cursor.execute("DROP INDEX applications_changed ON applications")
        for column in ("active", "limits", "egress", "metadata", "secrets", "changed_at"):
            cursor.execute(f"ALTER TABLE applications DROP COLUMN {column}")

    for user in ("service", "worker"):
        with pytest.raises(DatabaseUnavailable):
            database.upgrade(users.url(user))
    assert database.upgrade(users.url("admin")) == schema.VERSION
    users.apply()  # once more, for the tables that are new


@pytest.mark.parametrize(
    ("user", "statement"),
    [
        *((user, statement) for user in ("service", "worker") for statement in (
            "DROP TABLE events", "ALTER TABLE events ADD COLUMN x INT", "CREATE TABLE x (x INT)", "TRUNCATE TABLE events",
            "CREATE INDEX x ON events (due_at)", "RENAME TABLE events TO x", "DELETE FROM applications",
            "UPDATE alembic_version SET version_num = 'x'", "DELETE FROM alembic_version", "UPDATE attempts SET number = 0",
            "CREATE VIEW x AS SELECT * FROM events", "CREATE PROCEDURE x() SELECT 1",
            "CREATE TRIGGER x BEFORE INSERT ON events FOR EACH ROW SET @x = 1",
            "SELECT * FROM mysql.user", "SET GLOBAL max_connections = 1", "CREATE USER x", "GRANT SELECT ON events TO CURRENT_USER",
            "SELECT * FROM events INTO OUTFILE '/tmp/x'", "LOAD DATA INFILE '/etc/passwd' INTO TABLE events",
        )),
        ("service", "UPDATE attempts SET number = 2"),
        ("service", "DELETE FROM api_keys"),
        ("service", "UPDATE installation SET secret = ''"),
        ("service", "UPDATE breakers SET openings = 0"),
        ("service", "DELETE FROM holdings"),
        ("worker", "SELECT * FROM api_keys"),
        ("worker", "SELECT * FROM installation"),
        ("worker", "SELECT hash FROM api_keys"),
        ("worker", "UPDATE api_keys SET revoked_at = NULL"),
        ("worker", "INSERT INTO applications (application_id, created_at) VALUES ('x', 1)"),
        ("worker", "DELETE FROM series"),
        ("admin", "SELECT * FROM mysql.user"),
        ("admin", "CREATE USER x"),
        ("admin", "SET GLOBAL max_connections = 1"),
    ],
)  # fmt: skip
def test_what_is_not_a_users_business_is_refused(users: Users, user: str, statement: str) -> None:
    with pytest.raises(pymysql.Error) as refused:
        users.run(user, statement)

    assert refused.value.args[0] in {*REFUSED, 1045, 1370, 1410}


def test_a_server_that_has_become_read_only_is_unavailable_and_nothing_else_is_told(
    users: Users, mariadb: MariaDB, service_process: Callable[..., Running]
) -> None:
    service = service_process(users.url("service"))
    document = {"application-id": "shop", "event": "x", "delay": 60, "url": "http://receiver.example/"}
    with mariadb.connect() as root, root.cursor() as cursor:
        cursor.execute("SET GLOBAL read_only = 1")
        try:
            refused = requests.post(f"{service.url}/cassata/add/", json=document, timeout=30)
        finally:
            cursor.execute("SET GLOBAL read_only = 0")

    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert "read-only" not in refused.text
    assert requests.post(f"{service.url}/cassata/add/", json=document, timeout=30).status_code == 201


def test_the_file_speaks_of_every_table_there_is() -> None:
    granted = set(re.findall(r"(?m)^GRANT .* ON `DATABASE_NAME`\.(\w+) TO", FILE))

    assert granted == {*schema.metadata.tables, "alembic_version"}
