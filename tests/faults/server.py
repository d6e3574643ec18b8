"""A private database server that tests may kill, stop, starve and fill up, and start again on the same data and port."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest

from cassata import database
from tests.conftest import MariaDB, await_server, initialise, serve, server_program

DURABLE = ("--innodb-flush-log-at-trx-commit=1", "--innodb-log-file-size=16M", "--max-user-connections=300")
SMALL = ("--innodb-temp-data-file-path=ibtmp1:4M:autoextend",)
"""For a small disk."""
PLAIN_USER = "plain"
"""May do everything but what an administrator may: write on a read-only server, and come in when it is full."""
OTHER_USER = "other"


class BreakableServer:
    """A durable MariaDB or MySQL in `folder`. It ends with the test run, however that ends."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        self.folder = folder
        self.port = port
        self._options = (*DURABLE, *options)
        self._program = server_program()
        self._user = pwd.getpwuid(os.getuid()).pw_name
        self._running: MariaDB | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._running is not None
        return self._running.process

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def initialise(self) -> None:
        initialise(self._program, self.folder / "data", self._user, *self._options)

    def start(self) -> float:
        """Start it on the data there are; return how many seconds it took until it answered."""
        began = time.monotonic()
        self._running = MariaDB(serve(self._program, self.folder, self._user, self.port, *self._options), self.port, self.folder)
        await_server(self._running)
        # Kept, since when all connections are taken not even an administrator comes in again.
        self._administrator = self._running.connect()
        return time.monotonic() - began

    def kill(self) -> None:
        """End it at once, as a power cut would (SIGKILL)."""
        if self._running is not None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        self.kill()
        with contextlib.suppress(AttributeError, pymysql.Error):
            self._administrator.close()

    def stop(self) -> None:
        """Have it shut down in good order."""
        self.process.terminate()
        self.process.wait(30)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """It keeps its connections, and says nothing (SIGSTOP)."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements as the administrator; return the rows of the last one."""
        with self._administrator.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    def create_database(self) -> str:
        """Make a database with tables; return its URL, for a user without the administrator's privileges."""
        self.execute(
            "CREATE DATABASE cassata",
            f"CREATE USER '{PLAIN_USER}'@'127.0.0.1'",
            f"GRANT ALL ON cassata.* TO '{PLAIN_USER}'@'127.0.0.1'",
            f"CREATE USER '{OTHER_USER}'@'127.0.0.1'",
        )
        url = f"mysql+pymysql://{PLAIN_USER}@127.0.0.1:{self.port}/cassata"
        database.upgrade(url)
        return url

    def kill_connections(self, which: str) -> int:
        """Kill other people's connections, as an administrator or a proxy may; return how many there were."""
        numbers = [row[0] for row in self.execute(f"SELECT id FROM information_schema.processlist WHERE {which}")]
        for number in numbers:
            with contextlib.suppress(pymysql.Error):
                self.execute(f"KILL {number}")
        return len(numbers)


def lasting_port() -> int:
    """Find a port that nobody is given for an outgoing connection: it must still be free when the server comes back.

    A client that tries again and again to reach a port of the ephemeral ones may even be connected to itself.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def breakable_server(folder: Path, *options: str) -> Iterator[BreakableServer]:
    folder.mkdir(exist_ok=True)
    server = BreakableServer(folder, lasting_port(), *options)
    server.initialise()
    try:
        server.start()
        yield server
    finally:
        server.close()
        shutil.rmtree(folder / "data", ignore_errors=True)


# --- a small disk ------------------------------------------------------------------------------------------------------


class SmallDisk:
    """A disk of its own, of a few megabytes, of which a ballast file takes away what tests want it to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, leave_bytes: int) -> None:
        """Take all but so much; others may be writing meanwhile."""
        with self._ballast.open("wb") as file:
            while (size := self._room() - leave_bytes) > 0:
                with contextlib.suppress(OSError):
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)

    def _room(self) -> int:
        facts = os.statvfs(self.folder)
        return facts.f_bavail * facts.f_frsize

    def make_room(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mount one; skip the test where that is not allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "cassata-test", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"{CANNOT_MOUNT} ({mounted.stderr.strip()})")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


CANNOT_MOUNT = "a full disk could not be tried: to mount a small one takes root"
