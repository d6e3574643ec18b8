"""A series that comes after another one: with every occurrence of that, one of its own, which waits for it."""

from __future__ import annotations

from typing import Any

import pytest

from cassata.errors import InvalidSeries, UnknownInstance
from cassata.model import On, Status
from cassata.recurrence import Rule
from cassata.series import AfterSeries, NewSeries, Overlap, SeriesStatus
from tests.words import NOON, Hand

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
