"""The calls of the HTTP service over a real scheduler, on every database."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from cassata.config import Service
from cassata.model import Cursor, Filter, NewEvent, Outcome, Scope
from cassata.scheduler import Scheduler, Terms
from cassata.service import create_app
from cassata.service.cursors import Cursors
from cassata.tenants import Changes

EVENT = {"application-id": "shop", "event-id": "e1", "event": {"order": 7}, "delay": 3600, "url": "http://receiver.example/hook"}

# As the ancestor's manual prints it.
ANCESTOR = """{
  "event-id": "def381e4-98a6-4353-8d96-792ceea2bb33",
  "application-id": "order-management-system",
  "event": "{arbitrary event JSON}",
  "expiry": 1524141245,
  "url": "http://urltodestination/",
  "method": "POST",
  "request-headers": [
    "Content-Type: application/json",
    "Header1: value1",
    "Header2: value2"
  ]
}"""


def event(**changes: Any) -> dict[str, Any]:
    return {**EVENT, **{name.replace("_", "-"): value for name, value in changes.items()}}


def claim_everything(scheduler: Scheduler) -> None:
    agenda = scheduler.agenda()
    _, claimed = scheduler.record_and_claim((), list(agenda), 100, Terms())
    assert claimed.deliveries


@pytest.mark.parametrize("slash", ["", "/"])
def test_an_added_event_is_created_and_can_be_found(http: FlaskClient, slash: str) -> None:
    added = http.post(f"/cassata/add{slash}", json=EVENT)

    assert added.status_code == 201
    assert added.headers["Location"] == "/cassata/event/shop/e1"
    assert added.json == http.get("/cassata/status/shop/e1").json
    assert (added.json["status"], added.json["attempts"]) == ("PENDING", 0)
    assert added.json["expiry"] == added.json["next-attempt-at"] > added.json["created-at"]


def test_the_ancestors_documented_example_is_accepted_as_printed(http: FlaskClient) -> None:
    added = http.post("/cassata/add/", data=ANCESTOR, content_type="application/json")

    assert added.status_code == 201
    stored = http.get("/cassata/event/order-management-system/def381e4-98a6-4353-8d96-792ceea2bb33").json
    assert stored["expiry"] == "2018-04-19T12:34:05.000Z"
    assert stored["event"] == "{arbitrary event JSON}"
    assert stored["request-headers"] == ["Content-Type: application/json", "Header1: value1", "Header2: value2"]


def test_an_event_without_an_id_gets_one(http: FlaskClient) -> None:
    without = {name: value for name, value in EVENT.items() if name != "event-id"}

    first, second = (http.post("/cassata/add/", json=without).json["event-id"] for _ in range(2))

    assert first != second


@pytest.mark.parametrize(("delay", "identical"), [(3600, True), (60, False)])
def test_adding_an_id_again_is_a_conflict_that_says_whether_the_content_is_the_same(http: FlaskClient, delay: int, identical: bool) -> None:
    http.post("/cassata/add/", json=EVENT)

    again = http.post("/cassata/add/", json=event(delay=delay))

    assert again.status_code == 409
    assert again.json["identical"] is identical
    assert ("the same content" if identical else "other content") in again.json["detail"]


def test_put_is_an_add_that_may_be_repeated(http: FlaskClient) -> None:
    body = {"url": "http://receiver.example/", "delay": 60, "event": "x"}

    answers = [http.put("/cassata/event/shop/e9", json=body) for _ in range(2)]
    other = http.put("/cassata/event/shop/e9", json={**body, "event": "y"})

    assert [answer.status_code for answer in answers] == [201, 200]
    assert answers[0].json == answers[1].json
    assert (other.status_code, other.json["identical"]) == (409, False)


def test_put_refuses_other_ids_than_those_of_its_address(http: FlaskClient) -> None:
    refused = http.put("/cassata/event/shop/e9", json=event(event_id="e8"))

    assert refused.status_code == 400
    assert [error["pointer"] for error in refused.json["errors"]] == ["/event-id"]


def test_put_names_an_impossible_id_of_its_address_as_a_parameter(http: FlaskClient) -> None:
    refused = http.put("/cassata/event/shop/a%20b", json={"url": "http://receiver.example/", "delay": 60, "event": "x"})

    assert refused.status_code == 400
    assert [error["parameter"] for error in refused.json["errors"]] == ["event-id"]


def test_one_bad_event_of_a_batch_spoils_no_other(http: FlaskClient) -> None:
    http.post("/cassata/add/", json=EVENT)
    batch = [event(event_id="b1"), EVENT, 3, event(event_id="b2", url="ftp://x/"), event(event_id="b3", delay=10**9), event(event_id="b4")]

    answer = http.post("/cassata/add/batch", json={"events": batch})

    results = answer.json["results"]
    assert answer.status_code == 200
    assert [result["index"] for result in results] == list(range(6))
    assert [result["status-code"] for result in results] == [201, 409, 400, 400, 400, 201]
    assert [result["event-id"] for result in results] == ["b1", "e1", None, "b2", "b3", "b4"]
    assert results[1]["problem"]["identical"] is True
    assert results[3]["problem"]["errors"][0]["pointer"] == "/url"
    assert results[4]["problem"]["errors"][0]["pointer"] == "/delay"
    assert [found["event-id"] for found in http.get("/cassata/events/shop").json["events"]] == ["e1", "b1", "b4"]


def test_a_batch_may_be_a_bare_array(http: FlaskClient) -> None:
    assert [result["status-code"] for result in http.post("/cassata/add/batch/", json=[EVENT]).json["results"]] == [201]


def test_a_batch_may_be_lines_of_which_a_broken_one_spoils_no_other(http: FlaskClient) -> None:
    lines = b"\r\n".join([json.dumps(EVENT).encode(), b"", b'{"a":', b"\xff", json.dumps(event(event_id="e2")).encode()])

    answer = http.post("/cassata/add/batch", data=lines, content_type="application/x-ndjson")

    assert [result["status-code"] for result in answer.json["results"]] == [201, 400, 400, 201]


def test_an_id_given_twice_in_a_batch_is_stored_once(http: FlaskClient) -> None:
    answer = http.post("/cassata/add/batch", json=[EVENT, EVENT])

    assert [result["status-code"] for result in answer.json["results"]] == [201, 409]


def test_a_batch_holds_at_most_a_thousand_events(http: FlaskClient) -> None:
    assert http.post("/cassata/add/batch", json={"events": [{}] * 1000}).status_code == 200
    refused = http.post("/cassata/add/batch", json={"events": [{}] * 1001})
    assert (refused.status_code, refused.json["errors"][0]["pointer"]) == (400, "/events")


@pytest.mark.parametrize("verb", ["GET", "DELETE"])
def test_a_deleted_event_is_gone_and_its_id_is_free_again(http: FlaskClient, verb: str) -> None:
    http.post("/cassata/add/", json=EVENT)

    deleted = [http.open("/cassata/delete/shop/e1", method=verb) for _ in range(2)]

    assert [(answer.status_code, answer.json) for answer in deleted] == [(200, {"status": "ok"})] * 2
    assert http.get("/cassata/status/shop/e1").status_code == 404
    assert http.get("/cassata/event/shop/e1").json["status"] == "CANCELLED"
    assert http.post("/cassata/add/", json=event(delay=5)).status_code == 201
    assert http.get("/cassata/status/shop/e1").json["status"] == "PENDING"


def test_a_head_request_deletes_nothing(http: FlaskClient) -> None:
    http.post("/cassata/add/", json=EVENT)

    refused = http.head("/cassata/delete/shop/e1")

    assert (refused.status_code, refused.headers["Allow"]) == (405, "DELETE, GET")
    assert http.get("/cassata/status/shop/e1").status_code == 200


def test_deleting_an_event_that_is_being_sent_only_stops_further_attempts(http: FlaskClient, scheduler: Scheduler) -> None:
    http.post("/cassata/add/", json=event(delay=0))
    claim_everything(scheduler)

    deleted = http.delete("/cassata/delete/shop/e1")

    assert (deleted.status_code, deleted.json["status"]) == (202, "cancel-requested")
    assert http.get("/cassata/status/shop/e1").json["cancel-requested"] is True


def test_an_event_that_has_ended_cannot_be_deleted(http: FlaskClient, scheduler: Scheduler) -> None:
    from cassata.model import Outcome

    http.post("/cassata/add/", json=event(delay=0))
    _, claimed = scheduler.record_and_claim((), list(scheduler.agenda()), 100, Terms())
    delivery = claimed.deliveries[0]
    scheduler.record([Outcome(delivery, started_at=delivery.due_at, duration_ms=12, status_code=200, excerpt="thanks")])

    refused = http.delete("/cassata/delete/shop/e1")
    stored = http.get("/cassata/event/shop/e1").json

    assert (refused.status_code, refused.json["event-status"]) == (409, "COMPLETED")
    assert (stored["status"], stored["attempts"]) == ("COMPLETED", 1)
    assert [(line["number"], line["status-code"], line["duration-ms"], line["response"]) for line in stored["attempt-log"]] == [
        (1, 200, 12, "thanks")
    ]


@pytest.mark.parametrize("verb", ["GET", "DELETE"])
def test_deleting_an_unknown_event_is_not_found(http: FlaskClient, verb: str) -> None:
    assert http.open("/cassata/delete/shop/none", method=verb).status_code == 404


@pytest.mark.parametrize("path", ["/cassata/status/{}/e1", "/cassata/event/{}/e1", "/cassata/delete/{}/e1", "/cassata/events/{}"])
@pytest.mark.parametrize("impossible", ["a%20b", "%C3%A4", "a" * 65, "%00", "%FF", "..%252e", "%27%20OR%201=1"])
def test_an_impossible_id_is_one_that_does_not_exist(http: FlaskClient, path: str, impossible: str) -> None:
    assert http.get(path.format(impossible)).status_code == 404


def test_the_status_is_a_bare_word_for_whoever_asks_for_text(http: FlaskClient) -> None:
    http.post("/cassata/add/", json=EVENT)

    answer = http.get("/cassata/status/shop/e1", headers={"Accept": "text/plain"})

    assert (answer.content_type, answer.text) == ("text/plain; charset=utf-8", "PENDING")
    for accept in ("*/*", "application/json, text/plain", "text/html"):
        assert http.get("/cassata/status/shop/e1", headers={"Accept": accept}).is_json


def test_event_tells_everything_that_was_asked(http: FlaskClient) -> None:
    asked = event(
        method="PUT", request_headers={"A": ["1", "2"]}, timeout=2.5, retry={"count": 3, "initial": 0.5, "multiplier": 2, "on": "any"}
    )
    http.post("/cassata/add/", json=asked)

    stored = http.get("/cassata/event/shop/e1").json

    assert stored["event"] == '{"order":7}'
    assert stored["request-headers"] == ["A: 1", "A: 2"]
    assert (stored["method"], stored["timeout"]) == ("PUT", 2.5)
    assert stored["retry"] == {"count": 3, "initial": 0.5, "multiplier": 2, "maximum": None, "on": "any"}
    assert stored["attempt-log"] == []


def test_a_body_may_be_given_as_base64(http: FlaskClient, scheduler: Scheduler) -> None:
    asked = event(event_base64="/wA=")
    del asked["event"]
    assert http.post("/cassata/add/", json=asked).status_code == 201
    assert scheduler.event("shop", "e1")[0].payload == b"\xff\x00"

    assert http.patch("/cassata/event/shop/e1", json={"event-base64": "AAE="}).status_code == 200
    assert scheduler.event("shop", "e1")[0].payload == b"\x00\x01"


@pytest.mark.parametrize("facts", [{"event_base64": "/wA="}, {"event": ..., "event_base64": "/w"}, {"event": ..., "event_base64": None}])
def test_a_body_that_is_no_base64_or_is_given_twice_is_refused(http: FlaskClient, facts: dict[str, Any]) -> None:
    asked = {name: value for name, value in event(**facts).items() if value is not ...}
    refused = http.post("/cassata/add/", json=asked)
    assert refused.status_code == 400
    assert [error["pointer"] for error in refused.json["errors"]] == ["/event-base64"]


def test_a_payload_that_is_not_text_is_shown_as_base64(http: FlaskClient, scheduler: Scheduler) -> None:
    scheduler.add(NewEvent("shop", "http://receiver.example/", delay_ms=60_000, event_id="e1", payload=b"\xff\x00"))

    stored = http.get("/cassata/event/shop/e1").json

    assert stored["event-base64"] == "/wA="
    assert "event" not in stored


def test_a_list_goes_by_expiry_page_by_page(http: FlaskClient) -> None:
    for number in range(5):
        http.post("/cassata/add/", json=event(event_id=f"e{number}", delay=60 * (5 - number)))

    pages, cursor = [], ""
    while cursor is not None:
        page = http.get(f"/cassata/events/shop?limit=2{cursor and f'&cursor={cursor}'}").json
        pages.append([found["event-id"] for found in page["events"]])
        cursor = page["next-cursor"]

    assert pages == [["e4", "e3"], ["e2", "e1"], ["e0"]]


def test_a_cursor_tells_nothing_of_the_rows_of_others(http: FlaskClient) -> None:
    """Neither a row's number, nor how far apart two are: that is how much others have added in between."""
    for number in range(9):
        http.post("/cassata/add/", json=event(event_id=f"e{number}", delay=None, expiry=1_900_000_000))
    sealed, query = [], "limit=1"
    while cursor := http.get(f"/cassata/events/shop?{query}").json["next-cursor"]:
        sealed.append(base64.b64decode(cursor, altchars=b"-_", validate=True))
        query = f"limit=1&cursor={cursor}"

    assert len(sealed) == 8
    assert {len(one) for one in sealed} == {24}
    for one, other in itertools.combinations(sealed, 2):
        assert sum(left == right for left, right in zip(one, other, strict=True)) < 8


