"""Priority: of what one application has due, the highest first; nobody else's order changes."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection

from cassata import store
from cassata.errors import InvalidEvent
from cassata.model import PRIORITY_RANGE, ErrorKind, Status
from cassata.recurrence import Rule
from cassata.scheduler import LOST_LEASES, OLDEST_EVERY, WINDOW, Scheduler
from cassata.series import NewSeries
from cassata.tenants import Changes
from tests.words import NOON, Hand, ManualClock, ids, new_event


def backlog(scheduler: Scheduler, **priorities: int) -> None:
    """Add events that are due one millisecond after the other."""
    scheduler.add_all([new_event(name, due_at=NOON + place, priority=value) for place, (name, value) in enumerate(priorities.items())])


def test_of_a_backlog_the_highest_priorities_are_claimed_first_and_equal_ones_by_age(
    scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    backlog(scheduler, low1=1, usual=0, high1=9, low2=1, high2=9, low3=1)
    clock.advance(10)

    claimed = [hand.claim(limit=2) for _ in range(4)]

    # The last place of each claim is for the oldest one.
    assert [ids(each) for each in claimed] == [["high1", "low1"], ["high2", "usual"], ["low2", "low3"], []]


def test_the_oldest_is_passed_over_for_a_while_only_where_a_claim_has_a_single_place(
    scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    clock.advance(OLDEST_EVERY * 1_000 + 1_000)
    backlog(scheduler, oldest=0, high1=5, high2=5, high3=5)

    assert ids(hand.claim(limit=1)) == ["high1"]
    clock.advance((OLDEST_EVERY - 1) * 1_000)
    assert clock.now(None) // 1_000 % OLDEST_EVERY == 0  # type: ignore[arg-type]
    assert ids(hand.claim(limit=1)) == ["oldest"]


def test_events_of_low_priority_are_sent_however_many_urgent_ones_keep_coming(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    backlog(scheduler, **{f"low{place}": 0 for place in range(5)})
    seen: list[str] = []
    for round_ in range(5):
        scheduler.add_all([new_event(f"high{round_}-{place}", due_at=clock.instant, priority=7) for place in range(4)])
        clock.advance(10)
        claimed = hand.claim(limit=4)
        seen += ids(claimed)
        scheduler.release([delivery for delivery in claimed if delivery.event_id.startswith("never")])

    assert {f"low{place}" for place in range(5)} <= set(seen)


def test_only_the_oldest_window_is_ranked(scheduler: Scheduler, hand: Hand, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cassata.scheduler.WINDOW", 3)
    backlog(scheduler, a=0, b=0, c=1, beyond=9)
    clock.advance(10)

    assert ids(hand.claim(limit=2)) == ["c", "a"]
    assert ids(hand.claim(limit=2)) == ["beyond", "b"]
    assert WINDOW == 1_000


def test_two_workers_share_a_backlog_and_take_nothing_twice(
    database_url: str, scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    backlog(scheduler, **{f"e{place}": place % 10 for place in range(40)})
    clock.advance(100)
    other = Hand(scheduler, clock)

    taken = [ids(worker.claim(limit=4)) for _ in range(5) for worker in (hand, other)]

    together = [name for batch in taken for name in batch]
    assert len(together) == len(set(together)) == 40
    assert {"e9", "e19", "e29"} == set(taken[0][:3])


def test_what_another_transaction_has_locked_is_passed_over(mariadb_url: str) -> None:
    clock = ManualClock()
    scheduler = Scheduler.open(mariadb_url)
    scheduler.clock = clock
    backlog(scheduler, a=0, b=5, c=4)
    clock.advance(10)
    with scheduler._engines.write.connect() as conn, conn.begin():
        number = scheduler.tenants.application("shop").number
        assert store.lock_event(conn, number, "b") is not None
        assert set(ids(Hand(scheduler, clock).claim(limit=2))) == {"c", "a"}
    scheduler.close()


def test_an_application_with_priorities_delays_no_other(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    backlog(scheduler, **{f"e{place}": 5 for place in range(50)})
    scheduler.add_all([new_event(f"p{place}", "plain", due_at=NOON + place) for place in range(50)])
    clock.advance(100)

    claimed = hand.claim(limit=20)

    assert [delivery.event_id for delivery in claimed if delivery.application_id == "plain"] == [f"p{place}" for place in range(10)]
    assert len(claimed) == 20


def test_a_claim_for_others_asks_what_it_always_asked(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    asked: list[str] = []
    scheduler.add_all([new_event("plain", "plain")])
    clock.advance(1)

    def refuse(*_args: object) -> list[tuple[int, int]]:
        asked.append("window")
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "due_window", refuse)
        assert ids(hand.claim()) == ["plain"]
    assert asked == []


def test_the_share_that_others_leave_is_filled_by_priority_and_nothing_is_locked_twice(
    scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    backlog(scheduler, **{f"e{place}": place % 3 for place in range(30)})
    scheduler.add(new_event("p", "plain"))
    clock.advance(100)

    claimed = ids(hand.claim(limit=20))

    assert len(claimed) == len(set(claimed)) == 20
    assert "p" in claimed
    assert [name for name in claimed if name != "p" and int(name[1:]) % 3 == 2] == [f"e{place}" for place in range(2, 30, 3)]


def test_a_lost_lease_is_found_again_and_a_poisonous_event_fails(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    backlog(scheduler, poison=5)
    for _ in range(LOST_LEASES):
        clock.advance(1_000)
        assert ids(hand.claim()) == ["poison"]
        clock.advance(hand.lease_ms)
    hand.claim()

    event, attempts = scheduler.event("shop", "poison")

    assert event.status is Status.FAILED
    assert [attempt.error for attempt in attempts] == [ErrorKind.WORKER_LOST] * LOST_LEASES


def test_what_comes_next_is_told_when_all_that_is_due_was_taken(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add_all([new_event("now", priority=3), new_event("later", due_at=NOON + 5_000)])
    clock.advance(1)

    taken = hand.take(limit=5)

    assert ids(taken.deliveries) == ["now"]
    assert list(taken.wakes.values()) == [NOON + 5_000]
    assert not taken.has_more


def test_an_application_in_which_something_has_a_priority_is_known_by_it(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event("usual"))
    assert not scheduler.tenants.application("shop").prioritized

    scheduler.add(new_event("urgent", priority=1))
    assert scheduler.tenants.application("shop").prioritized


def test_a_change_may_make_an_event_urgent(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    backlog(scheduler, a=0, b=0, c=0)
    changed = scheduler.change("shop", "c", {"priority": 2})
    clock.advance(10)
    scheduler.tenants._forget([1])

    assert changed.priority == 2
    assert ids(hand.claim(limit=2)) == ["c", "a"]


def test_occurrences_have_the_priority_of_their_series(scheduler: Scheduler, clock: ManualClock) -> None:
    rule = Rule(every_ms=60_000, start_at=NOON)
    scheduler.timetable.create(NewSeries("shop", rule, "http://127.0.0.1/hook", series_id="s", priority=8))
    scheduler.timetable.advance()

    (event,) = scheduler.events("shop").events

    assert event.priority == 8
    assert scheduler.tenants.application("shop").prioritized
    assert scheduler.timetable.get("shop", "s").content.priority == 8


def test_a_priority_is_part_of_what_is_asked_for(scheduler: Scheduler) -> None:
    usual, urgent = new_event("e"), new_event("e", priority=1)

    assert usual.request_hash != urgent.request_hash
    assert usual.request_hash == new_event("e", priority=0).request_hash


@pytest.mark.parametrize("priority", [PRIORITY_RANGE[0] - 1, PRIORITY_RANGE[1] + 1])
def test_a_priority_beyond_the_range_is_refused(priority: int) -> None:
    with pytest.raises(InvalidEvent, match="must be from 0 to 100"):
        new_event(priority=priority)


def test_the_window_is_read_by_the_hot_index(mariadb_url: str) -> None:
    scheduler = Scheduler.open(mariadb_url)
    scheduler.add_all([new_event(f"e{place}", priority=1) for place in range(20)])

    def plan(conn: Connection) -> str:
        asked = {"of": 1, "now": NOON, "until": NOON, "window": 10, "now_1": NOON}
        compiled = store._WINDOW.compile(dialect=conn.dialect, compile_kwargs={"render_postcompile": True})
        return str(conn.exec_driver_sql(f"EXPLAIN {compiled}", {**compiled.params, **asked}).mappings().one())

    with scheduler._engines.read.connect() as conn:
        shown = plan(conn)
    scheduler.close()
    assert "events_wake" in shown
    assert "filesort" not in shown


def test_a_limit_in_flight_holds_for_what_is_urgent_too(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    backlog(scheduler, a=0, b=1, c=9, d=9, e=9)
    scheduler.tenants.change("shop", Changes(limits={"max_in_flight": 3}))
    clock.advance(10)

    first = hand.claim()

    assert set(ids(first)) == {"c", "d", "a"}
    for delivery in first:
        hand.answer(delivery)
    assert scheduler.event("shop", "c")[0].status is Status.COMPLETED


def test_a_retry_waits_for_its_time_whatever_its_priority(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    backlog(scheduler, urgent=9, usual=0)
    clock.advance(10)
    (urgent,) = (delivery for delivery in hand.claim(limit=2) if delivery.event_id == "urgent")
    hand.answer(urgent, 500)

    assert hand.claim() == []
    assert scheduler.event("shop", "urgent")[0].status is Status.SERVICE_UNAVAILABLE


def test_an_inactive_application_with_priorities_rests(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    backlog(scheduler, urgent=9)
    scheduler.tenants.change("shop", Changes(active=False))
    clock.advance(10)

    assert hand.claim() == []
