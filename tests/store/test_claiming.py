"""What workers do to events, on every database: claim, record, release, and the fences between owners."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pymysql
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from cassata import database, store
from cassata.courier.retry import RetryPolicy
from cassata.errors import DatabaseUnavailable
from cassata.model import Delivery, ErrorKind, RetryOptions, Status
from cassata.scheduler import LOST_LEASES, Scheduler
from tests.store.worlds import Faults, Kind, Mishap
from tests.words import NOON, Hand, ManualClock, ids, new_event, outcome


def test_an_event_is_claimed_when_it_is_due_and_not_before(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event(due_at=NOON + 1_000))

    clock.advance(999)
    assert hand.claim() == []
    clock.advance(1)
    assert ids(hand.claim()) == ["e1"]


def test_an_event_may_be_claimed_ahead_and_says_when_to_send_it(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event(due_at=NOON + 150))

    (delivery,) = hand.claim(look_ahead_ms=200)

    assert (delivery.due_at, delivery.send_at) == (NOON + 150, NOON + 150)


def test_a_claim_takes_the_oldest_first_and_no_more_than_it_may(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add_all([new_event(f"e{offset}", due_at=NOON + offset) for offset in (3, 1, 4, 2, 5)])
    clock.advance(5)

    assert ids(hand.claim(limit=2)) == ["e1", "e2"]
    assert ids(hand.claim(limit=2)) == ["e3", "e4"]
    assert ids(hand.claim(limit=2)) == ["e5"]


def test_a_claimed_event_is_nobody_elses_until_its_lease_ends(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event())
    first = hand.claim_one()

    clock.advance(hand.lease_ms - 1)
    assert hand.claim() == []
    assert hand.claim(look_ahead_ms=200) == []
    clock.advance(1)
    second = hand.claim_one()

    assert (first.number, second.number) == (1, 2)
    assert second.fence > first.fence


def test_a_lease_lasts_for_the_events_own_deadline(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add_all([new_event("patient", timeout_ms=60_000), new_event("usual")])
    assert len(hand.claim()) == 2

    clock.advance(hand.lease_ms)
    assert ids(hand.claim()) == ["usual"]
    clock.advance(40_000)
    assert "patient" in ids(hand.claim())


@pytest.mark.parametrize("code", [500, 200])
def test_a_lost_lease_cannot_complete_an_event(scheduler: Scheduler, hand: Hand, clock: ManualClock, code: int) -> None:
    scheduler.add(new_event())
    stale = hand.claim_one()
    clock.advance(hand.lease_ms)
    owner = hand.claim_one()

    recorded = scheduler.record([outcome(stale, code)])

    assert (recorded.kept, recorded.fenced) == (0, 1)
    assert scheduler.status("shop", "e1").status is Status.PROCESSING
    assert [attempt.error for attempt in scheduler.event("shop", "e1")[1]] == [ErrorKind.WORKER_LOST]
    assert hand.answer(owner, 200) == 1
    assert scheduler.record([outcome(stale, code)]).fenced == 1
    assert scheduler.status("shop", "e1").status is Status.COMPLETED


def test_a_worker_that_stood_still_while_it_recorded_is_told_what_it_has_lost(
    scheduler: Scheduler, hand: Hand, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler.add(new_event())
    stale = hand.claim_one()
    clock.advance(hand.lease_ms)
    hand.claim_one()
    monkeypatch.setattr(database, "TRANSACTION_SECONDS", 0.0)  # all the time that there is has passed once the first try is over

    recorded = scheduler.record([outcome(stale)])

    assert (recorded.kept, recorded.fenced) == (0, 1)


def test_an_outcome_after_the_lease_counts_if_nobody_else_has_claimed(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event())
    delivery = hand.claim_one()
    clock.advance(hand.lease_ms * 2)

    assert hand.answer(delivery, 200) == 1
    assert hand.claim() == []


def test_an_outcome_recorded_twice_is_written_once_and_is_not_called_fenced(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event())
    delivery = hand.claim_one()

    scheduler.record([outcome(delivery, 200)])
    again = scheduler.record([outcome(delivery, 200)])

    assert (again.kept, again.fenced) == (0, 0)
    assert len(scheduler.event("shop", "e1")[1]) == 1


def test_every_attempt_is_logged_with_what_came_of_it(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event())
    hand.answer(hand.claim_one(), 503, excerpt="nö \U0001f6ab")
    clock.advance(3_600_000)
    hand.fail(hand.claim_one(), ErrorKind.DNS_FAILED)
    clock.advance(3_600_000)
    hand.answer(hand.claim_one(), 200, excerpt="yes")

    event, attempts = scheduler.event("shop", "e1")

    assert event.status is Status.COMPLETED
    assert event.attempts == 3
    assert [(a.number, a.status_code, a.error, a.excerpt) for a in attempts] == [
        (1, 503, None, "nö \U0001f6ab"),
        (2, None, ErrorKind.DNS_FAILED, None),
        (3, 200, None, "yes"),
    ]


def test_a_retry_is_durable_and_waits(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event())
    hand.answer(hand.claim_one(), 503, retry_after_ms=60_000)

    event = scheduler.status("shop", "e1")

    assert event.status is Status.SERVICE_UNAVAILABLE
    assert "503" in (event.last_error or "")
    assert event.next_attempt_at is not None
    assert event.next_attempt_at >= NOON + 60_000
    clock.advance(59_999)
    assert hand.claim() == []


def test_spent_retries_end_an_event_as_failed(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event())
    for _ in range(3):  # the policy of these tests: two retries
        hand.answer(hand.claim_one(), 500)
        clock.advance(3_600_000)

    event = scheduler.status("shop", "e1")
    assert (event.status, event.attempts, event.wake_at) == (Status.FAILED, 3, None)
    assert "500" in (event.last_error or "")


def test_an_event_whose_workers_are_lost_three_times_has_failed(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event())
    for _ in range(LOST_LEASES):
        hand.claim_one()
        clock.advance(hand.lease_ms)

    taken = hand.take()

    event = scheduler.status("shop", "e1")
    assert (taken.deliveries, taken.buried) == ([], 1)
    assert event.status is Status.FAILED
    assert "worker lost" in (event.last_error or "")
    assert [attempt.number for attempt in scheduler.event("shop", "e1")[1]] == [1, 2, 3]


def test_only_leases_lost_in_a_row_count(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    def lose(times: int) -> None:
        for _ in range(times):
            hand.claim_one()
            clock.advance(hand.lease_ms)

    scheduler.add(new_event(retry=RetryOptions(count=20)))
    lose(LOST_LEASES - 1)
    hand.answer(hand.claim_one(), 429)
    clock.advance(3_600_000)
    lose(LOST_LEASES - 1)

    assert hand.claim_one().number == 2 * LOST_LEASES


def test_a_cancelled_event_whose_worker_is_lost_is_not_sent_again(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event())
    hand.claim_one()
    scheduler.cancel("shop", "e1")
    clock.advance(hand.lease_ms)

    assert hand.claim() == []
    assert scheduler.event("shop", "e1")[0].status is Status.CANCELLED


def test_a_released_event_is_as_it_was_before(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event(due_at=NOON + 100))
    before = scheduler.status("shop", "e1")
    (delivery,) = hand.claim(look_ahead_ms=200)

    assert scheduler.release([delivery]) == 1

    assert replace(scheduler.status("shop", "e1"), fence=before.fence) == before
    assert hand.answer(delivery) == 0  # it was given up
    assert len(hand.claim(look_ahead_ms=200)) == 1


def test_a_released_retry_waits_on_as_a_retry(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event())
    hand.answer(hand.claim_one(), 503)
    clock.advance(3_600_000)

    scheduler.release([hand.claim_one()])

    event = scheduler.status("shop", "e1")
    assert (event.status, event.attempts) == (Status.SERVICE_UNAVAILABLE, 1)


def test_what_was_cancelled_meanwhile_is_not_put_back(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event())
    delivery = hand.claim_one()
    scheduler.cancel("shop", "e1")

    scheduler.release([delivery])

    assert scheduler.event("shop", "e1")[0].status is Status.CANCELLED


def test_a_stale_owner_cannot_release(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event())
    stale = hand.claim_one()
    clock.advance(hand.lease_ms)
    hand.claim_one()

    assert scheduler.release([stale]) == 0
    assert scheduler.status("shop", "e1").status is Status.PROCESSING


# --- many applications ---------------------------------------------------------------------------------------------------


def test_a_backlog_of_one_application_delays_no_other(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add_all([new_event(f"e{number}", "busy", due_at=NOON - 5_000) for number in range(200)])
    scheduler.add_all([new_event("e", f"quiet-{number}") for number in range(3)])

    claimed = hand.claim(limit=20)

    assert Counter(delivery.application_id for delivery in claimed) == {"busy": 17, "quiet-0": 1, "quiet-1": 1, "quiet-2": 1}


def test_a_claim_tells_when_each_application_has_more(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add_all([new_event("now", "a"), new_event("later", "a", due_at=NOON + 70_000)])
    scheduler.add_all([new_event("now", "b")])
    scheduler.add_all([new_event(f"e{number}", "c") for number in range(5)])
    numbers = dict(zip("abc", scheduler.agenda(), strict=True))

    wakes = scheduler.record_and_claim((), list(numbers.values()), 4, hand.terms)[1].wakes

    assert wakes == {numbers["a"]: NOON + 70_000, numbers["b"]: None, numbers["c"]: NOON}


def test_the_agenda_holds_what_is_unfinished_and_nothing_else(scheduler: Scheduler, hand: Hand) -> None:
    assert scheduler.agenda() == {}
    scheduler.add_all([new_event("e", "done"), new_event("e", "later", due_at=NOON + 9_000)])
    hand.answer(hand.claim_one())

    assert list(scheduler.agenda().values()) == [NOON + 9_000]


# --- the floor -----------------------------------------------------------------------------------------------------------


def test_an_add_that_becomes_visible_a_little_late_is_claimed_at_once(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add_all([new_event(f"e{offset}", due_at=NOON + offset) for offset in range(0, 300, 100)])
    clock.advance(300)
    assert len(hand.claim()) == 3
    clock.instant = NOON + 60  # an add stamped before the last claim, and committed after it
    scheduler.add(new_event("late"))
    clock.instant = NOON + 300

    assert ids(hand.claim()) == ["late"]


def test_even_a_very_late_commit_is_claimed_within_a_second(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event("e1", due_at=NOON + 5_000))
    clock.advance(5_000)
    hand.answer(hand.claim_one())
    clock.instant = NOON
    scheduler.add(new_event("very-late"))
    clock.instant = NOON + 5_500

    seen = []
    for _ in range(4):
        seen += ids(hand.claim())
        clock.advance(250)

    assert seen == ["very-late"]


def test_a_claim_that_failed_leaves_everything_for_the_next_one(scheduler: Scheduler, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadlock, or a COMMIT that failed: the transaction is begun again, and must not think that it has been here before."""
    scheduler.add_all([new_event(f"e{number}", due_at=NOON - 60_000) for number in range(9)])
    hand.claim(limit=1)
    working, failures = store.claim, iter([True])

    def fail_once(*args: Any, **kwargs: Any) -> None:
        working(*args, **kwargs)
        if next(failures, False):
            raise OperationalError("UPDATE", {}, pymysql.err.OperationalError(1213, "Deadlock found"))

    monkeypatch.setattr(store, "claim", fail_once)

    taken = hand.take(limit=5)

    assert len(taken.deliveries) == 5
    assert list(taken.wakes.values()) == [NOON]
    assert len(hand.claim(limit=5)) == 3