def test_a_cursor_that_was_changed_or_given_to_another_is_refused(http: FlaskClient) -> None:
    for application_id in ("shop", "rival"):
        for number in range(2):
            http.post("/cassata/add/", json=event(application_id=application_id, event_id=f"e{number}", delay=60 + number))
    cursor = http.get("/cassata/events/shop?limit=1").json["next-cursor"]
    sealed = base64.urlsafe_b64decode(cursor)

    forged = [sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :] for place in range(len(sealed))]
    for text in ("AAAA" * 8, *(base64.urlsafe_b64encode(each).decode() for each in forged)):
        refused = http.get(f"/cassata/events/shop?cursor={text}")
        assert (refused.status_code, refused.json["errors"][0]["parameter"]) == (400, "cursor")
    assert http.get(f"/cassata/events/rival?cursor={cursor}").status_code == 400
    assert [found["event-id"] for found in http.get(f"/cassata/events/shop?cursor={cursor}").json["events"]] == ["e1"]


def test_a_list_can_be_narrowed_by_status_and_expiry(http: FlaskClient) -> None:
    base = 1_900_000_000
    for number in range(3):
        body = {**{name: value for name, value in EVENT.items() if name != "delay"}, "event-id": f"e{number}", "expiry": base + number}
        assert http.post("/cassata/add/", json=body).status_code == 201
    http.delete("/cassata/delete/shop/e0")

    def found(query: str) -> list[str]:
        return [event["event-id"] for event in http.get(f"/cassata/events/shop?{query}").json["events"]]

    assert found("status=PENDING") == ["e1", "e2"]
    assert found("status=CANCELLED") == ["e0"]
    assert found(f"expiry-from={base + 1}&expiry-until={base + 2}") == ["e1"]
    assert found("expiry-from=2030-03-17T18:46:42%2B01:00") == ["e2"]
    assert found("expiry-from=2030-03-17T18:46:42+01:00") == ["e2"]  # an unescaped plus is a space
    assert found("expiry-until=1900000000.5") == ["e0"]


