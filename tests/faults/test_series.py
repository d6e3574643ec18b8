"""Workers are killed at any instant while series fire: of each occurrence there is one event, and it is sent."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from cassata import recurrence
from cassata.recurrence import Rule
from cassata.scheduler import Scheduler
from cassata.series import NewSeries, SeriesStatus
from tests.conftest import Running, wait_until
from tests.faults import checker
from tests.faults.cluster import Cluster, now_ms

pytestmark = pytest.mark.faults

FAULTY = "tests.faults.faulty"
SERIES, BOUNDARIES = 26, 8


@contextlib.contextmanager
def at_work(cluster: Cluster, count: int) -> Iterator[Counter[str]]:
    """Keep so many workers at work, and kill one after the other: some at any instant, some while they see to a series, or just after."""
    deaths: Counter[str] = Counter()

    def start() -> Running:
        fault = cluster.random.choice(["in-advance", "after-advance"])
        env = {"FAULT": fault, "FAULT_AT": str(cluster.random.randint(1, 4))}
        running = cluster.start_worker(program=FAULTY, env=env, ready=False)
        kinds[running.pid] = fault
        return running

    kinds: dict[int, str] = {}
    workers = [start() for _ in range(count)]
    yield deaths
    give_up_at = time.monotonic() + BOUNDARIES
    while time.monotonic() < give_up_at:
        time.sleep(cluster.random.uniform(0.1, 0.4))
        for place, running in enumerate(workers):
            if running.process.poll() is not None:
                deaths[kinds[running.pid]] += 1
                workers[place] = start()
        if cluster.random.random() < 0.2:
            deaths["at any instant"] += 1
            cluster.random.choice(workers).kill()
    for running in workers:
        running.kill()


def test_series_fire_once_at_each_boundary_however_many_workers_are_killed(cluster: Cluster, figure: Callable[[str], None]) -> None:
    scheduler = Scheduler.open(cluster.database_url)
    begin = (now_ms() // 1000 + 2) * 1000
    instants = range(begin, begin + BOUNDARIES * 1000, 1000)
    expected = set()
    with at_work(cluster, 3) as deaths:
        for number in range(SERIES):
            rule = Rule(every_ms=1_000, start_at=begin, until_at=instants[-1])
            scheduler.timetable.create(NewSeries("shop", rule, f"{cluster.destination}/ok", series_id=f"s{number}"))
            ids = {("shop", recurrence.occurrence_id(f"s{number}", at)) for at in instants}
            cluster.ledger.acknowledged(ids)  # what a series promises once it is stored
            expected |= ids
    cluster.start_worker()
    wait_until(lambda: len(scheduler.timetable.series("shop", statuses={SeriesStatus.ENDED})) == SERIES, 40)
    cluster.wait_until_all_have_ended()
    scheduler.close()

    figures = cluster.check()
    stored = checker.read(cluster.database_url)
    missing = expected - stored.keys()
    double = len(stored.keys() - expected)
    told = {record["message"] for worker in cluster.workers for record in checker.told(worker.log)}
    figure(
        f"series, {len(expected)} boundaries, workers killed {dict(deaths)}: missing {len(missing)}, double {double}; "
        f"{figures}, latest {figures.latest_ms} ms"
    )
    assert not missing
    assert not double
    assert figures.is_sound
    assert figures.delivered == len(expected) >= 200
    assert figures.duplicates <= len(figures.worker_lost)
    assert deaths["in-advance"] + deaths["after-advance"] > 0
    assert "housekeeping failed" not in told
