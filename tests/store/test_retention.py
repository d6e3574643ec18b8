"""What is kept no longer: what goes, what stays, and that whoever is killed in the middle does no harm."""

from __future__ import annotations

import pytest
from sqlalchemy import select, text

from cassata import recurrence, retention, schema, store
from cassata.errors import EventNotRetryable, UnknownEvent
from cassata.model import Action, ErrorKind, Filter, NewOperation, Status
from cassata.recurrence import Rule
from cassata.retention import DAY_MS, Pruned, Retention
from cassata.scheduler import Scheduler
from cassata.series import NewSeries
from tests.words import NOON, Hand, ManualClock, new_event

DAYS = DAY_MS
URL = "http://127.0.0.1/hook"
A_WEEK = Retention(completed_ms=7 * DAYS, failed_ms=7 * DAYS, cancelled_ms=7 * DAYS)


def add(scheduler: Scheduler, *names: str, **facts: object) -> None:
    scheduler.add_all([new_event(name, **facts) for name in names])


def deliver(hand: Hand, code: int = 200) -> None:
    for delivery in hand.claim():
        hand.answer(delivery, code)


def there(scheduler: Scheduler, application_id: str = "shop") -> set[str]:
    return {event.event_id for event in scheduler.events(application_id, limit=1_000).events}


def prune(scheduler: Scheduler, kept: Retention = A_WEEK, *, dry_run: bool = False) -> Pruned:
    return scheduler.pruning(kept, dry_run=dry_run).run()


def attempts_logged(scheduler: Scheduler) -> int:
    with scheduler._engines.read.connect() as conn:
        return len(conn.execute(select(schema.attempts.c.event)).all())


