"""The database itself: opening it, its rules for a connection, its clock, its errors and its tables' version."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, Dialect, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InternalError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random, wait_random_exponential

from cassata import config, schema, telemetry
from cassata.errors import ConfigError, DatabaseUnavailable, DatabaseUnfit, TablesMissing, TablesOutdated, TablesTooNew
from cassata.hosts import Host, Hosts, NoneUsable, Untried, split

LOCK_WAIT_SECONDS = 3
IDLE_TRANSACTION_SECONDS = 4
IDLE_CONNECTION_SECONDS = 60
SQLITE_BUSY_SECONDS = 10
UPGRADE_WAIT_SECONDS = 60
TRANSACTION_TRIES = 5
TRANSACTION_SECONDS = 4.0
"""No further try begins after that: one that has waited for a lock to the end of its patience would only wait again."""

# Of the nodes of a Galera cluster each may lag behind by some writes. Before a transaction that begins by reading, updating or
# deleting, have it catch up: else what another node has acknowledged would be unknown, and a claim not be one's own.
_SYNC_READS_AND_UPDATES = 1 | 2

T = TypeVar("T")

# --- errors ------------------------------------------------------------------------------------------------------------

# Deadlock, lock wait timeout, row changed (MariaDB snapshot isolation), Group Replication and Galera conflicts, and a
# statement that was killed or ran out of time.
_CONFLICTS = frozenset({1213, 1205, 1020, 3101, 1317, 1969, 3024})
# Galera node not ready, shutting down, error during COMMIT, too many connections, read-only: this connection is of no
# use any more, though SQLAlchemy does not call it disconnected.
_USELESS = frozenset({1047, 1053, 1180, 1040, 1203, 1290, 1792, 1836})
_READ_ONLY = 1290
_REFUSED = frozenset({1044, 1045, 1698})
_CANNOT_CONNECT = 2003
# Cannot connect, gone away, lost, wrong packets, idle for too long, killed; and PyMySQL's own (0, '') on a closed socket.
_LOST = frozenset({0, 1927, 2002, 2003, 2006, 2013, 2014, 2055, 4031})


def is_conflict(error: BaseException | None) -> bool:
    """Tell whether the same transaction may well succeed when it is begun again. It has left nothing behind."""
    if not isinstance(error, DBAPIError):
        return False
    return _code(error) in _CONFLICTS or (isinstance(error, OperationalError) and _is_locked(error))


def is_unavailable(error: BaseException) -> bool:
    """Tell whether it is the database that is in trouble: away, read-only, full, out of something.

    The drivers say so by the kind of their error. What is wrong with a statement or a value is an error of other kinds.
    """
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or isinstance(error, OperationalError | InternalError | InterfaceError)


def is_stale(error: BaseException) -> bool:
    """Tell whether a pooled connection had died unnoticed, so that a new one may work at once.

    Only while a statement ran: when COMMIT itself failed (no statement), the transaction may have been stored.
    """
    return (
        isinstance(error, DBAPIError)
        and error.statement is not None
        and (error.connection_invalidated or _code(error) in _LOST)
        and "timed out" not in str(error.orig)
    )


def _code(error: DBAPIError) -> int | None:
    arguments = getattr(error.orig, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None


def _drop_useless_connections(context: ExceptionContext) -> None:
    if isinstance(context.original_exception, Exception) and context.original_exception.args[:1]:
        context.is_disconnect = context.is_disconnect or context.original_exception.args[0] in _USELESS


# --- opening -----------------------------------------------------------------------------------------------------------


class Engines(NamedTuple):
    """Two doors to one database: `write` for transactions, `read` for single statements, which then cost one round trip:
    questions, and the one INSERT that needs nothing else.
    """

    write: Engine
    read: Engine

    def dispose(self) -> None:
        self.write.dispose()
        self.read.dispose()

    def use(self) -> tuple[int, int]:
        """Return how many connections are in use, and how many there may be."""
        pools = [pool for pool in (self.write.pool, self.read.pool) if isinstance(pool, QueuePool)]
        return sum(pool.checkedout() for pool in pools), sum(pool.size() for pool in pools)


def open_engines(url: str, settings: config.Database | None = None, *, pool_size: int = 5) -> Engines:
    """Prepare, without connecting or creating anything yet. Raises ConfigError for a URL that cannot be used.

    Where its URL names several hosts, each connection goes to the first that answers, is a working part of its cluster and
    may be written to.
    """
    settings = settings or config.Database()
    parsed = check_url(url)
    # An error that is logged must not quote payloads, headers and answers.
    options: dict[str, Any] = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": 5, "hide_parameters": True}
    if parsed.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": SQLITE_BUSY_SECONDS}
        prepare = _prepare_sqlite
    else:
        options["pool_recycle"] = IDLE_CONNECTION_SECONDS - 15
        # Every block ends its transaction itself; resetting on return would cost a needless ROLLBACK, a round trip each.
        options["pool_reset_on_return"] = None
        options["connect_args"] = {
            "connect_timeout": max(1, int(settings.connect_timeout_seconds)),
            "read_timeout": settings.read_timeout_seconds,
            "write_timeout": settings.write_timeout_seconds,
            "charset": "utf8mb4",
        }
        prepare = _prepare_mysql
    reading = {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True}
    engines = Engines(create_engine(parsed, **options), create_engine(parsed, **reading, **options))
    dial = _dialled_by(parsed, _untried(url).hosts)
    for engine in engines:
        if dial is not None:
            event.listen(engine, "do_connect", dial)
        event.listen(engine, "connect", prepare)
        event.listen(engine, "handle_error", _drop_useless_connections)
    if parsed.get_backend_name() == "sqlite":
        event.listen(engines.write, "begin", _begin_sqlite)
    return engines


Dial = Callable[[Dialect, Any, Any, Any], Any]
"""How SQLAlchemy has somebody else make a connection: the dialect, its record in the pool, what the driver is to be given."""


def _dialled_by(url: URL, hosts: Sequence[Host]) -> Dial | None:
    """Return how connections are made, if not in the driver's way."""
    if url.get_backend_name() == "sqlite":
        return None
    usual: Dial | None = _dial_with_pymysql if url.get_driver_name() == "pymysql" else None
    return usual if len(hosts) == 1 else _dial_one_of(Hosts(hosts), usual)


