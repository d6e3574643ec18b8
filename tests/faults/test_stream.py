"""Workers are killed at any instant while they tell of events, and the receiver fails now and then: nothing goes untold, or too early."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from cassata.model import Milestone, Stream
from cassata.receiver import Received, Receiver
from cassata.scheduler import Scheduler
from cassata.tenants import Changes
from tests.conftest import wait_until
from tests.faults import checker
from tests.faults.cluster import Cluster

pytestmark = pytest.mark.faults

EVENTS, SECONDS = 600, 12
QUICK = {"CASSATA_WORKER__REQUESTTIMEOUTSECONDS": "2", "CASSATA_WORKER__LEASEMARGINSECONDS": "1"}


def test_each_message_comes_and_in_order_however_many_workers_are_killed(cluster: Cluster, figure: Callable[[str], None]) -> None:
    chance, lock = cluster.random, threading.Lock()
    taken: list[tuple[str, str, str]] = []  # (event, kind, message) in the order in which the receiver has answered 200
    refused: Counter[int] = Counter()
    disliked = {f"e{number}" for number in range(0, EVENTS, 5)}  # for as long as workers are killed

    def answer(request: Received) -> int:
        message = json.loads(request.body)
        with lock:
            if message["data"]["event-id"] in disliked:
                refused[422] += 1
                return 422
            if chance.random() < 0.02:
                code = chance.choice([500, 503, 404, 429])
                refused[code] += 1
                return code
            taken.append((message["data"]["event-id"], message["type"], message["id"]))
        return 200

    scheduler = Scheduler.open(cluster.database_url)
    with Receiver(answer=answer, keep=False) as receiver:
        scheduler.tenants.create("shop", Changes(stream=Stream(f"{receiver.url}/told")))
        service = cluster.start_service()
        workers = [cluster.start_worker(env=QUICK) for _ in range(3)]
        cluster.add_all(service, [cluster.event(f"e{number}", delay=chance.uniform(0, SECONDS)) for number in range(EVENTS)])
        kills, give_up_at = 0, time.monotonic() + SECONDS
        while time.monotonic() < give_up_at:
            time.sleep(chance.uniform(0.5, 2))
            victim = chance.randrange(len(workers))
            workers[victim].kill()
            workers[victim] = cluster.start_worker(env=QUICK, ready=False)
            kills += 1
        disliked.clear()
        cluster.wait_until_all_have_ended()
        state = scheduler.outbox.state
        wait_until(lambda: state("shop", 10).messages == 0, 90, lambda: str(state("shop", 10)))
    scheduler.close()

    first: dict[str, list[str]] = {}
    seen: set[str] = set()
    for event, kind, message in taken:
        if message not in seen:
            seen.add(message)
            first.setdefault(event, []).append(kind.removeprefix("event."))
    stored = checker.read(cluster.database_url)
    figure(
        f"stream, {len(seen)} messages, {kills} workers killed, refused {dict(refused)}: "
        f"{sum(len(kinds) != 2 for kinds in first.values())} events wrongly told, {len(taken) - len(seen)} repetitions"
    )
    assert kills > 3
    assert first.keys() == {event for _, event in stored}
    assert {tuple(kinds) for kinds in first.values()} == {(Milestone.CREATED, Milestone.COMPLETED)}
