"""A MariaDB with Cassata's own tables, and rows made fast: what the measurements inside Cassata stand on."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymysql

import cassata.database
from bench import machine, servers
from bench.base import Place
from bench.servers import Server
from cassata.tenants import new_secret
from cassata.vault import Vault

APPLICATION = 1
FLUSH_SECONDS = 120
FEW_PAGES = 100
ROWS_PER_INSERT = 250_000


class Database:
    """A server with Cassata's tables, and one connection of our own to it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._connection = connect(server.url)

    @property
    def url(self) -> str:
        return self.server.url

    def close(self) -> None:
        self._connection.close()

    def execute(self, statement: str) -> int:
        """Run it, and return how many rows it changed."""
        with self._connection.cursor() as cursor:
            return int(cursor.execute(statement))

    def scalar(self, question: str) -> Any:
        with self._connection.cursor() as cursor:
            cursor.execute(question)
            row = cursor.fetchone()
        return row[0] if row else None

    def counter(self, name: str) -> int:
        """Return one of SHOW GLOBAL STATUS."""
        with self._connection.cursor() as cursor:
            cursor.execute("SHOW GLOBAL STATUS LIKE %s", (name,))
            row = cursor.fetchone()
        return int(row[1]) if row else 0

    def connections(self) -> int:
        """Return how many there are, but for this one."""
        return int(self.scalar("SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'root'")) - 1

    def cpu_seconds(self) -> float:
        return machine.cpu_seconds(self.server.pids())

    def empty(self) -> None:
        for table in ("events", "attempts", "applications", "holdings", "paces", "breakers"):
            self.execute(f"TRUNCATE TABLE {table}")

    def is_done(self) -> bool:
        """Tell whether every event has ended."""
        return self.scalar("SELECT 1 FROM events WHERE wake_at > 0 LIMIT 1") is None

    def add_applications(self, count: int) -> None:
        """Register applications 1 to `count`, each with a signing secret, as they have when they are made."""
        open_secrets = Vault().written("any", (new_secret(),))
        name, secrets = "CONCAT('application-', seq)", f"'{open_secrets}'"
        columns = "id, application_id, created_at, secrets"
        self.execute(f"INSERT INTO applications ({columns}) SELECT seq, {name}, 0, {secrets} FROM seq_1_to_{count}")

    def add_events(
        self, count: int, *, wake_at: str, url: str = "http://127.0.0.1:9/e/", applications: int = 1, finished: bool = False
    ) -> None:
        """Add `count` rows as the service would have written them, numbered from 1 in their URL.

        `wake_at` is an SQL expression of `seq`, the number: milliseconds since 1970, which finished events were due at.
        The event ids are as random as those that Cassata makes; the rows' own ids have no gaps.
        """
        before = self.scalar("SELECT COALESCE(MAX(id), 0) FROM events")
        salt = time.time_ns()
        columns = "id, application, event_id, status, due_at, wake_at, fence, attempts, lost_leases, method, url, payload, request_hash"
        for first in range(1, count + 1, ROWS_PER_INSERT):
            last = min(count, first + ROWS_PER_INSERT - 1)
            self.execute(
                f"""INSERT INTO events ({columns}, created_at, finished_at)
                    SELECT {before} + seq, 1 + seq % {applications}, MD5(CONCAT('{salt}-', seq)), {2 if finished else 0}, {wake_at},
                        {"NULL" if finished else wake_at}, {1 if finished else 0}, {1 if finished else 0}, 0, 'POST', CONCAT('{url}', seq),
                        '{{"order": 7}}', UNHEX(SHA2(seq, 256)), {wake_at} - 5000, {f"{wake_at} + 5" if finished else "NULL"}
                    FROM seq_{first}_to_{last}"""
            )

    def settle(self) -> None:
        """Wait until purge has removed what earlier statements left behind, so that one measurement does not pay for another."""
        self.execute("SET GLOBAL innodb_max_purge_lag_wait = 0")

    def flush(self) -> None:
        """Wait until what was made up is in its files, so that no measurement pays for writing it there."""
        hurried = {"innodb_io_capacity_max": 40_000, "innodb_io_capacity": 20_000, "innodb_max_dirty_pages_pct": 0}
        usual = {name: self.scalar(f"SELECT @@{name}") for name in hurried}
        for name, value in hurried.items():
            self.execute(f"SET GLOBAL {name} = {value}")
        machine.wait_until(lambda: self.counter("Innodb_buffer_pool_pages_dirty") < FEW_PAGES, seconds=FLUSH_SECONDS, every=0.2)
        for name in reversed(usual):
            self.execute(f"SET GLOBAL {name} = {usual[name]}")

    def settings_for_filling(self, *, filling: bool) -> None:
        """Commits need not be durable while rows are only made up."""
        self.execute(f"SET GLOBAL innodb_flush_log_at_trx_commit = {0 if filling else 1}")
        self.execute(f"SET unique_checks = {0 if filling else 1}")


@contextmanager
def fresh(place: Place, *, preload: Path | None = None) -> Iterator[Database]:
    """Run a MariaDB of its own, with Cassata's tables."""
    folder = Path(tempfile.mkdtemp(dir=place.folder, prefix="inside-"))
    with servers.mariadb(folder, preload=preload) as server:
        cassata.database.upgrade(server.url)
        database = Database(server)
        try:
            yield database
        finally:
            database.close()


def connect(url: str, **options: Any) -> pymysql.Connection[Any]:
    """Open a bare connection, with the rules that Cassata has for its own."""
    address, name = url.removeprefix("mysql+pymysql://root@").split("/")
    host, port = address.split(":")
    connection = pymysql.connect(host=host, port=int(port), user="root", database=name, autocommit=True, **options)
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
    return connection


def now_ms() -> int:
    """The database is on this machine: its clock is this one."""
    return time.time_ns() // 1_000_000