def _dial_with_pymysql(_dialect: Dialect, _record: Any, arguments: Any, options: Any) -> Any:
    return _pymysql_connection()(*arguments, **options)


def _dial_one_of(hosts: Hosts, usual: Dial | None) -> Dial:
    def dial(dialect: Dialect, record: Any, arguments: Any, options: Any) -> Any:
        driver = dialect.loaded_dbapi

        def at(host: Host) -> Any:
            there = {**options, "host": host.name, "port": host.port}
            connection = usual(dialect, record, arguments, there) if usual else dialect.connect(*arguments, **there)
            try:
                if reason := _unusable(connection):
                    raise driver.OperationalError(_READ_ONLY, reason)
            except BaseException:
                connection.close()
                raise
            return connection

        try:
            return hosts.connect(at, driver.Error)
        except NoneUsable as error:
            refused = [code for _, failure in error.failures if (code := failure.args[0] if failure.args else None) in _REFUSED]
            raise driver.OperationalError(refused[0] if refused else _CANNOT_CONNECT, f"no host can be used: {error}") from error

    return dial


def _unusable(connection: Any) -> str | None:
    """Say why this server is not one to work with, though it answers. SHOW is answered even outside of a cluster's majority."""
    with connection.cursor() as cursor:
        if _is_in_cluster(cursor) and _shown(cursor, "GLOBAL STATUS", "wsrep_ready") == "OFF":
            return "it is not a working part of its cluster"
        return "it is read-only" if _shown(cursor, "GLOBAL VARIABLES", "read_only") != "OFF" else None