def test_a_list_can_be_narrowed_by_host_and_by_what_was_answered(http: FlaskClient, scheduler: Scheduler) -> None:
    for number, url in enumerate(["http://one.test/", "https://One.test:8443/", "http://two.test/"]):
        http.post("/cassata/add/", json={**EVENT, "event-id": f"e{number}", "url": url, "delay": 0})
    claimed = scheduler.record_and_claim((), list(scheduler.agenda()), 9, Terms())[1]
    scheduler.record([Outcome(delivery, 0, 1, status_code=200 + int(delivery.event_id[1:])) for delivery in claimed.deliveries])

    def found(query: str) -> list[str]:
        return sorted(event["event-id"] for event in http.get(f"/cassata/events/shop?{query}").json["events"])

    assert found("host=ONE.test") == ["e0", "e1"]
    assert found("host=one.test:8443") == ["e1"]
    assert found("last-status=202&host=two.test") == ["e2"]
    assert found("status=FAILED,PENDING") == []
    assert found("status=FAILED&status=COMPLETED") == ["e0", "e1", "e2"]
    assert found("series=digest") == []
    assert {event["last-status"] for event in http.get("/cassata/events/shop").json["events"]} == {200, 201, 202}


def test_a_cursor_is_good_for_the_filter_that_it_was_given_for(http: FlaskClient) -> None:
    for number in range(3):
        http.post("/cassata/add/", json={**EVENT, "event-id": f"e{number}"})
    cursor = http.get("/cassata/events/shop?limit=1&status=PENDING&host=receiver.example").json["next-cursor"]

    for query in ("", "&status=PENDING", "&host=receiver.example&status=CANCELLED,PENDING"):
        refused = http.get(f"/cassata/events/shop?cursor={cursor}{query}")
        assert (refused.status_code, refused.json["errors"][0]["parameter"]) == (400, "cursor")
    assert len(http.get(f"/cassata/events/shop?host=RECEIVER.example&status=PENDING&cursor={cursor}").json["events"]) == 2


