"""Clocks that are wrong. Whose turn it is, is decided by the database's clock, which knows no zones: nothing is early, or comes twice."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cassata import database
from tests.conftest import MariaDB, Running, running_mariadb, wait_until
from tests.faults import checker
from tests.faults.cluster import Cluster, between

pytestmark = pytest.mark.faults

Figure = Callable[[str], None]
FakedClock = Callable[[float], dict[str, str]]
HOUR = 3_600.0
LATE_MS = 60_000
"""Far less than clocks are wrong by, and far more than a busy machine delays anything."""


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_workers_whose_clocks_are_an_hour_off_send_nothing_early_or_twice(
    cluster: Cluster, faked_clock: FakedClock, figure: Figure
) -> None:
    service = cluster.start_service()
    workers = [cluster.start_worker(env=faked_clock(off)) for off in (HOUR, -HOUR)]
    with cluster.producers([service], delay=between(0, 2), pause=0.03):
        time.sleep(2)
    cluster.wait_until_all_have_ended()

    figures = cluster.check()
    told = [next(record for record in checker.told(worker.log) if record["message"] == "worker started") for worker in workers]
    hours = [datetime.datetime.fromisoformat(record["timestamp"]) for record in told]
    figure(f"A10 clocks of workers an hour before and behind: {figures}, latest {figures.latest_ms} ms")
    assert abs((hours[0] - hours[1]).total_seconds() - 2 * HOUR) < 60  # they really believe it
    assert figures.is_sound
    assert (figures.needless, figures.fenced) == (0, 0)
    assert figures.latest_ms <= LATE_MS


CHANGES = {
    "skips in spring": datetime.datetime(2027, 3, 28, 1, tzinfo=datetime.UTC),
    "repeats in autumn": datetime.datetime(2026, 10, 25, 1, tzinfo=datetime.UTC),
}
HOURS_BEFORE = {"skips in spring": 1, "repeats in autumn": 2}
LEAD_SECONDS = (12, 24, 48)
"""So long before the change a server is started: time for all else to start, too. On a busy machine that may take longer."""


@pytest.fixture
def server_in_berlin(tmp_path: Path, faked_clock: FakedClock) -> Iterator[Callable[[int], MariaDB]]:
    """A function: a MariaDB in Berlin that believes it is so many seconds later."""
    with contextlib.ExitStack() as running:

        def start(ahead: int) -> MariaDB:
            folder = tmp_path / f"server{ahead}"
            folder.mkdir()
            with pytest.MonkeyPatch.context() as surroundings:
                for name, value in {**faked_clock(ahead), "TZ": "Europe/Berlin"}.items():
                    surroundings.setenv(name, value)
                return running.enter_context(running_mariadb(folder))

        yield start


@pytest.mark.parametrize("change", CHANGES)
def test_an_hour_that_the_zone_of_the_database_skips_or_repeats_moves_nothing(
    server_in_berlin: Callable[[int], MariaDB], cluster_on: Callable[[str], Cluster], figure: Figure, change: str
) -> None:
    for lead in LEAD_SECONDS:
        ahead = int((CHANGES[change] - datetime.datetime.now(datetime.UTC)).total_seconds()) - lead
        server = server_in_berlin(ahead)
        before = hours_from_utc(server)
        cluster, service = start_on(server, cluster_on)
        if hours_from_utc(server) == before == HOURS_BEFORE[change]:
            break
    with cluster.producers([service], delay=between(0, 2), pause=0.03):
        wait_until(lambda: hours_from_utc(server) != before)
        time.sleep(1)
    cluster.wait_until_all_have_ended()

    figures = cluster.check(clock_ahead_ms=ahead * 1_000)
    zones = f"from UTC {before} to {hours_from_utc(server)} h"
    figure(f"A10 an hour that the database's zone {change} ({zones}): {figures}, latest {figures.latest_ms} ms")
    assert figures.is_sound
    assert (figures.needless, figures.fenced) == (0, 0)
    assert figures.latest_ms <= LATE_MS


def start_on(server: MariaDB, cluster_on: Callable[[str], Cluster]) -> tuple[Cluster, Running]:
    url = server.url(server.create_database([]))
    database.upgrade(url)
    cluster = cluster_on(url)
    workers = [cluster.start_worker(ready=False) for _ in range(2)]
    service = cluster.start_service()
    for worker in workers:
        worker.wait_until(lambda worker=worker: "worker started" in worker.output())
    return cluster, service


def hours_from_utc(server: MariaDB) -> int:
    """Ask what a session sees that leaves its zone as the server has it."""
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT ROUND(TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(), NOW()) / 3600)")
        (found,) = cursor.fetchone() or (0,)
    return int(found)