def _is_in_cluster(cursor: Any) -> bool:
    return _shown(cursor, "VARIABLES", "wsrep_on") == "ON"


def _shown(cursor: Any, what: str, name: str) -> str | None:
    cursor.execute(f"SHOW {what} LIKE '{name}'")
    found = cursor.fetchone()
    return found[1] if found else None


@cache
def _pymysql_connection() -> Any:
    """PyMySQL's connection, but for two things.

    Where nothing is said about TLS, PyMySQL uses it if the server can, and verifies nobody; and yet it reads all certificate
    authorities for every connection, which costs 21 ms of CPU, and 1.1 MB that stay. Here none are read, once. And the
    time-out for connecting holds for all of it: the port of a server that hangs still accepts, and would be waited for longer.
    """
    from pymysql.connections import Connection

    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE

    class WithSharedContext(Connection):
        _read_timeout: float | None

        def _create_ssl_ctx(self, sslp: Any) -> Any:
            return super()._create_ssl_ctx(sslp) if sslp else unverified  # type: ignore[misc]

        def connect(self, sock: Any = None) -> None:
            usual, self._read_timeout = self._read_timeout, self.connect_timeout
            try:
                super().connect(sock)
            finally:
                self._read_timeout = usual

    return WithSharedContext


def check_url(url: str) -> URL:
    """Read the URL of a database, of several hosts the first. Raises ConfigError, which never quotes it: it may hold a password."""
    untried = _untried(url)
    try:
        parsed = make_url(untried.url)
        known = {"mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}
        parsed = parsed.set(drivername=known.get(parsed.drivername, parsed.drivername))
        if parsed.drivername.split("+")[0] not in {"sqlite", "mysql", "mariadb"}:
            raise ConfigError("database.url must begin with mysql+pymysql://, mariadb+pymysql:// or sqlite:///")
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigError(f"database.url cannot be used: {error}") from error
    if not parsed.database or parsed.database == ":memory:":
        raise ConfigError("database.url must name a database: sqlite:///FILE or mysql+pymysql://USER:PASSWORD@HOST/NAME")
    if len(untried.hosts) > 1 and "unix_socket" in parsed.query:
        raise ConfigError("database.url names several hosts, and a unix_socket, which is on this one only")
    return parsed


def _untried(url: str) -> Untried:
    try:
        return split(url)
    except ValueError as error:
        raise ConfigError(f"database.url cannot be read: {error}") from None


def _prepare_mysql(connection: Any, _record: Any) -> None:
    """READ COMMITTED, since gap locks would make adds wait beside a claim; and short waits everywhere.

    A host that vanishes inside a claim keeps its rows locked for as long as the server keeps its transaction: eight
    hours by default (wait_timeout), here seconds.
    """
    session = [
        "time_zone = '+00:00'",
        "sql_mode = CONCAT_WS(',', NULLIF(@@sql_mode, ''), 'STRICT_ALL_TABLES')",
        f"innodb_lock_wait_timeout = {LOCK_WAIT_SECONDS}",
        f"wait_timeout = {IDLE_CONNECTION_SECONDS}",
    ]
    if "mariadb" in connection.get_server_info().lower():
        session.append(f"idle_transaction_timeout = {IDLE_TRANSACTION_SECONDS}")
        session.append("in_predicate_conversion_threshold = 0")  # from 1,000 on, IN would become a join, in no order
    with connection.cursor() as cursor:
        if _is_in_cluster(cursor):
            session.append(f"wsrep_sync_wait = @@wsrep_sync_wait | {_SYNC_READS_AND_UPDATES}")
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute(f"SET SESSION {', '.join(session)}")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # no transaction begins by itself: _begin_sqlite does it
    connection.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_SECONDS * 1000}")
    connection.execute("PRAGMA synchronous = FULL")
    # Going over to WAL, once in the life of a file, fails at once beside another connection, whatever the busy_timeout.
    again = Retrying(
        stop=stop_after_delay(SQLITE_BUSY_SECONDS), wait=wait_random(0.01, 0.1), retry=retry_if_exception(_is_locked), reraise=True
    )
    again(connection.execute, "PRAGMA journal_mode = WAL")


