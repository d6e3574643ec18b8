"""What GoScheduler's contract promises, on every database: applications and their limits, statuses, lists, runs, actions, keys, errors."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from cassata import database
from cassata.config import Service
from cassata.model import LIMIT_RANGES, After, Destination, Scope, Status
from cassata.retention import Retention
from cassata.scheduler import Scheduler
from cassata.service import create_app
from cassata.service.dialects.goscheduler import wire
from cassata.service.dialects.goscheduler.wire import ZONE
from cassata.tenants import Changes
from tests.words import NOON, Hand, ManualClock, new_event

HOUR = 3_600
NOW = NOON // 1000  # a whole minute: how many runs of a cron schedule come next depends on the second one begins at
SETTINGS = Service(dialects=["goscheduler"])
HTTP = {"type": "http", "details": {"url": "http://127.0.0.1:1/hook", "method": "POST", "headers": {"X-A": "1"}}}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW * 1000)


@pytest.fixture
def scheduler(database_url: str, clock: ManualClock) -> Iterator[Scheduler]:
    opened = Scheduler(database.open_engines(database_url, pool_size=10), clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def http(scheduler: Scheduler) -> FlaskClient:
    client = create_app(scheduler, SETTINGS).test_client()
    register(client)
    return client


@pytest.fixture
def hand(scheduler: Scheduler, clock: ManualClock) -> Hand:
    return Hand(scheduler, clock)


def register(http: FlaskClient, app_id: str = "shop", **facts: Any) -> TestResponse:
    return http.post("/goscheduler/apps", json={"appId": app_id, "active": True, **facts})


def schedule(http: FlaskClient, *, after: int = HOUR, **facts: Any) -> TestResponse:
    asked = {"appId": "shop", "payload": "{}", "scheduleTime": NOW + after, "callback": HTTP, **facts}
    return http.post("/goscheduler/schedules", json={name: value for name, value in asked.items() if value is not ...})


def cron(http: FlaskClient, expression: str = "*/5 * * * *", **facts: Any) -> TestResponse:
    return schedule(http, scheduleTime=..., cronExpression=expression, **facts)


def id_of(created: TestResponse) -> str:
    assert created.status_code == 200, created.text
    return str(created.json["data"]["schedule"]["scheduleId"])


def get(http: FlaskClient, schedule_id: str) -> Any:
    found = http.get(f"/goscheduler/schedules/{schedule_id}")
    return found.json["data"]["schedule"] if found.status_code == 200 else found.status_code


def refusal(answer: TestResponse) -> tuple[int, int, str]:
    status = answer.json["status"]
    assert set(answer.json) == {"status"}
    assert status["statusType"] == "Fail"
    return answer.status_code, status["statusCode"], status["statusMessage"]


def written(instant: int) -> str:
    return f"{datetime.fromtimestamp(instant, ZONE):%Y-%m-%d %H:%M:%S}"


def range_of(begin: int, end: int) -> dict[str, str]:
    return {"start_time": written(begin), "end_time": written(end)}


def work(scheduler: Scheduler) -> None:
    while scheduler.operations.step():
        pass


# --- applications ------------------------------------------------------------------------------------------------------


def test_an_application_that_is_registered_again_is_changed(http: FlaskClient) -> None:
    register(http, partitions=7)
    register(http, partitions=0)

    (app,) = http.get("/goscheduler/apps?app_id=shop").json["data"]["apps"]
    assert app == {"appId": "shop", "partitions": 5, "active": True, "configuration": {}}
    assert http.post("/goscheduler/apps", json={"appId": "shop"}).json["data"]["active"] is False  # as it is there where nothing is said


def test_what_others_keep_with_an_application_stays(http: FlaskClient, scheduler: Scheduler) -> None:
    scheduler.tenants.put("shop", metadata={"owner": "me"})

    register(http, partitions=3)

    application = scheduler.tenants.application("shop")
    assert application.metadata == {"owner": "me", "goscheduler": {"partitions": 3, "configuration": {}}}
    assert application.limits["max_in_flight"] == 3 * wire.IN_FLIGHT_OF_PARTITION


def test_applications_are_listed_page_by_page(http: FlaskClient) -> None:
    for app_id in ("a", "b", "c"):
        register(http, app_id)

    first = http.get("/goscheduler/apps?size=2").json["data"]
    rest = http.get(f"/goscheduler/apps?size=2&continuation_token={first['continuationToken']}").json["data"]

    assert [app["appId"] for app in first["apps"] + rest["apps"]] == ["a", "b", "c", "shop"]
    assert "continuationToken" not in rest
    assert refusal(http.get("/goscheduler/apps?app_id=nobody")) == (404, 404, "No app found")


def test_a_deactivated_application_takes_nothing_sends_nothing_and_sends_late_once_it_is_active(
    http: FlaskClient, hand: Hand, clock: ManualClock
) -> None:
    schedule_id = id_of(schedule(http, after=1))
    assert http.post("/goscheduler/apps/shop/deactivate").json["data"] == {"appId": "shop", "Active": False}

    clock.advance(300_000)
    assert hand.claim() == []
    assert refusal(schedule(http)) == (400, 4002, "app Id shop is deactivated")
    assert refusal(http.post("/goscheduler/apps/shop/deactivate")) == (400, 4002, "app is already deactivated")
    assert get(http, schedule_id)["status"] == "MISS"
    assert get(http, schedule_id)["errorMessage"] == "Failed to make a callback"

    assert http.post("/goscheduler/apps/shop/activate").json["data"] == {"appId": "shop", "Active": True}
    hand.answer(hand.claim_one())
    assert get(http, schedule_id)["status"] == "SUCCESS"


# --- limits and configuration --------------------------------------------------------------------------------------------


def test_the_configuration_is_made_read_changed_and_removed(http: FlaskClient) -> None:
    address = "/goscheduler/apps/shop/configuration"

    assert http.get(address).json["data"] == {}
    assert http.post(address, json={"payloadSize": 10, "httpRetries": 2, "httpTimeout": 0}).json["data"] == {
        "payloadSize": 10,
        "httpRetries": 2,
    }
    assert http.put(address, json={"httpTimeout": 500}).json["data"] == {"httpTimeout": 500}
    assert http.get("/goscheduler/apps").json["data"]["apps"][0]["configuration"] == {"httpTimeout": 500}
    assert http.delete(address).json["data"] == {}
    assert refusal(http.get("/goscheduler/apps/nobody/configuration")) == (400, 4001, "app Id nobody is not registered")


def test_limits_are_enforced(http: FlaskClient) -> None:
    register(http, configuration={"payloadSize": 5, "futureScheduleCreationPeriod": 2})
    at = NOW

    long = schedule(http, payload="ééé", after=HOUR)
    far = schedule(http, scheduleTime=at + 3 * 86_400)

    assert refusal(long)[2] == "PayloadSize for app: shop cannot be more than 5 bytes, given payloadSize bytes: 6"
    assert refusal(far)[2].startswith(f"schedule time : {at + 3 * 86_400} cannot be more than 2 days from current time : ")
    assert schedule(http, scheduleTime=at + 86_400, payload="12345").status_code == 200


def test_fired_schedules_are_kept_for_as_long_as_their_application_says(
    http: FlaskClient, scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    register(http, configuration={"firedScheduleRetentionPeriod": 2})
    schedule_id = id_of(schedule(http, after=1))
    clock.advance(2_000)
    hand.answer(hand.claim_one())

    clock.advance(86_400_000)
    scheduler.pruning(Retention()).run()
    assert get(http, schedule_id)["status"] == "SUCCESS"
    clock.advance(86_400_000)
    scheduler.pruning(Retention()).run()
    assert get(http, schedule_id) == 404


def test_no_configuration_exceeds_that_of_max_config(http: FlaskClient) -> None:
    register(http, "maxConfig", configuration={"payloadSize": 1024})

    refused = register(http, configuration={"payloadSize": 1025})

    assert refusal(refused) == (400, 400, "provided payload size: 1025, max payload size: 1024")
    assert register(http, configuration={"payloadSize": 1024}).status_code == 200


@pytest.mark.parametrize("name", wire.SETTINGS)
def test_a_configuration_out_of_range_is_refused(http: FlaskClient, name: str) -> None:
    for value in (-1, 10**12):
        assert refusal(register(http, configuration={name: value}))[:2] == (400, 400)
    assert refusal(register(http, configuration={name: "x"}))[:2] == (400, 5001)


def test_the_limits_that_are_set_are_ones_that_there_are() -> None:
    assert {setting.limit for setting in wire.SETTINGS.values() if setting.limit} <= LIMIT_RANGES.keys()


# --- what is sent --------------------------------------------------------------------------------------------------------


def test_a_schedule_is_sent_with_its_id_three_times_at_once_whatever_is_answered(http: FlaskClient, hand: Hand, clock: ManualClock) -> None:
    schedule_id = id_of(schedule(http, after=1, payload="hello"))
    clock.advance(2_000)

    for code in (404, 302, 400):
        delivery = hand.claim_one()
        assert dict(delivery.headers) == {"X-A": "1", "Schedule-Id": schedule_id}
        assert (delivery.payload, delivery.method, delivery.timeout_ms) == (b"hello", "POST", 2_000)
        hand.answer(delivery, code)

    assert hand.claim() == []
    found = get(http, schedule_id)
    assert (found["status"], found["errorMessage"]) == ("FAILURE", "400 Bad Request")
    assert found["callback"] == HTTP


def test_retries_and_time_out_are_those_of_the_application(http: FlaskClient, hand: Hand, clock: ManualClock) -> None:
    register(http, configuration={"httpRetries": 1, "httpTimeout": 700})
    id_of(schedule(http, after=1))
    clock.advance(2_000)

    delivery = hand.claim_one()
    hand.answer(delivery, 500)

    assert delivery.timeout_ms == 700
    assert hand.claim() == []


def test_a_run_is_sent_with_its_own_id_and_that_of_its_cron_schedule(
    http: FlaskClient, scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    parent = id_of(cron(http, "* * * * *"))
    clock.advance(60_000)
    scheduler.timetable.advance()
    clock.advance(60_000)

    delivery = hand.claim_one()
    hand.answer(delivery)

    told = dict(delivery.headers)
    assert told.keys() == {"X-A", "Schedule-Id", "Parent-Schedule-Id"}
    assert told["Parent-Schedule-Id"] == parent
    assert str(uuid.UUID(told["Schedule-Id"])) == told["Schedule-Id"] != parent
    run = get(http, told["Schedule-Id"])
    assert (run["status"], run["scheduleTime"] % 60, run["callback"]) == ("SUCCESS", 0, HTTP)
    (listed,) = http.get(f"/goscheduler/schedules/{parent}/runs?when=past").json["data"]["schedules"]
    assert listed == run


def test_what_is_too_late_for_its_application_is_missed_and_can_be_called_again(
    http: FlaskClient, scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    scheduler.tenants.put("shop", limits={"max_lateness_ms": 60_000})
    at = NOW
    schedule_id = id_of(schedule(http, scheduleTime=at + 1))
    clock.advance(120_000)
    late = hand.claim_one()
    assert late.is_too_late(clock.instant)
    hand.fail(late, wire.ErrorKind.TOO_LATE)

    assert get(http, schedule_id)["status"] == "MISS"
    minutes = range_of(at - 60, at + 120)
    begun = http.post("/goscheduler/apps/shop/bulk-action/reconcile", query_string={"status": "MISS", **minutes})
    assert begun.json["remarks"].startswith("reconcile initiated successfully for app: shop, timeRange: {StartTime:")
    work(scheduler)
    hand.answer(hand.claim_one())
    found = get(http, schedule_id)
    assert found["status"] == "SUCCESS"
    (again,) = found["reconciliationHistory"]
    assert (again["status"], again["errorMessage"]) == ("SUCCESS", "")


def test_the_history_holds_how_the_last_five_repetitions_ended(
    http: FlaskClient, scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    at = NOW
    schedule_id = id_of(schedule(http, scheduleTime=at + 1))
    clock.advance(2_000)
    hand.answer(hand.claim_one())
    for code in (200, 200, 404, 200, 200, 500):
        query = range_of(at - 60, at + 120)
        assert http.post("/goscheduler/apps/shop/bulk-action/reconcile", query_string=query).status_code == 200
        work(scheduler)
        while claimed := hand.claim():
            hand.answer(claimed[0], code)

    history = get(http, schedule_id)["reconciliationHistory"]

    assert [(line["status"], line["errorMessage"]) for line in history] == [
        ("SUCCESS", ""),
        ("FAILURE", "404 Not Found"),
        ("SUCCESS", ""),
        ("SUCCESS", ""),
        ("FAILURE", "500 Internal Server Error"),
    ]


# --- validation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "code", "message"),
    [
        ({"payload": ...}, 400, "Missing 'payload' parameter, cannot continue"),
        ({"appId": ...}, 4001, "app Id  is not registered"),
        ({"appId": "nobody"}, 4001, "app Id nobody is not registered"),
        ({"appId": "a b"}, 4001, "app Id a b is not registered"),
        ({"scheduleTime": ...}, 400, "schedule time : 0 is less than current time: "),
        ({"callback": ...}, 400, 'parse "": invalid URI for request,Invalid http callback method '),
        (
            {"callback": {"type": "http", "details": {"url": "ftp://x/", "method": "GET"}}},
            400,
            'parse "ftp://x/": it must begin with http://',
        ),
        ({"callback": {"type": "http", "details": {"url": "http://x/", "method": "get"}}}, 400, "Invalid http callback method get"),
        ({"callback": {"type": "http", "details": {"url": "http://x/", "method": "TRACE"}}}, 400, "Invalid http callback method TRACE"),
        ({"callback": {"type": "nix", "details": {}}}, 5001, "unknown callback type: nix"),
        ({"callback": {"type": "http", "details": {"url": 1}}}, 5001, "url must be a string"),
        ({"callback": {"type": "http", "details": {**HTTP["details"], "headers": {"Host": "x"}}}}, 400, "headers 'Host' is set by Cassata"),
        ({"callback": {"type": "http", "details": {**HTTP["details"], "headers": {"A": 1}}}}, 5001, "A must be a string"),
        ({"callback": []}, 5001, "callback must be an object"),
        ({"payload": {}}, 5001, "payload must be a string"),
        ({"scheduleTime": "soon"}, 5001, "scheduleTime must be a whole number"),
        ({"scheduleTime": True}, 5001, "scheduleTime must be a whole number"),
        ({"scheduleTime": 10**400}, 400, "schedule time : "),
    ],
)
def test_what_is_wrong_with_a_schedule_is_told(http: FlaskClient, facts: dict[str, Any], code: int, message: str) -> None:
    status, told, said = refusal(schedule(http, **facts))

    assert (status, told) == (400, code)
    assert said.startswith(message)


def test_now_is_not_in_the_past_and_an_empty_payload_is_one(http: FlaskClient) -> None:
    assert schedule(http, scheduleTime=NOW + 1, payload="").status_code == 200


def test_a_legacy_callback_is_understood(http: FlaskClient) -> None:
    found = schedule(http, callback=..., httpCallback=HTTP["details"])

    assert found.json["data"]["schedule"]["callback"] == HTTP


def test_an_event_of_the_bus_goes_to_the_topic_that_operators_say(
    http: FlaskClient, scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    callback = {"type": "airbus", "details": {"eventName": "orders", "headers": {"X-A": "1"}}}
    assert schedule(http, callback=callback).status_code == 200  # where nothing is said of topics, each is Kafka's
    scheduler.tenants.change("shop", Changes(topics={"orders": "http://127.0.0.1:9/orders", "kafka-*": None}))

    schedule_id = id_of(schedule(http, after=1, callback=callback))
    of_legacy = schedule(http, callback=..., airbusCallback={"eventName": "kafka-x", "appName": "a"}).json["data"]["schedule"]
    of_cron = cron(http, callback=callback).json["data"]["schedule"]

    unknown = schedule(http, callback={"type": "airbus", "details": {"eventName": "nobody"}})
    assert refusal(unknown)[:2] == (400, 400)
    assert "not one of the application's topics" in refusal(unknown)[2]
    assert get(http, schedule_id)["callback"] == of_cron["callback"] == callback
    assert of_legacy["callback"] == {"type": "airbus", "details": {"eventName": "kafka-x", "headers": {}}}
    clock.advance(2_000)
    assert hand.claim_one().url == "http://127.0.0.1:9/orders"


def test_a_callback_of_another_type_is_a_destination_of_that_type(http: FlaskClient, scheduler: Scheduler) -> None:
    callback = {"type": "kafka", "details": {"topic": "orders", "key": "7"}}

    schedule_id = id_of(schedule(http, callback=callback))

    assert get(http, schedule_id)["callback"] == callback
    assert scheduler.event("shop", schedule_id)[0].destination == Destination("kafka", {"topic": "orders", "key": "7"})
    assert refusal(schedule(http, callback={"type": "kafka", "details": {"tpoic": "x"}}))[:2] == (400, 400)


def test_a_cron_expression_comes_before_a_time(http: FlaskClient) -> None:
    found = schedule(http, scheduleTime=1, cronExpression="0 0 * * *").json["data"]["schedule"]

    assert (found["status"], "scheduleTime" in found) == ("SCHEDULED", False)


@pytest.mark.parametrize(
    "expression",
    [
        "* * * * *",
        "0 12 * * MON-FRI",  # of its own document; its program refused it
        "*/15 * * * *",
        "0 8,12,18 * * *",
        "0-30 1,2 1-15 JAN SUN",
        "5/10 0 * DEC SAT",
        "0 0 31 * *",
    ],
)
def test_cron_expressions_that_are_accepted(http: FlaskClient, expression: str) -> None:
    assert cron(http, expression).status_code == 200


@pytest.mark.parametrize(
    "expression",
    [
        *("*/0 * * * *", "5/0 * * * *", "* * * *", "* * * * * *", "@daily", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *"),
        *("* * * * 8", "x * * * *", "1-x * * * *", "* * * FOO *", "* * * * MON-", "5-1-2 * * * *", " ", "0 0 31 2 *"),
    ],
)
def test_cron_expressions_that_are_refused(http: FlaskClient, expression: str) -> None:
    assert refusal(cron(http, expression))[:2] == (400, 400)  # where */0 never ended, and 5/0 ended the process


def test_a_cron_schedule_may_have_a_zone(http: FlaskClient) -> None:
    found = get(http, id_of(cron(http, "0 8 * * *", timezone="Asia/Kolkata")))

    assert found["timezone"] == "Asia/Kolkata"
    (run,) = http.get(f"/goscheduler/schedules/{found['scheduleId']}/runs?when=future&size=1").json["data"]["schedules"]
    assert datetime.fromtimestamp(run["scheduleTime"], ZONE).hour == 8


# --- looking up, deleting ------------------------------------------------------------------------------------------------


def test_a_deleted_schedule_is_gone_and_never_sent(http: FlaskClient, hand: Hand, clock: ManualClock) -> None:
    schedule_id = id_of(schedule(http, after=1))

    assert http.delete(f"/goscheduler/schedules/{schedule_id}").status_code == 200

    clock.advance(5_000)
    assert hand.claim() == []
    assert get(http, schedule_id) == 404
    assert refusal(http.delete(f"/goscheduler/schedules/{schedule_id}")) == (404, 404, "No Schedules found")


def test_a_schedule_that_was_sent_is_deleted_too(http: FlaskClient, scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    schedule_id = id_of(schedule(http, after=1))
    clock.advance(5_000)
    hand.answer(hand.claim_one())

    assert http.delete(f"/goscheduler/schedules/{schedule_id}").status_code == 200

    assert get(http, schedule_id) == 404
    assert scheduler.events("shop").events == []


def test_a_deleted_cron_schedule_has_no_runs_any_more(http: FlaskClient, scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    parent = id_of(cron(http, "* * * * *"))
    clock.advance(60_000)
    scheduler.timetable.advance()

    assert http.delete(f"/goscheduler/schedules/{parent}").json["data"]["schedule"]["status"] == "DELETED"

    clock.advance(120_000)
    scheduler.timetable.advance()
    assert hand.claim() == []
    assert get(http, parent)["status"] == "DELETED"
    assert http.get(f"/goscheduler/schedules/{parent}/runs").status_code == 404
    assert refusal(http.delete(f"/goscheduler/schedules/{parent}")) == (404, 404, "No Schedules found")


def test_a_run_that_is_still_to_come_can_be_looked_at_and_deleted(http: FlaskClient) -> None:
    parent = id_of(cron(http))
    address = f"/goscheduler/schedules/{parent}/runs?when=future&size=2"
    first, second = http.get(address).json["data"]["schedules"]

    assert get(http, first["scheduleId"]) == first
    assert http.delete(f"/goscheduler/schedules/{first['scheduleId']}").status_code == 200

    assert get(http, first["scheduleId"]) == 404
    assert http.get(address).json["data"]["schedules"][0] == second
    assert get(http, str(uuid.UUID(int=uuid.UUID(first["scheduleId"]).int + 1))) == 404  # at an instant that the rule has not


# --- lists ---------------------------------------------------------------------------------------------------------------


def all_pages(http: FlaskClient, address: str, **query: Any) -> list[Any]:
    found, token = [], ""
    while True:
        data = http.get(address, query_string={**query, "continuation_token": token}).json["data"]
        found += data["schedules"] or []
        token = data["continuationToken"]
        if not token:
            return found


def test_schedules_are_listed_by_time_status_and_page(http: FlaskClient, scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    at = NOW
    ids = [id_of(schedule(http, scheduleTime=at + second)) for second in range(1, 8)]
    waiting = id_of(schedule(http, scheduleTime=at + 1_000))
    missed = id_of(schedule(http, scheduleTime=at + 10))
    http.delete(f"/goscheduler/schedules/{ids.pop()}")
    clock.advance(9_000)
    for number, delivery in enumerate(hand.claim()):
        hand.answer(delivery, 200 if number % 2 else 404)
    while claimed := hand.claim():
        for delivery in claimed:
            hand.answer(delivery, 404)
    clock.advance(120_000)

    def found(status: str = "", size: int = 2) -> list[str]:
        listed = all_pages(http, "/goscheduler/apps/shop/schedules", status=status, size=size, **range_of(at - 60, at + 1_200))
        assert all(get(http, one["scheduleId"]) == one for one in listed)
        return [one["scheduleId"] for one in listed]

    assert found() == [*ids, missed, waiting]
    assert found("SUCCESS") == ids[1::2]
    assert found("FAILURE") == ids[::2]
    assert found("MISS") == [missed]
    assert found("SCHEDULED") == [waiting]
    assert found("ERROR") == found(size=1_000) == found()


@pytest.mark.parametrize("size", [2, 3])
def test_a_list_goes_on_by_the_time_where_the_token_is_empty(http: FlaskClient, size: int) -> None:
    ids = [id_of(schedule(http, after=minute * 60)) for minute in range(6)]

    found, last = [], {}
    while True:  # as a client did there: until a page is not full
        query = range_of(NOW, NOW + HOUR) | {"size": size} | last
        data = http.get("/goscheduler/apps/shop/schedules", query_string=query).json["data"]
        found += [each["scheduleId"] for each in data["schedules"] or ()]
        last = {"continuation_token": data["continuationToken"], "continuation_start_time": data["continuationStartTime"]}
        if len(data["schedules"] or ()) < size:
            break

    assert found == ids
    assert last == {"continuation_token": "", "continuation_start_time": NOW + HOUR}


@pytest.mark.parametrize(
    ("since", "listed"), [(NOW - HOUR, 3), (NOW, 3), (NOW + 60, 2), (NOW + 61, 1), (NOW + 10 * HOUR, 0), ("soon", 3), (-1, 3)]
)
def test_a_time_to_go_on_from_leaves_out_what_was_before_it(http: FlaskClient, since: Any, listed: int) -> None:
    for minute in range(3):
        schedule(http, after=minute * 60)

    query = range_of(NOW, NOW + HOUR) | {"continuation_start_time": since}
    assert http.get("/goscheduler/apps/shop/schedules", query_string=query).json["status"]["totalCount"] == listed


def test_the_last_hour_is_listed_unless_another_range_is_given(http: FlaskClient, hand: Hand, clock: ManualClock) -> None:
    minute = NOW // 60 * 60
    schedule_id = id_of(schedule(http, scheduleTime=minute + 120))

    def listed(**query: str) -> bool:
        return bool(http.get("/goscheduler/apps/shop/schedules", query_string=query).json["data"]["schedules"])

    assert not listed()
    assert listed(start_time=written(minute + 60))
    assert listed(end_time=written(minute + 180))
    assert listed(start_time=written(minute + 120 + 59))  # seconds are left out
    assert not listed(start_time=written(minute + 180))
    assert not listed(end_time=written(minute + 120))  # the end is not included
    assert get(http, schedule_id)["scheduleTime"] == minute + 120


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"size": "-1"}, "Size provided(-1) should not be less than 0"),
        ({"size": "x"}, "size must be a whole number"),
        ({"start_time": "yesterday"}, "start_time must be written as 2006-01-02 15:04:05"),
        ({"end_time": "0001-01-01 00:00:00"}, "end_time must be written as"),
        ({"continuation_token": "x"}, "continuation_token is not one"),
        (
            {"start_time": "2023-07-02 10:00:00", "end_time": "2023-07-01 10:00:00"},
            "End time: 2023-07-01 10:00:00 +0530 IST cannot be before start time: 2023-07-02 10:00:00 +0530 IST",
        ),
        ({"start_time": "2023-07-01 10:00:00", "end_time": "2023-08-01 10:00:00"}, "Time range of more than 30 days is not allowed"),
    ],
)
def test_what_is_wrong_with_a_list_is_told(http: FlaskClient, query: dict[str, str], message: str) -> None:
    status, code, said = refusal(http.get("/goscheduler/apps/shop/schedules", query_string=query))

    assert (status, code) == (400, 400)
    assert said.startswith(message)


def test_runs_are_listed_page_by_page(http: FlaskClient, scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    parent = id_of(cron(http, "* * * * *"))
    address = f"/goscheduler/schedules/{parent}/runs"
    clock.instant -= 600_000  # whoever makes them and sends them is behind by ten minutes: so runs of the past come about
    scheduler.timetable.cancel("shop", parent)
    begin = clock.instant // 60_000 * 60_000
    content = scheduler.timetable.get("shop", parent).content
    scheduler.timetable.create(wire.NewSeries(**{name: getattr(content, name) for name in content.__slots__} | {"rule": minutely(begin)}))
    for _ in range(5):
        clock.advance(60_000)
        scheduler.timetable.advance()
        for delivery in hand.claim():
            hand.answer(delivery)

    def times(**query: Any) -> list[int]:
        return [run["scheduleTime"] for run in all_pages(http, address, **query)]

    past = times(when="past", size=2)
    assert len(past) >= 4
    assert past == sorted(past, reverse=True)
    assert times(when="past", size=50) == past
    first = http.get(address, query_string={"when": "future", "size": 3}).json["data"]
    following = http.get(address, query_string={"when": "future", "size": 3, "continuation_token": first["continuationToken"]}).json["data"]
    to_come = [run["scheduleTime"] for run in first["schedules"] + following["schedules"]]
    assert to_come == list(range(to_come[0], to_come[0] + 360, 60))
    everything = times(size=50)
    assert everything == sorted([*past, *(at for at in to_come if at * 1000 < clock.instant + 300_000)], reverse=True)
    assert [times(size=size) for size in range(1, len(everything) + 1)] == [everything] * len(everything)
    assert refusal(http.get(f"{address}?continuation_token=x"))[:2] == (400, 400)


def all_runs(http: FlaskClient, schedule_id: str, **query: Any) -> list[int]:
    found, token = [], None
    while token != "":
        answer = http.get(f"/goscheduler/schedules/{schedule_id}/runs", query_string={**query, "continuation_token": token or ""})
        assert answer.status_code == 200, answer.text
        found += [run["scheduleTime"] for run in answer.json["data"]["schedules"]]
        token = answer.json["data"]["continuationToken"]
    return found


@pytest.mark.parametrize("when", ["past", "all"])
def test_pages_lead_to_their_end_though_the_oldest_runs_were_deleted(
    http: FlaskClient, scheduler: Scheduler, clock: ManualClock, when: str
) -> None:
    schedule_id = id_of(cron(http, "* * * * *"))
    scheduler.timetable.advance()
    for run in http.get(f"/goscheduler/schedules/{schedule_id}/runs").json["data"]["schedules"][-2:]:
        assert http.delete(f"/goscheduler/schedules/{run['scheduleId']}").status_code == 200
    for _ in range(4):
        clock.advance(60_000)
        scheduler.timetable.advance()

    runs = all_runs(http, schedule_id, when=when)
    assert runs[-1] == NOW + 120
    assert [all_runs(http, schedule_id, when=when, size=size) for size in range(1, 9)] == [runs] * 8


def minutely(begin: int) -> wire.Rule:
    return wire.Rule(cron="* * * * *", start_at=begin)


def test_cron_schedules_are_listed_page_by_page(http: FlaskClient) -> None:
    register(http, "other")
    ids = {id_of(cron(http)) for _ in range(3)} | {id_of(cron(http, appId="other"))}
    gone = id_of(cron(http))
    http.delete(f"/goscheduler/schedules/{gone}")

    def listed(**query: Any) -> list[str]:
        found, token = [], ""
        while True:
            answer = http.get("/goscheduler/crons/schedules", query_string={**query, "continuation_token": token}).json
            found += [one["scheduleId"] for one in answer["data"]]
            token = answer.get("continuationToken", "")
            if not token:
                return found

    assert sorted(listed(size=2)) == sorted(listed(size=1)) == sorted(listed()) == sorted([*ids, gone])
    assert set(listed(status="SCHEDULED")) == ids
    assert listed(status="DELETED") == [gone]
    assert len(listed(app_id="other")) == 1
    assert refusal(http.get("/goscheduler/crons/schedules?app_id=nobody")) == (404, 404, "No cron schedules found")


def test_a_token_of_another_list_is_refused(http: FlaskClient) -> None:
    cron(http)

    told = refusal(http.get("/goscheduler/crons/schedules?continuation_token=006b49d23c"))
    assert told == (400, 400, "continuation_token is not one that this service gave out")


# --- many at a time ------------------------------------------------------------------------------------------------------


def test_many_are_deleted_at_a_time(http: FlaskClient, scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    at = NOW
    sent, waiting, later = (id_of(schedule(http, scheduleTime=at + seconds)) for seconds in (1, 100, 3 * HOUR))
    clock.advance(2_000)
    hand.answer(hand.claim_one())

    def delete(status: str) -> None:
        query = {"status": status, **range_of(at - 60, at + 2 * HOUR)}
        assert http.post("/goscheduler/apps/shop/bulk-action/Delete", query_string=query).status_code == 200
        work(scheduler)

    delete("MISS")
    assert [get(http, one)["status"] for one in (sent, waiting, later)] == ["SUCCESS", "SCHEDULED", "SCHEDULED"]
    delete("SUCCESS")
    assert get(http, sent) == 404
    assert get(http, waiting)["status"] == "SCHEDULED"
    delete("")
    assert get(http, waiting) == 404
    assert get(http, later)["status"] == "SCHEDULED"
    assert {event.status for event in scheduler.events("shop").events} == {Status.CANCELLED, Status.PENDING}


def test_what_is_scheduled_and_what_was_missed_are_deleted_apart(http: FlaskClient, scheduler: Scheduler, clock: ManualClock) -> None:
    def delete(status: str) -> None:
        http.post("/goscheduler/apps/shop/bulk-action/delete", query_string={"status": status, **range_of(NOW, NOW + HOUR)})
        work(scheduler)

    missed, waiting = id_of(schedule(http, after=10)), id_of(schedule(http, after=11))
    clock.advance(70_001)
    assert (get(http, missed)["status"], get(http, waiting)["status"]) == ("MISS", "SCHEDULED")

    delete("SCHEDULED")
    assert (get(http, missed)["status"], get(http, waiting)) == ("MISS", 404)
    delete("MISS")
    assert get(http, missed) == 404


def test_what_was_tried_and_waits_is_scheduled_however_late(
    http: FlaskClient, scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    schedule_id = id_of(schedule(http, after=1))
    clock.advance(1_000)
    hand.answer(hand.claim_one(), 500)
    clock.advance(600_000)
    assert get(http, schedule_id)["status"] == "SCHEDULED"

    http.post("/goscheduler/apps/shop/bulk-action/delete", query_string={"status": "SCHEDULED", **range_of(NOW, NOW + HOUR)})
    work(scheduler)
    assert get(http, schedule_id) == 404


def test_what_is_blocked_is_scheduled_however_long_ago_it_was_due(http: FlaskClient, scheduler: Scheduler, clock: ManualClock) -> None:
    register(http)
    scheduler.add(new_event("first", due_at=NOON + 2 * HOUR * 1000))
    scheduler.add(new_event("second", due_at=NOON + 10_000, after=After("first")))
    clock.advance(70_001)

    http.post("/goscheduler/apps/shop/bulk-action/delete", query_string={"status": "SCHEDULED", **range_of(NOW, NOW + HOUR)})
    work(scheduler)

    assert http.get("/cassata/status/shop/second").status_code == 404


def test_what_was_given_up_as_too_late_is_missed_at_once(http: FlaskClient, scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    scheduler.tenants.put("shop", limits={"max_lateness_ms": 1_000})
    schedule_id = id_of(schedule(http, after=1))
    clock.advance(5_000)
    hand.fail(hand.claim_one(), wire.ErrorKind.TOO_LATE)
    assert get(http, schedule_id)["status"] == "MISS"

    http.post("/goscheduler/apps/shop/bulk-action/delete", query_string={"status": "MISS", **range_of(NOW, NOW + HOUR)})
    work(scheduler)
    assert get(http, schedule_id) == 404


def test_what_was_deleted_is_not_called_again(http: FlaskClient, scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    at = NOW
    http.delete(f"/goscheduler/schedules/{id_of(schedule(http, scheduleTime=at + 1))}")

    assert http.post("/goscheduler/apps/shop/bulk-action/reconcile", query_string=range_of(at - 60, at + 60)).status_code == 200

    work(scheduler)
    clock.advance(60_000)
    assert hand.claim() == []


def test_actions_that_are_refused(http: FlaskClient) -> None:
    address = "/goscheduler/apps/shop/bulk-action"
    eight_days = {"start_time": written(NOW), "end_time": written(NOW + int(timedelta(days=8).total_seconds()))}

    assert refusal(http.post(f"{address}/destroy")) == (400, 4005, "action type destroy is invalid")
    assert refusal(http.post(f"{address}/delete", query_string=eight_days))[2] == "Time range of more than 7 days is not allowed"
    assert refusal(http.post("/goscheduler/apps/nobody/bulk-action/delete")) == (400, 4001, "app Id nobody is not registered")


# --- keys ----------------------------------------------------------------------------------------------------------------


def test_nobody_sees_or_changes_what_is_another_applications(http: FlaskClient, scheduler: Scheduler) -> None:
    register(http, "rival")
    one, series = id_of(schedule(http, payload="canary")), id_of(cron(http, payload="canary"))
    run = http.get(f"/goscheduler/schedules/{series}/runs?when=future&size=1").json["data"]["schedules"][0]["scheduleId"]
    guarded = create_app(scheduler, Service(dialects=["goscheduler"], authentication="required")).test_client()
    keys = {
        (app, scope): {"Authorization": f"Bearer {scheduler.tenants.create_key(app, [scope])[1]}"}
        for app in ("shop", "rival", None)
        for scope in Scope
    }
    calls = [
        ("GET", "/goscheduler/apps?app_id=shop"),
        ("GET", "/goscheduler/apps/shop/schedules"),
        ("GET", "/goscheduler/apps/shop/configuration"),
        ("GET", "/goscheduler/crons/schedules?app_id=shop"),
        *((method, f"/goscheduler/schedules/{each}") for each in (one, series, run) for method in ("GET", "DELETE")),
        ("GET", f"/goscheduler/schedules/{series}/runs"),
        ("POST", "/goscheduler/apps/shop/bulk-action/delete"),
        ("POST", "/goscheduler/apps/shop/deactivate"),
        ("PUT", "/goscheduler/apps/shop/configuration"),
    ]
    before = scheduler.events("shop"), scheduler.timetable.series("shop"), scheduler.tenants.application("shop")

    for method, address in calls:
        answer = guarded.open(address, method=method, headers=keys["rival", Scope.ADMIN], json={} if method == "PUT" else None)
        unknown = guarded.open(
            address.replace("shop", "nobody"), method=method, headers=keys["rival", Scope.ADMIN], json={} if method == "PUT" else None
        )
        assert 400 <= answer.status_code < 500, (method, address)
        assert "canary" not in answer.text
        assert answer.text.replace("shop", "nobody") == unknown.text  # what is another's does not exist
        assert refusal(guarded.open(address, method=method))[:2] == (401, 401)
    mine = {"appId": "shop", "payload": "{}", "scheduleTime": NOW + HOUR, "callback": HTTP}
    foreign = guarded.post("/goscheduler/schedules", json=mine, headers=keys["rival", Scope.PUBLISH])
    assert refusal(foreign) == (400, 4001, "app Id shop is not registered")
    assert [app["appId"] for app in guarded.get("/goscheduler/apps", headers=keys["rival", Scope.READ]).json["data"]["apps"]] == ["rival"]
    assert before == (scheduler.events("shop"), scheduler.timetable.series("shop"), scheduler.tenants.application("shop"))

    assert guarded.post("/goscheduler/schedules", json=mine, headers=keys["shop", Scope.PUBLISH]).status_code == 200
    assert refusal(guarded.post("/goscheduler/schedules", json=mine, headers=keys["shop", Scope.READ]))[:2] == (403, 403)
    assert refusal(guarded.post("/goscheduler/apps", json={"appId": "new"}, headers=keys["shop", Scope.ADMIN]))[:2] == (403, 403)
    assert guarded.post("/goscheduler/apps", json={"appId": "new"}, headers=keys[None, Scope.ADMIN]).status_code == 200
    for app in ("shop", None):
        assert {get_as(guarded, each, keys[app, Scope.READ]) for each in (one, series, run)} == {200}
    assert guarded.get("/goscheduler/healthcheck").status_code == 200


def get_as(http: FlaskClient, schedule_id: str, headers: dict[str, str]) -> int:
    return http.get(f"/goscheduler/schedules/{schedule_id}", headers=headers).status_code


def test_a_key_can_give_no_other_application_ones_own_schedule_by_its_id(http: FlaskClient, scheduler: Scheduler) -> None:
    mine = id_of(schedule(http, payload="mine"))
    scheduler.tenants.put("rival")
    scheduler.add(wire.NewEvent("rival", "http://127.0.0.1/x", delay_ms=HOUR * 1000, event_id=mine, payload=b"rival"))

    assert get(http, mine)["payload"] == "mine"


# --- hostile input -------------------------------------------------------------------------------------------------------

HOSTILE = [
    b"",
    b"null",
    b"[]",
    b"{",
    b'{"appId": NaN}',
    b"\xff\xfe",
    b'{"appId": "shop", "appId": "shop"}',
    b'{"appId": "' + b"x" * 100_000 + b'"}',
    b'{"appId": "shop", "payload": "\\ud800", "scheduleTime": 1}',
    b'{"appId": "shop", "callback": ' + b"[" * 1_000 + b"]" * 1_000 + b"}",
    b'{"appId": {}, "partitions": -1, "active": 3, "configuration": []}',
    b'{"appId": "shop", "partitions": 99999999999999999999}',
    b'{"appId": "x\' OR 1=1 --"}',
    b'{"appId": "..", "partitions": 1}',
]


@pytest.mark.parametrize("body", HOSTILE)
@pytest.mark.parametrize("address", ["/goscheduler/apps", "/goscheduler/schedules", "/goscheduler/apps/shop/configuration"])
def test_hostile_bodies_are_refused_in_its_form(http: FlaskClient, address: str, body: bytes) -> None:
    answer = http.post(address, data=body)

    if answer.status_code == 200:  # what an application's configuration does not look at
        assert address.endswith("configuration")
        return
    assert refusal(answer)[0] in {400, 413}
    assert len(answer.data) < 2_000


@pytest.mark.parametrize(
    "address",
    [
        "/goscheduler/schedules/%00",
        "/goscheduler/schedules/" + "x" * 5_000,
        "/goscheduler/schedules/{1497b35c-1a21-41ee-8689-ceaebc99522c}",
        "/goscheduler/schedules/1497b35c-1a21-81ee-bfff-ffffffffffff",
        "/goscheduler/schedules/1497b35c-1a21-81ee-8fff-ffffffffffff/runs?size=99999999999999999999",
        "/goscheduler/schedules/x/runs",
        "/goscheduler/apps/" + "x" * 300 + "/schedules",
        "/goscheduler/apps/a%2Fb/schedules",
        "/goscheduler/apps/shop/schedules?size=1e9",
        "/goscheduler/apps/shop/schedules?start_time=9999-12-31%2023:59:59",
        "/goscheduler/apps?continuation_token=%F0%9F%98%80&app_id=%00",
        "/goscheduler/crons/schedules?continuation_token=/////&app_id=%27",
        "/goscheduler/crons/schedules?continuation_token=nobody/x",
        "/goscheduler/nothing",
        "/goscheduler",
    ],
)
def test_hostile_addresses_are_refused_in_its_form(http: FlaskClient, address: str) -> None:
    assert refusal(http.get(address))[0] in {400, 404}


def test_other_errors_have_its_form_and_their_headers(http: FlaskClient) -> None:
    answer = http.patch("/goscheduler/apps")

    assert refusal(answer)[:2] == (405, 405)
    assert "POST" in answer.headers["Allow"]


def test_a_database_that_is_away_is_told_in_its_form(http: FlaskClient, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise database.DatabaseUnavailable

    monkeypatch.setattr(scheduler.tenants, "application", away)

    assert refusal(http.get("/goscheduler/apps/shop/schedules"))[:2] == (500, 5006)
    assert refusal(schedule(http))[:2] == (500, 5004)
    assert schedule(http).headers["Retry-After"] == "1"


def test_where_it_is_not_switched_on_there_is_nothing(scheduler: Scheduler) -> None:
    answer = create_app(scheduler, Service()).test_client().get("/goscheduler/apps")

    assert answer.status_code == 404
    assert json.loads(answer.text)["type"] == "urn:cassata:problem:not-found"
