"""Series and their instances over HTTP, on every database."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import TestResponse

from cassata.config import Service
from cassata.scheduler import Scheduler
from cassata.series import NewSeries
from cassata.service import create_app, series_wire

REQUEST = {"url": "http://receiver.example/tick", "event": {"tick": True}}
QUARTERS = {**REQUEST, "every": "15m", "scheduled-at": "2030-01-31T12:00:00Z", "count": 4}
TOKYO = {
    **REQUEST,
    "scheduled-at": "2025-04-15T10:00:00",
    "ends-at": "2025-04-15T10:30:00",
    "timezone": "Asia/Tokyo",
    "recurrence": "RRULE:FREQ=DAILY;COUNT=10\nEXDATE;VALUE=DATE-TIME:20250423T010000Z\nRDATE;VALUE=DATE-TIME:20250430T010000Z",
}
HERE = "/cassata/series/shop"


def put(http: FlaskClient, series_id: str = "s1", document: dict[str, Any] = QUARTERS, **headers: str) -> TestResponse:
    return http.put(f"{HERE}/{series_id}", json=document, headers={name.replace("_", "-"): value for name, value in headers.items()})


def instances(http: FlaskClient, series_id: str = "s1", query: str = "from=2025-01-01T00:00:00Z") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get(f"{HERE}/{series_id}/instances?{query}").json["instances"]
    return found


# --- a series ------------------------------------------------------------------------------------------------------------


def test_the_documented_example_of_tokyo_has_its_ten_instants(http: FlaskClient) -> None:
    assert put(http, document=TOKYO).status_code == 201

    found = instances(http)

    days = [*range(15, 23), 24, 30]
    assert [instance["local-time"] for instance in found] == [f"2025-04-{day}T10:00:00+09:00" for day in days]
    assert [instance["event-id"] for instance in found] == [f"s1_202504{day}T010000Z" for day in days]
    assert [instance["index"] for instance in found] == list(range(10))
    assert {instance["ends-at"][11:] for instance in found} == {"01:30:00.000Z"}
    assert found[8]["event-id"] == "s1_20250424T010000Z"


def test_lines_may_come_as_an_array(http: FlaskClient) -> None:
    lines = TOKYO["recurrence"].splitlines()
    assert put(http, document={**TOKYO, "recurrence": lines}).status_code == 201
    assert put(http, document=TOKYO).status_code == 200


def test_a_series_is_made_once_however_often_it_is_put(http: FlaskClient) -> None:
    made, again = put(http), put(http)
    assert (made.status_code, again.status_code) == (201, 200)
    assert made.headers["Location"] == f"{HERE}/s1"
    assert made.headers["ETag"] == again.headers["ETag"] == '"1"'
    assert made.json == again.json == http.get(f"{HERE}/s1").json
    assert (made.json["status"], made.json["every"], made.json["event"]) == ("ACTIVE", 900, '{"tick":true}')


def test_other_content_under_the_same_id_is_refused_unless_the_version_is_named(http: FlaskClient) -> None:
    put(http)
    other = {**QUARTERS, "count": 2}
    refused = put(http, document=other)
    assert (refused.status_code, refused.json["identical"], refused.json["version"]) == (409, False, 1)
    assert len(instances(http)) == 4

    replaced = put(http, document=other, If_Match='"1"')
    assert (replaced.status_code, replaced.headers["ETag"], len(instances(http))) == (200, '"2"', 2)
    late = put(http, document=QUARTERS, If_Match='"1"')
    assert (late.status_code, late.headers["ETag"], late.json["version"], len(instances(http))) == (412, '"2"', 2, 2)


@pytest.mark.parametrize("written", ['W/"1"', '"one"', '"1", "2"', ""])
def test_an_if_match_that_names_no_version_matches_none(http: FlaskClient, written: str) -> None:
    put(http)
    assert put(http, document={**QUARTERS, "count": 2}, If_Match=written).status_code == 412


def test_if_match_star_replaces_whatever_is_there_and_nothing_where_nothing_is(http: FlaskClient) -> None:
    put(http)
    assert put(http, document={**QUARTERS, "count": 2}, If_Match="*").json["count"] == 2
    assert put(http, "s2", If_Match="*").status_code == 404


def test_an_id_is_made_where_none_is_given(http: FlaskClient) -> None:
    made = http.post(HERE, json=QUARTERS)
    assert made.status_code == 201
    assert http.get(made.headers["Location"]).json == made.json


def test_what_was_answered_can_be_put_again_as_it_is(http: FlaskClient) -> None:
    """All that a client wrote comes back in a form that means the same."""
    full = {
        **TOKYO,
        "name": "ten days",
        "description": "in Tokyo",
        "metadata": {"team": "a"},
        "catch-up": "all",
        "catch-up-window": "1d",
        "overlap": "skip",
        "jitter": "PT30S",
        "method": "PUT",
        "request-headers": {"A": "b"},
        "timeout": 2,
        "retry": {"count": 3},
        "max-lateness": 60,
    }
    answered = put(http, document=full).json
    told = {"status", "version", "next-occurrence", "created-at", "changed-at", "finished-at"}
    assert put(http, document={name: value for name, value in answered.items() if name not in told}).status_code == 200


def test_series_are_listed_in_pages_by_their_ids(http: FlaskClient) -> None:
    for series_id in ("b", "c", "a"):
        put(http, series_id)
    http.post(f"{HERE}/b/pause")
    first = http.get(f"{HERE}?limit=2").json
    second = http.get(HERE, query_string={"limit": 2, "cursor": first["next-cursor"]}).json
    assert [series["series-id"] for series in first["series"] + second["series"]] == ["a", "b", "c"]
    assert second["next-cursor"] is None
    assert "event" not in first["series"][0]
    assert [series["series-id"] for series in http.get(f"{HERE}?status=PAUSED").json["series"]] == ["b"]
    assert http.get("/cassata/series/nobody").json == {"series": [], "next-cursor": None}


def test_a_series_is_paused_and_resumed_and_cancelled_and_deleted(http: FlaskClient) -> None:
    put(http)
    assert http.post(f"{HERE}/s1/pause").json["status"] == "PAUSED"
    assert http.post(f"{HERE}/s1/resume").json["status"] == "ACTIVE"
    assert http.post(f"{HERE}/s1/pause", headers={"If-Match": '"1"'}).status_code == 412
    assert http.delete(f"{HERE}/s1").json["status"] == "CANCELLED"
    assert http.post(f"{HERE}/s1/resume").json["series-status"] == "CANCELLED"
    assert http.get(f"{HERE}/s1").status_code == 200
    assert http.delete(f"{HERE}/s1?purge").json == {"status": "ok"}
    assert http.get(f"{HERE}/s1").status_code == http.delete(f"{HERE}/s1").status_code == 404


def test_to_cancel_a_series_cancels_its_events_that_wait(http: FlaskClient, scheduler: Scheduler) -> None:
    put(http, document={**REQUEST, "every": 5})
    scheduler.timetable.advance()
    made = [instance for instance in instances(http, query="") if instance["status"]]
    assert {instance["status"] for instance in made} == {"PENDING"}
    http.delete(f"{HERE}/s1")
    assert {http.get(f"/cassata/event/shop/{instance['event-id']}").json["status"] for instance in made} == {"CANCELLED"}


def test_a_series_can_be_run_beside_its_rule(http: FlaskClient) -> None:
    put(http)
    run = http.post(f"{HERE}/s1/run")
    assert (run.status_code, run.json["status"], run.json["url"]) == (201, "PENDING", REQUEST["url"])
    assert http.get(run.headers["Location"]).json["event"] == '{"tick":true}'
    assert [instance["status"] for instance in instances(http)] == [None] * 4


# --- its instances -------------------------------------------------------------------------------------------------------


def test_instances_come_in_pages_that_follow_each_other(http: FlaskClient) -> None:
    put(http)
    first = http.get(f"{HERE}/s1/instances?limit=3").json
    second = http.get(f"{HERE}/s1/instances?limit=3&cursor={first['next-cursor']}").json
    assert [instance["index"] for instance in first["instances"] + second["instances"]] == [0, 1, 2, 3]
    assert second["next-cursor"] is None
    window = "from=2030-01-31T12:15:00Z&until=2030-01-31T12:45:00Z"
    assert [instance["index"] for instance in instances(http, query=window)] == [1, 2]


def test_a_long_series_with_a_count_can_be_read_to_its_end_page_by_page(sqlite_http: FlaskClient) -> None:
    put(sqlite_http, document={**REQUEST, "cron": "*/5 * * * *", "scheduled-at": "2030-01-01T00:00:00", "count": 2_500})
    indexes: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        query = {"limit": 1_000} | ({"cursor": cursor} if cursor else {})
        page = sqlite_http.get(f"{HERE}/s1/instances", query_string=query).json
        indexes += [instance["index"] for instance in page["instances"]]
        cursor = page["next-cursor"]
    assert indexes == list(range(2_500))


@pytest.mark.parametrize(
    ("method", "path", "document", "place"),
    [
        ("GET", "s1/instances?from=2030-03-01T00:00:00Z", None, "from"),
        ("PATCH", "s1/instances/s1_20300301T000000Z", {"event": "x"}, "instance-id"),
        ("DELETE", "s1/instances/s1_20300301T000000Z", None, "instance-id"),
        ("DELETE", "s1/instances/s1_20300301T000000Z/following", None, "instance-id"),
    ],
)
def test_how_many_there_were_is_not_counted_for_ever(sqlite_http: FlaskClient, method: str, path: str, document: Any, place: str) -> None:
    counted = {**REQUEST, "cron": "* * * * *", "scheduled-at": "2030-01-01T00:00:00", "count": 10_000}
    put(sqlite_http, document=counted)
    refused = sqlite_http.open(f"{HERE}/{path}", method=method, json=document)
    assert (refused.status_code, refused.json["errors"][0]["parameter"]) == (400, place)
    ahead = sqlite_http.post(f"{HERE}/preview", json={**counted, "from": "2030-03-01T00:00:00Z"})
    assert (ahead.status_code, ahead.json["errors"][0]["pointer"]) == (400, "/from")


def test_one_instance_can_be_changed_and_keeps_its_name(http: FlaskClient) -> None:
    put(http)
    change = {"expiry": "2030-01-31T12:20:00Z", "event": {"tick": "late"}, "method": "PUT", "retry": {"count": 0}}
    changed = http.patch(f"{HERE}/s1/instances/s1_20300131T121500Z", json=change)

    assert (changed.status_code, changed.json["exception"], changed.json["expiry"]) == (200, True, "2030-01-31T12:20:00.000Z")
    assert changed.json["original-time"] == "2030-01-31T12:15:00.000Z"
    event = http.get("/cassata/event/shop/s1_20300131T121500Z").json
    assert (event["event"], event["method"], event["url"], event["retry"]["count"]) == ('{"tick":"late"}', "PUT", REQUEST["url"], 0)
    assert [instance["exception"] for instance in instances(http)] == [False, True, False, False]
    stale = http.patch(f"{HERE}/s1/instances/s1_20300131T121500Z", json={"event": "x"}, headers={"If-Match": '"0"'})
    assert stale.status_code == 412
    fresh = http.patch(f"{HERE}/s1/instances/s1_20300131T121500Z", json={"retry": None}, headers={"If-Match": changed.headers["ETag"]})
    assert fresh.status_code == 200
    assert http.get("/cassata/event/shop/s1_20300131T121500Z").json["retry"] is None


def test_one_instance_can_be_cancelled(http: FlaskClient) -> None:
    put(http)
    cancelled = http.delete(f"{HERE}/s1/instances/s1_20300131T123000Z")
    assert (cancelled.status_code, cancelled.json["status"]) == (200, "CANCELLED")
    assert [instance["status"] for instance in instances(http)] == [None, None, "CANCELLED", None]
    again = http.patch(f"{HERE}/s1/instances/s1_20300131T123000Z", json={"event": "x"})
    assert (again.status_code, again.json["type"]) == (409, "urn:cassata:problem:instance-gone")


def test_a_series_whose_rule_can_no_longer_be_computed_is_a_bad_request_and_no_fault(http: FlaskClient, scheduler: Scheduler) -> None:
    put(http)
    http.post(f"{HERE}/s1/pause")
    with scheduler._engines.write.begin() as conn:
        conn.execute(text("""UPDATE series SET rule = '{"cron": "@daily", "timezone": "Nowhere/Gone"}'"""))

    refused = http.post(f"{HERE}/s1/resume")
    assert (refused.status_code, refused.json["type"]) == (400, "urn:cassata:problem:invalid-request")
    assert "is not a time zone" in refused.json["errors"][0]["detail"]


def test_this_and_following_ends_one_series_and_makes_another_in_one_call(http: FlaskClient) -> None:
    put(http)
    following = {**REQUEST, "series-id": "s2", "every": "1h", "scheduled-at": "2030-01-31T13:00:00Z"}
    made = http.put(f"{HERE}/s1/instances/s1_20300131T123000Z/following", json=following)
    assert (made.status_code, made.json["series-id"], made.headers["Location"]) == (201, "s2", f"{HERE}/s2")
    assert [instance["index"] for instance in instances(http)] == [0, 1]
    assert instances(http, "s2")[0]["event-id"] == "s2_20300131T130000Z"


def test_a_request_with_if_match_whose_answer_was_lost_may_be_repeated(http: FlaskClient) -> None:
    put(http)
    other = {**QUARTERS, "count": 3}
    assert [put(http, document=other, If_Match='"1"').status_code for _ in range(2)] == [200, 200]

    where = f"{HERE}/s1/instances/s1_20300131T123000Z/following"
    following = {**REQUEST, "series-id": "s2", "every": "1h", "scheduled-at": "2030-01-31T13:00:00Z"}
    made, again = (http.put(where, json=following, headers={"If-Match": '"2"'}) for _ in range(2))
    assert (made.status_code, again.status_code, again.json) == (201, 201, made.json)


def test_a_following_series_that_cannot_be_leaves_the_first_as_it_was(http: FlaskClient) -> None:
    put(http)
    put(http, "taken", {**QUARTERS, "count": 1})
    where = f"{HERE}/s1/instances/s1_20300131T123000Z/following"
    assert http.put(where, json={**QUARTERS, "series-id": "taken"}).status_code == 409
    same = http.put(where, json={**QUARTERS, "series-id": "s1"})
    assert (same.status_code, same.json["errors"][0]["pointer"]) == (400, "/series-id")
    assert http.put(where, json={**QUARTERS, "series-id": "s2", "every": "x"}).status_code == 400
    assert len(instances(http)) == 4


def test_following_instances_can_be_cancelled(http: FlaskClient) -> None:
    put(http)
    assert http.delete(f"{HERE}/s1/instances/s1_20300131T121500Z/following").json["until"] == "2030-01-31T12:14:59.999Z"
    assert [instance["index"] for instance in instances(http)] == [0]


def test_exceptions_that_the_new_rule_does_not_make_are_dropped(http: FlaskClient) -> None:
    put(http)
    for instant in ("121500", "123000"):
        http.patch(f"{HERE}/s1/instances/s1_20300131T{instant}Z", json={"event": "changed"})
    put(http, document={**QUARTERS, "every": "30m"}, If_Match="*")
    found = {instance["event-id"]: instance["exception"] for instance in instances(http)}
    assert list(found.values()) == [False, True, False, False]
    assert http.get("/cassata/event/shop/s1_20300131T121500Z").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "document", "status", "name"),
    [
        ("GET", "nothing", None, 404, "unknown-series"),
        ("GET", "nothing/instances", None, 404, "unknown-series"),
        ("DELETE", "nothing", None, 404, "unknown-series"),
        ("POST", "nothing/run", None, 404, "unknown-series"),
        ("GET", "x" * 200, None, 404, "unknown-series"),
        ("PATCH", "s1/instances/s1_20300131T121501Z", {"event": "x"}, 404, "unknown-instance"),
        ("PATCH", "s1/instances/s2_20300131T121500Z", {"event": "x"}, 404, "unknown-instance"),
        ("DELETE", "s1/instances/x", None, 404, "unknown-instance"),
        ("DELETE", "s1/instances/s1_20301331T121500Z", None, 404, "unknown-instance"),
        ("DELETE", f"s1/instances/s1_{'9' * 500}", None, 404, "unknown-instance"),
        ("DELETE", "s1/instances/x/following", None, 404, "unknown-instance"),
    ],
)
def test_what_is_not_there_is_not_found(http: FlaskClient, method: str, path: str, document: Any, status: int, name: str) -> None:
    put(http)
    answer = http.open(f"{HERE}/{path}", method=method, json=document)
    assert (answer.status_code, answer.json["type"]) == (status, f"urn:cassata:problem:{name}")


# --- what is refused -----------------------------------------------------------------------------------------------------

REFUSED = [
    ({"cron": "61 * * * *"}, "/cron", "0-59"),
    ({"cron": "* * * *"}, "/cron", "five fields"),
    ({"cron": "0 0 31 2 *"}, "/cron", "a day that there is"),
    ({"cron": 5}, "/cron", "must be a string"),
    ({"cron": "@daily", "timezone": "Europe/Berln"}, "/timezone", "did you mean 'Europe/Berlin'?"),
    ({"cron": "@daily", "timezone": "../../etc/passwd"}, "/timezone", "is not a time zone"),
    ({"cron": "@daily", "timezone": ""}, "/timezone", "is not a time zone"),
    ({"cron": "@daily", "timezone": 1}, "/timezone", "must be a string"),
    ({"cron": "@daily", "timezone": "Mars/Base", "scheduled-at": "2030-01-01T00:00:00"}, "/timezone", "is not a time zone"),
    ({"recurrence": "RRULE:FREQ=SECONDLY", "scheduled-at": 1}, "/recurrence", "SECONDLY"),
    ({"recurrence": "RRULE:FREQ=MINUTELY", "scheduled-at": 1}, "/recurrence", "MINUTELY"),
    ({"recurrence": "RRULE:FREQ=DALY", "scheduled-at": 1}, "/recurrence", "DAILY"),
    ({"recurrence": "RRULE:FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "scheduled-at": 1}, "/recurrence", ""),
    ({"recurrence": "RRULE:FREQ=DAILY"}, "/scheduled-at", "needed"),
    ({"recurrence": ["RRULE:FREQ=DAILY", 7], "scheduled-at": 1}, "/recurrence", "must hold strings"),
    ({"recurrence": {}, "scheduled-at": 1}, "/recurrence", "must be lines"),
    ({"recurrence": ["x"] * 33, "scheduled-at": 1}, "/recurrence", "at most 32 lines"),
    ({"every": "1 fortnight"}, "/every", "'15m'"),
    ({"every": "P1M"}, "/every", "months"),
    ({"every": 0.5}, "/every", "whole seconds"),
    ({"every": 0}, "/every", "from 1"),
    ({"every": -60}, "/every", "from 1"),
    ({"every": True}, "/every", "must be a number"),
    ({"every": 10**400}, "/every", "from 1"),
    ({}, "/cron", "is required"),
    ({"cron": "@daily", "every": 60}, "/every", "leave one of the two out"),
    ({"cron": "@daily", "start": 1, "scheduled-at": 2}, "/start", "leave one of the two out"),
    ({"cron": "@daily", "start": "soon"}, "/start", "ISO 8601"),
    ({"cron": "@daily", "scheduled-at": 1_900_000_000_000}, "/scheduled-at", "milliseconds"),
    ({"cron": "@daily", "until": "2030-13-01"}, "/until", "ISO 8601"),
    ({"cron": "@daily", "scheduled-at": 1_900_000_000, "until": 1_800_000_000}, "/cron", "no occurrence"),
    ({"cron": "@daily", "ends-at": "2030-01-01T00:00:00"}, "/ends-at", "scheduled-at, which is missing"),
    ({"every": 60, "scheduled-at": 1_900_000_000, "ends-at": 1_800_000_000}, "/ends-at", "later than"),
    ({"every": 60, "scheduled-at": 1_900_000_000, "ends-at": 1_990_000_000}, "/ends-at", "366 days"),
    ({"cron": "@daily", "count": 0}, "/count", "from 1"),
    ({"cron": "@daily", "count": 1.5}, "/count", "whole number"),
    ({"cron": "@daily", "catch-up": "some"}, "/catch-up", "'latest', 'all' or 'none'"),
    ({"cron": "@daily", "catch-up-window": "-1s"}, "/catch-up-window", "'15m'"),
    ({"cron": "@daily", "overlap": "maybe"}, "/overlap", "'allow' or 'skip'"),
    ({"cron": "@daily", "jitter": "2d"}, "/jitter", "86400"),
    ({"cron": "@daily", "name": "x" * 201}, "/name", "200"),
    ({"cron": "@daily", "description": ""}, "/description", "2000"),
    ({"cron": "@daily", "metadata": []}, "/metadata", "must be an object"),
    ({"cron": "@daily", "metadata": {"a": "x" * 20_000}}, "/metadata", "16384"),
    ({"cron": "@daily", "url": "ftp://x/"}, "/url", "http://"),
    ({"cron": "@daily", "method": "BREW"}, "/method", "GET"),
    ({"cron": "@daily", "request-headers": ["no colon"]}, "/request-headers/0", "no colon"),
    ({"cron": "@daily", "timeout": 0}, "/timeout", "seconds"),
    ({"cron": "@daily", "max-lateness": 0}, "/max-lateness", "seconds"),
    ({"cron": "@daily", "identity-headers": {"evnt": "X-Id"}}, "/identity-headers", "'evnt' is no identity"),
    ({"cron": "@daily", "identity-headers": {"event-uuid": "X-Id"}}, "/identity-headers", "UUID"),
    ({"cron": "@daily", "identity-headers": {"event": "Host"}}, "/identity-headers", "cannot be chosen"),
    ({"cron": "@daily", "identity-headers": ["X-Id"]}, "/identity-headers", "must be an object"),
    ({"cron": "@daily", "retry": {"on": "never"}}, "/retry/on", "transient, any"),
    ({"cron": "@daily", "retry": {"cont": 1}}, "/retry/cont", "did you mean 'count'?"),
    ({"cron": "@daily", "crron": "x"}, "/crron", "did you mean 'cron'?"),
    ({"cron": "@daily", "expiry": 1}, "/expiry", "is not a field"),
    ({"cron": "@daily", "application-id": "other"}, "/application-id", "leave it out"),
    ({"cron": "@daily", "series-id": "other"}, "/series-id", "leave it out"),
]


@pytest.fixture
def sqlite_http(sqlite_scheduler: Scheduler) -> FlaskClient:
    return create_app(sqlite_scheduler, Service()).test_client()


@pytest.mark.parametrize(("written", "pointer", "expected"), REFUSED, ids=[str(written)[:60] for written, _, _ in REFUSED])
def test_what_cannot_be_is_refused_by_name_and_nothing_is_stored(
    sqlite_http: FlaskClient, written: dict[str, Any], pointer: str, expected: str
) -> None:
    refused = put(sqlite_http, document={**REQUEST, **written})
    assert (refused.status_code, refused.content_type) == (400, "application/problem+json")
    told = {error.get("pointer"): error["detail"] for error in refused.json["errors"]}
    assert expected in told[pointer]
    assert sqlite_http.get(HERE).json["series"] == []


def test_everything_that_is_wrong_is_told_at_once(sqlite_http: FlaskClient) -> None:
    refused = put(sqlite_http, document={"cron": "x", "timezone": "Nowhere", "jitter": "long", "urll": "http://x/"})
    assert {error["pointer"] for error in refused.json["errors"]} == {"/cron", "/timezone", "/jitter", "/urll", "/url", "/event"}


@pytest.mark.parametrize("series_id", ["a b", "ä", "x" * 112, "a%00b"])
def test_an_id_that_cannot_be_is_refused(sqlite_http: FlaskClient, series_id: str) -> None:
    refused = put(sqlite_http, series_id)
    assert (refused.status_code, refused.json["errors"][0]["parameter"]) == (400, "series-id")


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        ({}, ""),
        ([], ""),
        ({"expiry": None}, "/expiry"),
        ({"url": None}, "/url"),
        ({"expiry": "tomorrow"}, "/expiry"),
        ({"cron": "@daily"}, "/cron"),
        ({"url": "nowhere"}, "/url"),
        ({"event": "x" * 300_000}, "/event"),
    ],
)
def test_a_change_of_an_instance_that_cannot_be_is_refused(sqlite_http: FlaskClient, document: Any, pointer: str) -> None:
    put(sqlite_http)
    refused = sqlite_http.patch(f"{HERE}/s1/instances/s1_20300131T121500Z", json=document)
    assert (refused.status_code, refused.json["errors"][0]["pointer"]) == (413 if "payload" in refused.json["type"] else 400, pointer)
    assert [instance["exception"] for instance in instances(sqlite_http)] == [False] * 4


@pytest.mark.parametrize(
    "query",
    [
        "from=soon",
        "until=2030-13-01",
        "limit=0",
        "limit=1001",
        "cursor=x",
        "cursor=20300132T000000Z",
        "cursor=20300131T000000Z-x",
        "form=1",
        "from=1&from=2",
    ],
)
def test_a_window_that_cannot_be_is_refused(sqlite_http: FlaskClient, query: str) -> None:
    put(sqlite_http)
    refused = sqlite_http.get(f"{HERE}/s1/instances?{query}")
    assert (refused.status_code, refused.json["errors"][0]["parameter"]) == (400, query.partition("=")[0])


@pytest.mark.parametrize("query", ["status=active", "status=DONE", "cursor=x", "cursor=YSBi", "limit=many", "name=x"])
def test_a_list_that_cannot_be_is_refused(sqlite_http: FlaskClient, query: str) -> None:
    assert sqlite_http.get(f"{HERE}?{query}").json["errors"][0]["parameter"] == query.partition("=")[0]


def test_a_purge_says_yes_or_no(sqlite_http: FlaskClient) -> None:
    put(sqlite_http)
    assert sqlite_http.delete(f"{HERE}/s1?purge=maybe").json["errors"][0]["parameter"] == "purge"
    assert sqlite_http.delete(f"{HERE}/s1?purge=false").json["status"] == "CANCELLED"
    assert sqlite_http.delete(f"{HERE}/s1?purge=true").json == {"status": "ok"}


# --- a preview -----------------------------------------------------------------------------------------------------------


def test_a_preview_takes_a_whole_series_and_stores_nothing(sqlite_http: FlaskClient) -> None:
    found = sqlite_http.post(f"{HERE}/preview", json={**QUARTERS, "series-id": "s1"}).json["occurrences"]
    assert [occurrence["index"] for occurrence in found] == [0, 1, 2, 3]
    assert sqlite_http.get(HERE).json["series"] == []


def test_a_preview_without_a_beginning_is_what_it_would_be_if_it_were_stored_now() -> None:
    asked = series_wire.read_preview({"every": "1h", "limit": 2})
    found = series_wire.preview(asked, 1_900_000_000_000)["occurrences"]
    assert [occurrence["original-time"] for occurrence in found] == ["2030-03-17T18:46:40.000Z", "2030-03-17T19:46:40.000Z"]


@pytest.mark.parametrize(
    ("written", "pointer"), [({"limit": 0}, "/limit"), ({"limit": 101}, "/limit"), ({"from": "x"}, "/from"), ({"lmit": 1}, "/lmit")]
)
def test_a_preview_that_cannot_be_is_refused(sqlite_http: FlaskClient, written: dict[str, Any], pointer: str) -> None:
    refused = sqlite_http.post(f"{HERE}/preview", json={"cron": "@daily", **written})
    assert (refused.status_code, refused.json["errors"][0]["pointer"]) == (400, pointer)


def test_a_series_may_have_the_id_preview(sqlite_http: FlaskClient) -> None:
    assert put(sqlite_http, "preview").status_code == 201
    assert sqlite_http.get(f"{HERE}/preview").json["series-id"] == "preview"


def test_what_can_be_written_can_be_stored() -> None:
    """The wire knows every field of a series."""
    written = series_wire.read_series({**TOKYO, "name": "n"}, {"application-id": "shop", "series-id": "s1"})
    assert isinstance(written.new, NewSeries)