def test_the_cursor_of_a_series_may_be_long(http: FlaskClient, scheduler: Scheduler) -> None:
    place = Cursor(0, 0, "x" * 128)
    cursors = Cursors(scheduler.tenants.keyed_hash, "shop", Filter(series_id="x"))
    written = cursors.written(place)

    assert cursors.read(written) == place
    assert b"xxxx" not in base64.urlsafe_b64decode(written)
    assert http.get(f"/cassata/events/shop?series=x&cursor={written}").json == {"events": [], "next-cursor": None}


# --- changing an event -------------------------------------------------------------------------------------------------


def test_what_is_patched_of_an_event_is_changed_and_nothing_else(http: FlaskClient) -> None:
    http.post("/cassata/add/", json={**EVENT, "timeout": 5, "retry": {"count": 1}, "request-headers": ["A: b"], "max-lateness": 60})
    before = http.get("/cassata/event/shop/e1").json

    answered = http.patch("/cassata/event/shop/e1", json={"eventJson": "new", "timeout": None, "max-lateness": 1.5})

    assert answered.status_code == 200
    found = http.get("/cassata/event/shop/e1").json
    assert found == {**before, "event": "new", "timeout": None, "max-lateness": 1.5, "version": found["version"]}
    assert answered.json.items() <= found.items()
    http.patch("/cassata/event/shop/e1", json={"retry": None, "request-headers": None, "method": "PUT", "url": "http://x/", "event": None})
    found = http.get("/cassata/event/shop/e1").json
    assert (found["retry"], found["request-headers"], found["method"], found["url"], found["event"]) == (
        None,
        [],
        "PUT",
        "http://x/",
        "null",
    )
    http.patch("/cassata/event/shop/e1", json={"expiry": 1_900_000_000, "method": None})
    found = http.get("/cassata/event/shop/e1").json
    assert (found["expiry"], found["next-attempt-at"], found["method"]) == (*["2030-03-17T17:46:40.000Z"] * 2, "POST")


