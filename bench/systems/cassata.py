"""Cassata itself: a real service and a real worker, on MariaDB and on SQLite."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil

import cassata
from bench import machine, servers
from bench.base import Place, Work

CHECKOUT = Path(__file__).resolve().parents[2]
APPLICATION = "bench"
BATCH = 1000
SENDERS = 4
"""Batches under way at the same time."""


class Cassata:
    """What is the same on every database: `bin/cassata service start` takes the work, `bin/cassata worker start` does it."""

    name: str
    label: str
    processes: int | None = None
    """Worker processes; None: one for each core."""
    service_processes = 4
    preload: Path | None = None
    """A library that the database is started with, for the runs on a slow disk."""

    def __init__(self) -> None:
        self.place: Place
        self.database_url = ""
        self.service: subprocess.Popen[bytes] | None = None
        self.service_port = 0
        self._worker: subprocess.Popen[bytes] | None = None
        self._workers_started = 0
        self._stack = ExitStack()
        self._senders: ThreadPoolExecutor | None = None
        self._thread = threading.local()

    def missing(self) -> str | None:
        return None

    def version(self) -> Mapping[str, str]:
        import pycurl

        return {"cassata": cassata.__version__, "pycurl": pycurl.version.split()[0], "database": self._database_version()}

    def settings(self) -> str:
        where = "as many worker processes as cores" if self.processes is None else f"{self.processes} worker process(es)"
        return f"config/worker.yaml as shipped, {where}; added over HTTP in batches of {BATCH}; {self._database_settings()}"

    def open(self, place: Place) -> None:
        self.place = place
        self.database_url = self._open_database()
        self.start_service()
        self._senders = self._stack.enter_context(ThreadPoolExecutor(SENDERS))

    def start_service(self, *flags: str) -> None:
        """Start the service, with tables made, and return once it answers."""
        self.service_port = machine.free_port()
        flags = ("--create-tables", "--port", str(self.service_port), "--processes", str(self.service_processes), *flags)
        self.service = self._start("service", *flags)
        self._await(self.service, self._service_answers, "service")

    def start_workers(self, *, slow: bool = False) -> None:
        """Nothing is set otherwise for slow destinations: a worker has them under way together in any case."""
        del slow
        self._workers_started += 1
        processes = self.worker_processes()
        self._worker = self._start("worker", "--processes", str(processes))
        self._await(self._worker, lambda: len(self._working_pids()) >= processes, "worker")

    def worker_processes(self) -> int:
        return self.processes or self.place.cores

    def kill_workers(self) -> None:
        if self._worker is not None:
            machine.kill(machine.family(self._worker.pid))
            self._worker.wait()

    def worker_pids(self) -> Sequence[int]:
        """The supervisor, where there are several, counts among them."""
        return machine.family(self._worker.pid) if self._worker is not None else []

    def service_pids(self) -> Sequence[int]:
        return machine.family(self.service.pid) if self.service is not None else []

    def server_pids(self) -> Sequence[int]:
        return []

    def enqueue(self, works: Sequence[Work]) -> None:
        batches = [works[begin : begin + BATCH] for begin in range(0, len(works), BATCH)]
        if len(batches) == 1 or self._senders is None:
            for batch in batches:
                self._add(batch)
        else:
            list(self._senders.map(self._add, batches))

    def enqueue_rate(self) -> float:
        return 5000

    def close(self) -> None:
        with self._stack:
            for process in filter(None, (self._worker, self.service)):
                machine.kill(machine.family(process.pid))
                process.wait()

    # --- processes

    def _start(self, role: str, *flags: str) -> subprocess.Popen[bytes]:
        config = CHECKOUT / "config" / f"{role}.yaml"
        command = [sys.executable, "-m", "cassata", role, "start", "--config", str(config), "--database-url", self.database_url, *flags]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CASSATA_")}
        home = self.place.folder / "home"
        home.mkdir(exist_ok=True)
        with self._log(role).open("wb") as log:
            return subprocess.Popen(
                command,
                cwd=home,
                env={**inherited, "CASSATA_HOME": str(home), "PYTHONSAFEPATH": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=machine.die_with_parent,
            )

    def _log(self, role: str) -> Path:
        return self.place.folder / (f"{role}-{self._workers_started}.log" if role == "worker" else f"{role}.log")

    def _await(self, process: subprocess.Popen[bytes], is_ready: Callable[[], bool], role: str) -> None:
        machine.wait_until(lambda: process.poll() is not None or is_ready(), seconds=30)
        if process.poll() is not None or not is_ready():
            raise RuntimeError(f"the {role} did not start:\n{self._log(role).read_text(errors='replace')[-2000:]}")

    def _service_answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.service_port, timeout=2)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        return False

    def _working_pids(self) -> list[int]:
        """Those that have opened the database: a worker process does so when it begins to look for work."""
        found = []
        for pid in self.worker_pids():
            with contextlib.suppress(psutil.Error):
                if self._has_opened_database(psutil.Process(pid)):
                    found.append(pid)
        return found

    # --- adding

    def _add(self, works: Sequence[Work]) -> None:
        events = [
            {
                "application-id": APPLICATION,
                "event-id": str(work.number),
                "url": work.url,
                "event": work.body.decode(),
                "expiry": work.due_at / 1000,
            }
            for work in works
        ]
        status, answer = self._post("/cassata/add/batch", json.dumps({"events": events}).encode())
        if status != 200:
            raise RuntimeError(f"the service answered {status}: {answer.decode(errors='replace')[:500]}")
        refused = [result for result in json.loads(answer)["results"] if result["status-code"] != 201]
        if refused:
            raise RuntimeError(f"{len(refused)} events were not taken, as: {refused[0]}")

    def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Send it over the connection of this thread."""
        connection = getattr(self._thread, "connection", None)
        if connection is None:
            connection = self._thread.connection = http.client.HTTPConnection("127.0.0.1", self.service_port, timeout=60)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
        except (BrokenPipeError, ConnectionResetError, http.client.NotConnected):  # the service has closed it as idle: nothing was sent
            connection.close()
            connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()

    # --- its database

    def _open_database(self) -> str:
        raise NotImplementedError

    def _database_version(self) -> str:
        raise NotImplementedError

    def _database_settings(self) -> str:
        raise NotImplementedError

    def _has_opened_database(self, process: psutil.Process) -> bool:
        raise NotImplementedError


