"""Real services and workers on any database, clients that do not give up, and ways to hurt processes.

The terms are short, so that what is lost is found soon: a deadline of 1 s, a lease of 3 s.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import sqlalchemy.exc
import urllib3

from tests.conftest import Running, answers, start_process, unused_port, wait_until
from tests.faults import checker
from tests.faults.checker import Figures
from tests.faults.ledger import Ledger

DEADLINE_SECONDS = 1.0
LOOK_AHEAD_SECONDS = 0.2
LEASE_SECONDS = 3.0
RECOVERY_SECONDS = LEASE_SECONDS + LOOK_AHEAD_SECONDS + 1.0
"""So soon after a worker is gone, whatever it held has been sent by somebody else."""
THREADS, SLOTS = 2, 100
IN_FLIGHT = THREADS * SLOTS
"""So many requests one worker may have under way, and so may repeat when it is killed."""

TERMS = {
    "CASSATA_LOGGING__FORMAT": "json",
    "CASSATA_DATABASE__CONNECTTIMEOUTSECONDS": "1",
    "CASSATA_DATABASE__READTIMEOUTSECONDS": "2",
    "CASSATA_DATABASE__WRITETIMEOUTSECONDS": "2",
    "CASSATA_SERVICE__PROCESSES": "2",
    "CASSATA_WORKER__NUMWORKERTHREADS": str(THREADS),
    "CASSATA_WORKER__MAXINFLIGHTPERTHREAD": str(SLOTS),
    "CASSATA_WORKER__NUMEVENTSPROCESSEDPERTRANSACTION": "20",
    "CASSATA_WORKER__REQUESTTIMEOUTSECONDS": str(DEADLINE_SECONDS),
    "CASSATA_WORKER__CONNECTTIMEOUTSECONDS": str(DEADLINE_SECONDS),
    "CASSATA_WORKER__LOOKAHEADMILLISECONDS": str(int(LOOK_AHEAD_SECONDS * 1000)),
    "CASSATA_WORKER__LEASEMARGINSECONDS": str(round(LEASE_SECONDS - DEADLINE_SECONDS - LOOK_AHEAD_SECONDS, 3)),
    "CASSATA_WORKER__RETRYBACKOFFINITIALSECONDS": "0.2",
    "CASSATA_WORKER__RETRYBACKOFFMULTIPLIER": "1",
}


class Cluster:
    """Services and workers that share one database and nothing else. A context manager, which ends all of them.

    `program` is the module to start instead of `cassata`: see `faulty`.
    """

    def __init__(self, database_url: str, folder: Path, destination: str, receiver_log: Path, *, seed: object = 0) -> None:
        self.database_url = database_url
        self.destination = destination  # a URL without a path
        self.receiver_log = receiver_log
        self.random = random.Random(str(seed))
        self.ledger = Ledger(folder / "ledger")
        self.processes: list[Running] = []
        self.workers: list[Running] = []
        self._folder = folder

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for running in self.processes:
            with contextlib.suppress(ProcessLookupError):  # one that is stopped could not even be told to end
                os.killpg(running.pid, signal.SIGCONT)
            running.kill()
        self.ledger.close()

    # --- processes -----------------------------------------------------------------------------------------------------

    def start_service(
        self, *flags: str, program: str = "cassata", env: dict[str, str] | None = None, url: str | None = None, port: int | None = None
    ) -> Running:
        """Start a service that answers by now. `url`: of its database, if that is not the usual one."""
        port = port or unused_port()
        words = ["service", "start", "--port", str(port), *flags]
        running = self._start(program, words, env, url, f"http://127.0.0.1:{port}")
        running.wait_until(lambda: answers(f"{running.url}/livez"))
        return running

    def start_worker(
        self, *flags: str, program: str = "cassata", env: dict[str, str] | None = None, url: str | None = None, ready: bool = True
    ) -> Running:
        """Start a worker, and wait until it is at work unless told not to."""
        running = self._start(program, ["worker", "start", *flags], env, url)
        self.workers.append(running)
        if ready:
            running.wait_until(lambda: "worker started" in running.output())
        return running

    def _start(self, program: str, words: list[str], env: dict[str, str] | None, url: str | None, listens: str = "") -> Running:
        log = self._folder / f"{words[0]}-{len(self.processes)}.log"
        flags = ["--database-url", url or self.database_url]
        running = start_process(program, *words, *flags, log=log, url=listens, env=TERMS | (env or {}))
        self.processes.append(running)
        return running

    # --- the work ------------------------------------------------------------------------------------------------------

    def event(self, event_id: str, path: str = "/ok", *, application: str = "shop", delay: float = 0, **fields: Any) -> dict[str, Any]:
        url = f"{self.destination}{path}"
        return {"application-id": application, "event-id": event_id, "event": "{}", "delay": delay, "url": url, **fields}

    def add_all(self, service: Running, events: Sequence[dict[str, Any]]) -> None:
        """Add them in batches, where nothing is in the way of it, and write down what was acknowledged."""
        with urllib3.PoolManager() as http:
            for start in range(0, len(events), 1_000):
                batch = list(events[start : start + 1_000])
                answer = http.request("POST", f"{service.url}/cassata/add/batch", json={"events": batch}, timeout=30, retries=False)
                codes = {result["status-code"] for result in answer.json()["results"]}
                assert codes == {201}, answer.data[:1_000]
                self.ledger.acknowledged((event["application-id"], event["event-id"]) for event in batch)

    def producers(self, services: Sequence[Running], *, count: int = 8, pause: float = 0.0, **shape: Any) -> Producers:
        """Have `count` clients add events until they are told to stop. `shape`: see `event`; `path` and `delay` may be functions."""
        return Producers(self, [service.url for service in services], count, pause, shape)

    # --- the end -------------------------------------------------------------------------------------------------------

    def wait_until_all_have_ended(self, timeout: float = 60) -> None:
        def have_ended() -> bool:
            try:
                return checker.unfinished(self.database_url) == 0
            except sqlalchemy.exc.DBAPIError:
                return False

        wait_until(have_ended, timeout, lambda: f"{self.check()}\n{self._open_events()}")

    def _open_events(self) -> str:
        return "\n".join(str(each.event) for each in checker.read(self.database_url).values() if not each.is_ended)[:4_000]

    def check(self, **options: Any) -> Figures:
        slack_ms = int(RECOVERY_SECONDS * 1000)
        logs = [worker.log for worker in self.workers]
        return checker.check(self.ledger, self.receiver_log, self.database_url, worker_logs=logs, slack_ms=slack_ms, **options)


class Producers:
    """Clients that add one event after the other, and repeat each add (with the same id) until it is answered for.

    A context manager: within it they work, after it they have finished what they had begun.
    """

    PATIENCE_SECONDS = 60.0

    def __init__(self, cluster: Cluster, urls: Sequence[str], count: int, pause: float, shape: dict[str, Any]) -> None:
        self._cluster = cluster
        self._urls = urls
        self._pause = pause
        self._shape = shape
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(count)
        self._name = f"p{cluster.random.randrange(10**6)}"
        self._seeds = [cluster.random.random() for _ in range(count)]
        self.repeats = 0  # adds that were repeated because an answer did not come, or was "later" (a rough count: threads share it)

    def __enter__(self) -> Producers:
        self._running = [self._pool.submit(self._produce, number) for number in range(len(self._seeds))]
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for running in self._running:
            running.result()
        self._pool.shutdown()

    def _produce(self, number: int) -> None:
        chance = random.Random(self._seeds[number])
        count = 0
        with urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=1, read=5)) as http:
            while not self._stopping.is_set():
                fields = {name: value(chance) if callable(value) else value for name, value in self._shape.items()}
                self._add(http, chance, self._cluster.event(f"{self._name}-{number}-{count}", **fields))
                count += 1
                self._stopping.wait(self._pause)

    def _add(self, http: urllib3.PoolManager, chance: random.Random, event: dict[str, Any]) -> None:
        application, event_id = event.pop("application-id"), event.pop("event-id")
        give_up_at = time.monotonic() + self.PATIENCE_SECONDS
        while time.monotonic() < give_up_at:
            url = f"{chance.choice(self._urls)}/cassata/event/{application}/{event_id}"
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                answer = http.request("PUT", url, body=json.dumps(event), headers={"Content-Type": "application/json"})
                if answer.status in {200, 201}:
                    self._cluster.ledger.acknowledged([(application, event_id)])
                    return
                if answer.status not in {429, 500, 502, 503, 504}:
                    raise AssertionError(f"{url}: {answer.status} {answer.data[:500]!r}")
            self.repeats += 1
            time.sleep(chance.uniform(0.05, 0.3))
        raise AssertionError(f"{event_id}: not answered for within {self.PATIENCE_SECONDS} s")


# --- hurting -----------------------------------------------------------------------------------------------------------


def children_of(pid: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Have processes stand still for a while, all of their threads."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def between(least: float, most: float) -> Callable[[random.Random], float]:
    """For a producer: another value for each event."""
    return lambda chance: chance.uniform(least, most)