def test_a_change_of_nothing_is_no_new_version(http: FlaskClient) -> None:
    added = http.post("/cassata/add/", json=EVENT)
    for body in ({}, {"event": EVENT["event"]}, {"url": EVENT["url"], "method": "POST"}):
        assert http.patch("/cassata/event/shop/e1", json=body).json == added.json


def test_every_answer_about_an_event_carries_its_version_as_etag(http: FlaskClient) -> None:
    answers = [
        http.post("/cassata/add/", json=EVENT),
        http.put("/cassata/event/shop/e1", json={name: EVENT[name] for name in ("event", "delay", "url")}),
        http.get("/cassata/event/shop/e1"),
        http.get("/cassata/status/shop/e1"),
        http.get("/cassata/status/shop/e1", headers={"Accept": "text/plain"}),
    ]
    assert len({answer.headers["ETag"] for answer in answers}) == 1
    changed = http.patch("/cassata/event/shop/e1", json={"event": "new"})
    assert changed.headers["ETag"] == f'"{changed.json["version"]}"' != answers[0].headers["ETag"]


@pytest.mark.parametrize(
    ("if_match", "status"),
    [("{}", 200), ('"x", {}', 200), ("*", 200), (None, 200), ('"x"', 412), ("W/{}", 412), ("", 412), ('"', 412), ("\xff", 412)],
)
def test_a_change_may_be_guarded_by_a_version(http: FlaskClient, if_match: str | None, status: int) -> None:
    tag = http.post("/cassata/add/", json=EVENT).headers["ETag"]
    headers = {} if if_match is None else {"If-Match": if_match.format(tag)}

    answered = http.patch("/cassata/event/shop/e1", json={"event": "new"}, headers=headers)

    assert answered.status_code == status
    assert (http.get("/cassata/event/shop/e1").json["event"] == "new") == (status == 200)
    if status == 412:
        assert answered.json["type"] == "urn:cassata:problem:event-changed"
        # What is asked for already is so, whoever has changed it: a request whose answer was lost may be repeated.
        assert http.patch("/cassata/event/shop/e1", json={"event": EVENT["event"]}, headers=headers).status_code == 200


