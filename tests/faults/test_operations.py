"""What befalls work on many events while its workers are killed: each event is changed once, and the progress is right."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import create_engine, text

from cassata.client import Client, NewOperation, Operation
from cassata.model import Status
from tests.conftest import wait_until
from tests.faults.cluster import Cluster

pytestmark = pytest.mark.faults

Figure = Callable[[str], None]
EVENTS = 2_000
FAR = datetime(2030, 1, 1, tzinfo=UTC)
PACE = {"CASSATA_WORKER__OPERATIONEVENTSPERSECOND": "1000"}


def killed_until_done(cluster: Cluster, client: Client, operation: Operation) -> int:
    """Kill and replace one of two workers again and again until the operation is done. Return how many were killed."""
    kills = 0
    give_up_at = time.monotonic() + 60
    while not client.operation("shop", operation.operation_id).has_ended:
        assert time.monotonic() < give_up_at, client.operation("shop", operation.operation_id)
        time.sleep(cluster.random.uniform(0.1, 0.6))
        cluster.workers[-2].kill()
        cluster.start_worker(env=PACE)
        kills += 1
    return kills


def test_workers_killed_at_any_instant_change_every_event_once(cluster: Cluster, figure: Figure) -> None:
    service = cluster.start_service()
    for _ in range(2):
        cluster.start_worker(env=PACE)
    events = [{**cluster.event(f"e{number}"), "expiry": FAR.timestamp() + number % 100} for number in range(EVENTS)]
    for event in events:
        event.pop("delay")
    cluster.add_all(service, events)

    with Client(service.url, key="") as client:
        shifted = client.begin(NewOperation("shop", "reschedule", expiry_from=FAR, shift=timedelta(days=1)))
        kills = killed_until_done(cluster, client, shifted)
        cancelled = client.begin(NewOperation("shop", "cancel", host=cluster.destination.partition("//")[2]))
        kills += killed_until_done(cluster, client, cancelled)
        retried = client.begin(NewOperation("shop", "retry", status=Status.CANCELLED, expiry_from=FAR))
        kills += killed_until_done(cluster, client, retried)
        found = list(client.iter_events("shop", page_length=1_000))
        done = [client.operation("shop", each.operation_id) for each in (shifted, cancelled, retried)]

    wrong = [event for event in found if event.expiry != FAR + timedelta(days=1, seconds=int(event.event_id[1:]) % 100)]
    engine = create_engine(cluster.database_url)
    with engine.connect() as connection:
        replays = connection.execute(text("SELECT COUNT(*) FROM attempts GROUP BY event")).scalars().all()
    engine.dispose()
    progress = [(each.status, each.changed, each.skipped) for each in done]
    figure(f"O1 operations under kills: {EVENTS} events x 3, workers killed {kills}, moved wrongly {len(wrong)}, progress {progress}")
    assert kills >= 3
    assert wrong == []
    assert {event.status for event in found} == {Status.PENDING}
    assert replays == [1] * EVENTS
    assert progress == [("DONE", EVENTS, 0)] * 3


def test_a_worker_told_to_stop_leaves_an_operation_to_the_next(cluster: Cluster) -> None:
    service = cluster.start_service()
    first = cluster.start_worker(env={"CASSATA_WORKER__OPERATIONEVENTSPERSECOND": "500"})
    cluster.add_all(service, [cluster.event(f"e{number}", delay=86_400) for number in range(1_500)])

    with Client(service.url, key="") as client:
        begun = client.begin(NewOperation("shop", "cancel", status=Status.PENDING))
        wait_until(lambda: client.operation("shop", begun.operation_id).changed > 0)
        assert first.stop() == 0
        assert not client.operation("shop", begun.operation_id).has_ended
        cluster.start_worker()
        wait_until(lambda: client.operation("shop", begun.operation_id).has_ended)
        assert client.operation("shop", begun.operation_id).changed == 1_500
