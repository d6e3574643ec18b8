"""tenants: 20,000 events due at one instant that belong to one application, to a hundred, or to ten thousand.

The real worker, as shipped, with four processes; the receiver; MariaDB. The rows are made by SQL, so that only what the
worker does with them is measured. The CPU counts from when they are stored, 3 s before they are due, until the last is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from bench import machine
from bench.base import Place, Run
from bench.inside import shipped
from bench.inside.database import Database, fresh, now_ms

EVENTS = 20_000
PROCESSES = 4
LEAD_MS = 3_000
PATIENCE_SECONDS = 120


def tenants(place: Place, runs: int, quick: bool) -> Iterator[Run]:
    """Measure each number of applications in turn, and again."""
    counts = (1, 10_000) if quick else (1, 100, 10_000)
    with fresh(place) as database:
        for number in range(1, runs + 1):
            for applications in counts:
                yield Run("tenants", "cassata-mariadb", number, str(applications), measure(place, database, applications))


def measure(place: Place, database: Database, applications: int, *, prepare: Callable[[], None] = lambda: None) -> Mapping[str, float]:
    """Have so many applications' events delivered; `prepare` is called once there are applications."""
    database.empty()
    database.add_applications(applications)
    prepare()
    place.receiver.reset()
    with shipped.worker(place.folder, database, PROCESSES) as worker:
        due_at = now_ms() + LEAD_MS
        database.add_events(EVENTS, wake_at=str(due_at), url=place.receiver.url(0).removesuffix("0"), applications=applications)
        assert now_ms() < due_at, "the rows were stored too late"
        worker_cpu = machine.CpuMeter().start(worker.pids)
        server_before = database.cpu_seconds()
        count = place.receiver.wait_for(EVENTS, seconds=PATIENCE_SECONDS)
        machine.wait_until(database.is_done, seconds=PATIENCE_SECONDS)
        worker_ms, server_ms = worker_cpu.spent() * 1000, (database.cpu_seconds() - server_before) * 1000
        arrivals = place.receiver.arrivals()
    late_us = [at - due_at * 1000 for _, at in arrivals]
    return {
        "drain_per_second": count.unique / (max(late_us) / 1e6),
        "worker_cpu_ms_per_event": worker_ms / EVENTS,
        "server_cpu_ms_per_event": server_ms / EVENTS,
        "cost_ms_per_event": (worker_ms + server_ms) / EVENTS,
        "lateness_max_ms": max(late_us) / 1000,
        "early": sum(late < 0 for late in late_us),
        "unique": count.unique,
        "duplicates": count.total - count.unique,
    }
