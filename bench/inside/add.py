"""add: events through the real service, one by one on 16 connections, and in batches; beside the same insert in a bare Flask view."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import machine
from bench.base import Place, Run
from bench.inside.client import Answers, Client, post
from bench.inside.database import Database, fresh
from bench.inside.shipped import Cassata, running, service

PROCESSES = 4
URL = "http://127.0.0.1:9/orders"
SINGLE_CONNECTIONS = 16
BATCH_CONNECTIONS = 8
ROUNDS = 4
"""Each with new connections: which process has how many of them is chance, and decides much."""


@dataclass(frozen=True, slots=True)
class Variant:
    """`size` events in a request, which comes with a `token`, if there is one."""

    name: str
    size: int = 1
    connections: int = SINGLE_CONNECTIONS
    bare: bool = False
    token: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


VARIANTS = (
    Variant("single"),
    Variant("bare", bare=True),
    Variant("batch-100", 100, BATCH_CONNECTIONS),
    Variant("batch-1000", 1000, BATCH_CONNECTIONS),
)


def add(place: Place, runs: int, quick: bool) -> Iterator[Run]:
    """Measure the variants in turn, and again, in one database."""
    with fresh(place) as database:
        yield from measure(place, database, VARIANTS, runs, seconds=3 if quick else 8)


def measure(
    place: Place, database: Database, variants: tuple[Variant, ...], runs: int, *, seconds: float, suffix: str = ""
) -> Iterator[Run]:
    database.execute("INSERT IGNORE INTO applications (id, application_id, created_at) VALUES (1, 'bench', 0)")
    for number in range(1, runs + 1):
        for variant in variants:
            yield from measure_one(place, database, variant, "add", number, seconds=seconds, suffix=suffix)


def measure_one(
    place: Place, database: Database, variant: Variant, workload: str, number: int, *, seconds: float, suffix: str = ""
) -> Iterator[Run]:
    """Measure one variant with a service of its own."""
    if variant.bare:
        start = bare_service(place.folder, database, PROCESSES)
    else:
        start = service(place.folder, database, PROCESSES, environment=variant.environment)
    with start as running:
        figures, remark = _measure(database, running, variant, seconds)
    yield Run(workload, "cassata-mariadb", number, variant.name + suffix, figures, remark=remark)


def _measure(database: Database, service: Cassata, variant: Variant, seconds: float) -> tuple[Mapping[str, float], str]:
    _send(service, variant, 1)  # warm: every thread has its connection to the database
    service_cpu, server_cpu, client_cpu = service.cpu_seconds(), database.cpu_seconds(), time.process_time()
    answers = Answers()
    for _ in range(ROUNDS):
        answers += _send(service, variant, seconds / ROUNDS)
    service_cpu, server_cpu = service.cpu_seconds() - service_cpu, database.cpu_seconds() - server_cpu
    client_cpu = time.process_time() - client_cpu
    events = len(answers.latencies_ms) * variant.size
    figures = {
        "events_per_second": answers.per_second * variant.size,
        "latency_p50_ms": answers.latency_ms(0.5),
        "latency_p99_ms": answers.latency_ms(0.99),
        "service_cpu_us_per_event": service_cpu / events * 1e6,
        "server_cpu_us_per_event": server_cpu / events * 1e6,
        "client_cpu_us_per_event": client_cpu / events * 1e6,
        "errors": answers.errors,
    }
    return figures, answers.first_error


def _send(service: Cassata, variant: Variant, seconds: float) -> Answers:
    client = Client(
        service.port,
        requests(service.port, variant),
        variant.connections,
        expected=201 if variant.size == 1 else 200,
        rejected=b"" if variant.size == 1 else b'"problem"',
    )
    try:
        return client.run(seconds)
    finally:
        client.close()


def requests(port: int, variant: Variant) -> Iterator[bytes]:
    """Make requests without end, each with ids of its own, as random as ids are."""
    path = "/add" if variant.bare else "/cassata/add/" if variant.size == 1 else "/cassata/add/batch"
    template = json.dumps({"application-id": "bench", "event-id": "ID", "delay": 36_000, "url": URL, "event": '{"order": 7}'})
    before, after = template.encode().split(b"ID")
    for _ in itertools.count():
        events = [b"%b%b%b" % (before, uuid.uuid4().hex.encode(), after) for _ in range(variant.size)]
        yield post(port, path, events[0] if variant.size == 1 else b'{"events": [%b]}' % b",".join(events), token=variant.token)


@contextmanager
def bare_service(folder: Path, database: Database, processes: int) -> Iterator[Cassata]:
    """Run the bare Flask view (bare.py)."""
    port = machine.free_port()
    own = Path(tempfile.mkdtemp(dir=folder, prefix="bare-"))
    with running([sys.executable, "-m", "bench.inside.bare", database.url, str(port), str(processes)], own) as process:
        process.port = port
        process.wait_until(lambda: process.has_said("service started") and len(process.pids()) > processes)
        yield process
