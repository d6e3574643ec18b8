"""Several hosts in the URL: real servers, of which some are down, hang, or may not be written to."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cassata import config, database
from cassata.errors import DatabaseUnavailable
from cassata.scheduler import Scheduler
from tests.conftest import MariaDB, running_mariadb
from tests.words import new_event


def url_of(name: str, *ports: int, user: str = "root") -> str:
    return f"mysql+pymysql://{user}@{','.join(f'127.0.0.1:{port}' for port in ports)}/{name}"


@pytest.fixture
def name(mariadb_url: str) -> str:
    return mariadb_url.rsplit("/", 1)[1]


@pytest.fixture
def second(tmp_path: Path) -> Iterator[MariaDB]:
    """A server of its own, that a test may end."""
    with running_mariadb(tmp_path) as server:
        yield server


@contextlib.contextmanager
def hanging() -> Iterator[tuple[int, Callable[[], int]]]:
    """A port that accepts and never says anything, as that of a stopped server; and how often it was dialled."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        def dialled() -> int:
            count = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()
                    count += 1
            return count

        yield listener.getsockname()[1], dialled


def test_a_host_that_is_down_is_passed_over(mariadb: MariaDB, name: str, free_port: Callable[[], int]) -> None:
    scheduler = Scheduler.open(url_of(name, free_port(), mariadb.port))

    scheduler.add(new_event())

    assert scheduler.status("shop", "e1").event_id == "e1"
    scheduler.close()


def test_a_host_that_hangs_costs_the_time_to_connect_once(mariadb: MariaDB, name: str) -> None:
    with hanging() as (port, dialled):
        began = time.monotonic()
        engines = database.open_engines(url_of(name, port, mariadb.port), config.Database(connectTimeoutSeconds=1))
        with contextlib.ExitStack() as stack:
            for engine in engines:
                for _ in range(4):
                    stack.enter_context(engine.connect())
        took = time.monotonic() - began

        assert dialled() == 1
        assert 1 <= took < 2.5
        engines.dispose()


def test_when_no_host_can_be_used_each_is_named_with_its_reason(free_port: Callable[[], int]) -> None:
    one, two = free_port(), free_port()

    with pytest.raises(DatabaseUnavailable) as raised:
        Scheduler.open(url_of("x", one, two, user="u:hidden"))

    assert f"127.0.0.1:{one}: Can't connect" in str(raised.value)
    assert f"127.0.0.1:{two}: Can't connect" in str(raised.value)
    assert "hidden" not in str(raised.value)


def test_a_login_that_one_host_refuses_is_said_to_be_refused(mariadb: MariaDB, name: str, free_port: Callable[[], int]) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"refuses the login.*Can't connect.*Access denied"):
        Scheduler.open(url_of(name, free_port(), mariadb.port, user="nobody:hidden"))


def test_a_host_that_goes_down_is_left_in_the_middle_of_the_work(mariadb: MariaDB, mariadb_url: str, name: str, second: MariaDB) -> None:
    _copy(mariadb, name, second)
    scheduler = Scheduler.open(url_of(name, second.port, mariadb.port))
    scheduler.add(new_event("first"))

    second.process.kill()
    second.process.wait()

    scheduler.add(new_event("next"))
    assert [event.event_id for event in scheduler.events("shop").events] == ["next"]  # these two share nothing
    scheduler.close()


def test_a_host_that_becomes_read_only_is_left_and_used_again_when_it_is_not(
    mariadb: MariaDB, name: str, second: MariaDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cassata.hosts.BAD_SECONDS", 0.0)
    _copy(mariadb, name, second)
    for server in (mariadb, second):
        with server.connect() as connection, connection.cursor() as cursor:
            cursor.execute("CREATE OR REPLACE USER 'plain'@'127.0.0.1'")
            cursor.execute("GRANT ALL ON *.* TO 'plain'@'127.0.0.1'")
            cursor.execute("REVOKE READ_ONLY ADMIN, SUPER ON *.* FROM 'plain'@'127.0.0.1'")
    scheduler = Scheduler.open(url_of(name, second.port, mariadb.port, user="plain"))
    scheduler.add(new_event("first"))

    with second.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SET GLOBAL read_only = 1")
        scheduler.add(new_event("elsewhere"))
        cursor.execute("SET GLOBAL read_only = 0")
    scheduler._engines.dispose()  # as when its connections have reached their age

    scheduler.add(new_event("again"))
    assert [event.event_id for event in scheduler.events("shop").events] == ["first", "again"]
    scheduler.close()


def _copy(server: MariaDB, name: str, other: MariaDB) -> None:
    with other.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
        cursor.execute(f"USE {name}")
        cursor.execute("SET foreign_key_checks = 0")
        for statement in server.statements_of(name):
            cursor.execute(statement)


def test_the_commands_take_several_hosts(
    mariadb: MariaDB, empty_mariadb_url: str, free_port: Callable[[], int], run_cassata: Callable[..., object]
) -> None:
    url = url_of(empty_mariadb_url.rsplit("/", 1)[1], free_port(), mariadb.port, user="root:")

    upgraded = run_cassata("db", "upgrade", "--database-url", url)
    shown = run_cassata("config", "check", env={"CASSATA_DATABASE_URL": url.replace("root:", "root:hidden")})

    assert (upgraded.returncode, shown.returncode) == (0, 0), upgraded.stderr + shown.stderr
    assert "root:***@127.0.0.1:" in shown.stdout
    assert "hidden" not in shown.stdout + shown.stderr