def _is_locked(error: BaseException) -> bool:
    return "database is locked" in str(error) or "database table is locked" in str(error)


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at once: a transaction that writes only later fails with SQLITE_BUSY_SNAPSHOT, however long it waits."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


# --- transactions ------------------------------------------------------------------------------------------------------


@contextmanager
def _ended_for_sure(conn: Connection) -> Iterator[None]:
    """Roll back after a COMMIT that failed: SQLAlchemy takes its transaction for ended, though the server may keep it open.

    The next one on the same connection would then commit what was to be given up, and is being tried again.
    """
    try:
        yield
    except DBAPIError as error:
        if error.statement is None and not conn.invalidated:
            try:
                conn.dialect.do_rollback(conn.connection)
            except Exception:  # noqa: BLE001 - whatever it is, that connection is of no use, and the first error says why
                conn.invalidate()
        raise


class BeginAnew(Exception):
    """What a transaction took for granted is not so: it has to be begun anew, this time looking first."""


class Transactions:
    """Runs the work of a use-case: as one transaction, or as questions, and the whole of it again where that may help."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    def write(self, work: Callable[[Connection, int], T], *, retry_duplicates: bool = False) -> T:
        """Run `work(connection, tries)` in a transaction of its own."""

        def once(tries: int) -> T:
            with self._engines.write.connect() as conn, _ended_for_sure(conn), conn.begin():
                return work(conn, tries)

        return self._again(once, retry_duplicates=retry_duplicates)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run single reading statements, each seeing what is committed when it begins."""

        def once(_tries: int) -> T:
            with self._engines.read.connect() as conn:
                return work(conn)

        return self._again(once)

    def _again(self, once: Callable[[int], T], *, retry_duplicates: bool = False) -> T:
        def may_help(error: BaseException) -> bool:
            if isinstance(error, IntegrityError):
                return retry_duplicates
            return isinstance(error, BeginAnew) or is_conflict(error) or is_stale(error)

        def is_over(state: RetryCallState) -> bool:
            """Tell whether to give up. To begin anew is no failure, and is done once more even if the process has stood still for long."""
            is_new = state.outcome is not None and isinstance(state.outcome.exception(), BeginAnew)
            return state.attempt_number >= TRANSACTION_TRIES or (not is_new and stop_after_delay(TRANSACTION_SECONDS)(state))

        again = Retrying(
            stop=is_over,
            wait=wait_random_exponential(multiplier=0.01, max=0.2),
            retry=retry_if_exception(may_help),
            reraise=True,
        )
        with explained():
            for attempt in again:
                if attempt.retry_state.attempt_number > 1:
                    telemetry.tell("begun anew")
                with attempt:
                    return once(attempt.retry_state.attempt_number)
        raise AssertionError("tenacity returns or raises")


# --- its clock ---------------------------------------------------------------------------------------------------------


class Clock(Protocol):
    """What time the database has it: that clock decides what is due."""

    def now(self, connection: Connection) -> int:
        """Return the instant by the database's clock, asking it where the last answer is too old."""
        ...

    def estimate(self) -> int:
        """Return the instant as far as is known without asking; never later than the truth."""
        ...


class HostClock:
    """SQLite lives on this host and has no clock of its own."""

    def now(self, connection: Connection) -> int:  # noqa: ARG002
        return self.estimate()

    def estimate(self) -> int:
        return time.time_ns() // 1_000_000


