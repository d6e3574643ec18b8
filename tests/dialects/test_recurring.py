"""The dialect of the recurring-event scheduler on every database: what its clients may rely on, and what is refused, in its form."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from werkzeug.test import TestResponse

from cassata import database
from cassata.config import Service
from cassata.courier.retry import RetryPolicy
from cassata.model import ErrorKind, RetryOn, RetryOptions, Scope, Status
from cassata.retention import Retention
from cassata.scheduler import Scheduler
from cassata.service import create_app
from cassata.tenants import Changes
from tests.words import Hand, ManualClock, new_event

NOW = 1_900_000_000_000  # 2030-03-17T17:46:40Z
DAY = 86_400_000
ONE_OFF, SERIES, OTHER = (f"318849b6-39b9-47fb-8b23-4fd43089f0{number:02}" for number in range(3))
HELLO = base64.b64encode(b"hello world\n").decode()
TEN_DAYS = "RRULE:FREQ=DAILY;COUNT=10\nEXDATE;VALUE=DATE-TIME:20300423T010000Z\nRDATE;VALUE=DATE-TIME:20300430T010000Z"


@dataclass
class Client:
    """A client of the ancestor. `key` None: it sends none."""

    http: Any
    key: str | None = None

    def send(self, method: str, path: str, document: Any = None, **how: Any) -> TestResponse:
        headers = {**how.pop("headers", {}), **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        answer: TestResponse = self.http.open(path, method=method, json=document, headers=headers, **how)
        return answer

    def ok(self, method: str, path: str, document: Any = None, status: int = 200, **how: Any) -> Any:
        answer = self.send(method, path, document, **how)
        assert answer.status_code == status, answer.text
        return answer.json

    def refused(self, status: int, method: str, path: str, document: Any = None, **how: Any) -> str:
        answer = self.send(method, path, document, **how)
        assert answer.status_code == status, answer.text
        assert answer.json is not None
        assert answer.json.keys() == {"code", "message"}
        assert answer.json["code"] == status
        return str(answer.json["message"])

    def status(self, event_id: str) -> str:
        document = self.ok("GET", f"/events/{event_id}/status")
        assert document.keys() == {"id", "status"}
        assert document["id"] == event_id
        return str(document["status"])

    def instances(self, event_id: str, query: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ok("GET", f"/events/{event_id}/instances{query}")
        return found


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def scheduler(database_url: str, clock: ManualClock) -> Iterator[Scheduler]:
    opened = Scheduler(database.open_engines(database_url, pool_size=10), clock=clock, retry=RetryPolicy(count=5))
    opened.tenants.create("recurring", Changes())
    yield opened
    opened.close()


@pytest.fixture
def hand(scheduler: Scheduler, clock: ManualClock) -> Hand:
    return Hand(scheduler, clock)


@pytest.fixture
def client(scheduler: Scheduler) -> Client:
    return Client(create_app(scheduler, Service(dialects=["recurring"])).test_client())


def one_off(event_id: str = ONE_OFF, **facts: Any) -> dict[str, Any]:
    usual = {
        "id": event_id,
        "scheduledAt": "2030-04-15T10:00:00",
        "timezone": "Asia/Tokyo",
        "payload": HELLO,
        "destinationTopic": "a-destination-topic",
    }
    return usual | facts


def ten_days(event_id: str = SERIES, **facts: Any) -> dict[str, Any]:
    return one_off(event_id, **{"endsAt": "2030-04-15T10:30:00", "recurrence": TEN_DAYS} | facts)


def instance_id(day: int, series_id: str = SERIES) -> str:
    return f"{series_id}_203004{day:02}T010000Z"


def go_to(scheduler: Scheduler, clock: ManualClock, instant: datetime) -> None:
    """Let time pass, and every instance be made in time."""
    until = int(instant.timestamp() * 1000)
    while clock.instant < until:
        while scheduler.timetable.advance().series:
            pass
        wake = scheduler.timetable.next_wake()
        clock.instant = min(until, wake) if wake and wake > clock.instant else until
    while scheduler.timetable.advance().series:
        pass


# --- one event ---------------------------------------------------------------------------------------------------------


def test_an_event_is_answered_as_it_was_understood(client: Client, scheduler: Scheduler) -> None:
    answered = client.ok("POST", "/events", one_off(endsAt="2030-04-15T10:30:00"), 201)

    assert answered == one_off(endsAt="2030-04-15T10:30:00") | {"retry": 0, "status": "SCHEDULED"}
    event, _ = scheduler.event("recurring", ONE_OFF)
    assert (event.due_at, event.payload, event.duration_ms) == (1_902_445_200_000, b"hello world\n", 1_800_000)


def test_an_id_is_made_where_none_is_given(client: Client) -> None:
    document = one_off()
    for empty in ({}, {"id": None}, {"id": ""}):
        made = client.ok("POST", "/events", {name: value for name, value in document.items() if name != "id"} | empty, 201)["id"]
        assert client.status(made) == "SCHEDULED"


@pytest.mark.parametrize(
    ("written", "zone", "told"),
    [
        ("2030-04-15T10:00:00", "Asia/Tokyo", "2030-04-15T10:00:00"),
        ("2030-04-15T01:00:00Z", "Asia/Tokyo", "2030-04-15T10:00:00"),
        ("2030-04-15T10:00:00.123456789+09:00", "Asia/Tokyo", "2030-04-15T10:00:00.124000"),
        ("2030-04-15T03:00:00+02:00", "Asia/Tokyo", "2030-04-15T10:00:00"),
        ("2030-04-15T01:00:00Z", None, "2030-04-15T01:00:00"),
        ("2030-10-27T02:30:00", "Europe/Berlin", "2030-10-27T02:30:00"),
        ("2030-10-27T00:30:00Z", "Europe/Berlin", "2030-10-27T02:30:00"),
        ("2030-10-27T01:30:00Z", "Europe/Berlin", "2030-10-27T02:30:00+01:00"),
        ("2030-03-31T02:30:00", "Europe/Berlin", "2030-03-31T03:30:00"),
    ],
)
def test_a_time_is_told_by_the_clocks_of_its_zone(client: Client, written: str, zone: str | None, told: str) -> None:
    """A second time that clocks show twice is told with its offset: sent back, it is the same instant."""
    answered = client.ok("POST", "/events", one_off(scheduledAt=written, timezone=zone), 201)

    assert answered["scheduledAt"] == told
    again = client.ok("POST", "/events", one_off(OTHER, scheduledAt=told, timezone=zone), 201)
    assert again["scheduledAt"] == told


def test_what_was_due_before_is_sent_now(client: Client, hand: Hand) -> None:
    client.ok("POST", "/events", one_off(scheduledAt="2022-03-09T17:43:00Z"), 201)

    assert hand.claim_one().payload == b"hello world\n"


def test_three_attempts_are_made_in_total(client: Client, hand: Hand, clock: ManualClock) -> None:
    """Whatever was answered: what a bus does not take has failed."""
    client.ok("POST", "/events", one_off(scheduledAt="2022-03-09T17:43:00Z"), 201)
    for code in (404, 500, 400):
        assert client.status(ONE_OFF) == "SCHEDULED"
        hand.answer(hand.claim_one(), code)
        clock.advance(DAY)

    assert client.status(ONE_OFF) == "FAILED"
    assert hand.claim() == []


def test_what_is_being_sent_is_scheduled_and_what_was_sent_is_published(client: Client, hand: Hand) -> None:
    client.ok("POST", "/events", one_off(scheduledAt="2022-03-09T17:43:00Z"), 201)
    delivery = hand.claim_one()
    assert client.status(ONE_OFF) == "SCHEDULED"

    hand.answer(delivery)
    assert client.status(ONE_OFF) == "PUBLISHED"


def test_an_event_is_replaced_by_what_is_put(client: Client, scheduler: Scheduler) -> None:
    client.ok("POST", "/events", one_off(), 201)
    changed = one_off(scheduledAt="2030-05-01T09:00:00", payload="AP8=", destinationTopic="other", endsAt="2030-05-01T09:05:00")

    assert client.ok("PUT", f"/events/{ONE_OFF}", changed) == changed | {"retry": 0, "status": "SCHEDULED"}
    event, _ = scheduler.event("recurring", ONE_OFF)
    assert (event.payload, event.duration_ms, event.url) == (b"\x00\xff", 300_000, "topic:other")
    assert client.ok("PUT", f"/events/{ONE_OFF}", changed)["status"] == "SCHEDULED"
    assert scheduler.event("recurring", ONE_OFF)[0].version == event.version, "what is asked for already changes nothing"


def test_a_receiver_by_http_is_told_that_a_payload_is_json_unless_it_is_not(client: Client, scheduler: Scheduler) -> None:
    client.ok("POST", "/events", one_off(), 201)
    client.ok("POST", "/events", one_off(OTHER, payload=base64.b64encode(b'{"a":1}').decode()), 201)

    assert scheduler.event("recurring", ONE_OFF)[0].headers == (("Content-Type", "application/octet-stream"),)
    assert scheduler.event("recurring", OTHER)[0].headers == ()


# --- cancelling, and ids for good ----------------------------------------------------------------------------------------


def test_an_event_is_cancelled_once_and_for_all(client: Client) -> None:
    client.ok("POST", "/events", one_off(), 201)

    assert client.ok("PATCH", f"/events/{ONE_OFF}/cancel") == {"id": ONE_OFF, "status": "CANCELED"}
    assert client.ok("PATCH", f"/events/{ONE_OFF}/cancel") == {"id": ONE_OFF, "status": "CANCELED"}
    assert client.status(ONE_OFF) == "CANCELED"
    assert "ended" in client.refused(409, "PUT", f"/events/{ONE_OFF}", one_off())
    client.refused(409, "POST", "/events", one_off())
    client.refused(409, "POST", "/events", ten_days(ONE_OFF))


def test_what_is_being_sent_may_still_be_published_when_it_is_cancelled(client: Client, hand: Hand) -> None:
    client.ok("POST", "/events", one_off(scheduledAt="2022-03-09T17:43:00Z"), 201)
    delivery = hand.claim_one()

    assert client.ok("PATCH", f"/events/{ONE_OFF}/cancel", status=202) == {"id": ONE_OFF, "status": "SCHEDULED"}
    hand.answer(delivery, 500)
    assert client.status(ONE_OFF) == "CANCELED"


@pytest.mark.parametrize(("code", "word"), [(200, "PUBLISHED"), (500, "FAILED")])
def test_what_has_ended_stays_as_it_ended(client: Client, hand: Hand, clock: ManualClock, code: int, word: str) -> None:
    client.ok("POST", "/events", one_off(scheduledAt="2022-03-09T17:43:00Z"), 201)
    while deliveries := hand.claim():
        hand.answer(deliveries[0], code)
        clock.advance(DAY)

    assert client.status(ONE_OFF) == word
    client.refused(409, "PATCH", f"/events/{ONE_OFF}/cancel")
    client.refused(409, "PUT", f"/events/{ONE_OFF}", one_off())
    client.refused(409, "POST", "/events", one_off(scheduledAt="2022-03-09T17:43:00Z"))
    client.refused(409, "POST", "/events", ten_days(ONE_OFF))
    assert client.status(ONE_OFF) == word


@pytest.mark.parametrize("document", [one_off(SERIES), ten_days()], ids=["one-off", "recurring"])
def test_a_call_whose_answer_was_lost_may_be_repeated(client: Client, document: dict[str, Any]) -> None:
    first = client.ok("POST", "/events", document, 201)

    assert client.ok("POST", "/events", document, 200) == first
    assert "other content" in client.refused(409, "POST", "/events", document | {"payload": ""})


def test_one_kind_of_event_does_not_become_the_other(client: Client) -> None:
    client.ok("POST", "/events", one_off(), 201)
    client.ok("POST", "/events", ten_days(), 201)

    assert "recurrence: is required" in client.refused(400, "PUT", f"/events/{SERIES}", one_off(SERIES))
    assert "recurrence: is given" in client.refused(400, "PUT", f"/events/{ONE_OFF}", ten_days(ONE_OFF))
    client.refused(409, "POST", "/events", ten_days(ONE_OFF))
    client.refused(409, "POST", "/events", one_off(SERIES))


# --- recurring events ----------------------------------------------------------------------------------------------------


def test_instances_are_counted_without_what_is_left_out(client: Client) -> None:
    client.ok("POST", "/events", ten_days(), 201)
    found = client.instances(SERIES)

    assert [each["occurrence"] for each in found] == list(range(10))
    assert [each["id"] for each in found] == [instance_id(day) for day in (15, 16, 17, 18, 19, 20, 21, 22, 24, 30)]
    assert found[8] == {
        "id": instance_id(24),
        "recurrenceId": SERIES,
        "occurrence": 8,
        "scheduledAt": "2030-04-24T10:00:00",
        "timezone": "Asia/Tokyo",
        "payload": HELLO,
        "destinationTopic": "a-destination-topic",
        "endsAt": "2030-04-24T10:30:00",
        "retry": 0,
        "status": "SCHEDULED",
    }


def test_an_instance_is_at_the_same_time_on_the_clocks_in_summer_and_winter(client: Client) -> None:
    weeks = ten_days(scheduledAt="2030-10-20T09:00:00", endsAt=None, timezone="Europe/Berlin", recurrence="RRULE:FREQ=WEEKLY;COUNT=3")
    client.ok("POST", "/events", weeks, 201)

    found = client.instances(SERIES)
    assert [each["scheduledAt"] for each in found] == [f"2030-{day}T09:00:00" for day in ("10-20", "10-27", "11-03")]
    assert [each["id"][-16:] for each in found] == ["20301020T070000Z", "20301027T080000Z", "20301103T080000Z"]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("RRULE:FREQ=MINUTELY;INTERVAL=15;COUNT=3", ["10:00:00", "10:15:00", "10:30:00"]),
        ("RRULE:FREQ=MINUTELY;UNTIL=20300415T010200Z", ["10:00:00", "10:01:00", "10:02:00"]),
        ("rrule:freq=secondly;interval=30;until=20300415T100100", ["10:00:00", "10:00:30", "10:01:00"]),
    ],
)
def test_a_rule_may_count_off_minutes_and_seconds(client: Client, rule: str, told: list[str]) -> None:
    answered = client.ok("POST", "/events", ten_days(recurrence=rule), 201)

    assert answered["recurrence"] == rule
    found = client.instances(SERIES)
    assert [each["scheduledAt"] for each in found] == [f"2030-04-15T{time}" for time in told]
    assert [each["occurrence"] for each in found] == [0, 1, 2]


def test_an_instance_becomes_another_one_by_itself(client: Client, scheduler: Scheduler) -> None:
    client.ok("POST", "/events", ten_days(), 201)
    changed = client.instances(SERIES)[2] | {"scheduledAt": "2030-04-17T12:00:00", "endsAt": "2030-04-17T13:00:00", "payload": "AP8="}

    assert client.ok("PUT", f"/events/{instance_id(17)}", changed) == changed
    found = client.instances(SERIES)
    assert found[2] == changed
    assert [each["payload"] for each in found].count(HELLO) == 9
    assert client.status(instance_id(17)) == "SCHEDULED"
    assert scheduler.event("recurring", instance_id(17))[0].retry == scheduler.timetable.get("recurring", SERIES).content.retry


def test_one_instance_is_cancelled_by_itself(client: Client) -> None:
    client.ok("POST", "/events", ten_days(), 201)

    assert client.ok("PATCH", f"/events/{instance_id(16)}/cancel") == {"id": instance_id(16), "status": "CANCELED"}
    assert [each["status"] for each in client.instances(SERIES)].count("CANCELED") == 1
    client.refused(409, "PUT", f"/events/{instance_id(16)}", one_off(instance_id(16)))
    assert client.status(SERIES) == "SCHEDULED"


@pytest.mark.parametrize(
    "change", [{"recurrence": "RRULE:FREQ=DAILY;COUNT=5"}, {"scheduledAt": "2030-04-15T11:00:00", "endsAt": "2030-04-15T11:30:00"}]
)
def test_exceptions_go_with_the_occurrences_that_they_were(client: Client, change: dict[str, str]) -> None:
    client.ok("POST", "/events", ten_days(), 201)
    client.ok("PUT", f"/events/{instance_id(24)}", one_off(instance_id(24), destinationTopic="new-topic-for-24th"))
    client.ok("PUT", f"/events/{SERIES}", ten_days(**change))

    assert {each["destinationTopic"] for each in client.instances(SERIES)} == {"a-destination-topic"}
    client.refused(404, "GET", f"/events/{instance_id(24)}/status")


def test_exceptions_stay_where_their_occurrences_do(client: Client) -> None:
    client.ok("POST", "/events", ten_days(), 201)
    client.ok("PUT", f"/events/{instance_id(16)}", one_off(instance_id(16), destinationTopic="new-topic"))
    client.ok("PATCH", f"/events/{instance_id(17)}/cancel")
    client.ok("PUT", f"/events/{SERIES}", ten_days(recurrence="RRULE:FREQ=DAILY;COUNT=5", destinationTopic="for-all"))

    found = client.instances(SERIES)
    assert [each["destinationTopic"] for each in found] == ["for-all", "new-topic", "a-destination-topic", "for-all", "for-all"]
    assert [each["status"] for each in found] == ["SCHEDULED", "SCHEDULED", "CANCELED", "SCHEDULED", "SCHEDULED"]


def test_this_and_all_that_follow_are_two_calls(client: Client) -> None:
    client.ok("POST", "/events", ten_days(recurrence="RRULE:FREQ=DAILY;COUNT=10"), 201)
    client.ok("PUT", f"/events/{SERIES}", ten_days(recurrence="RRULE:FREQ=DAILY;COUNT=5"))
    following = ten_days(OTHER, scheduledAt="2030-04-20T11:00:00", endsAt=None, recurrence="RRULE:FREQ=DAILY;COUNT=5")
    client.ok("POST", "/events", following, 201)

    told = [each["scheduledAt"] for name in (SERIES, OTHER) for each in client.instances(name)]
    assert told == [f"2030-04-{day}T{10 if day < 20 else 11}:00:00" for day in range(15, 25)]


def test_a_recurring_event_is_published_when_all_its_instances_have_ended(
    client: Client, scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    client.ok("POST", "/events", ten_days(recurrence="RRULE:FREQ=DAILY;COUNT=2"), 201)
    go_to(scheduler, clock, datetime(2030, 4, 20, tzinfo=UTC))
    first, second = hand.claim()
    hand.answer(first)
    assert client.status(SERIES) == "SCHEDULED"
    assert [each["status"] for each in client.instances(SERIES)] == ["PUBLISHED", "SCHEDULED"]

    hand.fail(second, ErrorKind.TIMEOUT)
    assert [each["retry"] for each in client.instances(SERIES)] == [0, 1]
    clock.advance(DAY)
    hand.answer(hand.claim_one())
    assert client.status(SERIES) == "PUBLISHED"
    client.refused(409, "PUT", f"/events/{SERIES}", ten_days())
    client.refused(409, "PATCH", f"/events/{SERIES}/cancel")
    client.refused(409, "POST", "/events", ten_days())


def deliver(hand: Hand, code: int = 200) -> None:
    for delivery in hand.claim():
        hand.answer(delivery, code)


def test_a_recurring_event_that_is_trimmed_to_what_has_been_has_ended(
    client: Client, scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    client.ok("POST", "/events", ten_days(), 201)
    go_to(scheduler, clock, datetime(2030, 4, 19, 12, tzinfo=UTC))
    deliver(hand)
    trimmed = ten_days(recurrence="RRULE:FREQ=DAILY;COUNT=3")

    answers = [client.ok("PUT", f"/events/{SERIES}", trimmed) for _ in range(2)]  # an answer may have been lost
    assert answers == [trimmed | {"retry": 0, "status": "PUBLISHED"}] * 2
    assert client.status(SERIES) == "PUBLISHED"
    told = [(each["id"], each.get("occurrence"), each["status"]) for each in client.instances(SERIES)]
    indexes = [0, 1, 2, None, None]  # the rule does not make the last two any more, but they were published
    assert told == [(instance_id(15 + place), index, "PUBLISHED") for place, index in enumerate(indexes)]


def test_a_recurring_event_can_be_cancelled_as_long_as_its_last_instance_is_tried(
    client: Client, scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    client.ok("POST", "/events", ten_days(recurrence="RRULE:FREQ=DAILY;COUNT=1"), 201)
    go_to(scheduler, clock, datetime(2030, 4, 15, 1, tzinfo=UTC))
    deliver(hand, 500)
    assert client.status(SERIES) == "SCHEDULED"

    assert client.ok("PATCH", f"/events/{SERIES}/cancel") == {"id": SERIES, "status": "CANCELED"}
    clock.advance(DAY)
    assert hand.claim() == []
    assert client.status(SERIES) == client.status(instance_id(15)) == "CANCELED"


def test_an_instance_that_was_cancelled_with_its_series_may_be_cancelled_once_more(client: Client) -> None:
    client.ok("POST", "/events", ten_days(), 201)
    client.ok("PATCH", f"/events/{instance_id(16)}/cancel")
    client.ok("PATCH", f"/events/{SERIES}/cancel")

    for day in (16, 17):
        assert client.ok("PATCH", f"/events/{instance_id(day)}/cancel")["status"] == "CANCELED"
    assert "CANCELLED" not in client.refused(409, "PUT", f"/events/{instance_id(16)}", one_off(instance_id(16)))


def test_what_is_kept_no_more_is_not_told_to_be_cancelled(client: Client, scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    client.ok("POST", "/events", ten_days(scheduledAt="2030-03-15T10:00:00", endsAt=None, recurrence="RRULE:FREQ=DAILY;COUNT=6"), 201)
    go_to(scheduler, clock, datetime(2030, 3, 19, 2, tzinfo=UTC))
    deliver(hand)
    clock.advance(2 * DAY)
    scheduler.pruning(Retention(completed_ms=DAY)).run()

    told = [(each["scheduledAt"][8:10], each["status"]) for each in client.instances(SERIES)]
    assert told == [("15", "CANCELED"), ("16", "CANCELED"), ("17", "CANCELED"), ("20", "SCHEDULED")]
    client.refused(404, "GET", f"/events/{SERIES}_20300318T010000Z/status")


def test_an_event_that_waits_to_be_tried_again_is_told_with_its_failures(client: Client, hand: Hand) -> None:
    client.ok("POST", "/events", one_off(scheduledAt="2030-03-17T17:46:40Z"), 201)
    hand.answer(hand.claim_one(), 500)

    assert client.ok("PUT", f"/events/{ONE_OFF}", one_off())["retry"] == 1


def test_a_cancelled_recurring_event_is_final(client: Client) -> None:
    client.ok("POST", "/events", ten_days(), 201)
    client.ok("PUT", f"/events/{instance_id(24)}", one_off(instance_id(24)))

    assert client.ok("PATCH", f"/events/{SERIES}/cancel") == {"id": SERIES, "status": "CANCELED"}
    assert client.ok("PATCH", f"/events/{SERIES}/cancel") == {"id": SERIES, "status": "CANCELED"}
    assert {each["status"] for each in client.instances(SERIES)} == {"CANCELED"}
    for method, path in (("POST", "/events"), ("PUT", f"/events/{SERIES}")):
        client.refused(409, method, path, ten_days())
    client.refused(409, "POST", "/events", one_off(SERIES))
    client.refused(409, "PUT", f"/events/{instance_id(17)}", one_off(instance_id(17)))


def test_what_a_recurring_event_has_passed_over_will_not_be_published(client: Client) -> None:
    """It began before it was made, or nobody asked for those days then."""
    client.ok("POST", "/events", ten_days(scheduledAt="2030-03-15T10:00:00", endsAt=None, recurrence="RRULE:FREQ=DAILY;COUNT=5"), 201)

    assert [each["status"] for each in client.instances(SERIES)] == ["CANCELED"] * 3 + ["SCHEDULED"] * 2


def test_a_recurring_event_without_an_instance_to_come_is_refused(client: Client) -> None:
    gone = ten_days(scheduledAt="2025-04-15T10:00:00", endsAt=None, recurrence="RRULE:FREQ=DAILY;COUNT=5")

    assert "recurrence: has no occurrence from now on" in client.refused(400, "POST", "/events", gone)
    client.refused(404, "GET", f"/events/{SERIES}/status")


def test_all_instances_that_nobody_was_there_for_are_made_up_for(
    client: Client, scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    client.ok("POST", "/events", ten_days(), 201)
    clock.instant = int(datetime(2030, 4, 18, 12, tzinfo=UTC).timestamp() * 1000)
    scheduler.timetable.advance()

    assert [delivery.event_id for delivery in hand.claim()] == [instance_id(day) for day in range(15, 19)]


def test_more_instances_than_a_page_holds_are_linked(client: Client) -> None:
    client.ok("POST", "/events", ten_days(endsAt=None, recurrence="RRULE:FREQ=DAILY"), 201)
    path, found = f"/events/{SERIES}/instances?limit=700&until=2033-04-15T00:00:00%2B09:00", []
    pages = 0
    while path:
        answer = client.send("GET", path)
        assert answer.status_code == 200
        found += answer.json or []
        pages += 1
        path = answer.headers.get("Link", "").partition(">")[0].removeprefix("<")

    assert [each["occurrence"] for each in found] == list(range(365 * 2 + 366))
    assert pages == 2
    assert len(client.instances(SERIES)) == 1_000


def test_few_instances_with_long_payloads_fill_a_page(client: Client) -> None:
    long = base64.b64encode(b"x" * 200_000).decode()
    client.ok("POST", "/events", ten_days(payload=long, recurrence="RRULE:FREQ=DAILY;COUNT=30"), 201)
    answer = client.send("GET", f"/events/{SERIES}/instances")

    assert answer.json is not None
    assert len(answer.json) == 20
    assert f'</events/{SERIES}/instances?cursor=20300505T010000Z-20>; rel="next"' == answer.headers["Link"]


# --- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheduledAt": "tomorrow"}, "scheduledAt: must be ISO 8601"),
        ({"scheduledAt": None}, "scheduledAt: must be a string"),
        ({"scheduledAt": "0001-01-01T00:00:00Z"}, "scheduledAt: must be"),
        ({"scheduledAt": "9999-12-31T23:59:59-12:00"}, "scheduledAt: must be"),
        ({"scheduledAt": "9999-12-31T23:59:59", "timezone": "Pacific/Niue"}, "scheduledAt: must"),
        ({"timezone": "Tokyo"}, "timezone: is not a time zone"),
        ({"timezone": "../etc/passwd"}, "timezone: is not a time zone"),
        ({"timezone": 9}, "timezone: must be a string"),
        ({"timezone": []}, "timezone: must be a string"),
        ({"payload": "eyJpZCI...n19"}, "payload: must be base64"),
        ({"payload": {"a": 1}}, "payload: must be a string of base64, not an object"),
        ({"destinationTopic": None}, "destinationTopic: must be a string"),
        ({"destinationTopic": ""}, "destinationTopic: "),
        ({"destinationTopic": "no such\ntopic"}, "destinationTopic: "),
        ({"endsAt": "2030-04-15T09:59:59"}, "endsAt: must not be before scheduledAt"),
        ({"endsAt": "2039-04-15T09:59:59"}, "endsAt: must be between"),
        ({"recurrence": "FREQ=SOMETIMES"}, "recurrence: "),
        ({"recurrence": "RRULE:FREQ=SECONDLY;INTERVAL=0"}, "recurrence: "),
        ({"recurrence": "RRULE:FREQ=MINUTELY;COUNT=3;COUNT=4"}, "recurrence: "),
        ({"recurrence": "RRULE:FREQ=MINUTELY;COUNT=99999"}, "recurrence: "),
        ({"recurrence": "RRULE:FREQ=MINUTELY;UNTIL=20301399T000000Z"}, "recurrence: "),
        ({"recurrence": "RRULE:FREQ=MINUTELY;BYHOUR=3"}, "recurrence: "),
        ({"recurrence": 5}, "recurrence: must be a string"),
        ({"id": "a/b"}, "id: must be 1 to 111 characters"),
        ({"id": instance_id(15)}, "id: must not end in an instant"),
        ({"id": "x" * 112}, "id: must be 1 to 111 characters"),
        ({"status": "PUBLISHED"}, "status: must be 'SCHEDULED'"),
        ({"retry": "0"}, "retry: must be a whole number"),
        ({"scheduledAt": "2090-01-01T00:00:00Z"}, "scheduledAt: must not be more than 3650 days ahead"),
    ],
)
def test_what_is_wrong_is_named_as_the_client_does(client: Client, change: dict[str, Any], message: str) -> None:
    assert client.refused(400, "POST", "/events", one_off() | change).startswith(message)
    client.refused(404, "GET", f"/events/{ONE_OFF}/status")


def test_a_payload_that_is_too_large_is_told_so(client: Client) -> None:
    large = base64.b64encode(b"x" * 300_000).decode()

    assert client.refused(413, "POST", "/events", one_off(payload=large)).startswith("payload: ")
    assert client.refused(413, "POST", "/events", ten_days(payload=large)).startswith("payload: ")


def test_all_that_is_missing_is_named_at_once(client: Client) -> None:
    assert client.refused(400, "POST", "/events", {}) == "scheduledAt: is required; payload: is required; destinationTopic: is required"


def test_ids_in_address_and_body_are_the_same(client: Client) -> None:
    client.ok("POST", "/events", ten_days(), 201)

    assert client.refused(400, "PUT", f"/events/{SERIES}", ten_days(OTHER)).startswith("id: ")
    wrong = one_off(instance_id(16), recurrenceId=OTHER)
    assert client.refused(400, "PUT", f"/events/{instance_id(16)}", wrong).startswith("recurrenceId: ")
    assert client.refused(400, "PUT", f"/events/{instance_id(16)}", ten_days(instance_id(16))).startswith("recurrence: ")


@pytest.mark.parametrize("event_id", [ONE_OFF, instance_id(15), instance_id(14), "%00", "a b", "x" * 300, "_20300415T010000Z", "..."])
def test_what_there_is_not_is_not_found(client: Client, event_id: str) -> None:
    calls = [("GET", "status"), ("GET", "instances"), ("PATCH", "cancel")]
    found = {client.refused(404, method, f"/events/{event_id}/{call}") for method, call in calls}

    assert found == {"There is no event with this id."}
    document = {name: value for name, value in one_off().items() if name != "id"}
    assert client.refused(404, "PUT", f"/events/{event_id}", document) == "There is no event with this id."


def test_an_instance_that_the_rule_does_not_make_is_not_found(client: Client) -> None:
    client.ok("POST", "/events", ten_days(), 201)

    client.refused(404, "GET", f"/events/{instance_id(23)}/status")
    client.refused(404, "PUT", f"/events/{instance_id(23)}", one_off(instance_id(23)))
    client.refused(404, "PATCH", f"/events/{instance_id(23)}/cancel")


def test_errors_of_http_have_the_same_form(client: Client) -> None:
    assert "Allow" in client.send("GET", "/events").headers
    client.refused(405, "GET", "/events")
    client.refused(405, "DELETE", f"/events/{ONE_OFF}")
    client.refused(404, "GET", f"/events/{ONE_OFF}/nothing")
    client.refused(415, "POST", "/events", data="id=1", content_type="application/x-www-form-urlencoded")
    client.refused(400, "POST", "/events", data="{", content_type="application/json")
    client.refused(400, "GET", f"/events/{ONE_OFF}/instances?limit=0")
    client.refused(400, "GET", f"/events/{ONE_OFF}/instances?unknown=1")


def test_hostile_input_never_is_a_fault_of_the_service(client: Client) -> None:
    client.ok("POST", "/events", ten_days(), 201)
    chance = random.Random(7)
    evil: list[Any] = [
        None,
        True,
        -1,
        1e308,
        2**70,
        "",
        "\0",
        "\ud800",
        "😀" * 50,
        "x" * 5_000,
        [],
        {},
        [[]],
        "9" * 400,
        "2030-04-15T10:00:00",
    ]
    evil += ["RRULE:FREQ=DAILY;COUNT=0", "RRULE:FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "RRULE:FREQ=DAILY;INTERVAL=99999999999", "2030-W10-1"]
    evil += ["2030-04-15T24:00:00", "2030-02-30T00:00:00", "9999-12-31T23:59:59.999999Z", "1969-12-31T23:59:59Z", "EXDATE:x", "UTC", HELLO]
    names = [*ten_days(), "recurrenceId", "occurrence", "retry", "status", "\0"]
    targets = [("POST", "/events"), ("PUT", f"/events/{SERIES}"), ("PUT", f"/events/{instance_id(18)}")]
    for _ in range(300):
        document = ten_days() | {chance.choice(names): chance.choice(evil) for _ in range(chance.randint(1, 3))}
        method, path = chance.choice(targets)
        body = json.dumps(document).encode()
        answer = client.send(method, path, data=body, content_type="application/json")
        assert answer.status_code < 500, (method, path, document, answer.text)
        assert answer.status_code < 300 or (answer.json or {}).keys() == {"code", "message"}


# --- whose events they are -------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(scheduler: Scheduler) -> Any:
    scheduler.tenants.create("rival", Changes())
    return create_app(scheduler, Service(dialects=["recurring"], authentication="required")).test_client()


def key(scheduler: Scheduler, application_id: str | None, *scopes: Scope) -> str:
    return scheduler.tenants.create_key(application_id, list(scopes or [Scope.ADMIN]))[1]


def test_events_belong_to_the_application_of_the_key(scheduler: Scheduler, guarded: Any) -> None:
    own, rival = (Client(guarded, key(scheduler, name)) for name in ("recurring", "rival"))
    own.ok("POST", "/events", one_off(), 201)
    own.ok("POST", "/events", ten_days(), 201)

    for event_id in (ONE_OFF, SERIES, instance_id(16)):
        rival.refused(404, "GET", f"/events/{event_id}/status")
        rival.refused(404, "GET", f"/events/{event_id}/status", headers={"Cassata-Application": "recurring"})
        rival.refused(404, "PATCH", f"/events/{event_id}/cancel")
        rival.refused(404, "PUT", f"/events/{event_id}", (ten_days if event_id == SERIES else one_off)(event_id))
    rival.refused(404, "GET", f"/events/{SERIES}/instances")
    rival.ok("POST", "/events", one_off(), 201)
    rival.ok("PATCH", f"/events/{ONE_OFF}/cancel")
    assert own.status(ONE_OFF) == own.status(SERIES) == "SCHEDULED"
    assert len(own.instances(SERIES)) == 10


def test_an_operator_says_whose_events_are_meant(scheduler: Scheduler, guarded: Any) -> None:
    operator, rival = Client(guarded, key(scheduler, None)), Client(guarded, key(scheduler, "rival"))
    operator.ok("POST", "/events", one_off(), 201, headers={"Cassata-Application": "rival"})

    assert rival.status(ONE_OFF) == "SCHEDULED"
    operator.refused(404, "GET", f"/events/{ONE_OFF}/status")
    operator.refused(404, "GET", f"/events/{ONE_OFF}/status", headers={"Cassata-Application": "no such"})
    assert operator.refused(400, "POST", "/events", one_off(), headers={"Cassata-Application": "no such"}).startswith(
        "Cassata-Application: "
    )


def test_a_key_is_good_for_no_more_than_its_scope(scheduler: Scheduler, guarded: Any) -> None:
    reader, writer = (Client(guarded, key(scheduler, "recurring", scope)) for scope in (Scope.READ, Scope.PUBLISH))

    reader.refused(403, "POST", "/events", one_off())
    writer.ok("POST", "/events", one_off(), 201)
    writer.refused(403, "GET", f"/events/{ONE_OFF}/status")
    assert reader.status(ONE_OFF) == "SCHEDULED"
    nobody = Client(guarded).send("GET", f"/events/{ONE_OFF}/status")
    assert (nobody.status_code, nobody.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert (nobody.json or {}).keys() == {"code", "message"}


def test_events_of_the_application_that_were_added_otherwise_are_told_too(client: Client, scheduler: Scheduler) -> None:
    scheduler.add(new_event("e1", "recurring", due_at=NOW + DAY))

    assert client.status("e1") == "SCHEDULED"
    assert client.ok("PUT", "/events/e1", one_off("e1"))["status"] == "SCHEDULED"
    assert scheduler.event("recurring", "e1")[0].retry == RetryOptions(count=2, on=RetryOn.ANY)
    client.ok("PATCH", "/events/e1/cancel")
    assert scheduler.event("recurring", "e1")[0].status is Status.CANCELLED


# --- where it is described -------------------------------------------------------------------------------------------------


def test_the_document_of_our_own_interface_says_where_others_are_spoken(client: Client) -> None:
    document = client.ok("GET", "/openapi.json")

    assert "`recurring` at `/events`" in document["info"]["description"]
    assert not [path for path in document["paths"] if path.startswith("/events")]
