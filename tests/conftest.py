"""Shared fixtures: a private MariaDB, a fresh database per test, and real service and worker processes.

| fixture | what it gives |
|---|---|
| `mariadb` | a private MariaDB server for the whole run; tests that need it are skipped, loudly, where there is none |
| `empty_mariadb_url`, `empty_sqlite_url` | a new database without tables |
| `mariadb_url`, `sqlite_url` | a database with tables that is as new |
| `database_url` | both of the last, one after the other: for conformance tests |
| `scheduler` | an open Scheduler on `database_url` |
| `free_port` | a function: a TCP port that nobody listens on |
| `service_process`, `worker_process` | functions that start the real thing and return once it is ready; they always end it |
| `cassata_process` | a function: start any `cassata` command, and always end it |
| `run_cassata` | a function: run one `cassata` command to its end |
| `is_long` | whether searches are to take minutes (`--long`) |
| `figure` | a function: have a line shown at the end of the run |
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymysql
import pytest

if TYPE_CHECKING:
    from cassata.scheduler import Scheduler

FAULT_SEED = "CASSATA_FAULT_SEED"
"""The variable by which a run of the fault tests is repeated."""
NO_MARIADB = "no MariaDB here: neither mariadbd nor mysqld was found (bin/test installs it where it may)"
NO_FAKETIME = "no libfaketime here, so clocks were not set wrong (bin/test installs it where it may)"
NO_PROMTOOL = "no promtool here, so nobody but us has read the alerts and the metrics (apt-get install prometheus)"
NO_BROWSER = "no chromium or no playwright here (bin/test --browser installs both where it may)"
NO_DUMP = "no mariadb-dump here, so nothing was backed up (apt-get install mariadb-client)"
NO_HISTORY = "no git history here, so no older Cassata was run on these tables"
NO_GALERA = "no Galera here (apt-get install mariadb-server galera-4 rsync iproute2)"
CHECKOUT = Path(__file__).resolve().parent.parent
FORGETFUL = ("--loose-debug-no-sync", "--innodb-flush-method=nosync", "--innodb-doublewrite=OFF")
"""What is written survives the server's own end, not the machine's: a database for each test would wait most for its disk."""

TRACES = (
    "information_schema.processlist WHERE id <> CONNECTION_ID() AND db",
    "information_schema.triggers WHERE event_object_schema",
    "information_schema.routines WHERE routine_schema",
    "mysql.db WHERE db",
    "mysql.tables_priv WHERE db",
)
"""Where a test leaves traces of a database that are not in its tables: a connection, code, somebody who may use it."""


# --- MariaDB ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MariaDB:
    """A private server, with the defaults of its package where they matter: latin1, REPEATABLE READ, case-folding collations."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    def connect(self, database: str | None = None) -> pymysql.Connection[Any]:
        # Without `ssl_disabled` it reads all certificates of the machine first, which takes longer than most of what is asked.
        return pymysql.connect(host="127.0.0.1", port=self.port, user="root", database=database, autocommit=True, ssl_disabled=True)

    def url(self, database: str) -> str:
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/{database}"

    def create_database(self, statements: list[str]) -> str:
        name = f"t_{uuid.uuid4().hex[:12]}"
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
            cursor.execute(f"USE {name}")
            cursor.execute("SET foreign_key_checks = 0")
            for statement in statements:
                cursor.execute(statement)
        return name

    def is_as_new(self, name: str, statements: list[str]) -> bool:
        """Empty a database that `statements` made, and tell whether it is what it was: nobody holds or has changed it."""
        with self.connect(name) as connection, connection.cursor() as cursor:
            for traces in TRACES:
                if cursor.execute(f"SELECT 1 FROM {traces} = DATABASE() LIMIT 1"):
                    return False
            cursor.execute("SET foreign_key_checks = 0")
            for table in _used_tables(cursor):
                cursor.execute(f"TRUNCATE TABLE {table}")
        return self.statements_of(name) == statements

    def drop_database(self, name: str) -> None:
        """Drop it even while a forgotten connection holds a lock in it."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (name,))
            for (number,) in cursor.fetchall():
                with contextlib.suppress(pymysql.Error):
                    cursor.execute(f"KILL {number}")
            cursor.execute(f"DROP DATABASE {name}")

    def statements_of(self, database: str) -> list[str]:
        """Read the statements that make `database` anew, with the row that names the version of its tables."""
        with self.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute("SHOW TABLES")
            tables = [row[0] for row in cursor.fetchall()]
            statements = []
            for table in tables:
                cursor.execute(f"SHOW CREATE TABLE {table}")
                statements.append(cursor.fetchone()[1])  # type: ignore[index]
                statements += _rows_of(cursor, table)
        return statements


def _rows_of(cursor: Any, table: str) -> Iterator[str]:
    cursor.execute(f"SELECT * FROM {table}")
    for row in cursor.fetchall():
        yield f"INSERT INTO {table} VALUES ({', '.join(cursor.connection.escape(value) for value in row)})"


def _used_tables(cursor: Any) -> list[str]:
    """Name those that have rows, or had, but for that of the version."""
    cursor.execute(
        "SELECT table_name, auto_increment > 1 FROM information_schema.tables"
        " WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE' AND table_name <> 'alembic_version'"
    )
    tables = dict(cursor.fetchall())
    return [table for table, has_counted in tables.items() if has_counted or cursor.execute(f"SELECT 1 FROM {table} LIMIT 1")]


def find_program(*names: str) -> str | None:
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    return next(filter(None, (shutil.which(name, path=search) for name in names)), None)


def server_program() -> str:
    """Find the server; skip the test where there is none."""
    server = find_program("mariadbd", "mysqld")
    if server is None:
        pytest.skip(NO_MARIADB)
    return server


def die_with_parent() -> None:
    """Have Linux kill this child when the test run ends, however it ends (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def initialise(server: str, data: Path, user: str, *options: str) -> None:
    """Make the system tables, with a root user that needs no password on 127.0.0.1."""
    if install := find_program("mariadb-install-db", "mysql_install_db"):
        command = [install, "--no-defaults", f"--user={user}", f"--datadir={data}"]
        command += ["--auth-root-authentication-method=normal", "--skip-test-db"]
    else:
        command = [server, "--no-defaults", f"--user={user}", f"--datadir={data}", "--initialize-insecure"]
    subprocess.run([*command, *FORGETFUL, *options], check=True, capture_output=True, env=_own_temporary_folder(data.parent))


def _own_temporary_folder(folder: Path) -> dict[str, str]:
    """A server that starts removes the temporary tables it finds: another one's, where they share the folder."""
    return {**os.environ, "TMPDIR": str(folder)}


def serve(server: str, folder: Path, user: str, port: int, *options: str) -> subprocess.Popen[bytes]:
    command = [server, "--no-defaults", f"--user={user}", f"--datadir={folder / 'data'}", f"--port={port}"]
    command += ["--bind-address=127.0.0.1", f"--socket={folder / 'socket'}", f"--pid-file={folder / 'pid'}"]
    command += ["--innodb-buffer-pool-size=64M", "--skip-log-bin", "--performance-schema=OFF"]
    command += ["--innodb-flush-log-at-trx-commit=2", "--max-connections=400", *options]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command, env=_own_temporary_folder(folder), stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent
        )


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    with running_mariadb(tmp_path_factory.mktemp("db")) as server:
        yield server


