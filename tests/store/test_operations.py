"""Work on many events: what is counted, what is changed, and that each event is changed once."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import text, update

from cassata import operations, schema
from cassata.errors import (
    EventNotRetryable,
    InvalidOperation,
    OperationExists,
    OperationFinished,
    UnknownApplication,
    UnknownEvent,
    UnknownOperation,
)
from cassata.model import Action, After, ErrorKind, Event, Filter, NewOperation, Operation, OperationStatus, Status
from cassata.operations import Step
from cassata.scheduler import Scheduler
from tests.words import NOON, Hand, new_event

WAY_AHEAD = NOON + 86_400_000
ALL = Filter(due_from=0)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "STEP_EVENTS", 3)
    monkeypatch.setattr(operations, "STEP_EXAMINED", 5)


def asked(action: Action, wanted: Filter, **facts: Any) -> NewOperation:
    return NewOperation("shop", action, wanted, **facts)


def carry_out(hand: Hand, new: NewOperation) -> Operation:
    """Begin an operation and take all of its steps."""
    begun = hand.scheduler.operations.begin(new)
    finish(hand)
    return hand.scheduler.operations.get(new.application_id, begun.operation_id)


def finish(hand: Hand) -> list[Step]:
    steps = []
    while hand.scheduler.operations.next_wake() is not None:
        if (step := hand.scheduler.operations.step()) is not None:
            steps.append(step)
        hand.clock.advance(1_000)
    return steps


def add(hand: Hand, *names: str, **facts: Any) -> None:
    hand.scheduler.add_all([new_event(name, **facts) for name in names])


def event(hand: Hand, event_id: str, application_id: str = "shop") -> Event:
    return hand.scheduler.event(application_id, event_id)[0]


def statuses(hand: Hand, application_id: str = "shop") -> dict[str, Status]:
    return {each.event_id: each.status for each in hand.scheduler.events(application_id, limit=1_000).events}


def one_of_each(hand: Hand) -> dict[str, Status]:
    """Make an event of every status, named by it."""
    add(hand, "COMPLETED", "FAILED", "SERVICE_UNAVAILABLE", "PROCESSING")
    codes = {"COMPLETED": 200, "FAILED": 404, "SERVICE_UNAVAILABLE": 503}
    for delivery in hand.claim():
        if delivery.event_id in codes:
            hand.answer(delivery, codes[delivery.event_id])
    add(hand, "PENDING", "CANCELLED", due_at=WAY_AHEAD)
    add(hand, "BLOCKED", after=After("PENDING"))
    hand.scheduler.cancel("shop", "CANCELLED")
    return statuses(hand)


# --- what each action does ---------------------------------------------------------------------------------------------


def test_cancel_ends_what_has_not_ended_and_asks_of_what_is_being_sent(hand: Hand) -> None:
    before = one_of_each(hand)

    done = carry_out(hand, asked(Action.CANCEL, ALL))

    assert statuses(hand) == before | dict.fromkeys(("PENDING", "SERVICE_UNAVAILABLE", "BLOCKED"), Status.CANCELLED)
    assert event(hand, "PROCESSING").cancel_requested
    assert (done.status, done.expected, done.changed, done.skipped) == (OperationStatus.DONE, 4, 4, 0)
    assert done.finished_at is not None


def test_retry_puts_back_what_failed_or_was_cancelled(hand: Hand) -> None:
    before = one_of_each(hand)

    done = carry_out(hand, asked(Action.RETRY, ALL))

    assert statuses(hand) == before | {"FAILED": Status.PENDING, "CANCELLED": Status.PENDING}
    assert (done.expected, done.changed, done.skipped) == (2, 2, 0)


def test_reconcile_puts_back_whatever_is_not_waiting_or_being_sent(hand: Hand) -> None:
    before = one_of_each(hand)

    done = carry_out(hand, asked(Action.RECONCILE, ALL))

    assert statuses(hand) == dict.fromkeys(before, Status.PENDING) | {name: before[name] for name in ("PROCESSING", "BLOCKED")}
    assert (done.expected, done.changed, done.skipped) == (4, 4, 3)


def test_reschedule_moves_what_waits_and_passes_over_what_is_being_sent(hand: Hand) -> None:
    before = one_of_each(hand)

    done = carry_out(hand, asked(Action.RESCHEDULE, ALL, due_at=NOON + 7_200_000))

    assert statuses(hand) == before
    moved = {name for name in before if event(hand, name).due_at == NOON + 7_200_000}
    assert moved == {"PENDING", "SERVICE_UNAVAILABLE", "BLOCKED"}
    assert {event(hand, name).wake_at for name in moved} == {NOON + 7_200_000, None}
    assert (done.expected, done.changed, done.skipped) == (3, 3, 1)


def test_a_shift_moves_each_event_by_as_much_and_none_into_the_past(hand: Hand) -> None:
    add(hand, "a", due_at=NOON + 60_000)
    add(hand, "b", due_at=NOON + 7_200_000)

    carry_out(hand, asked(Action.RESCHEDULE, ALL, shift_ms=-3_600_000))

    assert (event(hand, "a").due_at, event(hand, "a").wake_at) == (NOON - 3_540_000, NOON)
    assert (event(hand, "b").due_at, event(hand, "b").wake_at) == (NOON + 3_600_000, NOON + 3_600_000)


def test_an_operation_raises_the_fence_of_what_it_moves_or_puts_back(hand: Hand, scheduler: Scheduler) -> None:
    """So that whoever has seen the event before cannot change it without looking again, and a stale worker cannot at all."""
    add(hand, "a")
    delivery = hand.claim_one()
    hand.fail(delivery)

    carry_out(hand, asked(Action.RESCHEDULE, ALL, due_at=NOON + 5_000))
    hand.clock.advance(10_000)

    (again,) = hand.claim()
    assert again.fence == delivery.fence + 2
    assert hand.answer(delivery) == 0


def test_a_named_status_that_an_action_is_not_for_is_passed_over_and_counted(hand: Hand) -> None:
    one_of_each(hand)

    wanted = Filter(statuses=frozenset({Status.FAILED, Status.COMPLETED, Status.PENDING}))
    done = carry_out(hand, asked(Action.RETRY, wanted))

    assert (done.expected, done.changed, done.skipped) == (1, 1, 2)


# --- sent once more ----------------------------------------------------------------------------------------------------


def test_a_replayed_event_has_all_its_attempts_again_and_keeps_its_history(hand: Hand) -> None:
    add(hand, "a")
    for _ in range(3):
        hand.answer(hand.claim_one(), 503)
        hand.clock.advance(3_600_000)
    assert event(hand, "a").status is Status.FAILED

    carry_out(hand, asked(Action.RETRY, ALL))

    delivery = hand.claim_one()
    assert delivery.number == 1
    hand.answer(delivery, 500)
    hand.clock.advance(3_600_000)
    hand.answer(hand.claim_one(), 200)
    after, log = hand.scheduler.event("shop", "a")
    assert (after.status, after.attempts, after.due_at) == (Status.COMPLETED, 2, NOON)
    assert after.replayed_at is not None
    assert [(line.number, line.status_code, line.error) for line in log] == [
        (1, 503, None),
        (2, 503, None),
        (3, 503, None),
        (0, None, ErrorKind.REPLAYED),
        (1, 500, None),
        (2, 200, None),
    ]
    assert log[3].detail == "retry: was FAILED after 3 attempts"


def test_what_is_replayed_before_it_is_due_waits_until_then(hand: Hand) -> None:
    add(hand, "a", due_at=WAY_AHEAD)
    hand.scheduler.cancel("shop", "a")

    carry_out(hand, asked(Action.RETRY, ALL))

    assert event(hand, "a").wake_at == WAY_AHEAD


def test_an_event_may_be_reconciled_again_and_again(hand: Hand) -> None:
    add(hand, "a")
    for _ in range(3):
        hand.answer(hand.claim_one())
        carry_out(hand, asked(Action.RECONCILE, ALL))

    _, log = hand.scheduler.event("shop", "a")
    assert Counter(line.error for line in log) == {None: 3, ErrorKind.REPLAYED: 3}


def test_a_stale_worker_has_no_say_in_a_replayed_event(hand: Hand) -> None:
    add(hand, "a")
    stale = hand.claim_one()
    hand.answer(stale, 404)

    carry_out(hand, asked(Action.RETRY, ALL))

    assert hand.answer(stale, 200) == 0
    assert event(hand, "a").status is Status.PENDING


@pytest.mark.parametrize("code", [404, None])
def test_one_event_may_be_retried_by_itself(hand: Hand, code: int | None) -> None:
    add(hand, "a")
    if code:
        hand.answer(hand.claim_one(), code)
    else:
        hand.scheduler.cancel("shop", "a")

    retried = hand.scheduler.retry("shop", "a")

    assert (retried.status, retried.attempts, retried.wake_at) == (Status.PENDING, 0, NOON)
    assert hand.scheduler.retry("shop", "a") == retried
    assert hand.scheduler.event("shop", "a")[1][-1].error is ErrorKind.REPLAYED
    hand.answer(hand.claim_one())
    assert event(hand, "a").status is Status.COMPLETED


@pytest.mark.parametrize("name", ["COMPLETED", "PENDING", "PROCESSING", "SERVICE_UNAVAILABLE", "BLOCKED"])
def test_what_has_not_failed_cannot_be_retried(hand: Hand, name: str) -> None:
    before = one_of_each(hand)

    with pytest.raises(EventNotRetryable):
        hand.scheduler.retry("shop", name)
    with pytest.raises(UnknownEvent):
        hand.scheduler.retry("shop", "nobody")

    assert statuses(hand) == before


# --- which events ------------------------------------------------------------------------------------------------------


def changed_by(hand: Hand, wanted: Filter, action: Action = Action.CANCEL) -> set[str]:
    before = statuses(hand)
    count = hand.scheduler.operations.preview(asked(action, wanted))
    carry_out(hand, asked(action, wanted))
    changed = {name for name, status in statuses(hand).items() if status is not before[name]}
    assert (count.events, count.exact) == (len(changed), True)
    return changed


def test_events_are_found_by_when_they_are_due(hand: Hand) -> None:
    for hour in range(5):
        add(hand, f"e{hour}", due_at=NOON + hour * 3_600_000)

    assert changed_by(hand, Filter(due_from=NOON + 3_600_000, due_until=NOON + 3 * 3_600_000)) == {"e1", "e2"}
    assert changed_by(hand, Filter(due_until=NOON + 3 * 3_600_000), Action.RECONCILE) == {"e1", "e2"}


def test_events_are_found_by_host(hand: Hand) -> None:
    for name, url in {
        "plain": "http://dead.example/x",
        "port": "http://dead.example:8080/",
        "other": "http://other.example/",
        "capital": "http://DEAD.example/",
    }.items():
        add(hand, name, url=url)

    assert changed_by(hand, Filter(host="dead.example:8080")) == {"port"}
    assert changed_by(hand, Filter(host="dead.example")) == {"plain", "capital"}


def test_events_are_found_by_their_last_status(hand: Hand, scheduler: Scheduler) -> None:
    add(hand, "a", "b")
    for delivery in hand.claim():
        hand.answer(delivery, 404)
    with scheduler._engines.write.begin() as conn:
        conn.execute(update(schema.events).where(schema.events.c.event_id == "b").values(last_status=404))
        conn.execute(update(schema.events).where(schema.events.c.event_id == "a").values(last_status=410))

    assert changed_by(hand, Filter(last_status=404), Action.RETRY) == {"b"}


def test_events_are_found_by_their_series(hand: Hand, scheduler: Scheduler) -> None:
    add(hand, "daily_20300101T000000Z", "daily_20300102T000000Z", "daily_x", "daily_2_20300101T000000Z")
    # The last one is of a series "daily_2", and lies in the range of the first one's ids.
    with scheduler._engines.write.begin() as conn:
        conn.execute(
            text(
                "INSERT INTO series (application, series_id, status, version, rule, method, url, request_hash, created_at, changed_at) "
                "SELECT id, 'daily', 0, 1, '{}', 'POST', 'http://x/', :hash, 0, 0 FROM applications"
            ),
            {"hash": bytes(32)},
        )
        conn.execute(text("UPDATE events SET series = (SELECT id FROM series) WHERE event_id LIKE 'daily_203%'"))

    assert changed_by(hand, Filter(series_id="daily")) == {"daily_20300101T000000Z", "daily_20300102T000000Z"}
    with pytest.raises(InvalidOperation, match="series"):
        scheduler.operations.preview(asked(Action.CANCEL, Filter(series_id="nobody")))


def test_another_applications_events_are_left_alone(hand: Hand) -> None:
    add(hand, "a")
    add(hand, "a", application_id="other")

    assert changed_by(hand, ALL) == {"a"}
    assert statuses(hand, "other") == {"a": Status.PENDING}


@pytest.mark.usefixtures("small_steps")
def test_what_is_added_after_the_beginning_is_left_alone(hand: Hand) -> None:
    add(hand, *(f"old{number}" for number in range(8)))
    hand.scheduler.operations.begin(asked(Action.CANCEL, ALL))
    hand.scheduler.operations.step()
    add(hand, "new")

    finish(hand)

    assert [name for name, status in statuses(hand).items() if status is Status.PENDING] == ["new"]


def test_a_count_is_of_what_would_be_changed_and_tells_what_is_meant(hand: Hand) -> None:
    one_of_each(hand)

    count = hand.scheduler.operations.preview(asked(Action.RECONCILE, ALL))

    assert (count.events, count.exact) == (4, True)
    assert count.statuses == dict.fromkeys(Status, 1)
    assert hand.scheduler.operations.next_wake() is None


def test_a_count_ends_somewhere(hand: Hand, monkeypatch: pytest.MonkeyPatch, small_steps: None) -> None:
    monkeypatch.setattr(operations, "COUNT_EVENTS", 10)
    add(hand, *(f"e{number}" for number in range(30)))

    count = hand.scheduler.operations.preview(asked(Action.CANCEL, ALL))

    assert (count.events, count.exact) == (10, False)
    done = carry_out(hand, asked(Action.CANCEL, ALL))
    assert (done.expected, done.exact, done.changed) == (10, False, 30)


# --- step by step ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("action", "facts"),
    [
        (Action.CANCEL, {}),
        (Action.RECONCILE, {}),
        (Action.RESCHEDULE, {"due_at": NOON + 17}),
        (Action.RESCHEDULE, {"shift_ms": 2_000}),
        (Action.RESCHEDULE, {"shift_ms": -2_000}),
    ],
)
def test_every_event_is_changed_once_in_however_many_steps(hand: Hand, action: Action, facts: dict[str, Any]) -> None:
    for number in range(40):
        add(hand, f"e{number}", due_at=WAY_AHEAD + number // 10 * 1_000)  # many at the same instant, and a shift onto one another
    if action is Action.RECONCILE:
        for number in range(40):
            hand.scheduler.cancel("shop", f"e{number}")
    before = {f"e{number}": event(hand, f"e{number}") for number in range(40)}

    begun = hand.scheduler.operations.begin(asked(action, ALL, **facts))
    steps = finish(hand)
    done = hand.scheduler.operations.get("shop", begun.operation_id)

    assert (begun.expected, done.changed, done.skipped) == (40, 40, 0)
    assert sum(step.changed for step in steps) == 40
    assert max(step.changed for step in steps) == 3
    for name, was in before.items():
        now, log = hand.scheduler.event("shop", name)
        match action:
            case Action.CANCEL:
                assert now.status is Status.CANCELLED
            case Action.RECONCILE:
                assert (now.status, len(log)) == (Status.PENDING, 1)
            case _:
                assert now.due_at == facts.get("due_at", was.due_at + facts.get("shift_ms", 0))


@pytest.mark.usefixtures("small_steps")
def test_an_event_that_moves_to_where_the_operation_has_been_is_found_nevertheless(hand: Hand) -> None:
    add(hand, "late", due_at=NOON)
    add(hand, *(f"e{number}" for number in range(10)), due_at=NOON + 5_000)
    (sent,) = hand.claim()
    hand.scheduler.operations.begin(asked(Action.CANCEL, Filter(statuses=frozenset({Status.PENDING}))))
    hand.scheduler.operations.step()

    hand.scheduler.release([sent])  # it was PROCESSING, its lease beyond the others; now it waits, before them
    finish(hand)

    assert set(statuses(hand).values()) == {Status.CANCELLED}


@pytest.mark.usefixtures("small_steps")
def test_an_event_that_changes_before_its_turn_is_judged_as_it_is_then(hand: Hand) -> None:
    add(hand, *(f"e{number}" for number in range(6)))
    for delivery in hand.claim():
        hand.answer(delivery, 404)
    begun = hand.scheduler.operations.begin(asked(Action.RETRY, ALL))
    hand.scheduler.operations.step()
    hand.scheduler.retry("shop", "e5")
    (mine,) = [each for each in hand.claim() if each.event_id == "e5"]
    hand.answer(mine)

    finish(hand)

    assert event(hand, "e5").status is Status.COMPLETED
    assert hand.scheduler.operations.get("shop", begun.operation_id).changed == 5


@pytest.mark.usefixtures("small_steps")
def test_steps_are_paced(hand: Hand) -> None:
    add(hand, *(f"e{number}" for number in range(9)))
    hand.scheduler.operations.begin(asked(Action.CANCEL, ALL))

    assert hand.scheduler.operations.step(events_per_second=10) is not None
    assert hand.scheduler.operations.next_wake() == NOON + 300
    assert hand.scheduler.operations.step(events_per_second=10) is None


@pytest.mark.usefixtures("small_steps")
def test_a_cancelled_operation_changes_no_more(hand: Hand) -> None:
    add(hand, *(f"e{number}" for number in range(9)))
    begun = hand.scheduler.operations.begin(asked(Action.CANCEL, ALL))
    hand.scheduler.operations.step()

    stopped = hand.scheduler.operations.cancel("shop", begun.operation_id)

    assert (stopped.status, stopped.changed) == (OperationStatus.CANCELLED, 3)
    assert finish(hand) == []
    assert Counter(statuses(hand).values()) == {Status.CANCELLED: 3, Status.PENDING: 6}
    assert hand.scheduler.operations.cancel("shop", begun.operation_id) == stopped


def test_an_operation_that_is_done_cannot_be_cancelled(hand: Hand) -> None:
    add(hand, "a")
    done = carry_out(hand, asked(Action.CANCEL, ALL))

    with pytest.raises(OperationFinished):
        hand.scheduler.operations.cancel("shop", done.operation_id)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("wanted", [ALL, Filter(statuses=frozenset({Status.PENDING}))])
def test_the_same_shift_twice_moves_each_event_twice(hand: Hand, wanted: Filter) -> None:
    add(hand, *(f"e{number}" for number in range(9)), due_at=WAY_AHEAD)
    for _ in range(2):
        hand.scheduler.operations.begin(asked(Action.RESCHEDULE, wanted, shift_ms=3_600_000))

    finish(hand)

    assert {event(hand, name).due_at for name in statuses(hand)} == {WAY_AHEAD + 2 * 3_600_000}
    assert [each.changed for each in hand.scheduler.operations.list("shop")] == [9, 9]


@pytest.mark.usefixtures("small_steps")
def test_what_was_asked_for_later_is_done_later(hand: Hand) -> None:
    add(hand, *(f"e{number}" for number in range(9)), due_at=WAY_AHEAD)
    hand.scheduler.operations.begin(asked(Action.CANCEL, ALL))
    hand.scheduler.operations.begin(asked(Action.RETRY, Filter(statuses=frozenset({Status.CANCELLED}))))

    finish(hand)

    assert set(statuses(hand).values()) == {Status.PENDING}


@pytest.mark.usefixtures("small_steps")
def test_operations_of_several_applications_take_turns(hand: Hand) -> None:
    for application in ("shop", "other"):
        add(hand, *(f"e{number}" for number in range(9)), application_id=application)
        hand.scheduler.operations.begin(NewOperation(application, Action.CANCEL, ALL))
        hand.clock.advance(1)

    steps = finish(hand)

    assert len({step.operation_id for step in steps[:2]}) == 2


def test_an_operation_that_cannot_be_read_ends_and_stops_nobody_else(hand: Hand, scheduler: Scheduler) -> None:
    add(hand, "a")
    scheduler.operations.begin(asked(Action.CANCEL, ALL))
    with scheduler._engines.write.begin() as conn:
        conn.execute(text("UPDATE operations SET filter = '[]'"))
    hand.clock.advance(1)
    scheduler.operations.begin(asked(Action.CANCEL, ALL))

    steps = finish(hand)

    assert [step.status for step in steps][:1] == [OperationStatus.CANCELLED]
    assert event(hand, "a").status is Status.CANCELLED


def test_steps_by_many_hands_at_a_time_change_every_event_once(hand: Hand, scheduler: Scheduler) -> None:
    names = [f"e{number}" for number in range(300)]
    add(hand, *names, due_at=WAY_AHEAD)
    for shift in (1_000, 10_000):
        scheduler.operations.begin(asked(Action.RESCHEDULE, ALL, shift_ms=shift))

    def step_on() -> None:
        while scheduler.operations.next_wake() is not None:
            scheduler.operations.step(events_per_second=1_000_000_000)

    hands = [threading.Thread(target=step_on) for _ in range(4)]
    for each in hands:
        each.start()
    for each in hands:
        each.join()

    assert {event(hand, name).due_at for name in names} == {WAY_AHEAD + 11_000}
    assert [each.changed for each in scheduler.operations.list("shop")] == [300, 300]


# --- asking ------------------------------------------------------------------------------------------------------------


def test_the_same_operation_again_is_the_one_that_is_stored(hand: Hand, scheduler: Scheduler) -> None:
    add(hand, "a")
    first = scheduler.operations.begin(asked(Action.CANCEL, ALL, operation_id="op-1"))

    assert scheduler.operations.begin(asked(Action.CANCEL, ALL, operation_id="op-1")) == first
    with pytest.raises(OperationExists):
        scheduler.operations.begin(asked(Action.RETRY, ALL, operation_id="op-1"))

    finish(hand)
    assert scheduler.operations.begin(asked(Action.CANCEL, ALL, operation_id="op-1")).status is OperationStatus.DONE
    assert len(scheduler.operations.list("shop")) == 1


def test_operations_are_listed_the_newest_first(hand: Hand, scheduler: Scheduler) -> None:
    add(hand, "a")
    add(hand, "a", application_id="other")
    for number in range(5):
        scheduler.operations.begin(asked(Action.CANCEL, ALL, operation_id=f"op-{number}"))

    first = scheduler.operations.list("shop", limit=3)
    rest = scheduler.operations.list("shop", after=first[-1].operation_id)

    assert [each.operation_id for each in [*first, *rest]] == ["op-4", "op-3", "op-2", "op-1", "op-0"]
    assert scheduler.operations.list("other") == []
    with pytest.raises(UnknownOperation):
        scheduler.operations.get("other", "op-1")
    with pytest.raises(UnknownApplication):
        scheduler.operations.list("nobody")


@pytest.mark.parametrize(
    ("action", "wanted", "facts", "field"),
    [
        (Action.CANCEL, Filter(), {}, "filter"),
        (Action.RETRY, Filter(statuses=frozenset({Status.COMPLETED})), {}, "filter.statuses"),
        (Action.RESCHEDULE, ALL, {}, "due_at"),
        (Action.RESCHEDULE, ALL, {"due_at": NOON, "shift_ms": 5}, "due_at"),
        (Action.RESCHEDULE, ALL, {"shift_ms": 0}, "shift_ms"),
        (Action.CANCEL, ALL, {"shift_ms": 5}, "shift_ms"),
        (Action.CANCEL, ALL, {"operation_id": "a b"}, "operation_id"),
    ],
)
def test_an_operation_that_cannot_be_is_refused(action: Action, wanted: Filter, facts: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidOperation) as refused:
        asked(action, wanted, **facts)

    assert [problem.field for problem in refused.value.problems] == [field]


def test_nothing_is_rescheduled_beyond_the_horizon(hand: Hand, scheduler: Scheduler) -> None:
    add(hand, "a")
    horizon = scheduler.limiter.of(None).horizon_ms

    for facts in ({"due_at": NOON + horizon + 1}, {"shift_ms": horizon}):
        new = asked(Action.RESCHEDULE, ALL, **facts)
        if "shift_ms" in facts:
            assert scheduler.operations.preview(new).events == 1
        else:
            with pytest.raises(InvalidOperation, match="due_at"):
                scheduler.operations.begin(new)
    assert scheduler.operations.list("shop") == []