class CassataMariaDb(Cassata):
    name = "cassata-mariadb"
    label = "Cassata on MariaDB"

    def missing(self) -> str | None:
        return servers.missing_mariadb()

    def server_pids(self) -> Sequence[int]:
        return self.server.pids()

    def _open_database(self) -> str:
        self.server = self._stack.enter_context(servers.mariadb(self.place.folder, preload=self.preload))
        return self.server.url

    def _database_version(self) -> str:
        return servers.mariadb_version()

    def _database_settings(self) -> str:
        return servers.MARIADB_SETTINGS

    def _has_opened_database(self, process: psutil.Process) -> bool:
        return any(one.raddr and one.raddr.port == self.server.port for one in process.net_connections("tcp"))


class CassataSqlite(Cassata):
    name = "cassata-sqlite"
    label = "Cassata on SQLite"
    # SQLite has one writer at a time, and the others wait for it by sleeping. Four processes drained a burst 1.8 times as fast as
    # one (two runs of each), but at 200 a second p99 lateness was 110 ms in their one run, and 6 to 41 ms in four runs of one
    # process, all on a machine that was busy with other things: worth measuring again.
    processes = 1

    def _open_database(self) -> str:
        return f"sqlite:///{self.place.folder.absolute() / 'cassata.db'}"

    def _database_version(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}"

    def _database_settings(self) -> str:
        return "journal_mode=WAL, synchronous=FULL"

    def _has_opened_database(self, process: psutil.Process) -> bool:
        return any(Path(file.path).name == "cassata.db" for file in process.open_files())


def with_one_process(system: type[Cassata]) -> type[Cassata]:
    """Return the same system with one worker process."""
    return type(f"{system.__name__}OneProcess", (system,), {"processes": 1})
