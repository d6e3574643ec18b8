"""What befalls chains of events while workers are killed: every successor has one verdict, by how the event before it ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from cassata.model import FINISHED, On, Status
from tests.faults import checker
from tests.faults.cluster import Cluster
from tests.faults.receiver import Arrival, arrivals

pytestmark = pytest.mark.faults

Figure = Callable[[str], None]
CHAINS, LINKS = 120, 5
PATHS = ("/ok", "/ok", "/ok", "/slow/0.2", "/status/404", "/flaky/1")


def chain(cluster: Cluster, number: int, random: Random) -> list[dict[str, Any]]:
    """A chain with a fan at its end: each link waits for one before it, by any of the three conditions."""
    events = [cluster.event(f"c{number}-0", random.choice(PATHS))]
    for place in range(1, LINKS):
        before = f"c{number}-{random.randint(max(0, place - 2), place - 1)}"
        after = {"event-id": before, "on": random.choice(list(On)), "input": random.choice(("previous", None))}
        events.append(cluster.event(f"c{number}-{place}", random.choice(PATHS), after=after))
    return events


def test_workers_killed_amid_chains_leave_every_successor_with_one_verdict(cluster: Cluster, figure: Figure) -> None:
    service = cluster.start_service()
    for _ in range(2):
        cluster.start_worker()
    chains = [chain(cluster, number, cluster.random) for number in range(CHAINS)]
    kills = 0
    for start in range(0, CHAINS, 20):
        cluster.add_all(service, [event for each in chains[start : start + 20] for event in each])
        time.sleep(cluster.random.uniform(0.2, 0.8))
        cluster.workers[-2].kill()
        cluster.start_worker()
        kills += 1
    for _ in range(4):
        time.sleep(cluster.random.uniform(0.2, 0.8))
        cluster.workers[-2].kill()
        cluster.start_worker()
        kills += 1
    cluster.wait_until_all_have_ended(90)

    stored = {event_id: each for (_, event_id), each in checker.read(cluster.database_url).items()}
    seen: dict[str, list[Arrival]] = {}
    for arrival in arrivals(cluster.receiver_log):
        seen.setdefault(arrival.event_id, []).append(arrival)
    wrong, verdicts = [], Counter[str]()
    for event in (event for each in chains for event in each):
        event_id, after = event["event-id"], event.get("after")
        status = Status(stored[event_id].event.status)
        if after is None:
            continue
        before = stored[after["event-id"]]
        is_allowed = On(after["on"]).allows(Status(before.event.status))
        verdicts["sent" if is_allowed else "aborted"] += 1
        requests = seen.get(event_id, [])
        is_right = (status is not Status.CANCELLED and requests) if is_allowed else (status is Status.CANCELLED and not requests)
        came_before = seen.get(after["event-id"], [])
        if not is_right or (requests and came_before and requests[0].at_ms < came_before[0].at_ms):
            wrong.append((event_id, status.name, before.event.status, after["on"], len(requests)))
    again = [event_id for event_id, requests in seen.items() if len(requests) > len(stored[event_id].attempts)]
    lost = [event["event-id"] for each in chains for event in each if stored[event["event-id"]].event.status not in FINISHED]
    figure(f"L1 chains under kills: {CHAINS} x {LINKS}, workers killed {kills}, {dict(verdicts)}, wrong {len(wrong)}, open {len(lost)}")
    assert wrong == []
    assert lost == []
    assert again == []  # more requests than attempts that are known of
    assert min(verdicts["sent"], verdicts["aborted"]) > 0
