"""What befalls an SQLite file and those that share it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from tests.conftest import unused_port
from tests.faults.cluster import IN_FLIGHT, RECOVERY_SECONDS, Cluster, between

pytestmark = pytest.mark.faults

Figure = Callable[[str], None]
LOCKED_SECONDS = 4.0


@pytest.fixture
def sqlite_cluster(cluster_on: Callable[[str], Cluster], sqlite_url: str) -> Cluster:
    return cluster_on(sqlite_url)


def test_services_and_workers_killed_on_one_file_lose_nothing(seed: str, sqlite_cluster: Cluster, figure: Figure) -> None:
    cluster, port = sqlite_cluster, unused_port()
    service = cluster.start_service(port=port)
    workers = [cluster.start_worker() for _ in range(2)]
    with cluster.producers([service], path="/slow/0.1", delay=between(0, 0.5), pause=0.02):
        time.sleep(cluster.random.uniform(1, 2))
        for victim in [workers[0], service, workers[1]]:
            victim.kill()
            time.sleep(cluster.random.uniform(0, 0.3))
        cluster.start_service(port=port)
        cluster.start_worker()
        time.sleep(1)
    cluster.wait_until_all_have_ended(RECOVERY_SECONDS + 20)

    figures = cluster.check()
    with closing(sqlite3.connect(cluster.database_url.removeprefix("sqlite:///"))) as file:
        (intact,) = file.execute("PRAGMA integrity_check").fetchone()
    figure(f"B15 service and workers killed: {figures}")
    assert intact == "ok"
    assert figures.is_sound
    assert figures.duplicates <= len(figures.worker_lost) <= 2 * IN_FLIGHT


def test_a_file_that_somebody_else_has_locked_for_seconds_loses_nothing(seed: str, sqlite_cluster: Cluster, figure: Figure) -> None:
    cluster = sqlite_cluster
    service = cluster.start_service()
    workers = [cluster.start_worker() for _ in range(2)]
    with cluster.producers([service], path="/slow/0.1", pause=0.02) as producers:
        time.sleep(1)
        with closing(sqlite3.connect(cluster.database_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("PRAGMA busy_timeout = 5000")
            other.execute("BEGIN IMMEDIATE")
            time.sleep(LOCKED_SECONDS)
            other.execute("ROLLBACK")
        time.sleep(1.5)
    cluster.wait_until_all_have_ended()

    assert [running.stop() for running in [service, *workers]] == [0, 0, 0]
    figures = cluster.check()
    figure(f"B15 file locked for {LOCKED_SECONDS:.0f} s: {figures}, adds repeated {producers.repeats}")
    assert figures.is_sound
    assert figures.duplicates <= 2 * IN_FLIGHT
