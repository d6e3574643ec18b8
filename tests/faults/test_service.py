"""What befalls the service: its processes are killed with adds in their hands, and clients cancel what is just being taken."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3

from cassata.model import Status
from tests.conftest import Running, wait_until
from tests.faults import checker
from tests.faults.cluster import Cluster, children_of, now_ms
from tests.faults.receiver import arrivals

pytestmark = pytest.mark.faults

Figure = Callable[[str], None]
FAULTY = "tests.faults.faulty"


def stored_once(cluster: Cluster) -> int:
    """Return how many of what was acknowledged is stored; there cannot be two rows of one id, and nothing else may be there."""
    stored = checker.read(cluster.database_url)
    assert stored.keys() == cluster.ledger.ids
    return len(stored)


# --- adding ------------------------------------------------------------------------------------------------------------


def test_processes_of_the_service_that_are_killed_leave_no_add_half_done(cluster: Cluster, figure: Figure) -> None:
    service = cluster.start_service()
    kills = 0
    with cluster.producers([service], delay=600) as producers:
        for _ in range(8):
            time.sleep(cluster.random.uniform(0.1, 0.4))
            if children := children_of(service.pid):
                os.kill(cluster.random.choice(children), signal.SIGKILL)
                kills += 1
        time.sleep(0.5)

    stored = stored_once(cluster)
    figure(f"F5 {kills} processes of the service killed: acknowledged {len(cluster.ledger)}, stored {stored}, repeated {producers.repeats}")
    assert producers.repeats > 0


@pytest.mark.parametrize("point", ["before-add", "after-add"])
def test_an_add_whose_answer_never_came_is_stored_once(cluster: Cluster, tmp_path: Path, figure: Figure, point: str) -> None:
    env = {"FAULT": point, "FAULT_AT": str(cluster.random.randint(3, 20)), "FAULT_MARK": str(tmp_path / "killed")}
    service = cluster.start_service(program=FAULTY, env=env)
    with cluster.producers([service], count=4, delay=600) as producers:
        wait_until(lambda: (tmp_path / "killed").exists())
        wait_until(lambda: producers.repeats >= 1)
        time.sleep(0.5)

    stored = stored_once(cluster)
    figure(f"F5 killed {point.replace('-', ' the ')}: acknowledged {len(cluster.ledger)}, stored {stored}, repeated {producers.repeats}")


def test_processes_of_the_service_that_stand_still_are_replaced_and_their_adds_are_stored_once(cluster: Cluster, figure: Figure) -> None:
    service = cluster.start_service(program=FAULTY, env={"FAULT": "impatient"})
    with cluster.producers([service], delay=600) as producers:
        time.sleep(cluster.random.uniform(0.5, 1))
        victims = children_of(service.pid)
        for victim in victims:
            os.kill(victim, signal.SIGSTOP)
        wait_until(lambda: not set(victims) & set(children_of(service.pid)))
        time.sleep(0.5)

    stored = stored_once(cluster)
    figure(f"F5 timed out: acknowledged {len(cluster.ledger)}, stored {stored}, repeated {producers.repeats}")
    assert producers.repeats > 0


# --- cancelling --------------------------------------------------------------------------------------------------------


def test_what_was_cancelled_is_never_sent_however_close_the_claim_was(cluster: Cluster, figure: Figure) -> None:
    """Workers take events 100 to 200 ms ahead, so that is when the race is."""
    service = cluster.start_service()
    cluster.start_worker()
    pairs = [(f"e{number}", cluster.random.uniform(-0.25, 0.02)) for number in range(300)]
    with ThreadPoolExecutor(16) as pool, urllib3.PoolManager(maxsize=16, retries=False, timeout=10) as http:
        answers = dict(pool.map(lambda pair: _race(http, service, cluster, *pair), pairs))
    cluster.wait_until_all_have_ended()

    figures = cluster.check()
    requests = Counter(arrival.event_id for arrival in arrivals(cluster.receiver_log))
    fates = {event_id: Status(each.event.status) for (_, event_id), each in checker.read(cluster.database_url).items()}
    cancelled = {event_id for event_id, fate in fates.items() if fate is Status.CANCELLED}
    both = [event_id for event_id in cancelled if requests[event_id]]
    codes = dict(sorted(Counter(answers.values()).items()))
    figure(f"F1 DELETE races the claim: {figures}; answers {codes}, cancelled {len(cancelled)}, cancelled and sent {len(both)}")
    assert figures.is_sound
    assert both == []
    assert {event_id for event_id, code in answers.items() if code == 200} <= cancelled
    assert {event_id for event_id in fates if event_id not in cancelled} == {event_id for event_id, times in requests.items() if times == 1}
    assert min(Counter(answers.values())[code] for code in (200, 202)) > 10  # or it was no race


def _race(http: urllib3.PoolManager, service: Running, cluster: Cluster, event_id: str, after: float) -> tuple[str, int]:
    """Add an event, and cancel it `after` it is due (before, if negative). Return what the service said to that."""
    time.sleep(random.Random(event_id).uniform(0, 0.2))
    due_at = now_ms() / 1000 + 0.4
    event = cluster.event(event_id)
    del event["delay"]
    answer = http.request("POST", f"{service.url}/cassata/add/", json=event | {"expiry": due_at})
    assert answer.status == 201, answer.data
    cluster.ledger.acknowledged([("shop", event_id)])
    time.sleep(max(0.0, due_at + after - time.time()))
    return event_id, http.request("DELETE", f"{service.url}/cassata/delete/shop/{event_id}").status
