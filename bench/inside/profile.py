"""profile: which part of the code the CPU of an event goes to: in a worker during a burst, in the service during adds.

py-spy looks at one process 200 times a second, and says in what function each of its threads is. A sample belongs to the
innermost part of the code that is named here: a JSON encoder, to whoever called it. py-spy often takes a thread that waits for
one that works, so the places where Cassata's threads wait are named here, too, and do not count.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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

WAITS = (
    "SocketIO.readinto (",  # an answer of the database
    "Connection._read_bytes (",
    "Selector.select (",  # the network
    "WorkerThread._go_on_watch (",  # its turn
    "Wakeup.wait (",  # a signal
    "_worker (",  # concurrent.futures: the next request
    "Condition.wait (",
)

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


def profile(place: Place, runs: int, quick: bool) -> Iterator[Run]:
    """Profile one worker process of four, then one process of the service, of four."""
    with fresh(place) as database:
        for number in range(1, runs + 1):
            samples = _worker(place, database, events=20_000 if quick else 60_000)
            yield Run("profile", "cassata-mariadb", number, "worker", shares(samples, WORKER))
            samples = _service(place, database, seconds=3 if quick else 8)
            yield Run("profile", "cassata-mariadb", number, "service", shares(samples, SERVICE))


def _worker(place: Place, database: Database, events: int) -> list[str]:
    database.empty()
    database.add_applications(1)
    place.receiver.reset()
    with shipped.worker(place.folder, database, PROCESSES) as worker:
        _supervisor, first, *_ = worker.pids()
        with _sampled(place.folder, first) as samples:
            database.add_events(events, wake_at=str(now_ms() + 2_000), url=place.receiver.url(0).removesuffix("0"))
            place.receiver.wait_for(events, seconds=PATIENCE_SECONDS)
            machine.wait_until(database.is_done, seconds=PATIENCE_SECONDS)
    return samples


def _service(place: Place, database: Database, seconds: float) -> list[str]:
    with shipped.service(place.folder, database, PROCESSES) as service:
        client = Client(service.port, requests(service.port, Variant("single")), SINGLE_CONNECTIONS, expected=201)
        try:
            client.run(1)  # warm
            busiest = max(service.pids(), key=lambda pid: machine.cpu_seconds([pid]))
            with _sampled(place.folder, busiest) as samples:
                client.run(seconds)
        finally:
            client.close()
    return samples


@contextmanager
def _sampled(folder: Path, pid: int) -> Iterator[list[str]]:
    """Sample a process until the block ends; then the list holds a line for each stack: frames, outermost first, and a count."""
    samples: list[str] = []
    with tempfile.TemporaryDirectory(dir=folder) as own:
        output, log = Path(own) / "samples", Path(own) / "log"
        program = Path(sys.executable).with_name("py-spy")
        if not program.exists():
            raise RuntimeError("there is no py-spy here. Type: pip install -e '.[bench]'")
        command = [str(program), "record", "--pid", str(pid), "--rate", str(SAMPLES_PER_SECOND), "--format", "raw"]
        command += ["--full-filenames", "--output", str(output)]
        with log.open("wb") as errors:
            spy = subprocess.Popen(command, stdout=errors, stderr=errors, preexec_fn=machine.die_with_parent)
        try:
            begun = machine.wait_until(lambda: spy.poll() is not None or "Sampling process" in log.read_text(errors="replace"), seconds=10)
            if not begun or spy.poll() is not None:
                raise RuntimeError(f"py-spy did not start: {log.read_text(errors='replace')[-1000:]}")
            yield samples
            spy.send_signal(signal.SIGINT)
            spy.wait(30)
        finally:
            machine.end(spy)
        samples += output.read_text().splitlines()


def shares(samples: Iterable[str], parts: Mapping[str, str]) -> Mapping[str, float]:
    """Return for each part what share of the samples was in it, in percent."""
    counts: Counter[str] = Counter(dict.fromkeys((*parts.values(), OTHER), 0))
    for line in samples:
        stack, count = line.rsplit(" ", 1)
        frames = stack.split(";")
        if not any(wait in frames[-1] for wait in WAITS):
            counts[_part_of(frames, parts)] += int(count)
    total = counts.total()
    figures = {f"share_{part}_percent": count / total * 100 for part, count in counts.items()} if total else {}
    return {**figures, "samples": total}


def _part_of(frames: list[str], parts: Mapping[str, str]) -> str:
    for frame in reversed(frames):
        for path, part in parts.items():
            if path in frame:
                return part
    return OTHER