def test_a_herd_at_one_instant_is_claimed_whole(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add_all([new_event(f"e{number}") for number in range(500)])
    clock.advance(400)  # beyond the lag: the floor now goes by row number inside the instant

    claimed = [delivery for _ in range(60) for delivery in hand.claim(limit=9)]

    assert len({delivery.event_id for delivery in claimed}) == len(claimed) == 500


def test_what_another_worker_let_go_of_is_claimed_again(database_url: str, scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add_all([new_event(f"e{number}", due_at=NOON - 1_000) for number in range(20)])
    other = Hand(Scheduler(database.open_engines(database_url), clock=clock), clock)
    clock.advance(2_000)
    taken = other.claim(limit=5)
    assert len(hand.claim(limit=100)) == 15

    other.scheduler.release(taken)
    other.scheduler.close()
    clock.advance(1_000)

    assert sorted(ids(hand.claim())) == sorted(ids(taken))


# --- robbed of nothing -----------------------------------------------------------------------------------------------------


def test_a_row_that_cannot_be_read_stops_no_other(database_url: str, scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add_all([new_event("broken", headers=(("A", "b"),)), new_event("whole")])
    engines = database.open_engines(database_url)
    with engines.write.begin() as conn:
        conn.execute(text("UPDATE events SET headers = '{not json', options = '[]' WHERE event_id = 'broken'"))
    engines.dispose()

    claimed = {delivery.event_id: delivery for delivery in hand.claim()}

    assert set(claimed) == {"broken", "whole"}
    assert claimed["broken"].url == ""  # which no courier can send: it ends as unsendable
    assert [event.event_id for event in scheduler.events("shop").events] == ["broken", "whole"]


@dataclass
class Crew:
    """Workers on one database, each with an engine of its own, who share a clock and a tally."""

    database_url: str
    count: int
    clock: ManualClock = field(default_factory=ManualClock)
    accepted: Counter[str] = field(default_factory=Counter)
    stale: list[tuple[Scheduler, Delivery]] = field(default_factory=list)
    together: threading.Lock = field(default_factory=threading.Lock)
    busy: int = 0

    def open(self) -> Scheduler:
        return Scheduler(database.open_engines(self.database_url), clock=self.clock, retry=RetryPolicy(count=9))

    def work(self, seed: int) -> int:
        """Claim and record until every event is done; keep one outcome in four back. Return how much was claimed."""
        chance = random.Random(seed)
        hand = Hand(self.open(), self.clock)
        claims = 0
        while sum(self.accepted.values()) < self.count:
            with self.at_work():
                deliveries = hand.claim(limit=chance.randint(1, 9))
                claims += len(deliveries)
                self.finish(hand, deliveries, chance)
            if not deliveries:
                self.rest()
        return claims

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with self.together:
            self.busy += 1
        yield
        with self.together:
            self.busy -= 1

    def finish(self, hand: Hand, deliveries: list[Delivery], chance: random.Random) -> None:
        for delivery in deliveries:
            if chance.random() < 0.25 and delivery.number < LOST_LEASES:
                self.stale.append((hand.scheduler, delivery))
            else:
                kept = hand.answer(delivery)
                with self.together:
                    self.accepted[delivery.event_id] += kept

    def rest(self) -> None:
        """Let time pass, but only while nobody is between a claim and its outcome: those who are late are chosen, not unlucky."""
        with self.together:
            if not self.busy:
                self.clock.advance(500)
        time.sleep(0.005)


def test_a_claim_whose_answer_was_lost_is_put_back_at_once_and_not_counted(
    scheduler: Scheduler, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether that COMMIT was carried out. Here it was."""
    scheduler.add(new_event())
    working = scheduler._transactions.write

    def lose_the_answer(*args: Any, **kwargs: Any) -> Any:
        working(*args, **kwargs)
        raise DatabaseUnavailable("Lost connection to server during query")

    monkeypatch.setattr(scheduler._transactions, "write", lose_the_answer)
    with pytest.raises(DatabaseUnavailable):
        hand.claim()
    assert scheduler.status("shop", "e1").status is Status.PROCESSING
    monkeypatch.setattr(scheduler._transactions, "write", working)

    assert hand.claim_one().number == 1


def test_a_claim_that_a_conflict_has_undone_is_not_put_back_for_the_one_who_won(
    scheduler: Scheduler, hand: Hand, clock: ManualClock, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The winner's claim has the very same fence: on a cluster, where it is decided at COMMIT, that happens all the time."""
    scheduler.add(new_event())
    other = Scheduler(database.open_engines(database_url), clock=clock)

    def conflict(connection: Any) -> None:
        connection.connection.rollback()
        raise OperationalError(None, None, pymysql.err.OperationalError(1213, "Deadlock found when trying to get lock"))

    event.listen(scheduler._engines.write, "commit", conflict)
    with pytest.raises(DatabaseUnavailable):
        hand.claim()
    event.remove(scheduler._engines.write, "commit", conflict)
    delivery = Hand(other, clock).claim_one()

    assert hand.claim() == []
    assert Hand(other, clock).answer(delivery) == 1
    assert other.status("shop", "e1").attempts == 1
    other.close()


def test_a_claim_that_was_never_made_is_not_put_back_from_somebody_else(
    database_url: str, scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    """Its COMMIT failed, and nobody told: whoever has claimed the event since has the fence that it would have had."""
    scheduler.add(new_event())
    with Faults(scheduler._engines).arranged(Mishap(Kind.NOT_COMMITTED)), pytest.raises(DatabaseUnavailable):
        hand.claim()
    clock.advance(1)
    other = Hand(Scheduler(database.open_engines(database_url), clock=clock), clock)
    delivery = other.claim_one()

    scheduler.record([])

    assert scheduler.status("shop", "e1").status is Status.PROCESSING
    assert other.answer(delivery) == 1
    other.scheduler.close()


def test_an_outcome_whose_commit_failed_leaves_no_trace_and_is_recorded_again(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event())
    delivery = hand.claim_one()

    with Faults(scheduler._engines).arranged(Mishap(Kind.NOT_COMMITTED)), pytest.raises(DatabaseUnavailable):
        hand.answer(delivery)
    event, log = scheduler.event("shop", "e1")
    assert (event.status, log) == (Status.PROCESSING, [])

    assert hand.answer(delivery) == 1
    assert len(scheduler.event("shop", "e1")[1]) == 1


def test_a_clock_that_is_set_back_hides_nothing(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event("before"))
    hand.answer(hand.claim_one())
    clock.advance(-3_600_000)
    scheduler.add(new_event("after", due_at=clock.instant - 5_000))
    clock.advance(2_000)

    assert ids(hand.claim()) == ["after"]


def test_what_kills_its_worker_is_alone_the_third_time_and_takes_nothing_with_it(
    scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    scheduler.add_all([new_event("poison"), *(new_event(f"good-{number}") for number in range(20))])
    crashes = 0
    for _ in range(60):
        claimed = hand.claim()
        if "poison" in ids(claimed):
            crashes += 1
            clock.advance(hand.lease_ms)  # everything that was claimed is lost
            continue
        for delivery in claimed:
            hand.answer(delivery)
        clock.advance(10)

    statuses = {event.event_id: event.status for event in scheduler.events("shop").events}
    assert statuses.pop("poison") is Status.FAILED
    assert set(statuses.values()) == {Status.COMPLETED}
    assert crashes == LOST_LEASES


def test_a_process_that_has_a_suspect_gets_no_other(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add_all([new_event("one"), new_event("two")])
    for _ in range(2):
        assert len(hand.claim()) == 2
        clock.advance(hand.lease_ms)

    (suspect,) = hand.claim()
    agenda = list(scheduler.agenda())

    assert suspect.suspect
    assert scheduler.record_and_claim((), agenda, 9, hand.terms, suspects=False)[1].deliveries == []
    assert len(scheduler.record_and_claim((), agenda, 9, hand.terms)[1].deliveries) == 1


def test_events_of_an_application_that_is_gone_stop_no_other(database_url: str, scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add_all([new_event("orphan", "gone"), new_event("kept", "kept")])
    engines = database.open_engines(database_url)
    with engines.write.begin() as conn:
        conn.execute(text("DELETE FROM applications WHERE application_id = 'gone'"))
    engines.dispose()

    assert ids(hand.claim()) == ["kept"]


def test_what_is_too_long_for_its_column_is_cut_and_recorded(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event())

    hand.answer(hand.claim_one(), 500, detail="d" * 9_000, excerpt="🎉" * 9_000)

    (attempt,) = scheduler.event("shop", "e1")[1]
    assert (attempt.detail, attempt.excerpt) == ("d" * 500, "🎉" * 2_000)


def test_six_workers_with_stalled_finishers_lose_nothing_and_overwrite_nothing(database_url: str) -> None:
    crew = Crew(database_url, count=300)
    scheduler = crew.open()
    scheduler.add_all([new_event(f"e{number}", f"app-{number % 3}") for number in range(crew.count)])

    with ThreadPoolExecutor(6) as pool:
        claims = sum(pool.map(crew.work, range(6)))
    late = [owner.record([outcome(delivery, 500)]) for owner, delivery in crew.stale]

    events = [event for number in range(3) for event in scheduler.events(f"app-{number}", limit=1_000).events]
    logs = [scheduler.event(event.application_id, event.event_id)[1] for event in events]
    for owner in {scheduler, *(owner for owner, _ in crew.stale)}:
        owner.close()
    assert len(late) > 20
    assert claims == crew.count + len(late)  # every stalled claim was taken over, once
    assert [event.status for event in events] == [Status.COMPLETED] * crew.count  # lost: none
    assert set(crew.accepted.values()) == {1}  # ended twice: none
    assert {(recorded.kept, recorded.fenced) for recorded in late} == {(0, 1)}  # stale writes: none
    assert sum(len(log) for log in logs) == claims  # every attempt is a row
    assert {attempt.error for log in logs for attempt in log[:-1]} == {ErrorKind.WORKER_LOST}
    assert {(log[-1].status_code, log[-1].number) for log in logs} == {(200, n) for n in range(1, LOST_LEASES + 1)}


# --- many applications at once -----------------------------------------------------------------------------------------------


def test_a_crowd_of_applications_is_claimed_from_fairly_and_whole(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    """Some have one event, some have many: nobody waits for those who have many, and every event is claimed exactly once."""
    counts = {f"app-{number}": 60 if number % 10 == 0 else number % 4 for number in range(60)}
    scheduler.add_all([new_event(f"e{n}", application_id) for application_id, count in counts.items() for n in range(count)])

    claimed: list[str] = []
    while batch := hand.claim(limit=50):
        assert len(batch) <= 50
        claimed += [f"{delivery.application_id}/{delivery.event_id}" for delivery in batch]
        clock.advance(3)

    assert Counter(key.split("/")[0] for key in claimed) == Counter({key: count for key, count in counts.items() if count})
    assert len(claimed) == len(set(claimed))
    light = [position for position, key in enumerate(claimed) if counts[key.split("/")[0]] < 4]
    assert max(light) < 6 * 50


def test_the_newest_rows_tell_what_was_added(scheduler: Scheduler, hand: Hand) -> None:
    assert scheduler.newest_row() == 0
    scheduler.add_all([new_event("e1", "a"), new_event("e2", "b", due_at=NOON + 9)])
    before = scheduler.newest_row()
    assert scheduler.added_after(before) == ({}, before)
    scheduler.add_all([new_event("e3", "b", due_at=NOON + 5), new_event("e4", "b", due_at=NOON + 7), new_event("e5", "c")])
    numbers = dict(zip("abc", sorted(scheduler.agenda()), strict=True))

    assert scheduler.added_after(before) == ({numbers["b"]: NOON + 5, numbers["c"]: NOON}, before + 3)


def test_the_agenda_can_leave_out_what_lies_far_ahead(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add_all([new_event("e1", "soon", due_at=NOON + 900), new_event("e1", "late", due_at=NOON + 90_000)])

    assert list(scheduler.agenda(within_ms=1_000).values()) == [NOON + 900]


def test_of_many_that_have_little_none_is_passed_over_for_its_number(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    """A claim reads them in the order of their numbers, and whoever was not reached has to be the first one of the next claim."""
    numbers: dict[str, int] = {}
    for number in range(30):
        scheduler.add(new_event("e", f"app-{number:02}"))
        numbers[f"app-{number:02}"] = max(scheduler.agenda())
    rotation = [*range(20, 30), *range(20)]
    asked = [numbers[f"app-{number:02}"] for number in rotation]

    first = scheduler.record_and_claim((), asked, 8, hand.terms)[1]

    assert [delivery.application_id for delivery in first.deliveries] == [f"app-{number:02}" for number in range(20, 28)]


def test_a_suspect_is_served_in_the_midst_of_a_backlog(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event("poison"))
    for _ in range(2):
        assert ids(hand.claim()) == ["poison"]
        clock.advance(hand.lease_ms)
    scheduler.add_all([new_event(f"e{number}", due_at=clock.instant) for number in range(100)])

    claimed = [event_id for _ in range(5) for event_id in ids(hand.claim(limit=4))]

    assert "poison" in claimed
    assert len(claimed) == 20 - 1 or len(claimed) == 20


def test_two_claims_of_one_event_recorded_together_keep_the_one_that_counts(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    """A worker that waited for its database for longer than a lease may hold the outcomes of both."""
    scheduler.add(new_event())
    before = hand.claim_one()
    clock.advance(hand.lease_ms)
    after = hand.claim_one()

    recorded = scheduler.record([outcome(before), outcome(after)])

    assert (recorded.kept, recorded.fenced) == (1, 1)
    assert scheduler.status("shop", "e1").status is Status.COMPLETED


def test_what_waits_untried_long_after_its_time_is_late(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add_all([new_event("tried"), new_event("sent", due_at=NOON), new_event("gone", due_at=NOON + 1)])
    failed, _ = hand.claim()
    hand.fail(failed)
    scheduler.cancel("shop", "gone")
    scheduler.add_all([new_event("due"), new_event("old", due_at=1), new_event("later", due_at=NOON + 1)])

    def late() -> set[str]:
        return {event.event_id for event in scheduler.events("shop").events if event.late}

    hand.clock.advance(60_000)
    assert late() == set()
    hand.clock.advance(1)
    assert late() == {"due", "old"}  # from when it was added on, if its time was over by then
    assert (scheduler.status("shop", "due").late, scheduler.event("shop", "tried")[0].late) == (True, False)


def test_the_code_of_the_newest_whole_answer_is_kept(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add_all([new_event(f"e{code}") for code in (200, 202, 404, 503)])
    claimed = hand.claim()
    scheduler.record([outcome(delivery, int(delivery.event_id[1:])) for delivery in claimed])
    assert {event.last_status: event.status for event in scheduler.events("shop").events} == {
        200: Status.COMPLETED,
        202: Status.COMPLETED,
        404: Status.FAILED,
        503: Status.SERVICE_UNAVAILABLE,
    }

    hand.clock.advance(3_600_000)
    hand.fail(hand.claim_one(), ErrorKind.TIMEOUT)
    assert scheduler.status("shop", "e503").last_status == 503
