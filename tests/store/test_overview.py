"""What an overview counts, and that however much there is it reads no more than a bounded part of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from cassata import database, overview
from cassata.errors import UnknownApplication
from cassata.model import Action, After, Capped, ErrorKind, Filter, NewOperation, Outcome, Status
from cassata.overview import Pulse
from cassata.recurrence import Rule
from cassata.scheduler import Scheduler
from cassata.series import NewSeries
from cassata.tallies import LATENESS_MS, MINUTE_MS, percentile
from cassata.tenants import Changes
from tests.words import NOON, Hand, ManualClock, new_event, outcome


@pytest.fixture(autouse=True)
def _always_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "FRESH_SECONDS", 0.0)


# --- counts --------------------------------------------------------------------------------------------------------------


def test_events_are_counted_by_their_statuses(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add_all([new_event(f"e{n}", due_at=NOON - 5_000 + n) for n in range(4)])
    scheduler.add_all([new_event(f"later{n}", due_at=NOON + 60_000) for n in range(3)])
    scheduler.add(new_event("other", "bank", due_at=NOON + 1))
    scheduler.cancel("shop", "later0")
    done, refused, busy, _ = hand.claim()
    hand.answer(done)
    hand.answer(refused, 400)
    hand.answer(busy, 503)

    counts = scheduler.overview.counts("shop")
    assert {status: count.events for status, count in counts.statuses.items()} == {
        Status.PENDING: 2,
        Status.BLOCKED: 0,
        Status.PROCESSING: 1,
        Status.SERVICE_UNAVAILABLE: 1,
        Status.COMPLETED: 1,
        Status.FAILED: 1,
        Status.CANCELLED: 1,
    }
    assert not any(count.is_capped for count in counts.statuses.values())
    assert scheduler.overview.counts().statuses[Status.PENDING].events == 3


def test_what_is_due_and_waits_is_counted_with_its_age(scheduler: Scheduler, clock: ManualClock) -> None:
    scheduler.add_all([new_event(f"e{n}", due_at=NOON + n * 1_000) for n in range(5)])
    assert scheduler.overview.counts("shop").next_at == NOON
    clock.advance(2_500)
    counts = scheduler.overview.counts("shop")
    assert (counts.due.events, counts.oldest_due_at) == (3, NOON)
    with pytest.raises(UnknownApplication):
        scheduler.overview.counts("nobody")


def test_a_count_ends_at_its_cap_and_says_so(scheduler: Scheduler, hand: Hand, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "EXAMINED", 10)
    scheduler.add_all([new_event(f"done{n}", due_at=NOON - 100 + n) for n in range(15)])
    hand.scheduler.record([outcome(delivery) for delivery in hand.claim()])
    scheduler.add_all([new_event(f"e{n}", due_at=NOON + 60_000 + n) for n in range(25)])
    for application_id in ("shop", None):
        counts = scheduler.overview.counts(application_id)
        assert counts.statuses[Status.PENDING] == Capped(10, is_capped=True)
    counts = scheduler.overview.counts("shop")
    assert counts.statuses[Status.COMPLETED] == Capped(10, is_capped=True)
    assert counts.since == NOON - 100 + 5  # the list that is led to begins with the first one that was counted


def test_many_that_are_blocked_hide_nothing_else(scheduler: Scheduler, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "EXAMINED", 10)
    scheduler.add_all([new_event(f"e{n}", due_at=NOON - 100 + n) for n in range(4)])
    scheduler.add_all([new_event(f"after{n}", due_at=NOON, after=After("e3")) for n in range(12)])
    busy, _ = hand.claim(2)
    hand.answer(busy, 503)
    expected = {Status.PENDING: 2, Status.PROCESSING: 1, Status.SERVICE_UNAVAILABLE: 1}

    for counts in (scheduler.overview.counts("shop"), scheduler.overview.counts()):
        assert {status: counts.statuses[status] for status in expected} == {status: Capped(count) for status, count in expected.items()}
        assert counts.statuses[Status.BLOCKED] == Capped(10, is_capped=True)
    for status, count in expected.items():
        assert scheduler.overview.counts_of(["shop"], status) == {"shop": Capped(count)}
    assert scheduler.overview.counts_of(["shop"], Status.BLOCKED) == {"shop": Capped(10, is_capped=True)}
    assert scheduler.backlog(10, 10).counts == {"shop": {**expected, Status.BLOCKED: 10}}


def test_the_load_ahead_is_told_step_by_step(scheduler: Scheduler, clock: ManualClock) -> None:
    clock.instant = NOON + 30_000
    for minute, events in ((0, 2), (1, 3), (59, 1), (60, 5)):
        scheduler.add_all([new_event(f"m{minute}-{n}", due_at=NOON + minute * 60_000 + 40_000) for n in range(events)])
    scheduler.add(new_event("other", "bank", due_at=NOON + 61_000))
    ahead = scheduler.overview.ahead(60_000, 60, "shop")
    assert [(bar.begin, bar.events.events) for bar in ahead if bar.events.events] == [
        (NOON, 2),
        (NOON + 60_000, 3),
        (NOON + 59 * 60_000, 1),
    ]
    assert sum(bar.events.events for bar in scheduler.overview.ahead(60_000, 60)) == 7
    assert sum(bar.events.events for bar in scheduler.overview.ahead(3_600_000, 48, "shop")) == 11


def test_occurrences_of_series_are_told_before_they_are_events(scheduler: Scheduler, clock: ManualClock) -> None:
    for application_id, status in (("shop", None), ("bank", None), ("shop", "paused")):
        new = NewSeries(application_id, Rule(every_ms=600_000, start_at=NOON), "http://127.0.0.1/", series_id=f"s{status}", payload=b"")
        scheduler.timetable.create(new)
    scheduler.timetable.pause("shop", "spaused")
    for application_id, expected in (("shop", 1), (None, 2)):
        ahead = scheduler.overview.ahead(60_000, 60, application_id)
        told = [(bar.begin - NOON) // 60_000 for bar in ahead if bar.occurrences.events]
        assert told == [10, 20, 30, 40, 50]
        assert {bar.occurrences for bar in ahead if bar.occurrences.events} == {Capped(expected)}


def test_a_bar_ends_at_its_cap(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "BAR_EVENTS", 4)
    scheduler.add_all([new_event(f"e{n}", due_at=NOON + 1_000) for n in range(9)])
    first, second = scheduler.overview.ahead(60_000, 2, "shop")
    assert (first.events, second.events) == (Capped(4, is_capped=True), Capped(0))


def test_how_much_there_is_about_follows_from_the_first_events_of_a_step(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "BAR_EVENTS", 10)
    scheduler.add_all([new_event(f"e{n}", due_at=NOON + n * 1_000) for n in range(60)])
    (bar,) = scheduler.overview.ahead(60_000, 1, "shop")
    assert bar.events.is_guessed
    assert 60 <= bar.events.events <= 67


# --- minutes -------------------------------------------------------------------------------------------------------------


def test_outcomes_are_counted_by_minute_and_application(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add_all([new_event(f"e{n}", due_at=NOON) for n in range(4)])
    scheduler.add(new_event("other", "bank", due_at=NOON))
    late = 7
    outcomes = [Outcome(delivery, NOON + late, 5, status_code=200) for delivery in hand.claim()]
    failed = next(place for place, each in enumerate(outcomes) if each.delivery.event_id == "e3")
    outcomes[failed] = replace(outcomes[failed], status_code=400)
    scheduler.record(outcomes)
    scheduler.overview.write_tallies()
    scheduler.overview.write_tallies()  # there is nothing left to write

    clock.advance(90_000)
    before, last = scheduler.overview.minutes(2, "shop")
    assert (before.at, before.attempts, before.delivered, before.failed) == (NOON, 4, 3, 1)
    assert last.attempts == 0
    assert scheduler.overview.minutes(2)[0].attempts == 5
    low, high = (max(bound for bound in LATENESS_MS if bound < late), min(bound for bound in LATENESS_MS if bound >= late))
    assert low <= (before.late(0.5) or 0) <= high
    assert last.late(0.5) is None


def test_what_several_workers_count_is_added_up(scheduler: Scheduler, database_url: str, clock: ManualClock) -> None:
    scheduler.tenants.create("shop")
    number = scheduler.tenants.application("shop").number
    row = {"application": number, "measure": 0, "minute": NOON // MINUTE_MS, "events": 3}
    other = Scheduler(database.open_engines(database_url), clock=clock)
    for each in (scheduler, other, scheduler):
        each.overview.tallies.give_back([row])
        each.overview.write_tallies()
    other.close()
    assert scheduler.overview.minutes(1, "shop")[0].attempts == 9


def test_a_retry_says_nothing_of_lateness(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event("e1", due_at=NOON))
    hand.fail(hand.claim_one(), ErrorKind.TIMEOUT)
    clock.advance(3_600_000)
    hand.answer(hand.claim_one())
    scheduler.overview.write_tallies()
    minutes = scheduler.overview.minutes(61, "shop")
    assert sum(minute.attempts for minute in minutes) == 2
    assert sum(sum(minute.lateness) for minute in minutes) == 1


def test_old_minutes_and_workers_are_forgotten(scheduler: Scheduler, clock: ManualClock) -> None:
    scheduler.tenants.create("shop")
    row = {"application": 0, "measure": 0, "minute": NOON // MINUTE_MS, "events": 3}
    scheduler.overview.tallies.give_back([row])
    gone, alive = Pulse(), Pulse()
    scheduler.overview.tell(gone, 1)
    clock.advance((overview.TALLIES_KEPT_MINUTES + 1) * MINUTE_MS)
    alive.cleaned_at = float("-inf")
    scheduler.overview.tell(alive, 2)
    with scheduler._engines.read.connect() as conn:
        assert conn.execute(text("SELECT COUNT(*) FROM tallies")).scalar() == 0
        assert conn.execute(text("SELECT COUNT(*) FROM workers")).scalar() == 1


@pytest.mark.parametrize(
    ("classes", "share", "low", "high"),
    [([10], 0.5, 0, 1), ([0, 0, 100], 0.99, 2, 5), ([99, 0, 0, 1], 0.5, 0, 1), ([99, 0, 0, 1], 0.995, 5, 10), ([90, 10], 0.95, 1, 2)],
)
def test_a_percentile_lies_in_its_class(classes: list[int], share: float, low: float, high: float) -> None:
    assert low <= (percentile(classes, share) or 0) <= high


def test_what_is_later_than_all_classes_is_told_as_the_last_bound() -> None:
    assert percentile([0] * len(LATENESS_MS) + [5], 0.5) == LATENESS_MS[-1]
    assert percentile([0, 0], 0.5) is None


# --- workers -------------------------------------------------------------------------------------------------------------


def test_workers_tell_that_they_are_alive_and_leave(scheduler: Scheduler, clock: ManualClock) -> None:
    first, second = Pulse(), Pulse()
    scheduler.overview.tell(first, 7)
    clock.advance(5_000)
    scheduler.overview.tell(first, 9)
    scheduler.overview.tell(second, 0)
    assert {(worker.worker, worker.in_hand, worker.started_at) for worker in scheduler.overview.workers()} == {
        (first.worker, 9, NOON),
        (second.worker, 0, NOON + 5_000),
    }
    scheduler.overview.leave(second)
    assert [worker.worker for worker in scheduler.overview.workers()] == [first.worker]
    clock.advance(overview.WORKER_FRESH_MS + 1)
    assert scheduler.overview.workers() == []


# --- why an event has not been sent --------------------------------------------------------------------------------------


def codes(scheduler: Scheduler, event_id: str = "e1") -> list[str]:
    return [reason.code for reason in scheduler.explain("shop", event_id)]


@pytest.fixture
def worker(scheduler: Scheduler) -> Pulse:
    pulse = Pulse()
    scheduler.overview.tell(pulse, 0)
    return pulse


def test_an_event_that_is_not_due_says_so(scheduler: Scheduler, worker: Pulse) -> None:
    scheduler.add(new_event("e1", due_at=NOON + 60_000))
    (reason,) = scheduler.explain("shop", "e1")
    assert (reason.code, reason.until) == ("not due", NOON + 60_000)


def test_an_event_says_who_has_it_how_it_waits_and_how_it_ended(
    scheduler: Scheduler, worker: Pulse, hand: Hand, clock: ManualClock
) -> None:
    scheduler.add_all([new_event("e0", due_at=NOON), new_event("e1", due_at=NOON + 1)])
    clock.advance(5)
    assert codes(scheduler) == ["turn"]
    first, delivery = hand.claim()
    assert codes(scheduler) == ["leased"]
    hand.answer(delivery, 503)
    assert codes(scheduler) == ["retry"]
    clock.advance(3_600_000)
    hand.answer(next(each for each in hand.claim() if each.event_id == "e1"))
    assert codes(scheduler) == ["completed"]
    assert codes(scheduler, "e0") == ["leased"]  # again, by the last claim
    hand.answer(first, 400)


def test_an_event_says_what_is_in_its_way(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event("e1", due_at=NOON))
    assert codes(scheduler) == ["no worker"]
    scheduler.overview.tell(Pulse(), 0)
    scheduler.tenants.change("shop", Changes(active=False))
    assert codes(scheduler) == ["inactive"]
    scheduler.tenants.change("shop", Changes(active=True))
    scheduler.add_all([new_event(f"bad{n}", due_at=NOON - 1) for n in range(12)])
    for delivery in hand.claim(12):
        if delivery.event_id != "e1":
            hand.fail(delivery, ErrorKind.CONNECT_FAILED)
    scheduler.add(new_event("late", due_at=NOON))
    (reason, *_) = scheduler.explain("shop", "late")
    assert reason.code == "breaker"
    assert "127.0.0.1:80" in reason.text


# --- however much there is -----------------------------------------------------------------------------------------------

ROWS = 2**20
MOST_READ = 130_000
"""Entries of indexes and rows that a page may read: what the caps allow."""


@pytest.fixture(scope="module")
def large(mariadb: Any) -> Iterator[tuple[Scheduler, str]]:
    """A million events of one application, half of them finished, one in eight of these failed; a quarter of the others is blocked."""
    name = mariadb.create_database([])
    url = mariadb.url(name)
    database.upgrade(url)
    engines = database.open_engines(url)
    clock = ManualClock()
    scheduler = Scheduler(engines, clock=clock)
    scheduler.add(new_event("e0", due_at=NOON))
    columns = "application, event_id, status, due_at, wake_at, fence, attempts, lost_leases, method, url, request_hash, created_at"
    ahead, ago = f"{NOON} + MOD(n, 3000) * 60000", f"{NOON} - n * 10"
    status, wake_at = "IF(MOD(n, 2), IF(MOD(n, 8) = 1, 6, 0), IF(MOD(n, 16), 2, 3))", f"IF(MOD(n, 2), IF(MOD(n, 8) = 1, -1, {ahead}), NULL)"
    half = f"{status}, IF(MOD(n, 2), {ahead}, {ago}), {wake_at}"
    numbers = "WITH RECURSIVE few AS (SELECT 0 AS n UNION ALL SELECT n + 1 FROM few WHERE n < 63)"
    many = "many AS (SELECT (:part * 64 + a.n) * 64 + b.n AS n FROM few a, few b)"
    copied = f"application, CONCAT('n', many.n), {half}, 0, 0, 0, method, url, request_hash, created_at"
    with engines.write.begin() as conn:
        fill = text(f"INSERT INTO events ({columns}) {numbers}, {many} SELECT {copied} FROM many, (SELECT * FROM events LIMIT 1) AS first")
        for part in range(ROWS // 64**2):
            conn.execute(fill, {"part": part})
        conn.execute(text("ANALYZE TABLE events"))
        assert conn.execute(text("SELECT COUNT(*) FROM events")).scalar() == ROWS + 1
    yield scheduler, url
    scheduler.close()
    mariadb.drop_database(name)


PAGES = {
    "counts": lambda scheduler: scheduler.overview.counts("shop"),
    "backlog": lambda scheduler: scheduler.backlog(20, 10_000),
    "counts of all": lambda scheduler: scheduler.overview.counts(),
    "load by minute": lambda scheduler: scheduler.overview.ahead(60_000, 60, "shop"),
    "load by hour": lambda scheduler: scheduler.overview.ahead(3_600_000, 48),
    "load by day": lambda scheduler: scheduler.overview.ahead(86_400_000, 31, "shop"),
    "minutes": lambda scheduler: scheduler.overview.minutes(60, "shop"),
    "workers": lambda scheduler: scheduler.overview.workers(),
    "applications": lambda scheduler: scheduler.overview.counts_of(["shop"], Status.CANCELLED),
    "events": lambda scheduler: scheduler.events("shop", limit=50),
    "newest events": lambda scheduler: scheduler.events("shop", limit=50, newest_first=True),
    "what failed last": lambda scheduler: scheduler.events("shop", Filter(frozenset({Status.FAILED})), newest_first=True),
    "what was answered": lambda scheduler: scheduler.events("shop", Filter(last_status=503), newest_first=True),
    "one event": lambda scheduler: scheduler.event("shop", "n7"),
    "preview": lambda scheduler: scheduler.operations.preview(NewOperation("shop", Action.CANCEL, Filter(host="a.test"))),
    "series": lambda scheduler: scheduler.timetable.series("shop", limit=100),
    "operations": lambda scheduler: scheduler.operations.list("shop", limit=50),
    "why": lambda scheduler: scheduler.explain("shop", "e0"),
}


@pytest.mark.parametrize("page", PAGES)
def test_no_page_reads_more_than_a_bounded_part(large: tuple[Scheduler, str], page: str) -> None:
    """By what the server itself says it has read: rows and entries of indexes, one by one."""
    scheduler, _ = large
    read = {}
    for _ in range(2):  # the first time also fills what is kept in mind
        with scheduler._engines.read.connect() as conn:
            before = _reads(conn)
        PAGES[page](scheduler)
        with scheduler._engines.read.connect() as conn:
            read = _reads(conn) - before
    assert read <= MOST_READ, read


def _reads(conn: Any) -> int:
    rows = conn.execute(text("SHOW GLOBAL STATUS LIKE 'Handler_read%'"))
    return sum(int(value) for _, value in rows)


def test_counts_of_a_large_application_are_capped(large: tuple[Scheduler, str]) -> None:
    scheduler, _ = large
    counts = scheduler.overview.counts("shop")
    assert counts.statuses[Status.PENDING] == counts.statuses[Status.BLOCKED] == Capped(10_000, is_capped=True)
    assert counts.statuses[Status.COMPLETED].is_capped
    assert 1_000 < counts.statuses[Status.FAILED].events < 1_500
