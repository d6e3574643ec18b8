"""Ids that are used for good, on every database: what has ended, however it ended, keeps its id and stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from cassata.errors import (
    DuplicateEvent,
    InvalidSeries,
    LimitReached,
    SeriesExists,
    SeriesFinished,
    UnknownEvent,
    UnknownSeries,
)
from cassata.model import NewEvent, Status
from cassata.recurrence import Rule, occurrence_id
from cassata.scheduler import Scheduler
from cassata.series import NewSeries, Series, SeriesStatus
from cassata.tenants import Changes
from cassata.timetable import PAGE_BYTES
from tests.words import NOON, Hand, ManualClock, new_event

MINUTE = 60_000


def new_series(series_id: str = "x", **facts: Any) -> NewSeries:
    rule = facts.pop("rule", Rule(every_ms=MINUTE, start_at=NOON + MINUTE))
    return NewSeries("shop", rule, "http://127.0.0.1/hook", series_id=series_id, **facts)


def event(event_id: str = "x", **facts: Any) -> NewEvent:
    return new_event(event_id, **facts)


# --- ids that were used ------------------------------------------------------------------------------------------------


def test_an_id_is_taken_once(scheduler: Scheduler) -> None:
    added = scheduler.add_once(event())

    assert added.status is Status.PENDING
    assert scheduler.event("shop", "x")[0].status is Status.PENDING


def test_the_same_request_again_is_told_from_another_one(scheduler: Scheduler) -> None:
    scheduler.add_once(event())

    with pytest.raises(DuplicateEvent) as same:
        scheduler.add_once(event())
    with pytest.raises(DuplicateEvent) as other:
        scheduler.add_once(event(payload=b"other"))
    assert (same.value.identical, other.value.identical) == (True, False)


def test_the_id_of_what_was_cancelled_is_not_taken_again(scheduler: Scheduler) -> None:
    scheduler.add_once(event())
    scheduler.cancel("shop", "x")

    with pytest.raises(DuplicateEvent) as refused:
        scheduler.add_once(event())
    assert refused.value.event.status is Status.CANCELLED
    assert scheduler.event("shop", "x")[0].status is Status.CANCELLED


def test_the_id_of_what_was_delivered_is_not_taken_again(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add_once(event(due_at=NOON))
    (delivery,) = hand.claim()
    hand.answer(delivery)

    with pytest.raises(DuplicateEvent):
        scheduler.add_once(event(due_at=NOON))


@pytest.mark.parametrize("ends", [lambda table: None, lambda table: table.cancel("shop", "x")], ids=["active", "cancelled"])
def test_the_id_of_a_series_is_not_taken_by_an_event(scheduler: Scheduler, ends: Callable[[Any], Any]) -> None:
    scheduler.timetable.create(new_series(), final=True)
    ends(scheduler.timetable)

    with pytest.raises(SeriesExists):
        scheduler.add_once(event())
    assert scheduler.events("shop").events == []


@pytest.mark.parametrize("ends", [lambda scheduler: None, lambda scheduler: scheduler.cancel("shop", "x")], ids=["waiting", "cancelled"])
def test_the_id_of_an_event_is_not_taken_by_a_series(scheduler: Scheduler, ends: Callable[[Any], Any]) -> None:
    scheduler.add_once(event())
    ends(scheduler)

    with pytest.raises(DuplicateEvent):
        scheduler.timetable.create(new_series(), final=True)
    with pytest.raises(UnknownSeries):
        scheduler.timetable.get("shop", "x")


def test_the_id_of_a_cancelled_series_is_not_taken_again(scheduler: Scheduler) -> None:
    scheduler.timetable.create(new_series(), final=True)
    scheduler.timetable.cancel("shop", "x")

    with pytest.raises(SeriesExists):
        scheduler.timetable.create(new_series(), final=True)
    assert scheduler.timetable.create(new_series()).status is SeriesStatus.ACTIVE, "but whoever does not say so may take it"


def test_of_many_who_take_an_id_at_a_time_one_gets_it(scheduler: Scheduler) -> None:
    """Events and series lie in different tables: no unique key keeps them apart."""
    crowd = 6
    scheduler.add(event("there-is-an-application"))
    for turn in range(5):
        together = Barrier(crowd)

        def take(number: int, name: str = f"x{turn}", together: Barrier = together) -> str:
            together.wait()
            try:
                if number % 2:
                    scheduler.add_once(event(name, payload=str(number).encode()))
                else:
                    scheduler.timetable.create(new_series(name, payload=str(number).encode()), final=True)
            except (DuplicateEvent, SeriesExists) as error:
                return type(error).__name__
            return "taken"

        with ThreadPoolExecutor(crowd) as threads:
            ends = list(threads.map(take, range(crowd)))
        assert ends.count("taken") == 1, ends


def test_what_may_not_be_added_is_refused_as_ever(scheduler: Scheduler, clock: ManualClock) -> None:
    scheduler.tenants.create("shop", Changes(limits={"adds_per_second": 0.001}))
    scheduler.add_once(event("first"))

    with pytest.raises(LimitReached):
        scheduler.add_once(event("second"))


# --- what has ended stays as it ended ------------------------------------------------------------------------------------


def ended(scheduler: Scheduler, clock: ManualClock) -> Series:
    scheduler.timetable.create(new_series(rule=Rule(every_ms=MINUTE, start_at=NOON + MINUTE, count=1)), final=True)
    for _ in range(2):
        clock.instant += 2 * MINUTE
        scheduler.timetable.advance()
    series = scheduler.timetable.get("shop", "x")
    assert series.status is SeriesStatus.ENDED
    return series


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.replace(new_series(rule=Rule(every_ms=MINUTE, start_at=NOON + 60 * MINUTE)), final=True),
        lambda table: table.cancel("shop", "x", final=True),
    ],
    ids=["replaced", "cancelled"],
)
def test_a_series_that_has_come_to_its_end_is_final(scheduler: Scheduler, clock: ManualClock, change: Callable[[Any], Series]) -> None:
    before = ended(scheduler, clock)

    with pytest.raises(SeriesFinished):
        change(scheduler.timetable)
    assert scheduler.timetable.get("shop", "x") == before


def test_a_final_series_needs_an_occurrence_to_come(scheduler: Scheduler) -> None:
    gone = Rule(recurrence="RRULE:FREQ=DAILY;COUNT=2", start_at=NOON - 10 * 86_400_000)

    with pytest.raises(InvalidSeries, match="recurrence"):
        scheduler.timetable.create(new_series(rule=gone), final=True)
    with pytest.raises(UnknownSeries):
        scheduler.timetable.get("shop", "x")


# --- how long what it is about lasts -------------------------------------------------------------------------------------


def test_an_occurrence_may_last_longer_than_the_others(scheduler: Scheduler) -> None:
    table = scheduler.timetable
    table.create(new_series(duration_ms=30 * MINUTE))
    first, second = (occurrence_id("x", NOON + minutes * MINUTE) for minutes in (1, 2))

    table.change_instance("shop", "x", first, {"duration_ms": 45 * MINUTE})
    table.change_instance("shop", "x", second, {"due_at": NOON + 5 * MINUTE})
    found = table.instances("shop", "x", NOON, NOON + 10 * MINUTE, limit=3)

    assert [instance.ends_at and instance.ends_at - instance.due_at for instance in found] == [45 * MINUTE, 30 * MINUTE, 30 * MINUTE]
    assert scheduler.event("shop", first)[0].duration_ms == 45 * MINUTE


def test_an_exception_that_was_put_off_goes_when_its_occurrence_does(scheduler: Scheduler, clock: ManualClock) -> None:
    table = scheduler.timetable
    table.create(new_series())
    kept, gone = (occurrence_id("x", NOON + minutes * MINUTE) for minutes in (2, 3))
    for instance in (kept, gone):
        table.change_instance("shop", "x", instance, {"due_at": NOON + 60 * MINUTE})
    clock.instant += 10 * MINUTE

    table.replace(new_series(rule=Rule(every_ms=2 * MINUTE, start_at=NOON)))

    assert scheduler.event("shop", kept)[0].status is Status.PENDING
    with pytest.raises(UnknownEvent):
        scheduler.event("shop", gone)


def test_instances_are_told_with_what_their_events_send_if_that_is_asked(scheduler: Scheduler) -> None:
    table = scheduler.timetable
    table.create(new_series(payload=b"usual"))
    table.change_instance("shop", "x", occurrence_id("x", NOON + MINUTE), {"payload": b"\x00 another one"})

    brief, full = (table.instances("shop", "x", NOON, NOON + 10 * MINUTE, limit=2, full=full)[0].event for full in (False, True))

    assert brief is not None
    assert full is not None
    assert (brief.payload, full.payload) == (None, b"\x00 another one")


def test_instances_with_payloads_are_no_more_than_a_page(scheduler: Scheduler) -> None:
    table, payload = scheduler.timetable, b"x" * 200_000
    table.create(new_series(payload=payload))
    table.change_instance("shop", "x", occurrence_id("x", NOON + MINUTE), {"due_at": NOON + 9 * MINUTE})

    found = table.instances("shop", "x", NOON, NOON + 60 * MINUTE, limit=50, full=True)

    assert len(found) == PAGE_BYTES // len(payload)
    assert len(table.instances("shop", "x", NOON, NOON + 60 * MINUTE, limit=50)) == 50
