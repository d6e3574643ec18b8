"""Series on every database: what they fire and when, what is missed, paused, changed and cancelled."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, text

from cassata import database, recurrence, store, telemetry, timetable
from cassata.errors import (
    ApplicationInactive,
    InstanceChanged,
    InstanceGone,
    InvalidEvent,
    InvalidSeries,
    PayloadTooLarge,
    SeriesChanged,
    SeriesExists,
    SeriesFinished,
    UnknownApplication,
    UnknownInstance,
    UnknownSeries,
)
from cassata.model import Action, ErrorKind, Filter, Limits, NewOperation, Status
from cassata.recurrence import Rule
from cassata.scheduler import Scheduler
from cassata.series import CatchUp, NewSeries, Overlap, Series, SeriesStatus
from cassata.tenants import Changes
from cassata.timetable import EVENTS_AT_ONCE, GRACE_MS, LEAD_MS, REACH_MS, Timetable
from tests.words import NOON, Hand, ManualClock, new_event

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
URL = "http://127.0.0.1/hook"


@pytest.fixture
def table(scheduler: Scheduler) -> Timetable:
    return scheduler.timetable


def new_series(rule: Rule | None = None, series_id: str = "s", application_id: str = "shop", **facts: Any) -> NewSeries:
    return NewSeries(application_id, rule or every(MINUTE), facts.pop("url", URL), series_id=series_id, **facts)


def every(distance_ms: int, begin: int = NOON, **bounds: int) -> Rule:
    return Rule(every_ms=distance_ms, start_at=begin, **bounds)


def instance_id(at: int, series_id: str = "s") -> str:
    return recurrence.occurrence_id(series_id, at)


def stored(scheduler: Scheduler, application_id: str = "shop") -> dict[int, Status]:
    """Return the statuses of the events of occurrences, by how long after NOON their original instants are (ms)."""
    found, after = {}, None
    while True:
        page = scheduler.events(application_id, after=after, limit=1_000)
        for event in page.events:
            parts = recurrence.original_of(event.event_id)
            assert parts is not None
            found[parts[1] - NOON] = event.status
        if page.next is None:
            return found
        after = page.next


def fire_until(scheduler: Scheduler, clock: ManualClock, instant: int) -> None:
    """Be a worker that sees to every series in time, and sends everything at its instant."""
    hand = Hand(scheduler, clock)
    while clock.instant < instant:
        while scheduler.timetable.advance().series:
            pass
        for delivery in hand.claim():
            hand.answer(delivery)
        wakes = [wake for wake in (scheduler.timetable.next_wake(), *scheduler.agenda().values()) if wake and wake > clock.instant]
        clock.instant = min([instant, *wakes])
    while scheduler.timetable.advance().series:
        pass


# --- stored ------------------------------------------------------------------------------------------------------------


def test_a_series_is_read_as_it_was_stored(table: Timetable) -> None:
    new = new_series(
        Rule(cron="*/5 8-18 * * MON-FRI", timezone="Europe/Berlin", start_at=NOON, until_at=NOON + 30 * DAY, count=100),
        payload=b"\x00\xff",
        headers=(("X-One", "1"),),
        method="PUT",
        timeout_ms=5_000,
        max_lateness_ms=60_000,
        duration_ms=HOUR,
        name="päivä",
        description="what it is for",
        metadata={"owner": ["a", 1]},
        catch_up=CatchUp.ALL,
        catch_up_window_ms=DAY,
        overlap=Overlap.SKIP,
        jitter_ms=500,
    )

    created = table.create(new)
    found = table.get("shop", "s")

    assert found == created
    assert {name: getattr(found.content, name) for name in new.__slots__} == {name: getattr(new, name) for name in new.__slots__}
    assert found.content == type(found.content)(**{name: getattr(new, name) for name in type(found.content).__slots__})
    assert (found.status, found.version, found.created_at) == (SeriesStatus.ACTIVE, 1, NOON)


def test_the_same_series_stored_twice_is_one_and_another_one_of_that_id_is_refused(table: Timetable) -> None:
    first, is_new = table.put(new_series())
    again, is_new_again = table.put(new_series())

    assert (is_new, is_new_again, again) == (True, False, first)
    with pytest.raises(SeriesExists) as refused:
        table.put(new_series(every(HOUR)))
    assert not refused.value.identical
    assert table.series("shop") == [again]


def test_a_rule_without_a_beginning_begins_when_it_is_stored_and_stays_the_same_when_it_is_repeated(
    table: Timetable, clock: ManualClock
) -> None:
    clock.instant = NOON + 250
    interval, _ = table.put(new_series(Rule(every_ms=MINUTE), "interval"))
    daily, _ = table.put(new_series(Rule(cron="@daily", count=2), "daily"))
    clock.advance(DAY)

    assert interval.next_at == NOON + SECOND + MINUTE
    assert table.put(new_series(Rule(every_ms=MINUTE), "interval"))[1] is False
    assert [instance.index for instance in table.instances("shop", "daily", 0, NOON + 9 * DAY)] == [0, 1]
    assert daily.next_at == NOON + 16 * HOUR


def test_what_is_wrong_with_a_series_is_told_all_at_once() -> None:
    with pytest.raises(InvalidSeries) as refused:
        new_series(
            Rule(cron="61 * * * *"), "a b", url="ftp://x", name="", jitter_ms=-1, duration_ms=-1, catch_up="some", metadata={"a": object()}
        )

    assert {problem.field for problem in refused.value.problems} == {
        *("cron", "series_id", "url", "name", "jitter_ms", "duration_ms", "catch_up", "metadata")
    }
    assert "must be one of latest, all, none" in str(refused.value)


def test_an_application_may_have_no_series_that_it_may_not_have(database_url: str, clock: ManualClock) -> None:
    scheduler = Scheduler(database.open_engines(database_url), clock=clock, limits=Limits(payload_bytes=10), registers=False)
    table = scheduler.timetable
    with pytest.raises(UnknownApplication):
        table.create(new_series())
    scheduler.tenants.create("shop")
    with pytest.raises(PayloadTooLarge):
        table.create(new_series(payload=b"12345678901"))
    scheduler.tenants.create("closed", Changes(active=False))
    with pytest.raises(ApplicationInactive):
        table.create(new_series(application_id="closed"))
    with pytest.raises(UnknownSeries):
        table.get("shop", "s")
    scheduler.close()


def test_series_are_listed_by_their_ids_and_statuses(table: Timetable) -> None:
    for series_id in ("c", "a", "b"):
        table.create(new_series(series_id=series_id, payload=b"x"))
    table.pause("shop", "b")

    assert [series.series_id for series in table.series("shop")] == ["a", "b", "c"]
    assert [series.series_id for series in table.series("shop", after="a", limit=1)] == ["b"]
    assert [series.series_id for series in table.series("shop", statuses={SeriesStatus.PAUSED})] == ["b"]
    assert table.series("nobody") == []
    assert table.series("shop")[0].content.payload is None


# --- firing ------------------------------------------------------------------------------------------------------------


def test_occurrences_are_events_known_ahead_each_made_once(scheduler: Scheduler, table: Timetable, hand: Hand, clock: ManualClock) -> None:
    table.create(new_series(every(SECOND), payload=b"{}", timeout_ms=9_000))

    advanced = table.advance()
    again = table.advance()

    assert (advanced.fired, again.series) == (16, 0)
    assert list(stored(scheduler)) == list(range(0, REACH_MS + 1, SECOND))
    delivery = hand.claim_one()
    assert (delivery.event_id, delivery.due_at, delivery.payload, delivery.timeout_ms) == (instance_id(NOON), NOON, b"{}", 9_000)
    fire_until(scheduler, clock, NOON + 40 * SECOND)
    assert list(stored(scheduler))[:40] == list(range(0, 40 * SECOND, SECOND))


def test_nobody_need_look_before_an_occurrence_is_near(table: Timetable, clock: ManualClock) -> None:
    assert table.next_wake() is None
    table.create(new_series(every(DAY, NOON + HOUR)))

    assert table.next_wake() == NOON + HOUR - LEAD_MS
    clock.instant = NOON + HOUR - LEAD_MS
    assert table.advance().fired == 1
    assert table.next_wake() == NOON + HOUR + DAY - LEAD_MS


def test_many_that_advance_at_a_time_make_each_occurrence_once(scheduler: Scheduler, table: Timetable, clock: ManualClock) -> None:
    for number in range(30):
        table.create(new_series(every(SECOND), f"s{number}"))

    with ThreadPoolExecutor(6) as pool:
        advanced = list(pool.map(lambda _: table.advance(), range(30)))

    assert sum(each.fired for each in advanced) == 30 * 16
    events = scheduler.events("shop", limit=1_000).events
    assert len({event.event_id for event in events}) == len(events) == 30 * 16


def test_an_advance_that_dies_before_its_commit_has_done_nothing(
    scheduler: Scheduler, table: Timetable, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.create(new_series(every(SECOND)))

    def die(_conn: Connection, _rows: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(store, "move_series", die)
        with pytest.raises(KeyboardInterrupt):
            table.advance()

    assert stored(scheduler) == {}
    assert table.advance().fired == 16


def test_an_event_of_a_client_that_has_the_id_of_an_occurrence_is_left_alone_and_told_of(scheduler: Scheduler, table: Timetable) -> None:
    table.create(new_series(every(SECOND)))
    mine = scheduler.add(new_event(instance_id(NOON), payload=b"mine"))
    table.cancel_instance("shop", "s", instance_id(NOON + SECOND))
    told: list[dict[str, Any]] = []

    def listen(name: str, facts: dict[str, Any]) -> None:
        if name.startswith("other events have"):
            told.append(facts)

    telemetry.subscribe(listen)
    try:
        assert table.advance().fired == REACH_MS // SECOND - 1
    finally:
        telemetry.unsubscribe(listen)

    assert scheduler.event("shop", mine.event_id)[0].payload == b"mine"
    assert [(facts["series_id"], facts["event_id"], facts["occurrences"]) for facts in told] == [("s", mine.event_id, 1)]


def test_a_series_that_cannot_be_read_or_computed_stops_no_other(scheduler: Scheduler, table: Timetable) -> None:
    for series_id in ("bad-rule", "bad-options", "bad-zone", "good"):
        table.create(new_series(every(MINUTE), series_id))
    with scheduler._engines.write.begin() as conn:
        for series_id, column, value in [("bad-rule", "rule", "{"), ("bad-options", "options", "[]"), ("bad-zone", "rule", '{"cron":"x"}')]:
            conn.execute(text(f"UPDATE series SET {column} = :value WHERE series_id = :id"), {"value": value, "id": series_id})

    assert table.advance().fired == 1
    assert table.advance().series == 0
    assert [series.series_id for series in table.series("shop")] == ["bad-zone", "good"]
    assert table.replace(new_series(every(HOUR), "bad-zone")).next_at == NOON


def test_a_series_ends_at_the_instant_of_its_last_occurrence(scheduler: Scheduler, table: Timetable, clock: ManualClock) -> None:
    table.create(new_series(every(SECOND, count=3)))
    table.advance()

    assert table.get("shop", "s").status is SeriesStatus.ACTIVE
    fire_until(scheduler, clock, NOON + 2 * SECOND)
    ended = table.get("shop", "s")
    assert (ended.status, ended.finished_at, ended.next_at) == (SeriesStatus.ENDED, NOON + 2 * SECOND, None)
    assert list(stored(scheduler)) == [0, 1_000, 2_000]
    assert table.next_wake() is None


def test_what_was_over_before_it_was_stored_has_ended_and_fires_nothing(scheduler: Scheduler, table: Timetable) -> None:
    created = table.create(new_series(every(SECOND, NOON - DAY, count=5)))

    assert created.status is SeriesStatus.ENDED
    assert table.advance().series == 0
    assert len(table.instances("shop", "s", 0, NOON)) == 5


def test_a_first_occurrence_that_has_passed_on_the_way_here_is_made_and_no_other(scheduler: Scheduler, table: Timetable) -> None:
    table.create(new_series(every(HOUR, NOON - 2 * SECOND), "just"))
    table.create(new_series(every(HOUR, NOON - 2 * HOUR - 2 * SECOND), "long-ago"))
    table.create(new_series(Rule(cron="59 * * * *", start_at=NOON - 5 * MINUTE), "cron"))
    table.advance()

    assert list(stored(scheduler)) == [-2 * SECOND]


def test_jitter_puts_each_occurrence_off_by_an_amount_of_its_own_that_stays_the_same(
    scheduler: Scheduler, table: Timetable, clock: ManualClock
) -> None:
    created = table.create(new_series(every(SECOND), jitter_ms=5_000))
    table.advance()

    events = scheduler.events("shop", limit=100).events
    late = {event.event_id: event.due_at - recurrence.original_of(event.event_id)[1] for event in events}  # type: ignore[index]
    told = table.instances("shop", "s", NOON, NOON + 16_000)
    assert len(set(late.values())) > 5
    assert all(0 <= lateness <= 5_000 for lateness in late.values())
    assert {instance.instance_id: instance.due_at - instance.original_at for instance in told} == late
    assert created.content.due_at(NOON) == created.content.due_at(NOON)


# --- missed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "window", "made"),
    [
        (CatchUp.LATEST, None, [5]),
        (CatchUp.ALL, None, [1, 2, 3, 4, 5]),
        (CatchUp.ALL, 2 * HOUR, [4, 5]),
        (CatchUp.LATEST, HOUR // 4, []),
        (CatchUp.NONE, None, []),
    ],
)
def test_what_nobody_was_there_to_make_is_caught_up_as_the_series_says(
    scheduler: Scheduler, table: Timetable, clock: ManualClock, policy: CatchUp, window: int | None, made: list[int]
) -> None:
    table.create(new_series(every(HOUR, NOON + HOUR), catch_up=policy, catch_up_window_ms=window))
    clock.instant = NOON + 5 * HOUR + HOUR // 2

    advanced = table.advance()

    assert list(stored(scheduler)) == [hour * HOUR for hour in made]
    assert (advanced.caught_up, advanced.skipped) == (len(made), 5 - len(made))
    series = table.get("shop", "s")
    assert series.next_at == NOON + 6 * HOUR
    fire_until(scheduler, clock, NOON + 6 * HOUR)
    assert list(stored(scheduler))[-1] == 6 * HOUR
    assert table.instances("shop", "s", NOON + 6 * HOUR, NOON + 7 * HOUR)[0].index == 5


def test_what_is_a_few_seconds_late_was_not_missed(scheduler: Scheduler, table: Timetable, clock: ManualClock) -> None:
    table.create(new_series(every(SECOND), catch_up=CatchUp.NONE))
    clock.instant = NOON + GRACE_MS
    table.advance()

    assert list(stored(scheduler)) == list(range(0, GRACE_MS + REACH_MS + 1, SECOND))


def test_of_millions_that_were_missed_the_latest_is_found_without_counting_them(
    scheduler: Scheduler, table: Timetable, clock: ManualClock
) -> None:
    table.create(new_series(every(SECOND, NOON, until_at=NOON + 80 * DAY), "ended"))
    table.create(new_series(Rule(cron="* * * * *", start_at=NOON), "cron"))
    clock.instant = NOON + 100 * DAY + 30_000
    table.advance()

    assert list(stored(scheduler)) == [80 * DAY, 100 * DAY]
    assert table.get("shop", "ended").status is SeriesStatus.ENDED


def test_very_many_are_caught_up_in_portions(scheduler: Scheduler, table: Timetable, clock: ManualClock) -> None:
    table.create(new_series(every(SECOND), catch_up=CatchUp.ALL))
    clock.instant = NOON + 2_500 * SECOND

    portions = []
    while fired := table.advance().fired:
        portions.append(fired)

    assert max(portions) == EVENTS_AT_ONCE
    assert list(stored(scheduler)) == list(range(0, 2_500 * SECOND + REACH_MS + 1, SECOND))


def test_the_series_of_an_inactive_application_rest_and_then_catch_up(scheduler: Scheduler, table: Timetable, clock: ManualClock) -> None:
    table.create(new_series(every(HOUR)))
    scheduler.tenants.change("shop", Changes(active=False))
    clock.instant = NOON + 2 * HOUR + MINUTE
    table.advance()
    assert stored(scheduler) == {}

    scheduler.tenants.change("shop", Changes(active=True))
    wake_at = table.next_wake()
    assert wake_at is not None
    clock.instant = wake_at
    table.advance()
    assert list(stored(scheduler)) == [2 * HOUR]


# --- overlap -----------------------------------------------------------------------------------------------------------


def test_an_occurrence_is_left_out_as_long_as_the_one_before_it_is_unfinished(
    scheduler: Scheduler, table: Timetable, hand: Hand, clock: ManualClock
) -> None:
    table.create(new_series(every(MINUTE), overlap=Overlap.SKIP))
    table.advance()
    first = hand.claim_one()
    for minute in (1, 2):
        clock.instant = NOON + minute * MINUTE
        table.advance()
    assert list(stored(scheduler)) == [0]

    clock.instant += 500
    hand.fail(first, ErrorKind.TIMEOUT)  # what is tried again is unfinished, too
    clock.instant = NOON + 3 * MINUTE
    table.advance()
    assert list(stored(scheduler)) == [0]

    hand.answer(hand.claim_one())
    fire_until(scheduler, clock, NOON + 5 * MINUTE)
    assert list(stored(scheduler)) == [0, 4 * MINUTE, 5 * MINUTE]


def test_without_overlap_an_occurrence_is_known_ahead_if_the_one_before_it_has_ended(
    scheduler: Scheduler, table: Timetable, hand: Hand, clock: ManualClock
) -> None:
    table.create(new_series(every(MINUTE), overlap=Overlap.SKIP))
    table.advance()
    hand.answer(hand.claim_one())
    clock.instant = NOON + MINUTE - LEAD_MS

    assert table.advance().fired == 1
    assert list(stored(scheduler)) == [0, MINUTE]


def test_one_that_ends_just_before_the_next_instant_is_no_overlap(
    scheduler: Scheduler, table: Timetable, hand: Hand, clock: ManualClock
) -> None:
    table.create(new_series(every(MINUTE), overlap=Overlap.SKIP))
    table.advance()
    first = hand.claim_one()
    clock.instant = NOON + MINUTE - LEAD_MS
    assert table.advance().fired == 0
    assert table.next_wake() == NOON + MINUTE

    clock.instant = NOON + MINUTE - 1
    hand.answer(first)
    clock.instant = NOON + MINUTE
    assert table.advance().fired == 1


def test_one_that_was_cancelled_or_has_ended_ahead_of_its_time_is_no_overlap(
    scheduler: Scheduler, table: Timetable, hand: Hand, clock: ManualClock
) -> None:
    table.create(new_series(every(MINUTE, NOON + MINUTE), catch_up=CatchUp.ALL, overlap=Overlap.SKIP))
    table.cancel_instance("shop", "s", instance_id(NOON + MINUTE))
    table.change_instance("shop", "s", instance_id(NOON + 2 * MINUTE), {"due_at": NOON})
    hand.answer(hand.claim_one())
    clock.instant = NOON + 10 * MINUTE + 30 * SECOND

    advanced = table.advance()
    assert (advanced.fired, advanced.caught_up, advanced.skipped) == (1, 1, 7)
    assert stored(scheduler) == {MINUTE: Status.CANCELLED, 2 * MINUTE: Status.COMPLETED, 3 * MINUTE: Status.PENDING}


def test_one_that_was_changed_ahead_of_its_time_and_is_unfinished_is_an_overlap(
    scheduler: Scheduler, table: Timetable, clock: ManualClock
) -> None:
    table.create(new_series(every(MINUTE, NOON + MINUTE), catch_up=CatchUp.ALL, overlap=Overlap.SKIP))
    table.change_instance("shop", "s", instance_id(NOON + MINUTE), {"due_at": NOON + HOUR})
    clock.instant = NOON + 10 * MINUTE + 30 * SECOND

    assert (table.advance().fired, table.next_wake()) == (0, NOON + 11 * MINUTE - LEAD_MS)
    assert list(stored(scheduler)) == [MINUTE]


def test_every_second_without_overlap_misses_none_that_has_room(scheduler: Scheduler, table: Timetable, clock: ManualClock) -> None:
    table.create(new_series(every(SECOND), overlap=Overlap.SKIP))
    fire_until(scheduler, clock, NOON + 20 * SECOND)

    assert list(stored(scheduler)) == list(range(0, 20 * SECOND + 1, SECOND))


# --- paused, replaced, ended -------------------------------------------------------------------------------------------


def test_a_paused_series_takes_back_what_is_not_due_and_goes_on_after_the_next_boundary(
    scheduler: Scheduler, table: Timetable, clock: ManualClock
) -> None:
    table.create(new_series(every(MINUTE), catch_up=CatchUp.ALL))
    fire_until(scheduler, clock, NOON + 55 * SECOND)
    assert list(stored(scheduler)) == [0, MINUTE]

    paused = table.pause("shop", "s")
    assert (paused.status, paused.next_at, paused.version) == (SeriesStatus.PAUSED, None, 2)
    assert list(stored(scheduler)) == [0]
    assert table.pause("shop", "s").version == 2
    fire_until(scheduler, clock, NOON + 10 * MINUTE + SECOND)

    assert table.resume("shop", "s").next_at == NOON + 11 * MINUTE
    fire_until(scheduler, clock, NOON + 12 * MINUTE)
    assert list(stored(scheduler)) == [0, 11 * MINUTE, 12 * MINUTE]
    assert [each.index for each in table.instances("shop", "s", NOON + 11 * MINUTE, NOON + 13 * MINUTE)] == [11, 12]


@pytest.mark.parametrize(
    ("act", "sent"),
    [
        (lambda table, _new: table.pause("shop", "s"), []),
        (lambda table, new: table.replace(new), [b"new"]),
    ],
    ids=["pause", "replace"],
)
def test_an_occurrence_that_a_stopping_worker_has_put_back_is_taken_back_like_any_other(
    table: Timetable, hand: Hand, clock: ManualClock, act: Callable[[Timetable, NewSeries], object], sent: list[bytes]
) -> None:
    rule = every(MINUTE, NOON + 5 * SECOND)
    table.create(new_series(rule, payload=b"old"))
    table.advance()
    assert hand.scheduler.release(hand.claim(look_ahead_ms=6_000)) == 1

    act(table, new_series(rule, payload=b"new"))
    clock.advance(6 * SECOND)
    table.advance()
    assert [delivery.payload for delivery in hand.claim()] == sent


def test_an_occurrence_whose_event_is_changed_is_an_exception(
    scheduler: Scheduler, table: Timetable, hand: Hand, clock: ManualClock
) -> None:
    rule = every(MINUTE, NOON + 5 * SECOND)
    table.create(new_series(rule))
    table.advance()
    scheduler.change("shop", instance_id(NOON + 5 * SECOND), {"payload": b"by itself"})

    (changed,) = table.instances("shop", "s", NOON, NOON + MINUTE)
    assert (changed.is_exception, changed.version) == (True, scheduler.status("shop", changed.instance_id).version)
    table.replace(new_series(rule, payload=b"new"))
    table.pause("shop", "s")
    clock.advance(6 * SECOND)
    assert [delivery.payload for delivery in hand.claim()] == [b"by itself"]


def test_occurrences_that_an_operation_has_moved_stay_when_their_series_is_paused(
    scheduler: Scheduler, table: Timetable, clock: ManualClock
) -> None:
    table.create(new_series(every(SECOND, NOON + SECOND)))
    table.advance()
    made = stored(scheduler)
    scheduler.operations.begin(NewOperation("shop", Action.RESCHEDULE, Filter(series_id="s"), shift_ms=HOUR))
    while scheduler.operations.step(events_per_second=1_000_000_000):
        pass

    table.pause("shop", "s")
    assert stored(scheduler) == made


def test_a_series_that_is_resumed_at_once_loses_nothing(scheduler: Scheduler, table: Timetable, clock: ManualClock) -> None:
    table.create(new_series(every(SECOND)))
    fire_until(scheduler, clock, NOON + 5 * SECOND + 500)
    table.pause("shop", "s")
    table.resume("shop", "s")
    fire_until(scheduler, clock, NOON + 20 * SECOND)

    assert list(stored(scheduler))[:21] == list(range(0, 20 * SECOND + 1, SECOND))


def test_another_content_holds_from_now_on_for_all_that_is_to_come(scheduler: Scheduler, table: Timetable, clock: ManualClock) -> None:
    table.create(new_series(every(SECOND), payload=b"old"))
    fire_until(scheduler, clock, NOON + 5 * SECOND)
    replaced = table.replace(new_series(every(2 * SECOND), payload=b"new"), version=1)
    assert replaced.version == 2
    clock.advance(500)
    fire_until(scheduler, clock, NOON + 12 * SECOND)

    payloads = {at: scheduler.event("shop", instance_id(NOON + at))[0].payload for at in stored(scheduler) if at <= 12 * SECOND}
    assert payloads == {
        **dict.fromkeys(range(0, 5 * SECOND, SECOND), b"old"),
        **dict.fromkeys(range(6 * SECOND, 13 * SECOND, 2 * SECOND), b"new"),
    }
    assert table.replace(new_series(every(2 * SECOND), payload=b"new")).version == 2


@pytest.mark.parametrize(("catch_up", "caught_up"), [(CatchUp.ALL, [1, 2, 3, 4, 5]), (CatchUp.LATEST, [5]), (CatchUp.NONE, [])])
def test_another_content_by_the_same_rule_loses_nothing_that_is_to_be_caught_up(
    scheduler: Scheduler, table: Timetable, clock: ManualClock, catch_up: CatchUp, caught_up: list[int]
) -> None:
    table.create(new_series(every(MINUTE, NOON + MINUTE), catch_up=CatchUp.ALL))
    clock.instant = NOON + 5 * MINUTE + 30 * SECOND
    table.replace(new_series(every(MINUTE, NOON + MINUTE), catch_up=catch_up, payload=b"new"))
    fire_until(scheduler, clock, NOON + 6 * MINUTE)

    assert sorted(stored(scheduler)) == [minute * MINUTE for minute in [*caught_up, 6]]
    assert {scheduler.event("shop", instance_id(NOON + at))[0].payload for at in stored(scheduler)} == {b"new"}


def test_another_content_by_another_rule_begins_now(scheduler: Scheduler, table: Timetable, clock: ManualClock) -> None:
    table.create(new_series(every(MINUTE, NOON + MINUTE), catch_up=CatchUp.ALL))
    clock.instant = NOON + 5 * MINUTE + 30 * SECOND
    table.replace(new_series(every(2 * MINUTE, NOON + 2 * MINUTE), catch_up=CatchUp.ALL))
    fire_until(scheduler, clock, NOON + 8 * MINUTE)

    assert sorted(stored(scheduler)) == [6 * MINUTE, 8 * MINUTE]


def test_another_content_by_the_same_rule_makes_none_again_and_leaves_none_out(
    scheduler: Scheduler, table: Timetable, hand: Hand, clock: ManualClock
) -> None:
    table.create(new_series(every(SECOND), payload=b"0", catch_up=CatchUp.ALL))
    sent: list[str] = []
    for step in range(40):
        table.advance()
        for delivery in hand.claim():
            sent.append(delivery.event_id)
            hand.answer(delivery)
        table.replace(new_series(every(SECOND), payload=b"%d" % (step + 1), catch_up=CatchUp.ALL))
        clock.advance(700)

    assert sent == [instance_id(NOON + second * SECOND) for second in range(28)]


def test_exceptions_outlive_another_content_where_the_new_rule_makes_their_instants(
    scheduler: Scheduler, table: Timetable, clock: ManualClock
) -> None:
    table.create(new_series(every(HOUR, NOON + HOUR)))
    for hour in (2, 3):
        table.change_instance("shop", "s", instance_id(NOON + hour * HOUR), {"payload": b"by itself"})
    for hour in (4, 5):
        table.cancel_instance("shop", "s", instance_id(NOON + hour * HOUR))
    table.replace(new_series(every(2 * HOUR, NOON + 2 * HOUR), payload=b"all"))

    kept = {each.original_at - NOON: each.status for each in table.instances("shop", "s", NOON, NOON + 9 * HOUR) if each.is_exception}
    assert kept == {2 * HOUR: Status.PENDING, 4 * HOUR: Status.CANCELLED}
    fire_until(scheduler, clock, NOON + 6 * HOUR)
    assert stored(scheduler).keys() == {2 * HOUR, 4 * HOUR, 6 * HOUR}
    assert scheduler.event("shop", instance_id(NOON + 2 * HOUR))[0].payload == b"by itself"


def test_a_series_with_a_count_that_is_far_along_keeps_its_exceptions_when_it_is_replaced(table: Timetable) -> None:
    rule = Rule(cron="* * * * *", start_at=NOON - 2_000 * MINUTE, count=5_000)
    table.create(new_series(rule))
    table.cancel_instance("shop", "s", instance_id(NOON + 5 * MINUTE))

    replaced = table.replace(new_series(rule, payload=b"new"))
    assert (replaced.version, replaced.next_at) == (2, NOON)
    kept = [each for each in table.instances("shop", "s", NOON, NOON + 9 * MINUTE) if each.is_exception]
    assert [(each.original_at, each.index, each.status) for each in kept] == [(NOON + 5 * MINUTE, 2_005, Status.CANCELLED)]

    table.replace(new_series(replace(rule, count=2_005)))
    assert not [each for each in table.instances("shop", "s", NOON, NOON + 9 * MINUTE) if each.is_exception]


def test_a_series_that_is_replaced_by_one_that_is_over_counts_its_occurrences_anew(
    scheduler: Scheduler, table: Timetable, clock: ManualClock
) -> None:
    rule = Rule(cron="0 * * * *", start_at=NOON)
    table.create(new_series(rule))
    fire_until(scheduler, clock, NOON + 3 * HOUR + 1)

    over = new_series(replace(rule, until_at=NOON + 2 * HOUR))
    assert table.replace(over).status is SeriesStatus.ENDED
    told = [(each.original_at - NOON, each.index) for each in table.instances("shop", "s", NOON, NOON + 9 * HOUR)]
    assert told == [(0, 0), (HOUR, 1), (2 * HOUR, 2), (3 * HOUR, None)]


def test_a_series_is_only_changed_at_the_version_that_was_seen(table: Timetable) -> None:
    table.create(new_series(every(HOUR)))
    table.replace(new_series(), version=1)
    refuse(table, [act for act in ACTS_AT_A_VERSION if act is not RESUME], 1)

    table.pause("shop", "s", version=2)
    refuse(table, [act for act in ACTS_AT_A_VERSION if act is not PAUSE], 1)
    assert table.get("shop", "s").status is SeriesStatus.PAUSED


def refuse(table: Timetable, acts: list[Callable[[Timetable, int], object]], version: int) -> None:
    before = table.get("shop", "s")
    for act in acts:
        with pytest.raises(SeriesChanged) as refused:
            act(table, version)
        assert refused.value.series.version == before.version
    assert table.get("shop", "s") == before


def test_a_call_whose_answer_was_lost_may_be_repeated_at_the_version_that_was_seen(table: Timetable) -> None:
    table.create(new_series(every(HOUR)))
    for version, act in enumerate(REPEATABLE, start=1):
        first = act(table, version)
        assert first.version == version + 1
        assert act(table, version) == first


REPEATABLE: list[Callable[[Timetable, int], Series]] = [
    lambda table, version: table.replace(new_series(every(MINUTE, NOON + MINUTE)), version=version),
    lambda table, version: table.pause("shop", "s", version=version),
    lambda table, version: table.resume("shop", "s", version=version),
    lambda table, version: table.cancel_following("shop", "s", instance_id(NOON + HOUR), version=version),
    lambda table, version: table.cancel("shop", "s", version=version),
]


def test_following_that_is_asked_for_again_is_what_there_is_and_only_for_the_same(table: Timetable) -> None:
    table.create(new_series(every(MINUTE, NOON + MINUTE)))
    where, following = instance_id(NOON + 5 * MINUTE), new_series(every(HOUR, NOON + HOUR), "t")
    made = table.change_following("shop", "s", where, following, version=1)

    assert table.change_following("shop", "s", where, following, version=1) == made
    with pytest.raises(SeriesChanged):
        table.change_following("shop", "s", where, new_series(every(DAY), "t"), version=1)
    with pytest.raises(UnknownInstance):
        table.change_following("shop", "s", where, new_series(every(DAY), "t"))
    table.cancel("shop", "s")
    with pytest.raises(SeriesFinished):
        table.change_following("shop", "s", where, following)


PAUSE: Callable[[Timetable, int], object] = lambda table, version: table.pause("shop", "s", version=version)  # noqa: E731
RESUME: Callable[[Timetable, int], object] = lambda table, version: table.resume("shop", "s", version=version)  # noqa: E731
ACTS_AT_A_VERSION: list[Callable[[Timetable, int], object]] = [
    lambda table, version: table.replace(new_series(every(DAY)), version=version),
    RESUME,
    lambda table, version: table.cancel("shop", "s", version=version),
    lambda table, version: table.delete("shop", "s", version=version),
    lambda table, version: table.cancel_following("shop", "s", instance_id(NOON + MINUTE), version=version),
    lambda table, version: table.change_following("shop", "s", instance_id(NOON), new_series(series_id="t"), version=version),
    PAUSE,
]


def test_a_paused_series_stays_so_when_it_is_replaced_and_one_that_has_ended_begins_again(table: Timetable) -> None:
    table.create(new_series(series_id="paused"))
    table.pause("shop", "paused")
    table.create(new_series(every(SECOND, NOON - DAY, count=2), "ended"))

    for rule in (every(HOUR), every(SECOND, NOON - DAY, count=2)):  # of the second one nothing is to come
        replaced = table.replace(new_series(rule, "paused"))
        assert (replaced.status, replaced.finished_at) == (SeriesStatus.PAUSED, None)
    revived = table.replace(new_series(every(HOUR), "ended"))
    assert (revived.status, revived.finished_at) == (SeriesStatus.ACTIVE, None)


def test_a_cancelled_series_takes_its_unsent_events_along(scheduler: Scheduler, table: Timetable, hand: Hand, clock: ManualClock) -> None:
    table.create(new_series(every(SECOND)))
    table.advance()
    sent, under_way = hand.claim(), None
    hand.answer(sent[0])
    clock.advance(SECOND)
    (under_way,) = hand.claim()

    cancelled = table.cancel("shop", "s")

    assert (cancelled.status, cancelled.finished_at, cancelled.wake_at) == (SeriesStatus.CANCELLED, NOON + SECOND, None)
    statuses = stored(scheduler)
    assert (statuses.pop(0), statuses.pop(1_000)) == (Status.COMPLETED, Status.PROCESSING)
    assert set(statuses.values()) == {Status.CANCELLED}
    hand.fail(under_way)
    assert stored(scheduler)[1_000] is Status.CANCELLED
    assert table.advance().series == 0
    assert table.cancel("shop", "s") == cancelled
    for act in (table.pause, table.resume, table.run_now):
        with pytest.raises(SeriesFinished):
            act("shop", "s")


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_a_series_may_come_again_and_fires_at_the_very_instants_at_which_it_would_have(
    scheduler: Scheduler, table: Timetable, clock: ManualClock, end: str
) -> None:
    table.create(new_series(every(SECOND), payload=b"old"))
    table.cancel_instance("shop", "s", instance_id(NOON + 12 * SECOND))
    table.change_instance("shop", "s", instance_id(NOON + 13 * SECOND), {"payload": b"changed"})
    fire_until(scheduler, clock, NOON + 3 * SECOND + 500)
    getattr(table, end)("shop", "s")

    table.create(new_series(every(SECOND), payload=b"new"))
    fire_until(scheduler, clock, NOON + 20 * SECOND)

    sent = {at: scheduler.event("shop", instance_id(NOON + at))[0] for at in range(0, 20 * SECOND, SECOND)}
    assert {event.status for event in sent.values()} == {Status.COMPLETED}
    assert [event.payload for event in sent.values()] == [b"old"] * 4 + [b"new"] * 16


def test_a_deleted_series_is_unknown_and_leaves_what_was_sent(scheduler: Scheduler, table: Timetable, clock: ManualClock) -> None:
    table.create(new_series(every(SECOND)))
    fire_until(scheduler, clock, NOON + SECOND + 1)
    table.delete("shop", "s")

    assert stored(scheduler) == {0: Status.COMPLETED, 1_000: Status.COMPLETED}
    for act in (table.get, table.pause, table.resume, table.cancel, table.delete, table.run_now):
        with pytest.raises(UnknownSeries):
            act("shop", "s")
        with pytest.raises(UnknownSeries):
            act("nobody", "s")


def test_a_run_beside_the_rule_is_an_event_of_its_own(scheduler: Scheduler, table: Timetable, hand: Hand, clock: ManualClock) -> None:
    table.create(new_series(every(HOUR, NOON + HOUR), payload=b"x"))
    table.pause("shop", "s")

    events = {table.run_now("shop", "s").event_id for _ in range(2)}

    assert {delivery.event_id for delivery in hand.claim()} == events
    assert len(events) == 2
    assert table.instances("shop", "s", 0, NOON + 2 * HOUR)[0].original_at == NOON + HOUR
    assert [each.status for each in table.instances("shop", "s", 0, NOON + 2 * HOUR)] == [None]


# --- occurrences -------------------------------------------------------------------------------------------------------


def test_the_occurrences_of_the_documented_example_are_ten(table: Timetable) -> None:
    begin = recurrence.local_instant("2025-04-15T10:00:00", "Asia/Tokyo")
    lines = "RRULE:FREQ=DAILY;COUNT=10\nEXDATE;VALUE=DATE-TIME:20250423T010000Z\nRDATE;VALUE=DATE-TIME:20250430T010000Z"
    table.create(new_series(Rule(recurrence=lines, timezone="Asia/Tokyo", start_at=begin), duration_ms=30 * MINUTE))

    found = table.instances("shop", "s", 0, NOON)

    assert [each.instance_id for each in found] == [f"s_202504{day}T010000Z" for day in (15, 16, 17, 18, 19, 20, 21, 22, 24, 30)]
    assert [each.index for each in found] == list(range(10))
    assert {each.ends_at - each.original_at for each in found if each.ends_at} == {30 * MINUTE}


def test_occurrences_are_told_with_what_became_of_them(scheduler: Scheduler, table: Timetable, hand: Hand, clock: ManualClock) -> None:
    table.create(new_series(every(HOUR)))
    table.advance()
    hand.answer(hand.claim_one())
    clock.instant = NOON + 2 * HOUR + HOUR // 2
    table.advance()
    hand.answer(hand.claim_one(), 404)

    found = table.instances("shop", "s", NOON, NOON + 5 * HOUR)

    assert [each.status for each in found] == [Status.COMPLETED, None, Status.FAILED, None, None]
    assert [each.index for each in found] == [0, 1, 2, 3, 4]
    assert table.instances("shop", "s", NOON, NOON + 5 * HOUR, limit=2) == found[:2]
    assert table.instances("shop", "s", found[1].original_at + 1, NOON + 5 * HOUR, limit=2) == found[2:4]
    assert table.instances("shop", "s", NOON + 1, NOON + HOUR) == []


def test_an_occurrence_that_the_rule_makes_no_more_is_told_if_it_was_made(
    scheduler: Scheduler, table: Timetable, clock: ManualClock
) -> None:
    table.create(new_series(every(HOUR)))
    fire_until(scheduler, clock, NOON + MINUTE)
    table.replace(new_series(every(HOUR, NOON + 2 * HOUR)))

    found = table.instances("shop", "s", NOON, NOON + 3 * HOUR)
    assert [(each.original_at, each.index, each.status) for each in found] == [
        (NOON, None, Status.COMPLETED),
        (NOON + 2 * HOUR, 0, None),
    ]


def test_one_occurrence_is_changed_by_itself(scheduler: Scheduler, table: Timetable, clock: ManualClock) -> None:
    table.create(new_series(every(HOUR, NOON + HOUR), payload=b"all", duration_ms=MINUTE))
    other, changed_id = instance_id(NOON + HOUR), instance_id(NOON + 2 * HOUR)

    changes = {"payload": b"one", "due_at": NOON + 2 * HOUR + MINUTE, "url": "http://127.0.0.1/other"}
    changed = table.change_instance("shop", "s", changed_id, changes)

    assert (changed.index, changed.due_at, changed.ends_at) == (1, NOON + 2 * HOUR + MINUTE, NOON + 2 * HOUR + 2 * MINUTE)
    assert (changed.is_exception, changed.status) == (True, Status.PENDING)
    assert changed.version == scheduler.event("shop", changed_id)[0].version
    with pytest.raises(InstanceChanged):
        table.change_instance("shop", "s", changed_id, {"payload": b"late"}, version="other")
    again = table.change_instance("shop", "s", changed_id, {"method": "PUT"}, version=changed.version)
    assert again.version != changed.version
    fire_until(scheduler, clock, NOON + 3 * HOUR)
    event = scheduler.event("shop", changed_id)[0]
    assert (event.payload, event.url, event.method, event.status) == (b"one", "http://127.0.0.1/other", "PUT", Status.COMPLETED)
    assert scheduler.event("shop", other)[0].payload == b"all"
    assert list(stored(scheduler)) == [HOUR, 2 * HOUR, 3 * HOUR]


def test_one_that_was_made_ahead_already_is_changed_where_it_is(scheduler: Scheduler, table: Timetable, clock: ManualClock) -> None:
    table.create(new_series(every(SECOND), payload=b"all"))
    table.advance()
    changed_id = instance_id(NOON + 5 * SECOND)
    table.change_instance("shop", "s", changed_id, {"payload": b"one", "due_at": NOON + 2 * SECOND})
    table.pause("shop", "s")

    assert stored(scheduler) == {5_000: Status.PENDING}
    clock.instant = NOON + 2 * SECOND
    assert changed_id in [delivery.event_id for delivery in Hand(scheduler, clock).claim()]


def test_one_occurrence_is_cancelled_by_itself(scheduler: Scheduler, table: Timetable, clock: ManualClock) -> None:
    table.create(new_series(every(SECOND)))
    cancelled = table.cancel_instance("shop", "s", instance_id(NOON + 30 * SECOND))
    table.advance()
    table.cancel_instance("shop", "s", instance_id(NOON + 3 * SECOND))

    assert (cancelled.status, cancelled.is_exception) == (Status.CANCELLED, True)
    assert table.cancel_instance("shop", "s", cancelled.instance_id) == cancelled
    fire_until(scheduler, clock, NOON + 32 * SECOND)
    left_out = {at for at, status in stored(scheduler).items() if status is Status.CANCELLED}
    assert left_out == {3 * SECOND, 30 * SECOND}


def test_what_can_no_longer_be_changed_is_not(scheduler: Scheduler, table: Timetable, hand: Hand, clock: ManualClock) -> None:
    table.create(new_series(every(HOUR), catch_up=CatchUp.NONE))
    table.advance()
    under_way = hand.claim_one()
    with pytest.raises(InstanceGone, match="PROCESSING"):
        table.change_instance("shop", "s", under_way.event_id, {"payload": b"x"})
    hand.answer(under_way)
    for act in (
        lambda: table.change_instance("shop", "s", under_way.event_id, {}),
        lambda: table.cancel_instance("shop", "s", under_way.event_id),
    ):
        with pytest.raises(InstanceGone, match="COMPLETED"):
            act()
    clock.instant = NOON + HOUR + MINUTE
    table.advance()
    with pytest.raises(InstanceGone, match="passed"):
        table.change_instance("shop", "s", instance_id(NOON + HOUR), {})
    for unknown in (
        "s_20270115T080001Z",
        "t_20270115T080000Z",
        "s",
        "s_20271315T080000Z",
        instance_id(NOON) + "0",
        table.run_now("shop", "s").event_id,
    ):
        with pytest.raises(UnknownInstance):
            table.cancel_instance("shop", "s", unknown)
    table.cancel("shop", "s")
    with pytest.raises(SeriesFinished):
        table.change_instance("shop", "s", instance_id(NOON + 2 * HOUR), {})


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"url": "ftp://x"}, "url"),
        ({"payload": b"x" * 300_000}, "payload"),
        ({"due_at": NOON + 9_000 * DAY}, "due_at"),
        ({"due_at": None}, "due_at"),
        ({"event_id": "other"}, "event_id"),
    ],
)
def test_a_bad_change_of_an_occurrence_is_told_and_changes_nothing(
    scheduler: Scheduler, table: Timetable, changes: dict[str, Any], name: str
) -> None:
    table.create(new_series(every(HOUR, NOON + HOUR)))
    with pytest.raises(InvalidEvent) as refused:
        table.change_instance("shop", "s", instance_id(NOON + HOUR), changes)

    assert [problem.field for problem in refused.value.problems] == [name]
    assert stored(scheduler) == {}


# --- this and all that follow ------------------------------------------------------------------------------------------


def test_this_and_all_that_follow_become_a_series_of_their_own(scheduler: Scheduler, table: Timetable, clock: ManualClock) -> None:
    table.create(new_series(every(SECOND), payload=b"old"))
    table.change_instance("shop", "s", instance_id(NOON + 11 * SECOND), {"payload": b"dropped"})
    table.advance()

    following = new_series(every(2 * SECOND, NOON + 4 * SECOND), "t", payload=b"new")
    trimmed, begun = table.change_following("shop", "s", instance_id(NOON + 4 * SECOND), following, version=1)

    assert (trimmed.rule.until_at, trimmed.version, begun.series_id) == (NOON + 4 * SECOND - 1, 2, "t")
    fire_until(scheduler, clock, NOON + 9 * SECOND)
    events = [event for event in scheduler.events("shop").events if event.due_at <= NOON + 8 * SECOND]
    assert [event.event_id for event in events] == [
        *(instance_id(NOON + second * SECOND) for second in range(4)),
        *(instance_id(NOON + second * SECOND, "t") for second in (4, 6, 8)),
    ]
    assert table.get("shop", "s").status is SeriesStatus.ENDED


def test_following_that_cannot_be_made_changes_nothing(table: Timetable) -> None:
    before = table.create(new_series(every(HOUR, NOON + HOUR)))
    table.create(new_series(every(MINUTE), "taken"))

    with pytest.raises(SeriesExists):
        table.change_following("shop", "s", instance_id(NOON + 3 * HOUR), new_series(every(DAY), "taken"))
    with pytest.raises(InvalidSeries):
        table.change_following("shop", "s", instance_id(NOON + 3 * HOUR), new_series(every(DAY)))
    with pytest.raises(UnknownInstance):
        table.change_following("shop", "s", instance_id(NOON + 3 * HOUR + 1_000), new_series(every(DAY), "t"))
    assert table.get("shop", "s") == before


def test_a_series_is_ended_before_one_of_its_occurrences(scheduler: Scheduler, table: Timetable, clock: ManualClock) -> None:
    table.create(new_series(every(SECOND)))
    table.advance()
    table.cancel_following("shop", "s", instance_id(NOON + 2 * SECOND))

    assert list(stored(scheduler)) == [0, 1_000]
    fire_until(scheduler, clock, NOON + 3 * SECOND)
    assert table.get("shop", "s").status is SeriesStatus.ENDED
    whole = table.create(new_series(every(HOUR, NOON + HOUR), "whole"))
    assert whole.status is SeriesStatus.ACTIVE
    assert table.cancel_following("shop", "whole", instance_id(NOON + HOUR, "whole")).status is SeriesStatus.ENDED


# --- races -------------------------------------------------------------------------------------------------------------


def test_whoever_changes_a_series_while_it_is_advanced_leaves_no_occurrence_of_before(
    scheduler: Scheduler, table: Timetable, clock: ManualClock
) -> None:
    """Many advance, one pauses, resumes and replaces: what is there at the end is what the last one asked for."""
    table.create(new_series(every(SECOND)))

    def change(number: int) -> Series:
        if number % 3:
            return table.pause("shop", "s") if number % 3 == 1 else table.resume("shop", "s")
        return table.replace(new_series(every(SECOND), payload=str(number).encode()))

    with ThreadPoolExecutor(4) as pool:
        advances = [pool.submit(table.advance) for _ in range(60)]
        for number in range(30):
            change(number)
        for advance in advances:
            advance.result()
    table.replace(new_series(every(SECOND), payload=b"last"))
    table.resume("shop", "s")
    while table.advance().series:
        pass

    payloads = {scheduler.event("shop", instance_id(NOON + at))[0].payload for at in stored(scheduler)}
    assert payloads == {b"last"}
    assert len(stored(scheduler)) == 16


def test_settings_of_the_timetable_fit_each_other() -> None:
    assert timetable.LEAD_MS < timetable.REACH_MS
    assert timetable.LEAD_MS > 0