class DatabaseClock:
    """The clock of a MySQL or MariaDB server, carried on by this host's monotonic clock between two looks at it.

    Wrong or stepping wall clocks of the hosts that run Cassata therefore do not matter.
    """

    _LONGEST_SECONDS = 1.0
    # UNIX_TIMESTAMP(NOW()) would be an hour off in the fold of a session zone with daylight saving.
    _QUESTION = text("SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))")

    def __init__(self) -> None:
        self._sample: tuple[float, float] | None = None  # (database ms, monotonic seconds); replaced whole, by any thread

    def now(self, connection: Connection) -> int:
        sample = self._sample
        if sample is None or time.monotonic() - sample[1] > self._LONGEST_SECONDS:
            database_ms = connection.execute(self._QUESTION).scalar_one() / 1000
            # Taken after the answer came: what the way back cost makes the estimate late, never early.
            self._sample = (database_ms, time.monotonic())
        return self.estimate()

    def estimate(self) -> int:
        if self._sample is None:
            raise DatabaseUnavailable("the database has not been asked for the time yet")
        database_ms, taken = self._sample
        return int(database_ms + (time.monotonic() - taken) * 1000)


def clock_of(engines: Engines) -> Clock:
    return HostClock() if engines.write.dialect.name == "sqlite" else DatabaseClock()


# --- its tables --------------------------------------------------------------------------------------------------------


def check(engines: Engines, payload_bytes: int) -> None:
    """Raise DatabaseUnfit (or one of its kinds) unless this code can work on the database as it is, with payloads of that size."""
    url = engines.read.url
    if engines.read.dialect.name == "sqlite" and not Path(url.database or "").exists():
        raise TablesMissing  # to look into it would make an empty file
    with engines.read.connect() as connection:
        _check_server(connection, payload_bytes)
        check_version(connection)


def check_version(connection: Connection) -> None:
    """Raise TablesMissing, TablesOutdated or TablesTooNew unless the tables are at this code's version."""
    version = table_version(connection)
    if version is None:
        raise TablesMissing
    if version < schema.VERSION:
        raise TablesOutdated
    if version > schema.VERSION:
        raise TablesTooNew


def table_version(connection: Connection) -> str | None:
    """Return the migration the tables are at, None if there are none."""
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return version


def _check_server(connection: Connection, payload_bytes: int) -> None:
    if connection.dialect.name == "sqlite":
        return
    facts = connection.execute(
        text(
            "SELECT VERSION(), @@max_allowed_packet, @@innodb_flush_log_at_trx_commit, @@transaction_isolation"
            if not getattr(connection.dialect, "is_mariadb", False)
            else "SELECT VERSION(), @@max_allowed_packet, @@innodb_flush_log_at_trx_commit, @@tx_isolation"
        )
    ).one()
    version, packet, flush, isolation = facts
    mariadb = "mariadb" in version.lower()
    if _version_numbers(version) < ((10, 6) if mariadb else (8, 0)):
        raise DatabaseUnfit(f"the server is {version}: Cassata needs MySQL 8.0 or MariaDB 10.6, for SKIP LOCKED")
    needed = max(4 * 1024 * 1024, 2 * payload_bytes + 1024 * 1024)  # every byte may be escaped, and an answer be handed on beside it
    if packet < needed:
        raise DatabaseUnfit(f"the server's max_allowed_packet is {packet}: set it to {needed} or more, so that payloads fit")
    if isolation != "READ-COMMITTED":
        raise DatabaseUnfit(f"the session's isolation is {isolation}, not READ-COMMITTED: a proxy or init_connect resets it")
    if flush != 1:
        telemetry.emit("database not durable", level="warning", hint="set innodb_flush_log_at_trx_commit = 1, or a crash loses adds")