@contextlib.contextmanager
def running_mariadb(folder: Path, *options: str) -> Iterator[MariaDB]:
    """Run a private server that does not wait for its disk; skip the test where there is none."""
    server = server_program()
    user = pwd.getpwuid(os.getuid()).pw_name
    initialise(server, folder / "data", user)
    port = unused_port()
    running = MariaDB(serve(server, folder, user, port, *FORGETFUL, *options), port, folder)
    try:
        await_server(running)
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        shutil.rmtree(folder / "data", ignore_errors=True)


def await_server(server: MariaDB) -> None:
    def answers() -> bool:
        try:
            server.connect().close()
        except pymysql.Error:
            return server.process.poll() is not None
        return True

    def log() -> str:
        return (server.folder / "log").read_text()[-4000:]

    wait_until(answers, 30, log)
    if server.process.poll() is not None:
        pytest.fail(f"MariaDB did not start:\n{log()}")


@pytest.fixture(scope="session")
def _mariadb_tables(mariadb: MariaDB) -> list[str]:
    """Have the migrations run once; each test gets a copy of what they made."""
    from cassata import database

    name = mariadb.create_database([])
    database.upgrade(mariadb.url(name))
    statements = mariadb.statements_of(name)
    mariadb.drop_database(name)
    return statements


