"""What clients do to events, on every database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pymysql
import pytest
from sqlalchemy.exc import OperationalError

from cassata import database, store
from cassata.errors import DuplicateEvent, EventFinished, InvalidEvent, PayloadTooLarge, UnknownEvent
from cassata.model import Event, Filter, NewEvent, RetryOptions, Status
from cassata.scheduler import Scheduler
from tests.words import NOON, Hand, ManualClock, new_event

DAY = 86_400_000


def test_an_added_event_is_found_with_all_its_facts(scheduler: Scheduler) -> None:
    new = new_event(
        method="PUT",
        url="https://example.org:8443/a?b=c",
        due_at=NOON + 5_000,
        payload="héllo \U0001f44b".encode(),
        headers=(("X-A", "1"), ("X-A", "2")),
        timeout_ms=1_500,
        retry=RetryOptions(count=7, multiplier=2.5),
    )

    added = scheduler.add(new)

    event, attempts = scheduler.event("shop", "e1")
    assert event == added
    assert event == Event(
        application_id="shop",
        event_id="e1",
        status=Status.PENDING,
        due_at=NOON + 5_000,
        wake_at=NOON + 5_000,
        attempts=0,
        cancel_requested=False,
        last_error=None,
        method="PUT",
        url="https://example.org:8443/a?b=c",
        headers=(("X-A", "1"), ("X-A", "2")),
        payload="héllo \U0001f44b".encode(),
        timeout_ms=1_500,
        retry=RetryOptions(count=7, multiplier=2.5),
        created_at=NOON,
        finished_at=None,
    )
    assert attempts == []


@pytest.mark.parametrize("payload", [b"", bytes(range(256)), '{"b": 1,  "a": [1.0, "\U0001f389"]}'.encode(), b"x" * 262_144, None])
def test_a_payload_is_kept_byte_for_byte(scheduler: Scheduler, hand: Hand, payload: bytes | None) -> None:
    scheduler.add(new_event(payload=payload))

    assert scheduler.event("shop", "e1")[0].payload == payload
    assert hand.claim_one().payload == payload


def test_what_is_acknowledged_is_stored(database_url: str, scheduler: Scheduler, clock: ManualClock) -> None:
    """Whichever way an add goes: one of an application that is new, not in mind, or in mind; and several together."""
    for event_id in ("new", "not-in-mind", "in-mind"):
        scheduler.add(new_event(event_id))
    scheduler.add_all([new_event("one"), new_event("two")])

    elsewhere = Scheduler(database.open_engines(database_url), clock=clock)
    stored = {event.event_id for event in elsewhere.events("shop").events}
    elsewhere.close()
    assert stored == {"new", "not-in-mind", "in-mind", "one", "two"}


def test_an_event_that_is_already_due_wakes_now_not_in_the_past(scheduler: Scheduler) -> None:
    event = scheduler.add(new_event(due_at=NOON - DAY))

    assert (event.due_at, event.wake_at) == (NOON - DAY, NOON)


def test_a_delay_counts_from_the_databases_clock(scheduler: Scheduler, clock: ManualClock) -> None:
    clock.advance(123)

    assert scheduler.add(new_event(delay_ms=1_000)).due_at == NOON + 1_123


def test_the_same_id_again_is_a_duplicate_that_says_whether_it_is_the_same(scheduler: Scheduler) -> None:
    scheduler.add(new_event(payload=b"1"))

    with pytest.raises(DuplicateEvent) as same:
        scheduler.add(new_event(payload=b"1"))
    with pytest.raises(DuplicateEvent) as other:
        scheduler.add(new_event(payload=b"2"))

    assert (same.value.identical, other.value.identical) == (True, False)
    assert scheduler.event("shop", "e1")[0].payload == b"1"


@pytest.mark.parametrize(
    "change",
    [{"due_at": NOON + 1}, {"method": "PUT"}, {"url": "http://127.0.0.1/other"}, {"headers": (("A", "b"),)}, {"timeout_ms": 500},
     {"retry": RetryOptions(count=1)}, {"payload": b""}],
)  # fmt: skip
def test_every_part_of_a_request_counts_when_two_are_compared(scheduler: Scheduler, change: dict[str, Any]) -> None:
    scheduler.add(new_event())

    with pytest.raises(DuplicateEvent) as duplicate:
        scheduler.add(new_event(**change))

    assert not duplicate.value.identical


def test_a_put_repeated_with_a_delay_is_the_same_event(scheduler: Scheduler, clock: ManualClock) -> None:
    first, created = scheduler.put(new_event(delay_ms=5_000))
    clock.advance(700)
    second, created_again = scheduler.put(new_event(delay_ms=5_000))

    assert (created, created_again) == (True, False)
    assert second.due_at == first.due_at == NOON + 5_000


def test_ids_that_only_look_alike_are_different_events(scheduler: Scheduler) -> None:
    alike = ["a", "A", "a.", "a~", "a-", "a_", "a:"]

    for event_id in alike:
        scheduler.add(new_event(event_id))

    assert len(scheduler.events("shop").events) == len(alike)


def test_applications_may_share_an_id(scheduler: Scheduler) -> None:
    scheduler.add(new_event(application_id="shop", payload=b"shop"))
    scheduler.add(new_event(application_id="Shop", payload=b"Shop"))

    assert scheduler.event("Shop", "e1")[0].payload == b"Shop"
    assert [event.application_id for event in scheduler.events("shop").events] == ["shop"]


def test_one_bad_event_spoils_no_other_of_the_same_call(scheduler: Scheduler) -> None:
    scheduler.add(new_event("there"))
    batch = [
        new_event("a"),
        new_event("there"),
        new_event("large", payload=b"x" * 262_145),
        new_event("a"),
        new_event("a", payload=b"other"),
        new_event("b", "other-shop"),
    ]

    results = scheduler.add_all(batch)

    assert [type(result) for result in results] == [Event, DuplicateEvent, PayloadTooLarge, DuplicateEvent, DuplicateEvent, Event]
    assert [result.identical for result in results if isinstance(result, DuplicateEvent)] == [True, True, False]
    assert [event.event_id for event in scheduler.events("shop").events] == ["there", "a"]
    assert [event.event_id for event in scheduler.events("other-shop").events] == ["b"]


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"payload": b"x" * 262_145}, "payload"),
        ({"headers": (("X-Long", "v" * 8_200),)}, "headers"),
        ({"due_at": NOON + 3_651 * DAY}, "due_at"),
        ({"delay_ms": 3_651 * DAY}, "delay_ms"),
    ],
)
def test_what_is_over_a_limit_is_refused_and_nothing_is_stored(scheduler: Scheduler, facts: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidEvent) as refusal:
        scheduler.add(new_event(**facts))

    assert [problem.field for problem in refusal.value.problems] == [field]
    assert scheduler.events("shop").events == []


def test_of_fifty_adds_of_one_id_at_once_exactly_one_succeeds(scheduler: Scheduler) -> None:
    def add(_: int) -> str:
        try:
            return scheduler.add(new_event(payload=b"{}")).event_id
        except DuplicateEvent as duplicate:
            return f"identical={duplicate.identical}"

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(add, range(50)))

    assert sorted(results) == ["e1"] + ["identical=True"] * 49


def test_an_event_can_be_added_inside_the_callers_own_transaction(database_url: str, scheduler: Scheduler) -> None:
    engines = database.open_engines(database_url)
    with engines.write.connect() as connection:
        with connection.begin() as transaction:
            scheduler.add(new_event("dropped", "new-application"), connection=connection)
            transaction.rollback()
        with connection.begin():
            scheduler.add(new_event("kept", "new-application"), connection=connection)
            with pytest.raises(DuplicateEvent):
                scheduler.add(new_event("kept", "new-application"), connection=connection)
    engines.dispose()

    assert [event.event_id for event in scheduler.events("new-application").events] == ["kept"]


# --- cancelling ----------------------------------------------------------------------------------------------------------


def test_a_cancelled_event_is_not_sent_and_no_longer_has_a_status(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event())

    assert scheduler.cancel("shop", "e1").status is Status.CANCELLED
    assert scheduler.cancel("shop", "e1").status is Status.CANCELLED

    assert hand.claim() == []
    with pytest.raises(UnknownEvent):
        scheduler.status("shop", "e1")
    assert scheduler.event("shop", "e1")[0].finished_at == NOON


def test_a_cancelled_id_may_be_added_again_as_a_new_event(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event(payload=b"old"))
    hand.answer(hand.claim_one(), 503)
    scheduler.cancel("shop", "e1")

    scheduler.add(new_event(payload=b"new", due_at=NOON + 1_000))

    event, attempts = scheduler.event("shop", "e1")
    assert (event.status, event.attempts, event.payload, attempts) == (Status.PENDING, 0, b"new", [])
    clock.advance(1_000)
    assert hand.claim_one().payload == b"new"


def test_an_event_that_waits_for_its_retry_can_be_cancelled(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event())
    hand.answer(hand.claim_one(), 503)

    assert scheduler.cancel("shop", "e1").status is Status.CANCELLED

    clock.advance(DAY)
    assert hand.claim() == []


def test_an_event_cancelled_while_it_is_sent_gets_no_further_attempt(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event())
    delivery = hand.claim_one()

    requested = scheduler.cancel("shop", "e1")
    assert (requested.status, requested.cancel_requested) == (Status.PROCESSING, True)
    hand.answer(delivery, 503)

    assert scheduler.event("shop", "e1")[0].status is Status.CANCELLED
    clock.advance(DAY)
    assert hand.claim() == []


def test_an_event_cancelled_while_it_is_sent_may_still_be_delivered(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event())
    delivery = hand.claim_one()
    scheduler.cancel("shop", "e1")

    hand.answer(delivery, 200)

    assert scheduler.status("shop", "e1").status is Status.COMPLETED


def test_what_has_ended_cannot_be_cancelled(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event())
    hand.answer(hand.claim_one(), 200)

    with pytest.raises(EventFinished):
        scheduler.cancel("shop", "e1")
    assert scheduler.status("shop", "e1").status is Status.COMPLETED


@pytest.mark.parametrize("act", [Scheduler.cancel, Scheduler.status, Scheduler.event])
def test_what_was_never_added_is_unknown(scheduler: Scheduler, act: Any) -> None:
    scheduler.add(new_event())

    for application_id, event_id in (("shop", "e2"), ("nobody", "e1")):
        with pytest.raises(UnknownEvent):
            act(scheduler, application_id, event_id)


# --- listing -------------------------------------------------------------------------------------------------------------


def test_a_list_is_in_order_of_expiry_and_pages_without_gaps_or_repeats(scheduler: Scheduler) -> None:
    due = [5, 3, 3, 3, 9, 1, 3, 7]
    scheduler.add_all([new_event(f"e{index}", due_at=NOON + offset) for index, offset in enumerate(due)])

    seen: list[Event] = []
    page = scheduler.events("shop", limit=3)
    seen += page.events
    while page.next:
        page = scheduler.events("shop", limit=3, after=page.next)
        seen += page.events

    assert [event.due_at - NOON for event in seen] == sorted(due)
    assert len({event.event_id for event in seen}) == len(due)


def test_a_list_can_be_narrowed_by_status_and_expiry(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add_all([new_event(f"e{offset}", due_at=NOON + offset) for offset in (-1, 0, 1, 2, 3)])
    for delivery in hand.claim():
        hand.answer(delivery)

    def listed(**narrowing: Any) -> list[str]:
        return [event.event_id for event in scheduler.events("shop", Filter(**narrowing)).events]

    assert listed(statuses=frozenset({Status.COMPLETED})) == ["e-1", "e0"]
    assert listed(due_from=NOON, due_until=NOON + 2) == ["e0", "e1"]
    assert listed(statuses=frozenset({Status.PENDING}), due_from=NOON + 2) == ["e2", "e3"]
    assert scheduler.events("nobody").events == []


def test_an_invalid_event_cannot_be_made() -> None:
    with pytest.raises(InvalidEvent) as refusal:
        NewEvent(application_id="a/b", event_id="é", url="ftp://x/", method="get", headers=(("Host", "x"),), timeout_ms=1)

    assert {problem.field for problem in refusal.value.problems} == {
        "application_id", "event_id", "url", "method", "headers", "timeout_ms", "due_at",
    }  # fmt: skip


def test_an_add_whose_answer_was_lost_is_told_as_stored(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is there, the connection is gone: the duplicate that the next try finds is the very event that was to be added."""
    scheduler.add(new_event("e0"))
    working, losses = store.insert_events, iter([True])

    def lose_the_answer(conn: Any, rows: Any) -> None:
        working(conn, rows)
        if next(losses, False):
            raise OperationalError("INSERT", {}, pymysql.err.OperationalError(2013, "Lost connection"))

    monkeypatch.setattr(store, "insert_events", lose_the_answer)

    assert scheduler.add(new_event("e1")) == scheduler.status("shop", "e1")
    with pytest.raises(DuplicateEvent):
        scheduler.add(new_event("e1"))


def test_an_add_that_was_not_stored_before_its_connection_was_lost_is_stored_by_the_next_try(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler.add(new_event("e0"))
    working, losses = store.insert_events, iter([True])

    def lose_the_question(conn: Any, rows: Any) -> None:
        if next(losses, False):
            raise OperationalError("INSERT", {}, pymysql.err.OperationalError(2006, "Gone away"))
        working(conn, rows)

    monkeypatch.setattr(store, "insert_events", lose_the_question)

    assert scheduler.add(new_event("e1")) == scheduler.status("shop", "e1")
