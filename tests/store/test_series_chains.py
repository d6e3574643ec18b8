"""A series that comes after another one: with every occurrence of that, one of its own, which waits for it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest
from sqlalchemy import Connection

from cassata import database, store
from cassata.errors import InvalidSeries, UnknownInstance
from cassata.model import Filter, On, Status
from cassata.recurrence import Rule
from cassata.scheduler import Scheduler
from cassata.series import AfterSeries, NewSeries, Overlap, SeriesStatus
from tests.words import NOON, Hand, ManualClock

NAMES = ("first", "second", "third")
STAMPS = ["20270115T080100Z", "20270115T080200Z"]
MINUTE = Rule(every_ms=60_000, start_at=NOON + 60_000)


def series(hand: Hand, series_id: str, after: str | None = None, on: On = On.SUCCESS, **facts: Any) -> None:
    given: dict[str, Any] = {"after": AfterSeries(after, on)} if after else {}
    rule = facts.pop("rule", Rule() if after else MINUTE)
    hand.scheduler.timetable.create(NewSeries("shop", rule, "http://127.0.0.1/hook", series_id=series_id, **given, **facts))


def advance(hand: Hand, milliseconds: int) -> None:
    hand.clock.advance(milliseconds)
    while hand.scheduler.timetable.advance().series:
        pass


def statuses(hand: Hand) -> dict[str, Status]:
    return {event.event_id: event.status for event in hand.scheduler.events("shop").events}


def test_every_occurrence_of_the_first_has_one_of_each_that_follows_and_they_run_in_turn(hand: Hand) -> None:
    series(hand, "first")
    series(hand, "second", "first")
    series(hand, "third", "second", On.ALWAYS)
    series(hand, "alarm", "first", On.FAILURE)

    advance(hand, 60_000)
    stamp = STAMPS[0]
    names = [f"{name}_{stamp}" for name in ("first", "second", "third", "alarm")]
    assert statuses(hand) == dict(zip(names, [Status.PENDING, *[Status.BLOCKED] * 3], strict=True))
    for name in names[:3]:
        delivery = hand.claim_one()
        assert delivery.event_id == name
        hand.answer(delivery)
    assert statuses(hand) == dict(zip(names, [*[Status.COMPLETED] * 3, Status.CANCELLED], strict=True))

    advance(hand, 60_000)
    hand.answer(hand.claim_one(), 404)
    found = statuses(hand)
    assert found[f"second_{STAMPS[1]}"] is Status.CANCELLED
    assert (found[f"third_{STAMPS[1]}"], found[f"alarm_{STAMPS[1]}"]) == (Status.PENDING, Status.PENDING)


def test_a_follower_that_is_paused_or_cancelled_makes_none_and_its_own_followers_neither(hand: Hand) -> None:
    series(hand, "first")
    series(hand, "second", "first")
    series(hand, "third", "second")
    hand.scheduler.timetable.pause("shop", "second")

    advance(hand, 60_000)
    assert list(statuses(hand)) == [f"first_{STAMPS[0]}"]

    assert hand.scheduler.timetable.resume("shop", "second").status is SeriesStatus.ACTIVE
    advance(hand, 60_000)
    assert {f"{name}_{STAMPS[1]}" for name in ("first", "second", "third")} <= statuses(hand).keys()


def test_a_follower_that_is_resumed_follows_what_was_made_ahead_already_and_nothing_that_has_passed(hand: Hand) -> None:
    series(hand, "first", rule=Rule(every_ms=5_000, start_at=NOON + 60_000))
    for name, after in (("second", "first"), ("third", "second"), ("beside", "first")):
        series(hand, name, after)
    hand.scheduler.timetable.cancel_instance("shop", "first", "first_20270115T090000Z")  # far ahead: it is not made yet
    advance(hand, 55_000)
    made = statuses(hand)
    hand.scheduler.timetable.pause("shop", "second")
    hand.clock.advance(6_000)
    hand.scheduler.timetable.resume("shop", "second")

    passed = {f"{name}_{STAMPS[0]}" for name in ("second", "third")}
    assert statuses(hand) == {name: status for name, status in made.items() if name not in passed}
    assert {f"{name}_20270115T080105Z" for name in ("first", "second", "third", "beside")} < statuses(hand).keys()
    hand.answer(next(each for each in hand.claim() if each.event_id == f"first_{STAMPS[0]}"))
    hand.clock.advance(5_000)
    for name in ("first", "second", "third"):
        hand.answer(next(each for each in hand.claim() if each.event_id == f"{name}_20270115T080105Z"))


def test_a_follower_of_a_follower_that_is_resumed_or_new_follows_what_was_made_ahead_already(hand: Hand) -> None:
    series(hand, "first")
    series(hand, "second", "first")
    series(hand, "third", "second")
    advance(hand, 55_000)
    hand.scheduler.timetable.pause("shop", "third")
    hand.scheduler.timetable.resume("shop", "third")
    series(hand, "fourth", "third")
    expected = {f"{name}_{STAMPS[0]}" for name in ("first", "second", "third", "fourth")}
    assert statuses(hand).keys() == expected

    hand.scheduler.timetable.pause("shop", "second")
    assert statuses(hand).keys() == {f"first_{STAMPS[0]}"}
    hand.scheduler.timetable.resume("shop", "second")
    assert statuses(hand).keys() == expected


def test_a_follower_that_is_resumed_after_what_has_been_cancelled_ahead_is_judged_at_once(hand: Hand) -> None:
    series(hand, "first")
    series(hand, "second", "first")
    series(hand, "always", "first", On.ALWAYS)
    advance(hand, 55_000)
    for name in ("second", "always"):
        hand.scheduler.timetable.pause("shop", name)
    hand.scheduler.timetable.cancel_instance("shop", "first", f"first_{STAMPS[0]}")
    for name in ("second", "always"):
        hand.scheduler.timetable.resume("shop", name)

    found = statuses(hand)
    assert (found[f"second_{STAMPS[0]}"], found[f"always_{STAMPS[0]}"]) == (Status.CANCELLED, Status.PENDING)


def test_what_is_taken_back_of_the_first_is_taken_back_of_what_follows(hand: Hand) -> None:
    series(hand, "first")
    series(hand, "second", "first")
    series(hand, "third", "second")
    advance(hand, 50_000)
    assert len(statuses(hand)) == 3

    hand.scheduler.timetable.pause("shop", "first")
    assert statuses(hand) == {}

    hand.scheduler.timetable.resume("shop", "first")
    advance(hand, 10_000)
    assert len(statuses(hand)) == 3


def test_an_occurrence_of_the_first_that_was_cancelled_ahead_aborts_the_one_that_follows_it(hand: Hand) -> None:
    series(hand, "first")
    series(hand, "second", "first")
    hand.scheduler.timetable.cancel_instance("shop", "first", f"first_{STAMPS[0]}")

    advance(hand, 60_000)

    assert statuses(hand) == {f"first_{STAMPS[0]}": Status.CANCELLED, f"second_{STAMPS[0]}": Status.CANCELLED}


def test_a_cancelled_first_series_aborts_what_waits_for_it(hand: Hand) -> None:
    series(hand, "first")
    series(hand, "second", "first")
    series(hand, "last", "second", On.ALWAYS)
    advance(hand, 50_000)

    hand.scheduler.timetable.cancel("shop", "first")

    found = statuses(hand)
    assert [found[f"{name}_{STAMPS[0]}"] for name in ("first", "second", "last")] == [Status.CANCELLED, Status.CANCELLED, Status.PENDING]


def test_a_run_by_hand_takes_the_chain_with_it(hand: Hand) -> None:
    series(hand, "first")
    series(hand, "second", "first")
    run = hand.scheduler.timetable.run_now("shop", "first")
    hand.answer(hand.claim_one())
    assert hand.claim_one().event_id == run.event_id.replace("first", "second")


def test_instances_of_a_follower_are_those_of_the_first(hand: Hand) -> None:
    series(hand, "first")
    series(hand, "second", "first")
    series(hand, "third", "second")
    advance(hand, 60_000)

    found = hand.scheduler.timetable.instances("shop", "third", NOON, NOON + 130_000)

    assert [(each.instance_id, each.status) for each in found] == [(f"third_{STAMPS[0]}", Status.BLOCKED), (f"third_{STAMPS[1]}", None)]
    cancelled = hand.scheduler.timetable.cancel_instance("shop", "third", f"third_{STAMPS[0]}")
    assert cancelled.status is Status.CANCELLED
    with pytest.raises(UnknownInstance):
        hand.scheduler.timetable.cancel_instance("shop", "third", f"third_{STAMPS[1]}")


def test_a_circle_a_foreign_series_and_a_rule_beside_it_are_refused(hand: Hand) -> None:
    series(hand, "first")
    series(hand, "second", "first")
    series(hand, "third", "second")
    with pytest.raises(InvalidSeries):
        series(hand, "fourth", "unknown")
    with pytest.raises(InvalidSeries):
        series(hand, "fourth", "fourth")
    with pytest.raises(InvalidSeries):
        series(hand, "fourth", "first", rule=MINUTE)
    with pytest.raises(InvalidSeries):
        series(hand, "fourth", "first", overlap=Overlap.SKIP)
    replaced = NewSeries("shop", Rule(), "http://127.0.0.1/hook", series_id="second", after=AfterSeries("third"))
    with pytest.raises(InvalidSeries, match="back"):
        hand.scheduler.timetable.replace(replaced)
    kept = NewSeries("shop", Rule(), "http://127.0.0.1/other", series_id="third", after=AfterSeries("first", On.ALWAYS, input=True))
    changed = hand.scheduler.timetable.replace(kept)
    assert (changed.content.after, changed.content.url) == (AfterSeries("first", On.ALWAYS, input=True), "http://127.0.0.1/other")
    with pytest.raises(InvalidSeries):
        hand.scheduler.timetable.replace(NewSeries("shop", MINUTE, "http://127.0.0.1/hook", series_id="third"))


def test_an_occurrence_that_was_released_may_be_put_off_and_is_sent_then(hand: Hand) -> None:
    series(hand, "first")
    series(hand, "second", "first")
    advance(hand, 60_000)
    hand.answer(hand.claim_one())
    hand.fail(hand.claim_one())
    name = f"second_{STAMPS[0]}"

    hand.scheduler.timetable.change_instance("shop", "second", name, {"due_at": hand.scheduler.now() + 5_000})

    hand.clock.advance(5_000)
    assert hand.claim_one().event_id == name


def test_a_follower_that_is_paused_and_resumed_while_others_advance_has_no_gap_and_nothing_of_its_pause(mariadb_url: str) -> None:
    clock = ManualClock()
    advancing, *changing = (Scheduler(database.open_engines(mariadb_url), clock=clock) for _ in range(3))
    hand = Hand(advancing, clock)
    series(hand, "first", rule=Rule(every_ms=1_000, start_at=NOON + 1_000))
    series(hand, "second", "first")
    series(hand, "third", "second")
    for _ in range(12):
        done = threading.Event()
        with ThreadPoolExecutor() as threads:
            toggled = [threads.submit(toggle, *each, done) for each in zip(changing, ("second", "third"), strict=True)]
            for _ in range(8):
                clock.advance(1_000)
                advancing.timetable.advance()
            done.set()
        assert [each.result() for each in toggled] == [None, None]
        advancing.timetable.advance()  # what was locked at each of those moments
        ahead = advancing.events("shop", Filter(due_from=clock.instant), limit=1_000).events
        first, second, third = ({event.event_id.partition("_")[2] for event in ahead if event.event_id.startswith(name)} for name in NAMES)
        assert first
        assert (second, third) == (first, first)
    advancing.timetable.pause("shop", "second")
    clock.advance(1_000)
    advancing.timetable.advance()
    ahead = advancing.events("shop", Filter(due_from=clock.instant), limit=1_000).events
    assert {event.event_id.partition("_")[0] for event in ahead} == {"first"}
    for scheduler in (advancing, *changing):
        scheduler.close()


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_a_follower_that_is_ended_while_the_first_is_advanced_makes_none_any_more(
    mariadb_url: str, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    clock = ManualClock()
    advancing, changing = (Scheduler(database.open_engines(mariadb_url), clock=clock) for _ in range(2))
    hand = Hand(advancing, clock)
    series(hand, "first")
    series(hand, "second", "first")
    clock.advance(50_000)
    insert_events = store.insert_events
    with ThreadPoolExecutor() as threads:
        ended: list[Future[Any]] = []

        def late(conn: Connection, rows: Sequence[dict[str, Any]]) -> None:
            if rows[0]["event_id"].startswith("second"):  # it has been seen to be active
                ended.append(threads.submit(getattr(changing.timetable, end), "shop", "second"))
                wait(ended, 1)
            insert_events(conn, rows)

        monkeypatch.setattr(store, "insert_events", late)
        assert advancing.timetable.advance().series == 1
        ended[0].result()
    assert [each.event_id for each in advancing.events("shop").events if each.status is Status.BLOCKED] == []
    for scheduler in (advancing, changing):
        scheduler.close()


def toggle(scheduler: Scheduler, series_id: str, done: threading.Event) -> None:
    while not done.is_set():
        scheduler.timetable.pause("shop", series_id)
        scheduler.timetable.resume("shop", series_id)
