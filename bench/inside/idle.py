"""idle: what a worker costs that has nothing to do for the next hour: one process, as shipped, and four."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from bench import machine
from bench.base import Place, Run
from bench.inside import shipped
from bench.inside.database import Database, fresh, now_ms

EVENTS = 1_000
HOUR_MS = 3_600_000
SETTLE_SECONDS = 3  # so long a worker has been up before it is looked at
VARIANTS = {"": 1, "processes-4": 4}


def idle(place: Place, runs: int, quick: bool) -> Iterator[Run]:
    """Measure both, in turn, with events that are an hour ahead."""
    seconds = 10 if quick else 20
    with fresh(place) as database:
        database.add_applications(1)
        database.add_events(EVENTS, wake_at=f"{now_ms() + HOUR_MS} + seq")
        for number in range(1, runs + 1):
            for variant, processes in VARIANTS.items():
                yield Run("idle", "cassata-mariadb", number, variant, _measure(place, database, processes, seconds))


def _measure(place: Place, database: Database, processes: int, seconds: float) -> Mapping[str, float]:
    with shipped.worker(place.folder, database, processes) as worker:
        time.sleep(SETTLE_SECONDS)
        cpu, queries, began = machine.CpuMeter().start(worker.pids), database.counter("Questions"), time.monotonic()
        server_before = database.cpu_seconds()
        time.sleep(seconds)
        taken = time.monotonic() - began
        return {
            "worker_cpu_percent": cpu.spent() / taken * 100,
            "server_cpu_percent": (database.cpu_seconds() - server_before) / taken * 100,
            "queries_per_second": (database.counter("Questions") - queries - 1) / taken,  # one of them was this question
            "worker_processes": processes,
        }
