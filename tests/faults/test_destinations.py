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
LONGEST_HOLD_MS = DEADLINE_SECONDS * 1000 + 200
TRIES = 3
"""A machine that is busy with something else may hold up a process for longer than that, but not each time."""
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


def longest_hold(cluster: Cluster, name: str) -> int:
    stored = checker.read(cluster.database_url).items()
    return max(attempt.duration_ms for (_, event_id), each in stored if event_id.startswith(f"{name}-") for attempt in each.attempts)


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_no_destination_can_hold_a_slot_for_longer_than_the_deadline_or_fill_the_memory(cluster: Cluster, figure: Figure) -> None:
    service, worker = cluster.start_service(), cluster.start_worker(env=ONCE)
    cluster.add_all(service, [cluster.event(f"calm-{number}") for number in range(10)])
    cluster.wait_until_all_have_ended()
    before = resident_mb(worker.pid)

    growth: dict[str, float] = {}
    held: dict[str, int] = {}
    for evil in EVIL:
        for number in range(TRIES):
            name = f"{evil}.{number}"
            cluster.add_all(service, [cluster.event(f"{name}-{each}", f"/{evil}") for each in range(PARALLEL)])
            cluster.wait_until_all_have_ended()
            held[evil] = min(held.get(evil, 10**6), longest_hold(cluster, name))
            if held[evil] <= LONGEST_HOLD_MS:
                break
        growth[evil] = resident_mb(worker.pid, "VmHWM") - before
    cluster.add_all(service, [cluster.event("after")])
    cluster.wait_until_all_have_ended()

    figures = cluster.check()
    longest = max(held, key=lambda evil: held[evil])
    holds = f"longest hold {held[longest]} ms ({longest}), memory {before:.0f} MB and {max(growth.values()):.1f} MB more"
    figure(f"D evil destinations, {PARALLEL} at a time of each of {len(EVIL)} kinds: {figures}; {holds}")
    assert figures.is_sound
    assert figures.duplicates == 0
    assert max(held.values()) <= LONGEST_HOLD_MS, held
    assert max(growth.values()) <= ALLOWED_GROWTH_MB, growth
    assert checker.read(cluster.database_url)["shop", "after"].event.status == Status.COMPLETED
    assert sum(arrival.path == "/loop" for arrival in arrivals(cluster.receiver_log)) % PARALLEL == 0  # a redirect is not followed