def _version_numbers(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split("-")[0].split(".")
    return int(major), int(minor)


def upgrade(url: str, settings: config.Database | None = None) -> str:
    """Bring the tables to the newest version and return it. Two that start at once take turns."""
    engines = open_engines(url, settings)
    try:
        with explained():
            return make_tables(engines)
    finally:
        engines.dispose()


def downgrade(url: str, version: str, settings: config.Database | None = None) -> str | None:
    """Bring the tables back to an older version ("base": none at all), and return it. What only the newer ones can hold is lost.

    Raises ConfigError for a version that is none, or is newer. No process may run on them meanwhile.
    """
    engines = open_engines(url, settings)
    try:
        with explained(), engines.write.connect() as connection, _upgrade_lock(connection):
            now = table_version(connection)
            if version != "base" and (now is None or version > now or version not in _versions()):
                raise ConfigError(f"there is no version {version!r} before {now}: known are base, {', '.join(_versions())}")
            _run_migrations(connection, back_to=version)
            connection.commit()
            left = table_version(connection)
            connection.rollback()
            return left
    finally:
        engines.dispose()


def _versions() -> list[str]:
    from alembic.script import ScriptDirectory

    return sorted(script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions())


def make_tables(engines: Engines) -> str:
    """Do the work of `upgrade` on engines that are there already; make an SQLite file, and its folder, for its owner alone."""
    if engines.write.dialect.name == "sqlite":
        _make_file(Path(engines.write.url.database or ""))
    with engines.write.connect() as connection, _upgrade_lock(connection):
        if table_version(connection) != schema.VERSION:
            _run_migrations(connection)
        connection.commit()
        version = table_version(connection)
        connection.rollback()
    if version is None:
        raise TablesMissing
    return version


def _make_file(file: Path) -> None:
    """Make an empty SQLite file unless there is one: SQLite gives -wal and -shm the same rights.

    One that is there is not opened: to close it again would take away the locks that this process has on it (fcntl(2)).
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not str(file).startswith("file:"):
        with suppress(FileExistsError):
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _run_migrations(connection: Connection, *, back_to: str | None = None) -> None:
    from alembic import command  # a third of a second to import, and hardly ever needed
    from alembic.util.exc import CommandError

    settings = alembic_config()
    settings.attributes["connection"] = connection
    try:
        if back_to is None:
            command.upgrade(settings, "head")
        else:
            command.downgrade(settings, back_to)
    except CommandError as error:
        raise TablesTooNew from error


def alembic_config() -> Any:
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(migrations()))
    return settings


def migrations() -> Path:
    """Return the folder of the migrations: inside an installed package, else the checkout's `sql/`."""
    packaged = Path(str(files("cassata"))) / "_sql"
    return packaged if packaged.is_dir() else Path(str(files("cassata"))).parent / "sql"


@contextmanager
def _upgrade_lock(connection: Connection) -> Iterator[None]:
    """Let one upgrade run at a time: on SQLite the write transaction does it already, on MySQL DDL commits by itself."""
    if connection.dialect.name == "sqlite":
        yield
        return
    taken = connection.execute(text("SELECT GET_LOCK('cassata_upgrade', :seconds)"), {"seconds": UPGRADE_WAIT_SECONDS}).scalar()
    if taken != 1:
        raise DatabaseUnavailable("another upgrade of the tables has been running for a minute: try again when it is done")
    try:
        yield
    finally:
        connection.execute(text("SELECT RELEASE_LOCK('cassata_upgrade')"))
        connection.commit()


@contextmanager
def explained() -> Iterator[None]:
    """Turn the driver's word that the database is away, or too busy, into DatabaseUnavailable."""
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseUnavailable("all connections to the database are in use") from error
    except DBAPIError as error:
        if _code(error) in _REFUSED:
            raise DatabaseUnavailable(f"the database refuses the login: {_reason(error)}") from error
        if is_unavailable(error) or is_conflict(error):
            raise DatabaseUnavailable(f"the database is not available: {_reason(error)}") from error
        raise
    except RuntimeError as error:
        if "cryptography" in str(error):  # what PyMySQL says of MySQL's own logins
            raise DatabaseUnfit("this login needs TLS, which the server has not, or the package 'cryptography' beside PyMySQL") from error
        raise


def _reason(error: DBAPIError) -> str:
    arguments = getattr(error.orig, "args", ())
    return str(arguments[-1]) if arguments else str(error.orig)
