"""What the peers have in common: a server, worker processes, producer processes, and that all of them end."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

from bench import machine, servers
from bench.base import Place, Work

ROOT = Path(__file__).parents[2]
CODE = Path(__file__).parent
START_SECONDS = 60
WORTH_SHARING = 400

MISSING: dict[str, Callable[[], str | None]] = {
    "redis": servers.missing_redis,
    "postgres": servers.missing_postgres,
    "mariadb": servers.missing_mariadb,
}
VERSION: dict[str, Callable[[], str]] = {
    "redis": servers.redis_version,
    "postgres": servers.postgres_version,
    "mariadb": servers.mariadb_version,
}
SERVER: dict[str, Callable[[Path], AbstractContextManager[servers.Server]]] = {
    "redis": servers.redis,
    "postgres": servers.postgres,
    "mariadb": servers.mariadb,
}


class Peer:
    """A scheduler of someone else's. What is particular to one is in `start_workers`, `settings` and its code in this folder."""

    name: str
    label: str
    server_name: str
    packages: tuple[str, ...] = ()
    """As pip calls them; the first is the system itself."""
    modules: tuple[str, ...] = ()
    """As Python imports them."""
    producer: str = ""
    """The module of this folder whose `enqueue(works)` hands over work."""
    producers = 4

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._workers: list[subprocess.Popen[bytes]] = []
        self._producers: list[Producer] = []
        self._started = 0
        self.server: servers.Server
        self.place: Place
        self.cores = machine.cores()

    # --- what is there

    def missing(self) -> str | None:
        """Say what is not there; as root on Debian, install the server first."""
        reason = MISSING[self.server_name]()
        if reason and servers.may_install() and servers.install([self.server_name]):
            reason = MISSING[self.server_name]()
        return reason or self.missing_code()

    def missing_code(self) -> str | None:
        absent = [package for package, module in zip(self.packages, self.modules, strict=True) if importlib.util.find_spec(module) is None]
        return f"{', '.join(absent)} is not installed. Type: pip install '.[bench]'" if absent else None

    def version(self) -> Mapping[str, str]:
        found = {package: importlib.metadata.version(package) for package in self.packages}
        return {**found, self.server_name: VERSION[self.server_name](), "python": platform.python_version()}

    def settings(self) -> str:
        raise NotImplementedError

    # --- the life of one run

    def open(self, place: Place) -> None:
        self.place, self.cores = place, place.cores
        (place.folder / "ready").mkdir()
        self.server = self._stack.enter_context(SERVER[self.server_name](place.folder))
        self.prepare()
        self._producers = [self._start_producer(number) for number in range(self.producers)]
        for producer in self._producers:
            producer.wait()

    def prepare(self) -> None:
        """Make what must be there before anyone connects: tables."""

    def start_workers(self, *, slow: bool = False) -> None:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return what every process of the peer finds in its environment."""
        search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "BENCH_SERVER": self.server.url, "BENCH_READY": str(self.place.folder / "ready"), "PYTHONPATH": search}

    def run_workers(self, commands: Sequence[Sequence[str]], *, ready: int, more: Mapping[str, str] | None = None) -> None:
        """Start worker processes, and wait until so many of them and theirs have said that they are ready (see ready.py)."""
        marks = self.place.folder / "ready"
        for mark in marks.iterdir():
            mark.unlink()
        environment = {**self.environment(), **(more or {})}
        for command in commands:
            self._workers.append(self._start(command, f"worker-{self._started}", stdout=None, environment=environment))
            self._started += 1
        machine.wait_until(lambda: len(list(marks.iterdir())) >= ready or self._has_ended(), seconds=START_SECONDS)
        if len(list(marks.iterdir())) < ready:
            raise RuntimeError(f"the workers of {self.label} did not start:\n{self._logs()}")

    def kill_workers(self) -> None:
        for process in self._workers:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGSTOP)  # so that it starts no other while we look
        machine.kill(self.worker_pids())
        for process in self._workers:
            process.wait()
        self._workers = []

    def worker_pids(self) -> Sequence[int]:
        return [pid for process in self._workers for pid in machine.family(process.pid)]

    def server_pids(self) -> Sequence[int]:
        return self.server.pids()

    def enqueue(self, works: Sequence[Work]) -> None:
        """Share a lot among the producers; one of them takes a little."""
        count = len(self._producers) if len(works) >= WORTH_SHARING else 1
        shares = [(producer, works[number::count]) for number, producer in enumerate(self._producers[:count])]
        for producer, share in shares:
            producer.hand_over(share)
        for producer, _ in shares:
            producer.wait()

    def close(self) -> None:
        try:
            self.kill_workers()
            for producer in self._producers:
                producer.end()
        finally:
            self._producers = []
            self._stack.close()

    # --- processes

    def producer_command(self) -> list[str]:
        return [sys.executable, "-m", "bench.peers.produce", f"bench.peers.{self.producer}"]

    def _start_producer(self, number: int) -> Producer:
        name = f"producer-{number}"
        process = self._start(self.producer_command(), name, stdout=subprocess.PIPE, environment=self.environment())
        return Producer(process, self.place.folder / f"{name}.log")

    def _start(self, command: Sequence[str], name: str, *, stdout: int | None, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.place.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                command,
                cwd=self.place.folder,
                env=environment,
                stdin=subprocess.PIPE if stdout else subprocess.DEVNULL,
                stdout=stdout or log,
                stderr=log,
                start_new_session=True,
                preexec_fn=machine.die_with_parent,
            )

    def _has_ended(self) -> bool:
        return any(process.poll() is not None for process in self._workers)

    def _logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(self.place.folder.glob("worker-*.log")))


class Producer:
    """A process that takes lines of JSON, each a list of works, and answers with a line for each once it has handed them over."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def hand_over(self, works: Sequence[Work]) -> None:
        line = json.dumps([[work.number, work.due_at, work.url, work.body.decode()] for work in works])
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def wait(self) -> None:
        """Wait for one answer. The first comes by itself, when the process is ready."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if answer != b"ok\n":
            raise RuntimeError(f"a producer failed ({answer.decode().strip()}):\n{self._log.read_text(errors='replace')[-2000:]}")

    def end(self) -> None:
        machine.kill(machine.family(self._process.pid))
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def tool(name: str) -> str:
    """Return the path of a program that came with a Python package: it is beside the interpreter, which need not be on the PATH."""
    return str(Path(sys.executable).parent / name)
