"""The harness itself: what it would find, if it were there. A check that cannot fail proves nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from cassata.model import NewEvent, Outcome, Status
from cassata.scheduler import Scheduler, Terms
from tests.conftest import wait_until
from tests.faults import checker
from tests.faults.checker import Figures
from tests.faults.cluster import Cluster
from tests.faults.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Past:
    """Five events, e1 to e5 (rows 1 to 5), that were acknowledged and delivered."""

    ledger: Ledger
    receiver_log: Path
    url: str

    def check(self) -> Figures:
        return checker.check(self.ledger, self.receiver_log, self.url)

    def change(self, statement: str) -> None:
        engine = sa.create_engine(self.url)
        with engine.begin() as conn:
            conn.execute(sa.text(statement))
        engine.dispose()

    def write(self, number: int, **record: object) -> None:
        with self.receiver_log.open("a") as log:
            log.write(f"{json.dumps({'number': number, **record})}\n")

    def arrived(self, number: int, event_id: str, at_ms: int, *, answer: int = 200) -> None:
        names = {"webhook_id": f"evt_{event_id}", "application_id": "shop", "event_id": event_id}
        self.write(number, attempt=1, path="/ok", at_ms=at_ms, **names)
        self.write(number, answer=answer, answered_ms=at_ms + 1)


@pytest.fixture
def past(tmp_path: Path, sqlite_url: str) -> Iterator[Past]:
    past = Past(Ledger(tmp_path / "ledger"), tmp_path / "receiver.jsonl", sqlite_url)
    with closing(Scheduler.open(sqlite_url)) as scheduler:
        for number in range(1, 6):
            scheduler.add(NewEvent("shop", "http://127.0.0.1/", delay_ms=0, event_id=f"e{number}"))
            past.ledger.acknowledged([("shop", f"e{number}")])
        _, claimed = scheduler.record_and_claim((), list(scheduler.agenda()), 5, Terms())
        for number, delivery in enumerate(claimed.deliveries):
            past.arrived(number, delivery.event_id, delivery.send_at)
        scheduler.record([Outcome(delivery, delivery.send_at, 1, status_code=200) for delivery in claimed.deliveries])
    yield past
    past.ledger.close()


def test_a_past_without_faults_is_sound(past: Past) -> None:
    figures = past.check()

    assert figures.is_sound
    assert (figures.acknowledged, figures.delivered, figures.duplicates, figures.fenced) == (5, 5, 0, 0)
    assert str(figures) == "acknowledged 5, delivered 5, lost 0, duplicates 0, early 0, stuck 0, contradictions 0, fenced 0"


def test_what_is_acknowledged_and_not_there_is_lost(past: Past) -> None:
    past.ledger.acknowledged([("shop", "nowhere")])

    assert past.check().lost == [("shop", "nowhere")]


def test_what_is_acknowledged_and_was_not_answered_2xx_is_lost_unless_it_ended_for_a_reason(past: Past) -> None:
    past.ledger.acknowledged([("shop", f"e{number}") for number in range(6, 8)])
    past.change(
        "INSERT INTO events (id, application, event_id, status, due_at, fence, attempts, lost_leases, method, url, request_hash,"
        " last_error, created_at, finished_at)"
        " SELECT id + 5, application, 'e' || (id + 5), 3, due_at, fence, attempts, 0, method, url, request_hash,"
        " CASE id WHEN 1 THEN 'HTTP 404' END, created_at, finished_at FROM events WHERE id < 3"
    )

    assert past.check().lost == [("shop", "e7")]


def test_two_answers_of_2xx_are_a_duplicate_and_another_answer_is_none(past: Past) -> None:
    past.arrived(6, "e1", 10**13)
    past.arrived(7, "e2", 10**13, answer=503)
    past.write(8, webhook_id="evt_e3", application_id="shop", event_id="e3", attempt=2, path="/hang", at_ms=10**13)

    figures = past.check()

    assert (figures.duplicates, figures.repeated, figures.lost) == (1, [("shop", "e1")], [])


@pytest.mark.parametrize(
    ("statement", "figure"),
    [
        ("UPDATE events SET due_at = due_at + 60000 WHERE id = 1", "early"),
        (f"UPDATE events SET status = {Status.PROCESSING}, wake_at = 1, finished_at = NULL WHERE id = 1", "stuck"),
        (f"UPDATE events SET status = {Status.FAILED} WHERE id = 1", "contradictions"),
        ("UPDATE events SET wake_at = 1 WHERE id = 1", "contradictions"),
        ("UPDATE events SET finished_at = NULL WHERE id = 1", "contradictions"),
        ("UPDATE events SET attempts = 2 WHERE id = 1", "contradictions"),
        ("INSERT INTO attempts (event, fence, number, started_at, duration_ms, status_code) VALUES (1, 9, 2, 1, 1, 200)", "contradictions"),
        ("DELETE FROM attempts WHERE event = 1", "contradictions"),
    ],
)
def test_each_kind_of_harm_shows_in_its_figure(past: Past, statement: str, figure: str) -> None:
    past.change(statement)

    figures = past.check()

    assert len(getattr(figures, figure)) >= 1
    assert not figures.is_sound


def test_what_workers_say_of_fenced_outcomes_is_added_up(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    told = ['"outcomes fenced", "count": 3}', '"x"}', '"outcomes fenced", "count": 2}', '"outcomes fe']
    log.write_text("\n".join(["Segmentation fault", *(f'{{"message": {end}' for end in told)]))

    assert checker.fenced(log) == 5


def test_a_ledger_is_read_again_without_a_line_that_was_cut_off(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "ledger")) as ledger:
        ledger.acknowledged([("shop", "a"), ("shop", "b")])
    with (tmp_path / "ledger").open("a") as file:
        file.write("shop half-writ")

    with closing(Ledger(tmp_path / "ledger")) as again:
        assert again.ids == {("shop", "a"), ("shop", "b")}


def test_producers_do_not_give_up_and_write_down_only_what_was_answered_for(cluster_on: Callable[[str], Cluster], sqlite_url: str) -> None:
    cluster = cluster_on(sqlite_url)
    service = cluster.start_service()

    with cluster.producers([service], count=2, delay=600) as producers:
        wait_until(lambda: len(cluster.ledger) >= 10)
        service.kill()
        wait_until(lambda: producers.repeats >= 2)
        before = len(cluster.ledger)
        cluster.start_service(port=int(service.url.rsplit(":", 1)[1]))
        wait_until(lambda: len(cluster.ledger) > before + 5)

    assert cluster.check().lost == sorted(cluster.ledger.ids)  # nobody was there to send them
    assert cluster.ledger.ids <= checker.read(sqlite_url).keys()
