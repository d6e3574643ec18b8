"""What is told of the lives of events: each step writes one message in its own transaction, with the truth of it, or none at all."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text

from cassata import store
from cassata.errors import DuplicateEvent
from cassata.model import TRANSITIONS, Action, ErrorKind, Filter, Milestone, NewOperation, Status, Stream, Transition, rfc3339
from cassata.outbox import READ, READ_AGAIN, SET_ASIDE_MS, Message, PutOff, Reading
from cassata.recurrence import Rule, occurrence_id
from cassata.scheduler import OTHERS, Scheduler
from cassata.series import NewSeries
from cassata.tenants import FRESH_SECONDS, Changes
from tests.store.test_transitions import ACTS, reach
from tests.words import NOON, Hand, ManualClock, new_event, outcome

STREAM = Stream("http://127.0.0.1:9/lifecycle")
LEASE_MS, KEEP_MS = 30_000, 7 * 86_400_000
HOUR = 3_600_000


@pytest.fixture(autouse=True)
def applications(scheduler: Scheduler) -> None:
    """The shop is told of its events; the rival is not, and nobody else."""
    scheduler.tenants.create("shop", Changes(stream=STREAM))
    scheduler.tenants.create("rival")


def rows(scheduler: Scheduler, application_id: str | None = "shop") -> list[Any]:
    numbers = {application.application_id: application.number for application in scheduler.tenants.applications()}
    found = scheduler._transactions.read(lambda conn: store.messages(conn, numbers[application_id or ""], 10_000))
    return sorted(found, key=lambda row: row.id)


def messages(scheduler: Scheduler, application_id: str = "shop") -> list[dict[str, Any]]:
    return [json.loads(row.message) for row in rows(scheduler, application_id)]


def told(scheduler: Scheduler, application_id: str = "shop") -> list[tuple[str, str]]:
    return [(message["type"].removeprefix("event."), message["data"]["event-id"]) for message in messages(scheduler, application_id)]


def forget(scheduler: Scheduler) -> None:
    if found := [row.id for row in rows(scheduler)]:
        scheduler._transactions.write(lambda conn, _tries: store.delete_messages(conn, found))


# --- each step ------------------------------------------------------------------------------------------------------------

TOLD_AS = {
    "add": Milestone.CREATED,
    "change": Milestone.CHANGED,
    "replay": Milestone.REPLAYED,
    "cancel": Milestone.CANCELLED,
    "cancel requested": Milestone.CANCELLED,
    "delivered": Milestone.COMPLETED,
    "refused": Milestone.FAILED,
    "retries spent": Milestone.FAILED,
    "worker lost": Milestone.FAILED,
    "too late": Milestone.FAILED,
    "released": Milestone.CHANGED,
    "aborted": Milestone.CANCELLED,
}


@pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda t: f"{t.source and t.source.name}-{t.cause}-{t.target.name}")
def test_every_transition_is_told_once_with_the_truth_of_it_or_is_none_of_the_streams_business(hand: Hand, transition: Transition) -> None:
    held = reach(hand, transition.source) if transition.source is not None else None
    forget(hand.scheduler)

    ACTS[transition.cause, transition.target](hand, held)

    found = [message for message in messages(hand.scheduler) if message["data"]["event-id"] == "e1"]
    milestone = TOLD_AS.get(transition.cause)
    assert [message["type"] for message in found] == ([f"event.{milestone}"] if milestone else [])
    if found:
        event, _ = hand.scheduler.event("shop", "e1")
        data = found[0]["data"]
        assert (data["status"], data["version"], data["attempts"]) == (event.status.name, event.version, event.attempts)
        assert (data["last-status"], data["last-error"]) == (event.last_status, event.last_error)
        assert data["expiry"] == rfc3339(event.due_at)
        assert "payload" not in json.dumps(found)


def test_a_message_is_as_standard_webhooks_are_and_has_an_id_of_its_own(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event("e1", payload=b'{"card": "4111"}', headers=(("Authorization", "Bearer secret"),)))
    hand.answer(hand.claim_one(), 204)

    created, completed = messages(scheduler)
    assert completed.keys() == {"id", "type", "timestamp", "data"}
    assert completed["data"] == {
        "application-id": "shop",
        "event-id": "e1",
        "status": "COMPLETED",
        "version": f"{NOON:x}-1",
        "attempts": 1,
        "expiry": "2027-01-15T08:00:00.000Z",
        "last-status": 204,
        "last-error": None,
    }
    assert completed["timestamp"] == "2027-01-15T08:00:00.000Z"
    assert created["id"] != completed["id"]
    assert "4111" not in json.dumps([created, completed])
    assert "secret" not in json.dumps([created, completed])


def test_every_way_of_adding_is_told(scheduler: Scheduler) -> None:
    scheduler.add(new_event("alone"))
    scheduler.put(new_event("put"))
    scheduler.add_all([new_event("a"), new_event("b"), new_event("c", "rival")])
    with scheduler._engines.write.connect() as connection, connection.begin():
        scheduler.add(new_event("within"), connection=connection)

    assert told(scheduler) == [("created", name) for name in ("alone", "put", "a", "b", "within")]
    assert told(scheduler, "rival") == []


def test_what_is_not_added_is_not_told(scheduler: Scheduler) -> None:
    scheduler.add(new_event("e1"))
    forget(scheduler)

    with pytest.raises(DuplicateEvent):
        scheduler.add(new_event("e1", payload=b"another"))
    scheduler.put(new_event("e1"))
    with contextlib.suppress(ZeroDivisionError), scheduler._engines.write.connect() as connection, connection.begin():
        scheduler.add(new_event("e2"), connection=connection)
        raise ZeroDivisionError

    assert told(scheduler) == []


def test_a_step_that_is_rolled_back_is_not_told(scheduler: Scheduler, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler.add(new_event("e1"))
    delivery = hand.claim_one()
    forget(scheduler)

    def fails(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(scheduler.limiter, "settle_ended", fails)  # the last that is done before COMMIT
        with pytest.raises(ZeroDivisionError):
            hand.answer(delivery)
    assert told(scheduler) == []

    hand.answer(delivery)
    hand.answer(delivery)  # its answer was lost, say: it recognises its own fence
    assert told(scheduler) == [("completed", "e1")]


def test_a_step_is_not_taken_whose_message_cannot_be_written(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise ZeroDivisionError

    scheduler.add(new_event("e1"))
    monkeypatch.setattr(store, "insert_messages", fails)
    for step in (
        lambda: scheduler.add(new_event("e2")),
        lambda: scheduler.cancel("shop", "e1"),
        lambda: scheduler.change("shop", "e1", {"payload": b"new"}),
    ):
        with pytest.raises(ZeroDivisionError):
            step()

    assert [(event.event_id, event.status, event.fence) for event in scheduler.events("shop").events] == [("e1", Status.PENDING, 0)]


def test_only_what_is_asked_for_is_told(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.tenants.change("shop", Changes(stream=Stream(STREAM.url, frozenset({Milestone.FAILED, Milestone.CANCELLED}))))
    scheduler.add_all([new_event(name) for name in ("good", "bad", "gone")])
    scheduler.cancel("shop", "gone")
    scheduler.cancel("shop", "gone")  # what is cancelled already is not cancelled once more

    for delivery in hand.claim():
        hand.answer(delivery, 200 if delivery.event_id == "good" else 404)

    assert told(scheduler) == [("cancelled", "gone"), ("failed", "bad")]


def test_that_what_has_ended_is_removed_is_not_told_since_how_it_ended_was(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event())
    hand.answer(hand.claim_one())
    before = told(scheduler)

    scheduler.operations.begin(NewOperation("shop", Action.REMOVE, Filter(due_from=0)))
    while scheduler.operations.next_wake() is not None:
        scheduler.operations.step()

    assert scheduler.events("shop").events == []
    assert told(scheduler) == before


def test_work_on_many_events_is_told_of_each(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add_all([new_event(f"e{number}") for number in range(3)])
    scheduler.add(new_event("theirs", "rival"))

    def carry_out(action: Action, **facts: Any) -> list[tuple[str, str]]:
        forget(scheduler)
        scheduler.operations.begin(NewOperation("shop", action, Filter(due_from=0), **facts))
        while scheduler.operations.next_wake() is not None:
            scheduler.operations.step()
            hand.clock.advance(1_000)
        return told(scheduler)

    names = ("e0", "e1", "e2")
    assert carry_out(Action.RESCHEDULE, shift_ms=60_000) == [("changed", name) for name in names]
    assert carry_out(Action.RESCHEDULE, due_at=NOON + HOUR) == [("changed", name) for name in names]
    assert carry_out(Action.CANCEL) == [("cancelled", name) for name in names]
    assert carry_out(Action.RETRY) == [("replayed", name) for name in names]
    hand.clock.advance(HOUR)
    sent = next(delivery for delivery in hand.claim() if delivery.event_id == "e1")
    assert carry_out(Action.CANCEL) == []  # all of them are being sent
    hand.answer(sent, 503)
    assert told(scheduler) == [("cancelled", "e1")]
    assert told(scheduler, "rival") == []


def test_a_retry_by_hand_is_told(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event("e1"))
    hand.answer(hand.claim_one(), 404)
    forget(scheduler)

    scheduler.retry("shop", "e1")
    scheduler.retry("shop", "e1")  # put back already

    assert told(scheduler) == [("replayed", "e1")]


def test_what_was_cancelled_and_is_put_back_unsent_is_told(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event("e1"))
    delivery = hand.claim_one()
    scheduler.cancel("shop", "e1")
    forget(scheduler)

    scheduler.release([delivery])

    assert told(scheduler) == [("cancelled", "e1")]


def test_events_of_several_applications_that_end_together_are_told_to_each(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.tenants.create("third", Changes(stream=STREAM))
    scheduler.add_all([new_event("a"), new_event("b", "rival"), new_event("c", "third"), new_event("d")])
    forget(scheduler)

    deliveries = hand.claim()
    scheduler.record([outcome(each, 404 if each.event_id == "d" else 200) for each in deliveries])

    assert sorted(told(scheduler)) == [("completed", "a"), ("failed", "d")]
    assert told(scheduler, "third") == [("created", "c"), ("completed", "c")]
    assert told(scheduler, "rival") == []


# --- series -----------------------------------------------------------------------------------------------------------------


def series(**facts: Any) -> NewSeries:
    return NewSeries("shop", Rule(every_ms=5_000, start_at=NOON + 5_000), "http://127.0.0.1/hook", series_id="tick", **facts)


def test_what_a_series_makes_and_takes_back_is_told(scheduler: Scheduler, clock: ManualClock) -> None:
    timetable = scheduler.timetable
    names = [occurrence_id("tick", NOON + number * 5_000) for number in range(1, 10)]
    timetable.create(series())
    timetable.advance()
    assert told(scheduler) == [("created", name) for name in names[: len(told(scheduler))]] != []
    assert {message["data"]["series-id"] for message in messages(scheduler)} == {"tick"}
    made = len(told(scheduler))

    forget(scheduler)
    timetable.change_instance("shop", "tick", names[0], {"payload": b"other"})
    timetable.change_instance("shop", "tick", names[5], {"payload": b"other"})
    timetable.cancel_instance("shop", "tick", names[1])
    timetable.cancel_instance("shop", "tick", names[6])
    timetable.cancel_instance("shop", "tick", names[6])
    assert told(scheduler) == [
        ("changed", names[0]), ("created", names[5]), ("cancelled", names[1]), ("created", names[6]), ("cancelled", names[6]),
    ]  # fmt: skip

    forget(scheduler)
    run = timetable.run_now("shop", "tick")
    assert told(scheduler) == [("created", run.event_id)]

    forget(scheduler)
    timetable.pause("shop", "tick")
    assert told(scheduler) == [("cancelled", name) for name in names[2:made]]  # made ahead, and taken back

    forget(scheduler)
    timetable.cancel("shop", "tick")
    assert sorted(told(scheduler)) == sorted(("cancelled", name) for name in (names[0], names[5], run.event_id))


def test_a_series_that_is_purged_leaves_no_event_of_which_the_end_was_not_told(scheduler: Scheduler) -> None:
    scheduler.timetable.create(series())
    scheduler.timetable.advance()
    created = [name for _, name in told(scheduler)]

    scheduler.timetable.delete("shop", "tick")

    assert told(scheduler) == [("created", name) for name in created] + [("cancelled", name) for name in created]
    assert {message["data"]["status"] for message in messages(scheduler)[len(created) :]} == {"CANCELLED"}
    assert {message["data"]["series-id"] for message in messages(scheduler)} == {"tick"}


# --- what others pay ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def counted(scheduler: Scheduler) -> Iterator[list[str]]:
    seen: list[str] = []

    def see(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith("BEGIN"):  # SQLite's own way
            seen.append(statement)

    engines = [scheduler._engines.read, scheduler._engines.write]
    for engine in engines:
        sqlalchemy_event.listen(engine, "before_cursor_execute", see)
    try:
        yield seen
    finally:
        for engine in engines:
            sqlalchemy_event.remove(engine, "before_cursor_execute", see)


def test_an_application_without_a_stream_costs_no_statement(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.tenants._looked_at = float("inf")  # nobody looks for changed applications meanwhile
    scheduler.add(new_event("warm", "rival"))

    with counted(scheduler) as adding:
        scheduler.add(new_event("e1", "rival"))
    agenda = list(scheduler.agenda())
    with counted(scheduler) as claiming:
        claimed = scheduler.record_and_claim((), agenda, 10, hand.terms)[1]
    with counted(scheduler) as recording:
        scheduler.record([outcome(delivery) for delivery in claimed.deliveries])
    with counted(scheduler) as adding_many:
        scheduler.add_all([new_event(f"m{number}", "rival") for number in range(9)])

    assert len(adding) == 1
    assert [statement.split()[0] for statement in recording] == ["UPDATE", "INSERT"]
    assert len(adding_many) == 1
    for statement in adding + claiming + recording + adding_many:
        assert not {"outbox", "streams", "applications"} & set(statement.replace(".", " ").split())


def test_a_stream_that_is_set_or_taken_away_is_followed_by_whoever_has_the_application_in_mind(
    scheduler: Scheduler, database_url: str
) -> None:
    other = Scheduler.open(database_url)
    try:
        scheduler.add(new_event("before", "rival"))  # in mind, without a stream
        other.tenants.change("rival", Changes(stream=STREAM))
        scheduler.tenants._looked_at -= FRESH_SECONDS
        scheduler.add(new_event("told", "rival"))
        other.tenants.change("rival", Changes(stream="off"))
        scheduler.tenants._looked_at -= FRESH_SECONDS
        scheduler.add(new_event("after", "rival"))
    finally:
        other.close()

    assert told(scheduler, "rival") == [("created", "told")]


# --- order ----------------------------------------------------------------------------------------------------------------------


def test_the_messages_of_an_event_are_in_the_order_of_its_steps_however_many_take_them(database_url: str) -> None:
    scheduler = Scheduler.open(database_url, pool_size=10)
    scheduler.add_all([new_event(f"e{number}", delay_ms=HOUR) for number in range(3)])

    def change(thread: int) -> None:
        for turn in range(12):
            scheduler.change("shop", f"e{turn % 3}", {"payload": f"{thread} {turn}".encode()})

    threads = [threading.Thread(target=change, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    versions: dict[str, list[int]] = {}
    for message in messages(scheduler):
        versions.setdefault(message["data"]["event-id"], []).append(int(message["data"]["version"].split("-")[1]))
    scheduler.close()
    assert versions == {f"e{number}": list(range(25)) for number in range(3)}


# --- taking over, and giving back ---------------------------------------------------------------------------------------------


def number_of(scheduler: Scheduler, application_id: str = "shop") -> int:
    return scheduler.tenants.application(application_id).number


def test_one_at_a_time_has_the_messages_of_an_application_until_its_lease_ends(scheduler: Scheduler, clock: ManualClock) -> None:
    shop, outbox = number_of(scheduler), scheduler.outbox
    assert outbox.unsent() == []
    scheduler.add(new_event("e1"))
    assert outbox.unsent() == [shop]

    reading = outbox.take(shop, "one", LEASE_MS, KEEP_MS)
    assert reading is not None
    assert [message.event_id for message in reading.messages] == ["e1"]
    assert outbox.unsent() == []
    assert outbox.take(shop, "two", LEASE_MS, KEEP_MS) is None

    clock.advance(LEASE_MS)
    assert outbox.unsent() == [shop]
    again = outbox.take(shop, "two", LEASE_MS, KEEP_MS)
    assert again is not None
    assert again.messages == reading.messages  # the same ids: it can be told that they were sent before

    outbox.leave(shop, "one", [], wait_ms=0, failures=0, reason=None)  # too late: it has nothing to leave any more
    assert outbox.take(shop, "three", LEASE_MS, KEEP_MS) is None
    outbox.leave(shop, "two", again.messages, wait_ms=0, failures=0, reason=None)
    assert outbox.unsent() == []
    assert rows(scheduler) == []


def test_after_a_failure_nobody_tries_before_the_pause_is_over(scheduler: Scheduler, clock: ManualClock) -> None:
    shop, outbox = number_of(scheduler), scheduler.outbox
    scheduler.add(new_event("e1"))
    outbox.take(shop, "one", LEASE_MS, KEEP_MS)
    outbox.leave(shop, "one", [], wait_ms=5_000, failures=1, reason="HTTP 503 Service Unavailable")

    state = outbox.state("shop", 100)
    assert (state.messages, state.failures, state.reason) == (1, 1, "HTTP 503 Service Unavailable")
    assert (state.oldest_at, state.retry_at) == (NOON, NOON + 5_000)
    assert outbox.unsent() == []
    clock.advance(5_000)
    reading = outbox.take(shop, "two", LEASE_MS, KEEP_MS)
    assert reading is not None
    assert reading.failures == 1


def test_messages_come_in_their_order_some_at_a_time(scheduler: Scheduler) -> None:
    scheduler.add_all([new_event(f"e{number:03}") for number in range(READ + 5)])
    first = scheduler.outbox.take(number_of(scheduler), "one", LEASE_MS, KEEP_MS)
    assert first is not None
    assert [message.event_id for message in first.messages] == [f"e{number:03}" for number in range(READ)]
    assert first.has_more

    scheduler.outbox.leave(number_of(scheduler), "one", first.messages, wait_ms=0, failures=0, reason=None)
    second = scheduler.outbox.take(number_of(scheduler), "two", LEASE_MS, KEEP_MS)
    assert second is not None
    assert [message.event_id for message in second.messages] == [f"e{number:03}" for number in range(READ, READ + 5)]


def names(reading: Reading | None) -> list[str]:
    assert reading is not None
    return [message.event_id for message in reading.messages]


def take(scheduler: Scheduler) -> Reading:
    reading = scheduler.outbox.take(number_of(scheduler), "one", LEASE_MS, KEEP_MS)
    assert reading is not None
    return reading


def leave(scheduler: Scheduler, sent: Sequence[Message] = (), put_off: Sequence[Message] = (), *, failures: int = 0) -> None:
    parts = [PutOff([message.number for message in put_off], 5_000, 1)] if put_off else []
    scheduler.outbox.leave(number_of(scheduler), "one", sent, parts, wait_ms=0, failures=failures, reason="HTTP 422" if put_off else None)


def refuse_first(scheduler: Scheduler, *events: str) -> None:
    """Add events, and have the first message of each refused."""
    scheduler.add_all([new_event(name) for name in events])
    for start in range(0, len(events), READ):
        reading = take(scheduler)
        assert names(reading) == list(events[start : start + READ])
        leave(scheduler, put_off=reading.messages)


def test_what_comes_after_one_that_is_put_off_waits_for_it_and_other_events_do_not(scheduler: Scheduler, clock: ManualClock) -> None:
    refuse_first(scheduler, "bad")
    for payload in (b"1", b"2"):
        scheduler.change("shop", "bad", {"payload": payload})
    scheduler.add(new_event("good"))

    assert names(take(scheduler)) == ["good"]
    state = scheduler.outbox.state("shop", 100)
    assert (state.messages, state.put_off, state.failures, state.reason, state.retry_at) == (4, 3, 0, "HTTP 422", NOON + 5_000)
    leave(scheduler, take(scheduler).messages)
    assert scheduler.outbox.unsent() == []

    clock.advance(5_000)
    assert scheduler.outbox.unsent() == [number_of(scheduler)]
    first = take(scheduler)
    assert [(message.event_id, message.tries) for message in first.messages] == [("bad", 1)]
    leave(scheduler, put_off=first.messages)
    assert names(take(scheduler)) == []
    clock.advance(5_000)
    scheduler.change("shop", "bad", {"payload": b"3"})
    again = take(scheduler)
    assert again.messages == first.messages
    leave(scheduler, again.messages)

    rest = take(scheduler)
    assert [json.loads(message.body)["data"]["version"].split("-")[1] for message in rest.messages] == ["1", "2", "3"]
    assert scheduler.outbox.state("shop", 100).put_off == 0


def test_however_many_are_put_off_all_that_is_read_next_is_others_and_few_of_them(scheduler: Scheduler, clock: ManualClock) -> None:
    refuse_first(scheduler, *(f"bad{number:03}" for number in range(3 * READ)))
    scheduler.add_all([new_event(f"e{number:03}") for number in range(READ)])
    assert names(take(scheduler)) == [f"e{number:03}" for number in range(READ)]

    clock.advance(5_000)
    both = names(take(scheduler))
    assert [name for name in both if name.startswith("e")] == [f"e{number:03}" for number in range(READ)]
    assert [name for name in both if name.startswith("bad")] == [f"bad{number:03}" for number in range(READ_AGAIN)]
    assert both[:4] == ["e000", "e001", "e002", "bad000"]


def test_a_receiver_that_has_failed_is_tried_with_the_newest_as_well(scheduler: Scheduler) -> None:
    scheduler.add_all([new_event(f"e{number:03}") for number in range(2 * READ)])
    scheduler.change("shop", "e000", {"payload": b"new"})
    reading = take(scheduler)
    leave(scheduler, failures=1)

    probing = take(scheduler)
    assert names(probing)[:5] == ["e000", "e399", "e001", "e398", "e002"]  # the newest of all is not the first of its event
    assert set(names(probing)) >= set(names(reading))
    assert len(set(names(probing))) == len(probing.messages)


def test_who_has_lost_the_lease_neither_puts_off_nor_releases(scheduler: Scheduler, clock: ManualClock) -> None:
    refuse_first(scheduler, "bad")
    scheduler.change("shop", "bad", {"payload": b"new"})
    assert names(take(scheduler)) == []  # what comes after it is set aside
    clock.advance(5_000)
    stale = take(scheduler)
    clock.advance(LEASE_MS)
    other = scheduler.outbox.take(number_of(scheduler), "two", LEASE_MS, KEEP_MS)
    assert other is not None

    leave(scheduler, put_off=stale.messages)
    assert [row.wake_at <= clock.estimate() for row in rows(scheduler)] == [True, False]
    scheduler.outbox.sent(number_of(scheduler), "one", stale.messages)
    assert [(row.wake_at > clock.estimate(), row.tries) for row in rows(scheduler)] == [(True, 0)]
    scheduler.outbox.sent(number_of(scheduler), "two", other.messages)  # it knows nothing of that, and releases
    assert [row.wake_at for row in rows(scheduler)] == [0]


def test_what_was_set_aside_and_never_released_is_found_again(scheduler: Scheduler, clock: ManualClock) -> None:
    refuse_first(scheduler, "bad")
    scheduler.change("shop", "bad", {"payload": b"new"})
    assert names(take(scheduler)) == []
    with scheduler._engines.write.connect() as connection, connection.begin():
        connection.execute(text("DELETE FROM outbox WHERE tries > 0"))

    assert names(take(scheduler)) == []
    clock.advance(SET_ASIDE_MS)
    assert names(take(scheduler)) == ["bad"]


def test_what_is_put_off_is_kept_as_long_as_all_and_then_dropped(scheduler: Scheduler, clock: ManualClock) -> None:
    refuse_first(scheduler, "bad")
    clock.advance(KEEP_MS)
    reading = take(scheduler)
    assert names(reading) == ["bad"]
    leave(scheduler, put_off=reading.messages)
    clock.advance(5_000)
    assert names(take(scheduler)) == []
    assert rows(scheduler) == []


def test_what_is_set_aside_behind_one_that_is_dropped_is_told_at_once(scheduler: Scheduler, clock: ManualClock) -> None:
    refuse_first(scheduler, "bad")
    clock.advance(KEEP_MS)
    scheduler.change("shop", "bad", {"payload": b"new"})
    reading = take(scheduler)
    assert names(reading) == ["bad"]
    leave(scheduler, put_off=reading.messages)
    clock.advance(5_000)

    take(scheduler)
    assert names(take(scheduler)) == ["bad"]
    assert [row.wake_at for row in rows(scheduler)] == [0]


def test_what_one_application_is_not_told_is_nobody_elses_business(scheduler: Scheduler, clock: ManualClock) -> None:
    scheduler.tenants.create("third", Changes(stream=STREAM))
    refuse_first(scheduler, "same")
    scheduler.add(new_event("same", "third"))
    assert scheduler.outbox.unsent() == [number_of(scheduler, "third")]
    theirs = scheduler.outbox.take(number_of(scheduler, "third"), "one", LEASE_MS, KEEP_MS)
    assert names(theirs) == ["same"]
    assert scheduler.outbox.state("third", 100).put_off == 0
    clock.advance(5_000)
    leave(scheduler, take(scheduler).messages)
    assert [row.wake_at for row in rows(scheduler, "third")] == [0]


def test_what_has_become_too_old_is_dropped_and_a_stream_that_is_gone_takes_its_messages_with_it(
    scheduler: Scheduler, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = []
    monkeypatch.setattr("cassata.outbox.telemetry.emit", lambda name, **facts: said.append({"name": name, **facts}))
    scheduler.add(new_event("old"))
    clock.advance(KEEP_MS + 1)
    scheduler.add(new_event("new", delay_ms=0))

    reading = scheduler.outbox.take(number_of(scheduler), "one", LEASE_MS, KEEP_MS)
    assert reading is not None
    assert [message.event_id for message in reading.messages] == ["new"]
    assert told(scheduler) == [("created", "new")]
    assert said.pop() == {
        "name": "stream messages dropped", "level": "warning", "application_id": "shop",
        "reason": "older than worker.keepStreamDays", "count": 1,
    }  # fmt: skip

    scheduler.tenants.change("shop", Changes(stream="off"))
    gone = scheduler.outbox.take(number_of(scheduler), "one", LEASE_MS, KEEP_MS)
    assert gone is not None
    assert not gone.messages
    assert told(scheduler) == []
    assert said.pop()["reason"] == "the application has no stream any more"


def test_the_messages_of_an_inactive_application_wait(scheduler: Scheduler, clock: ManualClock) -> None:
    scheduler.add(new_event("e1"))
    scheduler.tenants.change("shop", Changes(active=False))

    reading = scheduler.outbox.take(number_of(scheduler), "one", LEASE_MS, KEEP_MS)
    assert reading is not None
    assert not reading.messages
    assert scheduler.outbox.unsent() == []  # nobody asks every second

    scheduler.tenants.change("shop", Changes(active=True))
    clock.advance(60_000)
    again = scheduler.outbox.take(number_of(scheduler), "one", LEASE_MS, KEEP_MS)
    assert again is not None
    assert len(again.messages) == 1


def test_a_stream_that_cannot_be_read_keeps_its_messages_and_stops_nothing_else(scheduler: Scheduler) -> None:
    scheduler.add(new_event("e1"))
    with scheduler._engines.write.connect() as connection, connection.begin():
        connection.execute(text('UPDATE applications SET stream = \'{"type": "of tomorrow"}\', changed_at = changed_at + 1'))
    scheduler.tenants._looked_at -= FRESH_SECONDS

    scheduler.add(new_event("e2"))
    reading = scheduler.outbox.take(number_of(scheduler), "one", LEASE_MS, KEEP_MS)

    assert reading is not None
    assert not reading.messages
    assert told(scheduler) == [("created", "e1")]


def test_backlogs_are_told_by_application(scheduler: Scheduler, clock: ManualClock) -> None:
    scheduler.tenants.create("third", Changes(stream=STREAM))
    scheduler.add_all([new_event("a"), new_event("b"), new_event("c", "third")])
    clock.advance(90_000)
    scheduler.add(new_event("d", "third", delay_ms=0))

    assert scheduler.backlog(named=9, most=1).untold == {"shop": (1, 90_000), "third": (1, 90_000)}
    assert scheduler.backlog(named=9, most=9).untold["shop"] == (2, 90_000)
    assert scheduler.backlog(named=0, most=9).untold == {OTHERS: (4, 90_000)}


def test_a_worker_that_is_lost_for_good_is_told(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.add(new_event("e1"))
    hand.claim_one()
    scheduler.cancel("shop", "e1")
    forget(scheduler)
    clock.advance(hand.lease_ms)
    hand.claim()  # finds the lease lost, and that it was to be cancelled

    assert told(scheduler) == [("cancelled", "e1")]
    assert ErrorKind.WORKER_LOST.replace("_", " ") in messages(scheduler)[0]["data"]["last-error"]
