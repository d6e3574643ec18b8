"""Destinations that drip, hang, flood, reset and loop: each costs its slot for a deadline, and no memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cassata.model import Status
from tests.faults import checker
from tests.faults.cluster import DEADLINE_SECONDS, Cluster
from tests.faults.receiver import arrivals

pytestmark = pytest.mark.faults

Figure = Callable[[str], None]
PARALLEL = 100
ALLOWED_OVERTIME_MS = 200
ALLOWED_GROWTH_MB = 20
EVIL = [
    "drip-headers",
    "drip-body",
    "endless-body",
    "endless-headers",
    "endless-continue",
    "huge-headers",
    "hang",
    "reset",
    "close",
    "loop",
    "garbage",
]
ONCE = {
    "CASSATA_WORKER__NUMWORKERTHREADS": "1",
    "CASSATA_WORKER__MAXINFLIGHTPERTHREAD": "400",
    "CASSATA_WORKER__NUMEVENTSPROCESSEDPERTRANSACTION": "100",
    "CASSATA_WORKER__HTTPRETRYCOUNT": "0",
    "CASSATA_WORKER__BREAKERFAILURERATIO": "null",  # or the first ten would spare it the others
}


def resident_mb(pid: int, name: str = "VmRSS") -> float:
    """Read how much memory a process has: in use, or (VmHWM) the most it has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_no_destination_can_hold_a_slot_for_longer_than_the_deadline_or_fill_the_memory(cluster: Cluster, figure: Figure) -> None:
    service, worker = cluster.start_service(), cluster.start_worker(env=ONCE)
    cluster.add_all(service, [cluster.event(f"calm-{number}") for number in range(10)])
    cluster.wait_until_all_have_ended()
    before = resident_mb(worker.pid)

    growth: dict[str, float] = {}
    held: dict[str, int] = {}
    for evil in EVIL:
        cluster.add_all(service, [cluster.event(f"{evil}-{number}", f"/{evil}") for number in range(PARALLEL)])
        cluster.wait_until_all_have_ended()
        growth[evil] = resident_mb(worker.pid, "VmHWM") - before
        stored = [each for (_, event_id), each in checker.read(cluster.database_url).items() if event_id.rsplit("-", 1)[0] == evil]
        held[evil] = max(attempt.duration_ms for each in stored for attempt in each.attempts)
    cluster.add_all(service, [cluster.event("after")])
    cluster.wait_until_all_have_ended()

    figures = cluster.check()
    longest = max(held, key=lambda evil: held[evil])
    figure(
        f"D evil destinations, {PARALLEL} at a time of each of {len(EVIL)} kinds: {figures}; longest hold {held[longest]} ms "
        f"({longest}), memory {before:.0f} MB and {max(growth.values()):.1f} MB more"
    )
    assert figures.is_sound
    assert figures.duplicates == 0
    assert max(held.values()) <= DEADLINE_SECONDS * 1000 + ALLOWED_OVERTIME_MS, held
    assert max(growth.values()) <= ALLOWED_GROWTH_MB, growth
    assert checker.read(cluster.database_url)["shop", "after"].event.status == Status.COMPLETED
    assert sum(arrival.path == "/loop" for arrival in arrivals(cluster.receiver_log)) == PARALLEL  # a redirect is not followed