def test_what_ended_long_enough_ago_goes_and_its_log_with_it(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    add(scheduler, "old", "older")
    deliver(hand)
    clock.advance(7 * DAYS - 1)
    assert prune(scheduler).events == 0
    clock.advance(1)
    add(scheduler, "new")
    deliver(hand)

    assert prune(scheduler).events == 2
    assert there(scheduler) == {"new"}
    assert attempts_logged(scheduler) == 1
    with pytest.raises(UnknownEvent):
        scheduler.event("shop", "old")


def test_an_application_may_have_a_time_of_its_own(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    for application_id, days in (("short", 1), ("long", 30), ("usual", None)):
        scheduler.tenants.put(application_id, limits={"kept_ms": days and days * DAYS})
        add(scheduler, "e", application_id=application_id)
    deliver(hand)

    clock.advance(1 * DAYS)
    assert prune(scheduler, Retention()).events == 1
    clock.advance(6 * DAYS)
    assert prune(scheduler).events == 1

    assert [application_id for application_id in ("short", "long", "usual") if there(scheduler, application_id)] == ["long"]


def test_each_end_has_a_time_of_its_own(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    add(scheduler, "completed", "cancelled")
    scheduler.cancel("shop", "cancelled")
    deliver(hand)
    add(scheduler, "failed")
    deliver(hand, 404)
    clock.advance(2 * DAYS)

    prune(scheduler, Retention(completed_ms=DAYS, failed_ms=3 * DAYS))
    assert there(scheduler) == {"cancelled", "failed"}
    prune(scheduler, Retention(cancelled_ms=DAYS))
    assert there(scheduler) == {"failed"}
    prune(scheduler, Retention())
    assert there(scheduler) == {"failed"}


def test_what_has_not_ended_stays_however_old_it_is(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    add(scheduler, "sent", "again")
    first, second = hand.claim()
    hand.fail(second, ErrorKind.TIMEOUT)
    add(scheduler, "waits")
    clock.advance(400 * DAYS)

    assert prune(scheduler).events == 0
    assert there(scheduler) == {"sent", "again", "waits"}
    assert first.event_id in there(scheduler)


def test_one_that_was_cancelled_ahead_of_its_time_stays_until_that_has_passed(scheduler: Scheduler, clock: ManualClock) -> None:
    add(scheduler, "ahead", due_at=NOON + 30 * DAYS)
    scheduler.cancel("shop", "ahead")
    clock.advance(36 * DAYS)
    assert prune(scheduler).events == 0
    clock.advance(DAYS)
    assert prune(scheduler).events == 1


def test_what_was_sent_long_after_it_was_due_is_as_old_as_its_end(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    add(scheduler, "late")
    clock.advance(20 * DAYS)
    deliver(hand)
    assert prune(scheduler).events == 0


def test_logs_and_payloads_go_before_their_events(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    add(scheduler, "e", payload=b"secret")
    deliver(hand)
    clock.advance(2 * DAYS)

    assert prune(scheduler, Retention(attempts_ms=2 * DAYS, payload_ms=3 * DAYS)) == Pruned(examined=1, attempts=1)
    assert scheduler.event("shop", "e")[0].payload == b"secret"
    clock.advance(DAYS)
    assert prune(scheduler, Retention(attempts_ms=2 * DAYS, payload_ms=3 * DAYS)) == Pruned(examined=1, payloads=1)
    event, attempts = scheduler.event("shop", "e")
    assert (event.payload, event.status, attempts) == (None, Status.COMPLETED, [])
    assert prune(scheduler, Retention(attempts_ms=2 * DAYS, payload_ms=3 * DAYS)).changed == 0


def test_what_has_lost_its_payload_is_not_sent_without(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    add(scheduler, "stripped", "bare", payload=b"x")
    deliver(hand, 404)
    clock.advance(2 * DAYS)
    prune(scheduler, Retention(payload_ms=DAYS))

    with pytest.raises(EventNotRetryable, match="payload has been removed"):
        scheduler.retry("shop", "stripped")
    for action in (Action.RETRY, Action.RECONCILE):
        begun = scheduler.operations.begin(NewOperation("shop", action, Filter(due_from=0)))
        while scheduler.operations.next_wake() is not None:
            scheduler.operations.step()
        assert scheduler.operations.get("shop", begun.operation_id).changed == 0
    assert hand.claim() == []


def test_what_never_had_a_payload_may_be_sent_again(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    add(scheduler, "bare", payload=None)
    deliver(hand, 404)
    clock.advance(2 * DAYS)
    assert prune(scheduler, Retention(payload_ms=DAYS)).payloads == 0
    assert scheduler.retry("shop", "bare").status is Status.PENDING


def test_a_dry_run_counts_and_removes_nothing(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    add(scheduler, "a", "b")
    deliver(hand)
    add(scheduler, "c", payload=b"x")
    deliver(hand, 404)
    clock.advance(8 * DAYS)
    kept = Retention(completed_ms=DAYS, attempts_ms=DAYS, payload_ms=DAYS)

    counted = prune(scheduler, kept, dry_run=True)
    assert there(scheduler) == {"a", "b", "c"}
    assert counted == Pruned(examined=3, events=2, attempts=1, payloads=1) == prune(scheduler, kept)
    assert there(scheduler) == {"c"}


def test_a_pass_goes_on_in_steps_over_all_applications(
    scheduler: Scheduler, hand: Hand, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "EXAMINED", 3)
    monkeypatch.setattr(retention, "REMOVED", 2)
    for application_id in ("shop", "post"):
        scheduler.add_all([new_event(f"e{number}", application_id) for number in range(8)])
    deliver(hand)
    clock.advance(8 * DAYS)
    pruning = scheduler.pruning(A_WEEK)
    pruning.begin()
    steps = []
    while pruning.under_way:
        steps.append(pruning.step().events)

    assert steps == [3, 3, 2] * 2
    assert there(scheduler) == there(scheduler, "post") == set()


def test_whoever_takes_over_a_pass_from_the_beginning_finishes_it(
    scheduler: Scheduler, hand: Hand, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "EXAMINED", 3)
    add(scheduler, *(f"e{number}" for number in range(10)))
    deliver(hand)
    clock.advance(8 * DAYS)
    killed = scheduler.pruning(A_WEEK)
    killed.begin()
    killed.step()

    assert prune(scheduler).events == 7
    assert there(scheduler) == set()


def test_later_passes_find_what_has_become_too_old_meanwhile(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    kept = Retention(completed_ms=7 * DAYS, payload_ms=DAYS)
    pruning = scheduler.pruning(kept)
    pruning.run()
    add(scheduler, "e", payload=b"x")
    deliver(hand)
    found: list[tuple[int, int]] = []
    for _ in range(8 * 24):
        clock.advance(retention.PASS_MS)
        total = pruning.run()
        found.append((total.events, total.payloads))

    assert [place for place, counts in enumerate(found, 1) if counts == (0, 1)] == [24]
    assert [place for place, counts in enumerate(found, 1) if counts == (1, 0)] == [7 * 24]
    # Most passes have nothing to look at.
    assert pruning.total.examined == 0


def test_what_somebody_holds_is_passed_over(scheduler: Scheduler, hand: Hand, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    if scheduler._engines.write.dialect.name == "sqlite":
        pytest.skip("SQLite locks no rows")
    add(scheduler, "held", "free")
    deliver(hand)
    clock.advance(8 * DAYS)
    with scheduler._engines.write.connect() as conn, conn.begin():
        row = store.find(conn, 1, "held")
        assert row is not None
        conn.execute(text("SELECT id FROM events WHERE id = :id FOR UPDATE"), {"id": row.id})
        assert prune(scheduler).events == 1
    assert there(scheduler) == {"held"}


def test_what_is_sent_once_more_in_the_middle_of_it_stays(
    scheduler: Scheduler, hand: Hand, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(scheduler, "failed")
    deliver(hand, 404)
    clock.advance(8 * DAYS)
    judged = store.aged

    def then_retried(*arguments: object) -> object:
        rows = judged(*arguments)  # type: ignore[arg-type]
        scheduler.retry("shop", "failed")
        return rows

    monkeypatch.setattr(store, "aged", then_retried)
    assert prune(scheduler).events == 0
    assert scheduler.event("shop", "failed")[0].status is Status.PENDING


def test_an_occurrence_that_was_moved_ahead_is_not_made_again_because_it_was_removed(
    scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    table, instant = scheduler.timetable, NOON + 30 * DAYS
    table.create(NewSeries("shop", Rule(every_ms=30 * DAYS, start_at=instant), URL, series_id="s"))
    name = recurrence.occurrence_id("s", instant)
    table.change_instance("shop", "s", name, {"due_at": NOON + DAYS})
    clock.advance(DAYS)
    deliver(hand)
    clock.advance(8 * DAYS)

    assert prune(scheduler).events == 0
    clock.instant = instant
    table.advance()
    assert hand.claim() == []
    clock.advance(DAYS)
    assert prune(scheduler).events == 1


def test_a_cancelled_occurrence_stays_until_its_series_has_passed_it(scheduler: Scheduler, clock: ManualClock) -> None:
    table, instant = scheduler.timetable, NOON + DAYS
    table.create(NewSeries("shop", Rule(every_ms=100 * DAYS, start_at=instant), URL, series_id="s"))
    table.cancel_instance("shop", "s", recurrence.occurrence_id("s", instant))
    clock.advance(20 * DAYS)  # and nobody has seen to the series
    assert prune(scheduler).events == 0
    table.advance()
    assert prune(scheduler).events == 1
