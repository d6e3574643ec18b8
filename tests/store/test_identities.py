"""Events and series that are known by an id alone; occurrences that tell who they are; what is removed for good."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest

from cassata import recurrence
from cassata.errors import InvalidSeries, UnknownEvent, UnknownSeries
from cassata.model import Action, Filter, NewOperation, RetryOn, RetryOptions, Status
from cassata.recurrence import Rule
from cassata.scheduler import Scheduler
from cassata.series import NewSeries
from cassata.tenants import Changes
from tests.words import NOON, Hand, ManualClock, new_event

MINUTE = 60_000
SERIES = "1497b35c-1a21-41ee-8689-ceaebc99522c"
RUN = "1497b35c-1a21-81ee-8000-00006553f100"  # of 2023-11-14T22:13:20Z
EVENT = f"{SERIES}_20231114T221320Z"
IDENTITY = {"event-uuid": "Schedule-Id", "series": "Parent-Schedule-Id", "event": "X-Event"}


def new_series(series_id: str = SERIES, application_id: str = "shop", **facts: Any) -> NewSeries:
    return NewSeries(application_id, Rule(every_ms=MINUTE, start_at=NOON), "http://127.0.0.1/hook", series_id=series_id, **facts)


# --- UUIDs of occurrences ----------------------------------------------------------------------------------------------


def test_the_uuid_of_an_occurrence_leads_back_to_it() -> None:
    named = recurrence.named_by(RUN)

    assert recurrence.uuid_of(EVENT) == RUN
    assert uuid.UUID(RUN).version == 8
    assert named is not None
    assert named.is_of(SERIES)
    assert SERIES + named.ends == EVENT


def test_no_two_occurrences_have_one_uuid() -> None:
    stamps = ["_19700101T000000Z", "_19700101T000001Z", "_20231114T221320Z", "_97981231T235959Z", "_0018c0de0000abcd", "_0018c0de0000abce"]
    ids = [f"{series_id}{stamp}" for series_id in (SERIES, str(uuid.uuid4())) for stamp in stamps]

    assert len({recurrence.uuid_of(event_id) for event_id in ids}) == len(ids)
    for event_id in ids:
        named = recurrence.named_by(recurrence.uuid_of(event_id))
        assert named is not None
        assert event_id.endswith(named.ends)


@pytest.mark.parametrize(
    "text", ["", "nix", SERIES, SERIES.upper(), "1497b35c-1a21-81ee-bfff-ffffffffffff", "1497b35c-1a21-81ee-9fff-ffffffffffff"]
)
def test_what_is_no_uuid_of_an_occurrence_names_none(text: str) -> None:
    assert recurrence.named_by(text) is None


@pytest.mark.parametrize("event_id", ["e1", SERIES, f"{SERIES}_x", "s_20231114T221320Z", f"{SERIES.upper()}_20231114T221320Z"])
def test_what_is_no_occurrence_of_a_uuid_has_none(event_id: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of several kinds
        recurrence.uuid_of(event_id)


# --- identity headers --------------------------------------------------------------------------------------------------


def test_an_occurrence_tells_its_receiver_who_it_is(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.timetable.create(new_series(headers=(("schedule-id", "mine"), ("X-Own", "1")), identity_headers=IDENTITY))
    clock.instant = NOON
    scheduler.timetable.advance()

    (delivery, *_) = hand.claim()

    event_id = recurrence.occurrence_id(SERIES, NOON)
    told = [("Schedule-Id", recurrence.uuid_of(event_id)), ("Parent-Schedule-Id", SERIES), ("X-Event", event_id)]
    assert delivery.headers == (("X-Own", "1"), *told)
    assert scheduler.timetable.get("shop", SERIES).content.identity_headers == IDENTITY


def test_an_occurrence_that_is_changed_by_itself_still_tells_who_it_is(scheduler: Scheduler) -> None:
    scheduler.timetable.create(new_series(identity_headers={"event": "X-Event"}))
    event_id = recurrence.occurrence_id(SERIES, NOON + MINUTE)

    scheduler.timetable.change_instance("shop", SERIES, event_id, {"headers": (("X-Other", "2"),)})

    assert scheduler.event("shop", event_id)[0].headers == (("X-Other", "2"), ("X-Event", event_id))


def test_one_that_is_run_beside_the_rule_has_a_uuid_too(scheduler: Scheduler) -> None:
    scheduler.timetable.create(new_series(identity_headers={"event-uuid": "Schedule-Id"}))

    event = scheduler.timetable.run_now("shop", SERIES)

    assert event.headers == (("Schedule-Id", recurrence.uuid_of(event.event_id)),)
    assert scheduler.timetable.occurrence_of(event.headers[0][1]) == ("shop", event.event_id)


@pytest.mark.parametrize(
    ("series_id", "identity"),
    [("s", {"event-uuid": "X-Id"}), (SERIES, {"nix": "X-Id"}), (SERIES, {"event": "Host"}), (SERIES, {"event": "a b"})],
)
def test_an_identity_that_cannot_be_told_is_refused(series_id: str, identity: dict[str, str]) -> None:
    with pytest.raises(InvalidSeries) as refused:
        new_series(series_id, identity_headers=identity)

    assert [problem.field for problem in refused.value.problems] == ["identity_headers"]


def test_a_series_without_identity_headers_has_the_fingerprint_that_it_always_had() -> None:
    retry = RetryOptions(count=1)

    assert new_series(retry=retry).options == {"retry": {"count": 1, "initial_ms": None, "multiplier": None, "maximum_ms": None}}
    assert new_event(retry=retry).request_hash == new_event(retry=replace(retry, on=RetryOn.TRANSIENT)).request_hash
    assert new_event(retry=retry).request_hash != new_event(retry=replace(retry, on=RetryOn.ANY)).request_hash


# --- looking up by an id alone -----------------------------------------------------------------------------------------


def test_an_id_alone_leads_to_the_oldest_event_and_series(scheduler: Scheduler) -> None:
    for application_id in ("shop", "rival"):
        scheduler.add(new_event(SERIES, application_id=application_id))
        scheduler.timetable.create(new_series(application_id=application_id))

    assert scheduler.application_of(SERIES) == "shop"
    assert scheduler.timetable.application_of(SERIES) == "shop"
    assert scheduler.timetable.occurrence_of(RUN) == ("shop", EVENT)
    with pytest.raises(UnknownEvent):
        scheduler.application_of("nobody")
    with pytest.raises(UnknownSeries):
        scheduler.timetable.application_of("nobody")
    with pytest.raises(UnknownSeries):
        scheduler.timetable.occurrence_of("1497b35c-1a21-81ef-8000-00006553f100")


def test_runs_are_listed_backwards(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.timetable.create(new_series())
    for at in (NOON, NOON + MINUTE, NOON + 2 * MINUTE):
        clock.instant = at
        scheduler.timetable.advance()

    def runs(begin: int, end: int, limit: int = 10) -> list[int]:
        found = scheduler.timetable.runs("shop", SERIES, begin, end, limit=limit)
        return [(event.due_at - NOON) // MINUTE for event in found]

    assert runs(0, NOON + 9 * MINUTE) == [2, 1, 0]
    assert runs(NOON, NOON + 2 * MINUTE) == [1, 0]
    assert runs(NOON, NOON + 2 * MINUTE + 1) == [2, 1, 0]
    assert runs(NOON + 1, NOON + 9 * MINUTE, limit=1) == [2]


# --- removed for good --------------------------------------------------------------------------------------------------


def test_what_has_ended_is_removed_and_what_waits_is_cancelled(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add_all([new_event("sent", delay_ms=0), new_event("waits", delay_ms=MINUTE)])
    hand.answer(*hand.claim())

    for event_id in ("sent", "waits"):
        scheduler.remove("shop", event_id)

    with pytest.raises(UnknownEvent):
        scheduler.event("shop", "sent")
    assert scheduler.event("shop", "waits")[0].status is Status.CANCELLED
    with pytest.raises(UnknownEvent):
        scheduler.remove("shop", "sent")


def test_what_is_being_sent_is_not_removed_but_not_tried_again(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event("e", delay_ms=0))
    hand.claim()

    scheduler.remove("shop", "e")

    event, _ = scheduler.event("shop", "e")
    assert (event.status, event.cancel_requested) == (Status.PROCESSING, True)


def test_an_occurrence_that_would_be_made_once_more_is_not_removed(scheduler: Scheduler) -> None:
    scheduler.timetable.create(new_series())
    event_id = recurrence.occurrence_id(SERIES, NOON + 5 * MINUTE)
    scheduler.timetable.cancel_instance("shop", SERIES, event_id)

    scheduler.remove("shop", event_id)

    assert scheduler.event("shop", event_id)[0].status is Status.CANCELLED


def test_an_operation_removes_what_has_ended(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.timetable.create(new_series())
    kept = recurrence.occurrence_id(SERIES, NOON + 5 * MINUTE)
    scheduler.timetable.cancel_instance("shop", SERIES, kept)
    scheduler.add_all([new_event("sent", delay_ms=0), new_event("waits", delay_ms=MINUTE)])
    hand.answer(*hand.claim())

    operation = scheduler.operations.begin(NewOperation("shop", Action.REMOVE, Filter(due_from=0)))
    while scheduler.operations.step():
        pass

    assert {event.event_id for event in scheduler.events("shop").events} == {"waits", kept}
    done = scheduler.operations.get("shop", operation.operation_id)
    assert (done.changed, done.skipped) == (1, 1)


def test_events_are_found_by_whether_they_have_been_tried(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add_all([new_event("tried", delay_ms=0), new_event("untried", delay_ms=MINUTE)])
    hand.answer(*hand.claim())

    def found(tried: bool) -> list[str]:
        return [event.event_id for event in scheduler.events("shop", Filter(tried=tried)).events]

    assert (found(True), found(False)) == (["tried"], ["untried"])
    operation = NewOperation("shop", Action.RECONCILE, Filter(frozenset({Status.COMPLETED}), tried=False))
    assert scheduler.operations.preview(operation).events == 0
    assert scheduler.operations.preview(replace(operation, filter=Filter(tried=True))).events == 1


def test_an_application_is_made_or_changed(scheduler: Scheduler) -> None:
    made = scheduler.tenants.put("shop", active=False, limits={"payload_bytes": 10})
    changed = scheduler.tenants.put("shop", active=True, metadata={"a": 1})

    assert (made.active, dict(made.limits)) == (False, {"payload_bytes": 10})
    assert (changed.active, dict(changed.limits), changed.metadata) == (True, {"payload_bytes": 10}, {"a": 1})
    assert scheduler.tenants.change("shop", Changes(limits={"payload_bytes": None})).limits == {}