def test_the_version_of_a_deleted_event_is_not_that_of_the_next_one_with_its_id(http: FlaskClient, scheduler: Scheduler) -> None:
    tag = http.post("/cassata/add/", json=EVENT).headers["ETag"]
    http.delete("/cassata/delete/shop/e1")
    first = scheduler.event("shop", "e1")[0]
    while scheduler.clock.estimate() == first.created_at:
        pass
    again = http.post("/cassata/add/", json=EVENT)
    assert (again.status_code, again.headers["ETag"] != tag) == (201, True)
    assert http.patch("/cassata/event/shop/e1", json={"event": "new"}, headers={"If-Match": tag}).status_code == 412


def test_an_event_that_does_not_wait_cannot_be_changed(http: FlaskClient, scheduler: Scheduler) -> None:
    def answer() -> tuple[int, str, str | None]:
        refused = http.patch("/cassata/event/shop/e1", json={"event": "new"})
        return refused.status_code, refused.json["type"].rpartition(":")[2], refused.json.get("event-status")

    assert answer() == (404, "unknown-event", None)
    http.post("/cassata/add/", json={**EVENT, "delay": 0})
    (delivery,) = scheduler.record_and_claim((), list(scheduler.agenda()), 9, Terms())[1].deliveries
    assert answer() == (409, "event-under-way", "PROCESSING")
    scheduler.record([Outcome(delivery, 0, 1, status_code=200)])
    assert answer() == (409, "event-finished", "COMPLETED")


