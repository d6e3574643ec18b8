"""The database's clock, its errors, and what is left of a transaction after one."""

from __future__ import annotations

import sqlite3
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import certifi
import pymysql
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError, ProgrammingError

from cassata import database, store
from cassata.errors import DatabaseUnavailable
from cassata.scheduler import Scheduler
from tests.conftest import MariaDB, running_mariadb
from tests.words import new_event


def failing(code: int, message: str = "text", statement: str | None = "SELECT 1") -> DBAPIError:
    return OperationalError(statement, {}, pymysql.err.OperationalError(code, message))  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [1213, 1205, 1020, 3101, 1317, 1969])
def test_a_conflict_is_worth_another_try(code: int) -> None:
    assert database.is_conflict(failing(code))


@pytest.mark.parametrize(
    "code", [1047, 1053, 1180, 1040, 1203, 1290, 1792, 1836, 2003, 2006, 2013, 2055, 4031, 1927, 0, 1045, 1049, 1021, 1226]
)
def test_a_database_that_is_away_or_read_only_is_unavailable(code: int) -> None:
    assert database.is_unavailable(failing(code))
    with pytest.raises(DatabaseUnavailable), database.explained():
        raise failing(code)


@pytest.mark.parametrize("kind", [IntegrityError, DataError, ProgrammingError])
def test_what_is_wrong_with_a_statement_or_a_value_is_neither(kind: type[DBAPIError]) -> None:
    error = kind("INSERT", {}, pymysql.err.MySQLError(1406, "Data too long"))

    assert not database.is_conflict(error)
    assert not database.is_unavailable(error)


def test_only_a_connection_found_dead_by_a_statement_is_tried_again_at_once() -> None:
    assert database.is_stale(failing(2006))
    assert not database.is_stale(failing(2006, statement=None))  # it came from COMMIT: who knows what was stored
    assert not database.is_stale(failing(2013, "Lost connection to MySQL server during query (timed out)"))


@pytest.mark.parametrize("message", ["database is locked", "database table is locked"])
def test_a_locked_file_is_a_conflict(message: str) -> None:
    assert database.is_conflict(OperationalError("INSERT", {}, sqlite3.OperationalError(message)))


@pytest.mark.parametrize("message", ["disk I/O error", "database or disk is full", "attempt to write a readonly database"])
def test_a_file_that_cannot_be_written_is_unavailable(message: str) -> None:
    assert database.is_unavailable(OperationalError("INSERT", {}, sqlite3.OperationalError(message)))


# --- the clock -----------------------------------------------------------------------------------------------------------