@pytest.fixture
def empty_mariadb_url(mariadb: MariaDB) -> Iterator[str]:
    name = mariadb.create_database([])
    yield mariadb.url(name)
    mariadb.drop_database(name)


@pytest.fixture(scope="session")
def _spare_databases() -> list[str]:
    """Those with tables that tests have done with: to empty one takes a tenth of the time that it takes to make one."""
    return []


@pytest.fixture
def mariadb_url(mariadb: MariaDB, _mariadb_tables: list[str], _spare_databases: list[str]) -> Iterator[str]:
    name = _spare_databases.pop() if _spare_databases else mariadb.create_database(_mariadb_tables)
    yield mariadb.url(name)
    if mariadb.is_as_new(name, _mariadb_tables):
        _spare_databases.append(name)
    else:
        mariadb.drop_database(name)


# --- SQLite -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _sqlite_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cassata import database

    file = tmp_path_factory.mktemp("sqlite") / "template.db"
    database.upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'cassata.db'}"


@pytest.fixture
def sqlite_url(tmp_path: Path, _sqlite_tables: Path) -> str:
    shutil.copyfile(_sqlite_tables, tmp_path / "cassata.db")
    return f"sqlite:///{tmp_path / 'cassata.db'}"


# --- every database -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "mariadb"])
def database_url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def scheduler(database_url: str) -> Iterator[Scheduler]:
    from cassata.scheduler import Scheduler

    opened = Scheduler.open(database_url)
    yield opened
    opened.close()


# --- the service, in process --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _addresses_are_built_when_asked_for() -> Iterator[None]:
    """Werkzeug writes and compiles two functions for each route, to build its address: nearly all that making an application costs."""
    from werkzeug.routing import Rule

    write = Rule._compile_builder

    def written_later(rule: Rule, append_unknown: bool = True) -> Callable[..., Any]:
        build = functools.cache(lambda: write(rule, append_unknown))
        return lambda *words: build()(*words)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Rule, "_compile_builder", written_later)
        yield


# --- real processes -----------------------------------------------------------------------------------------------------


def unused_port() -> int:
    """Find a port for a process to come. It is none that the kernel would hand out meanwhile, to a client or to a test beside this one."""
    with socket.socket() as probe:
        while True:
            port = random.SystemRandom().randrange(10_000, 32_000)  # Hypothesis seeds the usual one
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    return unused_port


@dataclass(frozen=True, slots=True)
class Running:
    """A real `cassata` process in a process group of its own. `url` is where a service listens."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, timeout: float = 20) -> int:
        """Ask it to end (SIGTERM) and return its exit code."""
        self.process.terminate()
        return self.process.wait(timeout)

    def kill(self) -> None:
        """End it and all its children at once (SIGKILL)."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_until(self, ready: Callable[[], bool], timeout: float = 20) -> None:
        def is_ready() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"ended with exit code {self.process.returncode} instead of getting ready:\n{self.output()}")
            return ready()

        wait_until(is_ready, timeout, self.output)


def wait_until(is_true: Callable[[], bool], timeout: float = 30, explain: Callable[[], str] = str) -> None:
    """Look again and again, and fail the test if it has not become true in time: a wait, never a measurement."""
    deadline = time.monotonic() + timeout
    while not is_true():
        if time.monotonic() > deadline:
            pytest.fail(f"it has not happened within {timeout} s\n{explain()}")
        time.sleep(0.02)


def _environment(home: Path) -> dict[str, str]:
    """The surroundings of a test's processes: no settings but its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CASSATA_")}
    return {**inherited, "CASSATA_HOME": str(home), "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1"}


def start_process(module: str, *words: str, log: Path, url: str = "", env: dict[str, str] | None = None) -> Running:
    """Start a module of ours as a program, with the folder of its log as its home. Whoever calls this has to end it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=log.parent,
            env=_environment(log.parent) | (env or {}),
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    return Running(process, log, url)


