"""The calls about work on many events, on every database."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from cassata.config import Service
from cassata.model import Scope, Status
from cassata.scheduler import Scheduler
from cassata.service import create_app
from tests.words import NOON, new_event

FILTER = {"status": "PENDING", "expiry-from": 0}


@pytest.fixture(autouse=True)
def events(scheduler: Scheduler) -> None:
    scheduler.add_all([new_event(f"e{number}", due_at=NOON + number) for number in range(5)])


def bulk(http: FlaskClient, action: str = "cancel", **fields: Any) -> Any:
    return http.post("/cassata/bulk/shop", json={"action": action, "filter": FILTER, **fields})


def carry_out(scheduler: Scheduler) -> None:
    while scheduler.operations.step(events_per_second=1_000_000_000):
        pass


def statuses(scheduler: Scheduler) -> set[Status]:
    return {event.status for event in scheduler.events("shop").events}


def test_events_are_counted_and_nothing_is_begun(http: FlaskClient, scheduler: Scheduler) -> None:
    answer = bulk(http, preview=True)

    assert (answer.status_code, answer.json) == (200, {"expected": 5, "exact": True, "statuses": {"PENDING": 5}})
    assert http.get("/cassata/bulk/shop").json == {"operations": [], "next-cursor": None}


def test_an_operation_is_begun_followed_and_done(http: FlaskClient, scheduler: Scheduler) -> None:
    begun = bulk(http)

    assert begun.status_code == 202
    assert (begun.json["status"], begun.json["expected"], begun.json["changed"]) == ("RUNNING", 5, 0)
    carry_out(scheduler)
    done = http.get(begun.headers["Location"]).json
    assert (done["status"], done["changed"], done["skipped"]) == ("DONE", 5, 0)
    assert done["finished-at"] is not None
    assert statuses(scheduler) == {Status.CANCELLED}
    gone = http.delete(begun.headers["Location"])
    assert (gone.status_code, gone.json["type"]) == (409, "urn:cassata:problem:operation-finished")


def test_an_operation_can_be_stopped(http: FlaskClient, scheduler: Scheduler) -> None:
    begun = bulk(http)

    for _ in range(2):
        stopped = http.delete(begun.headers["Location"])
        assert (stopped.status_code, stopped.json["status"]) == (200, "CANCELLED")

    carry_out(scheduler)
    assert statuses(scheduler) == {Status.PENDING}


def test_an_operation_with_an_id_of_its_own_is_begun_once(http: FlaskClient) -> None:
    first = bulk(http, **{"operation-id": "op-1"})

    assert bulk(http, **{"operation-id": "op-1"}).json == first.json
    other = bulk(http, "reconcile", filter={"expiry-from": 0}, **{"operation-id": "op-1"})
    assert (other.status_code, other.json["type"]) == (409, "urn:cassata:problem:operation-exists")


def test_operations_are_listed_page_by_page(http: FlaskClient) -> None:
    for number in range(5):
        bulk(http, **{"operation-id": f"op-{number}"})

    first = http.get("/cassata/bulk/shop?limit=3").json
    rest = http.get(f"/cassata/bulk/shop?limit=3&cursor={first['next-cursor']}").json

    assert [each["operation-id"] for each in first["operations"] + rest["operations"]] == [f"op-{number}" for number in (4, 3, 2, 1, 0)]
    assert rest["next-cursor"] is None


@pytest.mark.parametrize(("written", "seconds"), [(-90, -90), ("90", 90), ("-90", -90), ("+1h30m", 5_400), ("-PT15M", -900)])
def test_a_shift_is_a_duration_with_a_sign(http: FlaskClient, written: object, seconds: int) -> None:
    assert bulk(http, "reschedule", shift=written).json["shift"] == seconds


@pytest.mark.parametrize(
    ("fields", "pointer", "said"),
    [
        ({"action": None}, "/action", "must be one of cancel, retry, reconcile, reschedule, remove"),
        ({"action": "delete"}, "/action", "must be one of cancel, retry, reconcile, reschedule, remove"),
        ({"filter": None}, "/filter", "must be an object, not null"),
        ({"filter": []}, "/filter", "must be an object, not an array"),
        ({"filter": {}}, "/filter", "must not be empty: say which events are meant"),
        ({"filter": {"status": []}}, "/filter/status", "must be one of PENDING"),
        ({"filter": {"status": "pending"}}, "/filter/status", "must be one of PENDING"),
        ({"filter": {"status": ["PENDING", 7]}}, "/filter/status/1", "must be one of PENDING"),
        ({"filter": {"status": ["COMPLETED"]}}, "/filter/status", "names nothing that can be done to"),
        ({"filter": {"stat": "PENDING"}}, "/filter/stat", "is not a field: did you mean 'status'?"),
        ({"filter": {"expiry-from": "soon"}}, "/filter/expiry-from", "must be seconds since 1970, or ISO 8601"),
        ({"filter": {"expiry-from": 5, "expiry-until": 5}}, "/filter/expiry-until", "must be later than the beginning"),
        ({"filter": {"host": "http://x/"}}, "/filter/host", "must be a host such as"),
        ({"filter": {"host": 5}}, "/filter/host", "must be a string, not a number"),
        ({"filter": {"last-status": "503"}}, "/filter/last-status", "must be a whole number, not a string"),
        ({"filter": {"last-status": 5}}, "/filter/last-status", "must be a status code"),
        ({"filter": {"series": "a b"}}, "/filter/series", "must be 1 to 111 characters"),
        ({"filter": {"series": "nobody"}}, "/filter/series", "is not the id of a series"),
        ({"action": "reschedule"}, "/expiry", "give either an instant or a shift"),
        ({"action": "reschedule", "expiry": 1_900_000_000, "shift": 5}, "/expiry", "give either an instant or a shift"),
        ({"action": "reschedule", "shift": "soon"}, "/shift", "must be seconds, or a duration such as"),
        ({"action": "reschedule", "shift": 0}, "/shift", "must be from"),
        ({"action": "reschedule", "expiry": 200_000_000_000_000}, "/expiry", "is too large"),
        ({"action": "reschedule", "expiry": "2300-01-01T00:00:00Z"}, "/expiry", "must not lead more than"),
        ({"shift": 5}, "/shift", "goes with the action reschedule only"),
        ({"operation-id": "a/b"}, "/operation-id", "must be 1 to 64 characters"),
        ({"preview": "yes"}, "/preview", "must be true or false, not a string"),
        ({"previw": True}, "/previw", "is not a field: did you mean 'preview'?"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_begun(http: FlaskClient, fields: dict[str, Any], pointer: str, said: str) -> None:
    answer = http.post("/cassata/bulk/shop", json={"action": "cancel", "filter": FILTER, **fields})

    assert answer.status_code == 400, answer.json
    (error,) = answer.json["errors"]
    assert error["pointer"] == pointer
    assert error["detail"].startswith(said)
    assert http.get("/cassata/bulk/shop").json["operations"] == []


def test_what_does_not_exist_is_not_found(http: FlaskClient) -> None:
    for path in ("/cassata/bulk/nobody", "/cassata/bulk/nobody/op", "/cassata/bulk/a b"):
        answer = http.get(path)
        assert (answer.status_code, answer.json["type"]) == (404, "urn:cassata:problem:unknown-application"), path
    for path in ("/cassata/bulk/shop/nobody", "/cassata/bulk/shop/a b"):
        for method in ("GET", "DELETE"):
            answer = http.open(path, method=method)
            assert (answer.status_code, answer.json["type"]) == (404, "urn:cassata:problem:unknown-operation"), path
    assert http.get("/cassata/bulk/shop?cursor=nobody").json["errors"][0]["parameter"] == "cursor"
    assert http.get("/cassata/bulk/shop?limit=0").json["errors"][0]["parameter"] == "limit"


def test_a_failed_event_is_retried(http: FlaskClient, scheduler: Scheduler) -> None:
    http.delete("/cassata/delete/shop/e1")

    retried = http.post("/cassata/event/shop/e1/retry")

    assert (retried.status_code, retried.json["status"]) == (200, "PENDING")
    assert http.post("/cassata/event/shop/e1/retry").json == retried.json
    shown = http.get("/cassata/event/shop/e1").json
    assert shown["replayed-at"] is not None
    assert [(line["number"], line["error"]) for line in shown["attempt-log"]] == [(0, "replayed")]
    refused = http.post("/cassata/event/shop/e2/retry")
    assert (refused.status_code, refused.json["type"]) == (409, "urn:cassata:problem:event-not-retryable")
    assert refused.json["event-status"] == "PENDING"
    for path in ("/cassata/event/shop/nobody/retry", "/cassata/event/nobody/e1/retry", "/cassata/event/shop/a b/retry"):
        assert http.post(path).status_code == 404, path


def test_a_key_may_do_what_its_scopes_say_and_reaches_no_other_application(scheduler: Scheduler) -> None:
    guarded = create_app(scheduler, Service(authentication="required")).test_client()
    scheduler.add(new_event(application_id="other"))

    def code(application_id: str, scope: Scope, method: str, path: str) -> int:
        token = scheduler.tenants.create_key(application_id, [scope])[1]
        body = {"action": "cancel", "filter": FILTER, "preview": True} if method == "POST" else None
        return guarded.open(path, method=method, json=body, headers={"Authorization": f"Bearer {token}"}).status_code

    for method, path, scope, good in [
        ("POST", "/cassata/bulk/shop", Scope.PUBLISH, 200),
        ("GET", "/cassata/bulk/shop", Scope.READ, 200),
        ("GET", "/cassata/bulk/shop/op", Scope.READ, 404),
        ("DELETE", "/cassata/bulk/shop/op", Scope.PUBLISH, 404),
        ("POST", "/cassata/event/shop/e1/retry", Scope.PUBLISH, 409),
    ]:
        other = Scope.READ if scope is Scope.PUBLISH else Scope.PUBLISH
        assert [code("shop", scope, method, path), code("shop", other, method, path), code("other", scope, method, path)] == [
            good,
            403,
            404,
        ], path