class Host:
    """A host's monotonic clock, moved by hand."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def monotonic(self) -> float:
        return self.seconds


class Server:
    """Answers what time it is, after a while."""

    def __init__(self, host: Host, microseconds: int) -> None:
        self.host, self.microseconds, self.asked, self.way_back = host, microseconds, 0, 0.0

    def execute(self, _question: Any) -> Server:
        self.asked += 1
        return self

    def scalar_one(self) -> int:
        answer = self.microseconds
        self.host.seconds += self.way_back
        return answer


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(database, "time", host)
    return host


def test_the_servers_clock_is_carried_on_and_asked_again_after_a_second(host: Host) -> None:
    clock, server = database.DatabaseClock(), Server(host, 5_000_000)

    assert clock.now(server) == 5_000  # type: ignore[arg-type]
    host.seconds += 0.5
    assert clock.now(server) == 5_500  # type: ignore[arg-type]
    assert server.asked == 1
    server.microseconds, host.seconds = 99_000_000, host.seconds + 0.75
    assert clock.now(server) == 99_000  # type: ignore[arg-type]
    assert server.asked == 2


def test_a_slow_answer_makes_the_estimate_late_and_never_early(host: Host) -> None:
    clock, server = database.DatabaseClock(), Server(host, 5_000_000)
    server.way_back = 0.4

    assert clock.now(server) == 5_000  # type: ignore[arg-type]
    host.seconds += 0.1
    assert clock.estimate() == 5_100  # in truth it is 5,500


def test_nobody_knows_the_time_before_the_server_was_asked() -> None:
    with pytest.raises(DatabaseUnavailable):
        database.DatabaseClock().estimate()


def test_the_question_is_right_in_any_zone(mariadb: MariaDB, mariadb_url: str) -> None:
    engines = database.open_engines(mariadb_url)
    before = time.time_ns() // 1_000_000
    with engines.read.connect() as conn:
        conn.execute(text("SET time_zone = '+09:30'"))
        now = database.DatabaseClock().now(conn)
    engines.dispose()

    assert before - 1 <= now <= time.time_ns() // 1_000_000


# --- a real server misbehaves -----------------------------------------------------------------------------------------------


def test_an_add_waits_out_a_lock_wait_timeout_and_leaves_no_half_transaction(mariadb: MariaDB, mariadb_url: str) -> None:
    scheduler = Scheduler.open(mariadb_url)
    scheduler.add(new_event("first"))
    other = mariadb.connect(mariadb_url.rsplit("/", 1)[1])
    other.begin()
    other.cursor().execute("INSERT INTO applications (application_id, created_at) VALUES ('contended', 1)")
    threading.Timer(database.LOCK_WAIT_SECONDS + 0.5, other.commit).start()

    scheduler.add(new_event("second", "contended"))  # the first try ends with 1205

    with mariadb.connect() as watching, watching.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM information_schema.innodb_trx")
        assert cursor.fetchone() == (0,)
    assert [event.event_id for event in scheduler.events("contended").events] == ["second"]
    other.close()
    scheduler.close()


def test_a_read_only_server_is_unavailable_and_good_again_afterwards(mariadb: MariaDB, mariadb_url: str) -> None:
    scheduler = Scheduler.open(mariadb_url)
    with mariadb.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE OR REPLACE USER 'plain'@'127.0.0.1'")
        cursor.execute("GRANT ALL ON *.* TO 'plain'@'127.0.0.1'")
        cursor.execute("REVOKE READ_ONLY ADMIN, SUPER ON *.* FROM 'plain'@'127.0.0.1'")
        scheduler.close()
        scheduler = Scheduler.open(mariadb_url.replace("root@", "plain@"))
        cursor.execute("SET GLOBAL read_only = 1")
        try:
            with pytest.raises(DatabaseUnavailable):
                scheduler.add(new_event())
        finally:
            cursor.execute("SET GLOBAL read_only = 0")

    assert scheduler.add(new_event()).event_id == "e1"
    scheduler.close()


def test_more_callers_than_connections_are_told_that_the_database_is_busy(mariadb_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler.open(mariadb_url, pool_size=1)
    monkeypatch.setattr(scheduler._engines.write.pool, "_timeout", 0.05)

    with scheduler._engines.write.begin(), pytest.raises(DatabaseUnavailable, match="in use"):
        scheduler.add(new_event())

    scheduler.close()


def test_an_add_beside_a_claim_does_not_wait(mariadb_url: str) -> None:
    """On an empty queue the ancestor's poller held a gap lock that made every add wait, and fail."""
    scheduler = Scheduler.open(mariadb_url)
    engines = database.open_engines(mariadb_url)
    with engines.write.begin() as claiming:
        assert store.lock_due(claiming, {1: store.BOTTOM}, 2**50, 2**50, {1: 5}) == []
        scheduler.add(new_event("beside", due_at=1))
    with engines.write.begin() as claiming:
        assert len(store.lock_due(claiming, {1: store.BOTTOM}, 2**50, 2**50, {1: 5})) == 1
        scheduler.add(new_event("beside-too", due_at=2))
    engines.dispose()
    scheduler.close()


# --- TLS -------------------------------------------------------------------------------------------------------------------


def self_signed(folder: Path) -> tuple[str, str]:
    """Write a certificate for 127.0.0.1 and its key; return the two files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
    (folder / "cert.pem").write_bytes(certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    written = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(written)
    return str(folder / "cert.pem"), str(folder / "key.pem")


def test_a_server_that_offers_tls_is_spoken_to_by_tls_and_by_many_connections(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    with running_mariadb(tmp_path, f"--ssl-cert={certificate}", f"--ssl-key={key}", "--require-secure-transport=OFF") as server:
        engines = database.open_engines(server.url("mysql"))
        with engines.read.connect() as one, engines.read.connect() as two, engines.write.connect() as three:
            ciphers = [conn.execute(text("SHOW SESSION STATUS LIKE 'Ssl_cipher'")).one()[1] for conn in (one, two, three)]
        engines.dispose()
        verifying = database.open_engines(f"{server.url('mysql')}?ssl_ca={certifi.where()}&ssl_verify_cert=true")
        with pytest.raises(OperationalError, match="certificate verify failed"):
            verifying.read.connect()

    assert all(ciphers)


def test_a_server_without_tls_is_spoken_to_without(mariadb: MariaDB, mariadb_url: str) -> None:
    engines = database.open_engines(mariadb_url)
    with engines.read.connect() as conn:
        assert conn.execute(text("SHOW SESSION STATUS LIKE 'Ssl_cipher'")).one()[1] == ""
    engines.dispose()