@pytest.fixture
def run_cassata(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_cassata("config", "check", env={...})`: the exit code, standard output and standard error."""

    def run(*words: str, env: dict[str, str] | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cassata", *words]
        surroundings = _environment(tmp_path) | (env or {})
        return subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=timeout, check=False)

    return run


@pytest.fixture
def cassata_process(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*words: str, url: str = "", env: dict[str, str] | None = None) -> Running:
        log = tmp_path / f"{words[0]}-{len(started)}.log"
        started.append(start_process("cassata", *words, log=log, url=url, env=env))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.stop(timeout=10)
        running.kill()
        if getattr(request.node, "failed", False):
            print(f"--- {running.log.name}\n{running.output()}")


@pytest.fixture
def service_process(cassata_process: Callable[..., Running]) -> Callable[..., Running]:
    """`service_process(database_url, *flags, env={...}, port=...)`: a real service that answers on its `url`."""

    def start(database_url: str, *flags: str, env: dict[str, str] | None = None, port: int | None = None) -> Running:
        port = port or unused_port()
        url = f"http://127.0.0.1:{port}"
        words = ["service", "start", "--database-url", database_url, "--port", str(port), *flags]
        running = cassata_process(*words, url=url, env=env)
        running.wait_until(lambda: answers(f"{url}/livez"))
        return running

    return start


@pytest.fixture
def worker_process(cassata_process: Callable[..., Running]) -> Callable[..., Running]:
    """`worker_process(database_url, *flags, env={...})`: a real worker that has found its tables and begins to work."""

    def start(database_url: str, *flags: str, env: dict[str, str] | None = None) -> Running:
        running = cassata_process("worker", "start", "--database-url", database_url, *flags, env=env)
        running.wait_until(lambda: "worker started" in running.output())
        return running

    return start


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# --- the run ------------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", action="store_true", help="run the tests that break things on purpose, and only those")
    parser.addoption("--long", action="store_true", help="have the tests that search search on: some minutes more")
    parser.addoption("--browser", action="store_true", help="run the tests with a real browser, and only those")
    parser.addoption("--fault-rounds", type=int, default=20, metavar="N", help="each fault N times; default: 20 (bin/test alone: 1)")


def pytest_configure(config: pytest.Config) -> None:
    # Before xdist starts its processes, which inherit it.
    os.environ.setdefault(FAULT_SEED, str(random.SystemRandom().randrange(10**6)))


def pytest_report_header(config: pytest.Config) -> str | None:
    return f"faults: {FAULT_SEED}={os.environ[FAULT_SEED]}" if config.getoption("--faults") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Faults on purpose are neither quick nor gentle to what runs beside them, and browsers are not everywhere: both have own runs."""
    kinds = {"faults": config.getoption("--faults"), "browser": config.getoption("--browser")}
    wanted = {kind for kind, is_asked in kinds.items() if is_asked}

    def is_wanted(item: pytest.Item) -> bool:
        own = {kind for kind in kinds if item.get_closest_marker(kind)}
        return own <= wanted and bool(own) == bool(wanted)

    others = [item for item in items if not is_wanted(item)]
    items[:] = [item for item in items if is_wanted(item)]
    config.hook.pytest_deselected(items=others)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:  # type: ignore[attr-defined]
        item.failed = True  # type: ignore[attr-defined]
    return report


@pytest.fixture(scope="session")
def is_long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--long"))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A function: have a line shown at the end of the run, whichever process the test ran in."""
    return lambda line: request.node.user_properties.append(("figure", line))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports if getattr(report, "when", "") == "call"]
    figures = [value for report in reports for name, value in report.user_properties if name == "figure"]
    if figures:
        terminalreporter.write_sep("=", "figures")
        for line in sorted(figures):
            terminalreporter.write_line(line)
    for reason in (NO_MARIADB, NO_FAKETIME, NO_PROMTOOL, NO_GALERA, NO_BROWSER, NO_DUMP, NO_HISTORY):
        skipped = sum(reason in str(report.longrepr) for report in terminalreporter.stats.get("skipped", ()))
        if skipped:
            terminalreporter.write_sep("!", f"{skipped} TESTS DID NOT RUN", red=True, bold=True)
            terminalreporter.write_line(f"{skipped} tests were skipped: {reason}.", red=True)
