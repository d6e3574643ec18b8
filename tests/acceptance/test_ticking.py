"""`cassata worker tick`: what is due is sent, and the process ends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from cassata.model import NewEvent, Status
from cassata.receiver import Receiver
from cassata.recurrence import Rule
from cassata.scheduler import Scheduler
from cassata.series import NewSeries

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def scheduler(database_url: str) -> Scheduler:
    return Scheduler.open(database_url)


def test_all_that_is_due_is_sent_and_what_is_not_stays(scheduler: Scheduler, database_url: str, run_cassata: Run) -> None:
    later = int((datetime.now(UTC) + timedelta(hours=1)).timestamp() * 1000)
    with Receiver() as receiver:
        scheduler.add_all([NewEvent("shop", receiver.url, due_at=0, event_id=f"e{n}") for n in range(200)])
        scheduler.add(NewEvent("shop", receiver.url, due_at=later, event_id="later"))
        scheduler.timetable.create(NewSeries("shop", Rule(every_ms=1000, start_at=later), series_id="s", url=receiver.url))

        done = run_cassata("worker", "tick", "--database-url", database_url)

        assert (done.returncode, len(receiver.requests)) == (0, 200)
    statuses = [event.status for event in scheduler.events("shop", limit=1_000).events]
    assert (statuses.count(Status.COMPLETED), statuses.count(Status.PENDING)) == (200, 1)
    assert run_cassata("worker", "tick", "--database-url", database_url).returncode == 0
    scheduler.close()


def test_a_tick_without_a_database_fails_and_says_so(run_cassata: Run) -> None:
    done = run_cassata("worker", "tick", "--database-url", "mysql+pymysql://nobody@127.0.0.1:1/nothing")
    assert done.returncode == 1
    assert "cannot" in done.stderr or "refused" in done.stderr
