"""Cassata as it is shipped: its settings, and its real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import machine
from bench.inside.database import Database
from cassata import config

CHECKOUT = Path(__file__).resolve().parents[2]
START_SECONDS = 30


def worker_settings() -> config.Worker:
    """Return what config/worker.yaml makes of a worker."""
    return config.load(CHECKOUT / "config" / "worker.yaml", environment={}).settings.worker


@contextmanager
def worker(folder: Path, database: Database, processes: int, *, environment: Mapping[str, str] | None = None) -> Iterator[Cassata]:
    """Run a worker, as shipped but for the number of its processes, each of which has begun to look for work."""
    before = database.connections()
    with cassata(folder, "worker", ["--database-url", database.url, "--processes", str(processes)], environment=environment) as running:
        running.wait_until(lambda: database.connections() >= before + processes)
        yield running


@contextmanager
def service(folder: Path, database: Database, processes: int, *, environment: Mapping[str, str] | None = None) -> Iterator[Cassata]:
    """Run a service, as shipped but for the number of its processes."""
    port = machine.free_port()
    arguments = ["--database-url", database.url, "--processes", str(processes), "--port", str(port)]
    with cassata(folder, "service", arguments, environment=environment) as running:
        running.port = port
        running.wait_until(lambda: running.has_said("service started") and len(running.pids()) > processes)
        yield running


class Cassata:
    """A running command of Cassata, with all its processes."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.port = 0
        self._process = process
        self._log = log

    def pids(self) -> list[int]:
        return machine.family(self._process.pid)

    def cpu_seconds(self) -> float:
        return machine.cpu_seconds(self.pids())

    def has_said(self, words: str) -> bool:
        return words in self._log.read_text(errors="replace")

    def wait_until(self, is_true: Callable[[], bool]) -> None:
        """Raises RuntimeError, with the end of its log, if it ends before or takes too long."""
        done = machine.wait_until(lambda: self._process.poll() is not None or is_true(), seconds=START_SECONDS)
        if not done or self._process.poll() is not None:
            raise RuntimeError(f"it did not start:\n{self._log.read_text(errors='replace')[-2000:]}")


@contextmanager
def cassata(folder: Path, role: str, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Iterator[Cassata]:
    """Run `cassata ROLE start` with the settings that are shipped, and end it with the block."""
    own = Path(tempfile.mkdtemp(dir=folder, prefix=f"{role}-"))
    shipped = ["--config", str(CHECKOUT / "config" / f"{role}.yaml"), "--pid-file", str(own / "pid")]
    with running([sys.executable, "-m", "cassata", role, "start", *shipped, *arguments], own, environment=environment) as process:
        yield process


@contextmanager
def running(command: Sequence[str], folder: Path, *, environment: Mapping[str, str] | None = None) -> Iterator[Cassata]:
    """Run a command of ours, without any settings from the environment of the benchmark."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CASSATA_")}
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env={**inherited, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=machine.die_with_parent,
        )
    try:
        yield Cassata(process, log)
    finally:
        machine.end(process)
