"""memory: what one worker process holds after each of ten bursts of 20,000 events. One process shares with nobody, so all of it counts."""

from __future__ import annotations

from collections.abc import Iterator

from bench import machine
from bench.base import Place, Run
from bench.inside import shipped
from bench.inside.database import Database, fresh, now_ms

BURST = 20_000
BURSTS = 10
PATIENCE_SECONDS = 120


def memory(place: Place, runs: int, quick: bool) -> Iterator[Run]:
    """Measure a new worker in each run."""
    burst = BURST // 10 if quick else BURST
    with fresh(place) as database:
        for number in range(1, runs + 1):
            database.empty()
            database.add_applications(1)
            with shipped.worker(place.folder, database, 1) as worker:
                sizes = [_after_a_burst(place, database, worker, burst) for _ in range(BURSTS)]
            figures = {"pss_mb_first": sizes[0], "pss_mb_last": sizes[-1], "pss_mb_most": max(sizes), "events": burst * BURSTS}
            yield Run("memory", "cassata-mariadb", number, "", figures, series={"pss_mb": sizes})


def _after_a_burst(place: Place, database: Database, worker: shipped.Cassata, events: int) -> float:
    place.receiver.reset()
    database.add_events(events, wake_at=str(now_ms()), url=place.receiver.url(0).removesuffix("0"))
    count = place.receiver.wait_for(events, seconds=PATIENCE_SECONDS)
    assert count.unique == events, f"only {count.unique} of {events} events came"
    machine.wait_until(database.is_done, seconds=PATIENCE_SECONDS)
    return machine.pss_mb(worker.pids())