@pytest.mark.parametrize(
    ("document", "pointers"),
    [
        ([], [""]),
        ({"expiry": None, "delay": None, "url": None}, ["/delay", "/expiry", "/url"]),
        ({"expiry": 1_900_000_000, "delay": 5}, ["/delay"]),
        ({"destinationUrl": "ftp://x/"}, ["/destinationUrl"]),
        ({"url": "http://x/", "destinationUrl": "http://y/"}, ["/url"]),  # in the order of their names
        ({"expiry": 1_724_141_245_000}, ["/expiry"]),
        ({"delay": 10**9}, ["/delay"]),
        ({"expiry": "2999-01-01T00:00:00Z"}, ["/expiry"]),
        ({"event-id": "e2"}, ["/event-id"]),
        ({"status": "COMPLETED"}, ["/status"]),
        ({"retry": {"count": -1, "x": 1}, "timeout": 0, "max-lateness": 0}, ["/max-lateness", "/retry/count", "/retry/x", "/timeout"]),
        ({"headers": ["Host: x"]}, ["/headers/0"]),
        ({"request-headers": ["A: " + "b" * 9000]}, ["/request-headers"]),
        ({"method": "TRACE"}, ["/method"]),
        ({"eventJson": "x" * 300_000}, ["/eventJson"]),
    ],
)
def test_a_wrong_change_is_named_and_changes_nothing(http: FlaskClient, document: Any, pointers: list[str]) -> None:
    http.post("/cassata/add/", json=EVENT)
    before = http.get("/cassata/event/shop/e1").json

    refused = http.patch("/cassata/event/shop/e1", json=document)

    assert refused.status_code == (413 if "eventJson" in str(document)[:20] else 400)
    assert sorted(error["pointer"] for error in refused.json["errors"]) == pointers
    assert http.get("/cassata/event/shop/e1").json == before


def test_what_an_application_may_not_have_any_more_it_may_keep(http: FlaskClient, scheduler: Scheduler) -> None:
    http.post("/cassata/add/", json={**EVENT, "event": "x" * 100})
    scheduler.tenants.change("shop", Changes(limits={"payload_bytes": 10, "horizon_ms": 60_000}))

    assert http.patch("/cassata/event/shop/e1", json={"url": "http://x/"}).status_code == 200
    assert http.patch("/cassata/event/shop/e1", json={"event": "y" * 11}).status_code == 413
    assert http.patch("/cassata/event/shop/e1", json={"delay": 61}).status_code == 400


def test_the_request_that_added_an_event_is_the_same_after_a_change(http: FlaskClient) -> None:
    body = {name: EVENT[name] for name in ("event", "delay", "url")}
    http.put("/cassata/event/shop/e1", json=body)
    changed = http.patch("/cassata/event/shop/e1", json={"event": "new"})

    again = http.put("/cassata/event/shop/e1", json=body)
    assert (again.status_code, again.json) == (200, changed.json)


def test_an_application_without_events_has_an_empty_list(http: FlaskClient) -> None:
    assert http.get("/cassata/events/nobody").json == {"events": [], "next-cursor": None}


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("foo=1", "foo"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=%D9%A1", "limit"),
        ("limit=1&limit=2", "limit"),
        ("status=pending", "status"),
        ("status=", "status"),
        ("expiry-from=yesterday", "expiry-from"),
        ("expiry-from=1724141245000", "expiry-from"),
        ("expiry-until=2030-01-01T00:00:00", "expiry-until"),
        ("expiry-until=1e400", "expiry-until"),
        ("status=PENDING,", "status"),
        ("status=PENDING&status=GONE", "status"),
        ("host=", "host"),
        ("host=one.test/hook", "host"),
        ("host=http://one.test", "host"),
        ("host=user@one.test", "host"),
        ("host=one.test:0", "host"),
        ("host=one.test:99999", "host"),
        ("host=a&host=b", "host"),
        ("host=" + "a" * 5000, "host"),
        ("host=[", "host"),
        ("host=%D9%A1", "host"),
        ("last-status=99", "last-status"),
        ("last-status=2xx", "last-status"),
        ("last-status=" + "9" * 5000, "last-status"),
        ("series=a%20b", "series"),
        ("series=" + "a" * 112, "series"),
        ("cursor=!!", "cursor"),
        ("cursor=MQ==", "cursor"),
        ("cursor=" + "A" * 5000, "cursor"),
        ("cursor=OTk5OTk5OTk5OTk5OTk5OTk5OTk5LjE=", "cursor"),
        ("cursor=%C3%A4", "cursor"),
    ],
)
def test_a_wrong_parameter_of_a_list_is_named(http: FlaskClient, query: str, parameter: str) -> None:
    refused = http.get(f"/cassata/events/shop?{query}")

    assert refused.status_code == 400
    assert [error["parameter"] for error in refused.json["errors"]] == [parameter]


def test_answers_are_never_cached(http: FlaskClient) -> None:
    assert http.get("/cassata/events/shop").headers["Cache-Control"] == "no-store"


