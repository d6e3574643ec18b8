"""profile: which part of the code the CPU of an event goes to: in a worker during a burst, in the service during adds.

py-spy looks 200 times a second at which thread of one process holds the interpreter, and in what function. A sample belongs to
the innermost part of the code that is named here: a JSON encoder, to whoever called it. CPU that the process spent without
holding the interpreter is the kernel's and that of C libraries, mostly in reading and writing sockets, and in libcurl: it stands by
itself. (Without --gil py-spy takes threads for busy that wait for a socket, or for the interpreter after a system call.)
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import machine
from bench.base import Place, Run
from bench.inside import shipped
from bench.inside.add import PROCESSES, SINGLE_CONNECTIONS, Variant, requests
from bench.inside.client import Client
from bench.inside.database import Database, fresh, now_ms

SAMPLES_PER_SECOND = 200
PATIENCE_SECONDS = 120
OTHER = "other"
OUTSIDE = "outside_python"

DATABASE = {
    "/pymysql/": "driver",
    "/sqlalchemy/": "sqlalchemy",
    "/cassata/store.py": "store",
    "/cassata/scheduler.py": "scheduler",
    "/cassata/database.py": "scheduler",
}
WORKER = {**DATABASE, "/cassata/courier/": "sending", "/cassata/worker.py": "worker"}
SERVICE = {
    **DATABASE,
    "/cassata/service/wire.py": "checks",
    "/cassata/model.py": "checks",
    "/pydantic/": "checks",
    "/flask/": "flask",
    "/werkzeug/": "flask",
    "/cassata/service/connections.py": "gunicorn",
    "/gunicorn/": "gunicorn",
    "/cassata/service/": "service",
}
"""What part of the code a file belongs to: the first that fits. Shares are named after it: share_sending_percent."""


@dataclass(slots=True)
class Samples:
    """What py-spy saw, a line for each stack: frames, outermost first, and a count. And what the process spent meanwhile."""

    lines: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0


def profile(place: Place, runs: int, quick: bool) -> Iterator[Run]:
    """Profile one worker process of four, then one process of the service, of four."""
    with fresh(place) as database:
        for number in range(1, runs + 1):
            samples = _worker(place, database, events=20_000 if quick else 60_000)
            yield Run("profile", "cassata-mariadb", number, "worker", shares(samples, WORKER))
            samples = _service(place, database, seconds=3 if quick else 8)
            yield Run("profile", "cassata-mariadb", number, "service", shares(samples, SERVICE))


def _worker(place: Place, database: Database, events: int) -> Samples:
    database.empty()
    database.add_applications(1)
    with shipped.worker(place.folder, database, PROCESSES) as worker:
        _supervisor, first, *_ = worker.pids()
        _burst(place, database, 2_000)  # warm: its threads have connected
        with _sampled(place.folder, first) as samples:
            _burst(place, database, events)
    return samples


def _burst(place: Place, database: Database, events: int) -> None:
    place.receiver.reset()
    database.add_events(events, wake_at=str(now_ms() + 2_000), url=place.receiver.url(0).removesuffix("0"))
    place.receiver.wait_for(events, seconds=PATIENCE_SECONDS)
    machine.wait_until(database.is_done, seconds=PATIENCE_SECONDS)


def _service(place: Place, database: Database, seconds: float) -> Samples:
    with shipped.service(place.folder, database, PROCESSES) as service:
        client = Client(service.port, requests(service.port, Variant("single")), SINGLE_CONNECTIONS, expected=201)
        try:
            client.run(0.5)  # warm
            before = {pid: machine.cpu_seconds([pid]) for pid in service.pids()}
            client.run(0.5)
            busiest = max(before, key=lambda pid: machine.cpu_seconds([pid]) - before[pid])
            with _sampled(place.folder, busiest) as samples:
                client.run(seconds)
        finally:
            client.close()
    return samples


@contextmanager
def _sampled(folder: Path, pid: int) -> Iterator[Samples]:
    """Sample a process until the block ends; then it is all there."""
    samples = Samples()
    with tempfile.TemporaryDirectory(dir=folder) as own:
        output, log = Path(own) / "samples", Path(own) / "log"
        program = Path(sys.executable).with_name("py-spy")
        if not program.exists():
            raise RuntimeError("there is no py-spy here. Type: pip install -e '.[bench]'")
        command = [str(program), "record", "--pid", str(pid), "--rate", str(SAMPLES_PER_SECOND), "--format", "raw"]
        command += ["--gil", "--full-filenames", "--output", str(output)]
        with log.open("wb") as errors:
            spy = subprocess.Popen(command, stdout=errors, stderr=errors, preexec_fn=machine.die_with_parent)
        try:
            begun = machine.wait_until(lambda: spy.poll() is not None or "Sampling process" in log.read_text(errors="replace"), seconds=10)
            if not begun or spy.poll() is not None:
                raise RuntimeError(f"py-spy did not start: {log.read_text(errors='replace')[-1000:]}")
            before = machine.cpu_seconds([pid])
            yield samples
            samples.cpu_seconds = machine.cpu_seconds([pid]) - before
            spy.send_signal(signal.SIGINT)
            spy.wait(30)
        finally:
            machine.end(spy)
        samples.lines = output.read_text().splitlines()


def shares(samples: Samples, parts: Mapping[str, str]) -> Mapping[str, float]:
    """Return for each part what share of the process's CPU it had, in percent."""
    counts: Counter[str] = Counter(dict.fromkeys((*parts.values(), OTHER), 0))
    for line in samples.lines:
        stack, count = line.rsplit(" ", 1)
        counts[_part_of(stack.split(";"), parts)] += int(count)
    inside = counts.total()
    everything = max(inside, round(samples.cpu_seconds * SAMPLES_PER_SECOND))
    counts[OUTSIDE] = everything - inside
    figures = {f"share_{part}_percent": count / max(1, everything) * 100 for part, count in counts.items()}
    return {**figures, "samples": inside, "cpu_seconds": samples.cpu_seconds}


def _part_of(frames: list[str], parts: Mapping[str, str]) -> str:
    for frame in reversed(frames):
        for path, part in parts.items():
            if path in frame:
                return part
    return OTHER