def test_a_service_lives_and_is_ready_until_it_drains(scheduler: Scheduler) -> None:
    told_to_end = False
    http = create_app(scheduler, Service(), draining=lambda: told_to_end).test_client()
    assert [http.get(path).status_code for path in ("/livez", "/readyz")] == [200, 200]

    told_to_end = True

    answers = [http.get(path) for path in ("/livez", "/readyz")]
    assert [answer.status_code for answer in answers] == [200, 503]
    assert answers[1].content_type == "application/problem+json"


def test_a_page_of_another_site_may_do_nothing_where_no_key_is_needed(http: FlaskClient) -> None:
    """A browser on this machine reaches what listens on loopback, and sends on what any page asks for."""
    for method, path in (
        ("POST", "/cassata/applications/shop/deactivate"),
        ("GET", "/cassata/delete/shop/e1"),
        ("GET", "/cassata/events/shop"),
    ):
        answer = http.open(path, method=method, headers={"Sec-Fetch-Site": "cross-site"})
        assert (answer.status_code, answer.json["type"]) == (403, "urn:cassata:problem:cross-site")

    assert http.get("/cassata/events/shop", headers={"Sec-Fetch-Site": "none"}).status_code == 200
    assert http.get("/livez", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("evil.example:8085", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.nip.io:8085", 403),
        ("evil.example:80@localhost", 403),
        ("0.0.0.0:8085", 403),
        ("10.0.0.1", 403),
        ("[::2]", 403),
        ("localhost:", 403),
        ("", 403),
        ("localhost", 200),
        ("LocalHost:1", 200),
        ("127.0.0.1:8085", 200),
        ("127.9.9.9", 200),
        ("[::1]:8085", 200),
    ],
)
def test_where_no_key_is_needed_only_this_machines_own_names_are_answered(http: FlaskClient, host: str, status: int) -> None:
    """What `evil.example` is the name of may become 127.0.0.1 while its page is open: DNS rebinding."""
    for method, path in (("GET", "/cassata/applications"), ("POST", "/cassata/keys"), ("GET", "/cassata/nowhere")):
        answer = http.open(path, method=method, headers={"Host": host})
        assert (answer.status_code == 403) is (status == 403), path
    assert http.get("/livez", headers={"Host": host}).status_code == 200


def test_who_asks_by_another_name_is_told_what_to_do(http: FlaskClient, scheduler: Scheduler) -> None:
    refused = http.get("/cassata/applications", headers={"Host": "cassata.example.com"})
    assert refused.json["type"] == "urn:cassata:problem:cross-site"
    assert "set service.authentication to 'required', and send a key" in refused.json["detail"]

    token = scheduler.tenants.create_key(None, {Scope.ADMIN})[1]
    headers = {"Host": "cassata.example.com", "Authorization": f"Bearer {token}"}
    assert http.get("/cassata/applications", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://evil.example", 403),
        ("null", 403),
        ("", 403),
        ("http://localhost:3000", 403),
        ("https://localhost:8085", 403),
        ("http://127.0.0.1:8085", 403),
        ("http://localhost:8085, http://evil.example", 403),
        ("http://localhost:8085", 201),
    ],
)
def test_where_no_key_is_needed_a_page_of_another_origin_posts_nothing(http: FlaskClient, origin: str, status: int) -> None:
    """Neither does a form without a body, for which no browser asks beforehand."""
    assert http.post("/cassata/keys", headers={"Host": "localhost:8085", "Origin": origin}).status_code == status


def test_a_service_that_asks_for_keys_answers_to_any_name(scheduler: Scheduler) -> None:
    guarded = create_app(scheduler, Service(authentication="required")).test_client()
    token = scheduler.tenants.create_key(None, {Scope.ADMIN})[1]
    headers = {"Host": "cassata.example.com", "Origin": "https://console.example.com", "Authorization": f"Bearer {token}"}
    assert guarded.get("/cassata/applications", headers=headers).status_code == 200
    assert guarded.get("/cassata/applications", headers={"Host": "evil.example"}).status_code == 401
