"""Whatever goes wrong is told in one form, and names every place."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cassata import errors, telemetry
from cassata.config import Service
from cassata.model import Limits
from cassata.scheduler import Scheduler
from cassata.service import create_app, problems

GOOD = {"application-id": "shop", "event-id": "e1", "event": "x", "delay": 60, "url": "http://receiver.example/"}
FUZZED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def scheduler(sqlite_scheduler: Scheduler) -> Scheduler:
    return sqlite_scheduler


def changed(**changes: Any) -> dict[str, Any]:
    fields = {**GOOD, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return {name: value for name, value in fields.items() if value is not ...}


@pytest.mark.parametrize(
    ("document", "pointers"),
    [
        ({}, ["/application-id", "/event", "/expiry", "/url"]),
        ([], [""]),
        ("x", [""]),
        (None, [""]),
        (changed(application_id="a b"), ["/application-id"]),
        (changed(application_id="a" * 65), ["/application-id"]),
        (changed(application_id=7), ["/application-id"]),
        (changed(event_id=""), ["/event-id"]),
        (changed(event_id="ä"), ["/event-id"]),
        (changed(event_id=".."), ["/event-id"]),
        (changed(event=...), ["/event"]),
        (changed(event=..., method="PATCH"), ["/event"]),
        (changed(url="ftp://receiver.example/"), ["/url"]),
        (changed(url="http://user:word@receiver.example/"), ["/url"]),
        (changed(url="http:///x"), ["/url"]),
        (changed(url="http://a..b/"), ["/url"]),
        (changed(url="http://receiver.example:99999/"), ["/url"]),
        (changed(url=f"http://{'a' * 64}.example/"), ["/url"]),
        (changed(url="http://receiver.example/\r\nX: y"), ["/url"]),
        (changed(url=...), ["/url"]),
        (changed(url=None), ["/url"]),
        (changed(delay=-1), ["/delay"]),
        (changed(delay="60"), ["/delay"]),
        (changed(delay=True), ["/delay"]),
        (changed(delay=1e308), ["/delay"]),
        (changed(delay=10**9), ["/delay"]),
        (changed(expiry=1_900_000_000), ["/delay"]),
        (changed(delay=..., expiry=1_724_141_245_000), ["/expiry"]),
        (changed(delay=..., expiry=10**4000), ["/expiry"]),
        (changed(delay=..., expiry=1e308), ["/expiry"]),
        (changed(delay=..., expiry=-1), ["/expiry"]),
        (changed(delay=..., expiry="now"), ["/expiry"]),
        (changed(delay=..., expiry="1900000000"), ["/expiry"]),
        (changed(delay=..., expiry="2030-01-01T00:00:00"), ["/expiry"]),
        (changed(delay=..., expiry="9999-12-31T23:59:59Z"), ["/expiry"]),
        (changed(delay=..., expiry=True), ["/expiry"]),
        (changed(method="GE T"), ["/method"]),
        (changed(method="post"), ["/method"]),
        (changed(method="TRACE"), ["/method"]),
        (changed(request_headers="A: b"), ["/request-headers"]),
        (changed(request_headers=["A: b", "no colon", "A\r\nB: c", ": x", "A : b", 7]), [f"/request-headers/{n}" for n in (1, 2, 3, 5)]),
        (changed(request_headers=["Host: x", "Cassata-Attempt: 1", "webhook-id: 1"]), [f"/request-headers/{n}" for n in (0, 1, 2)]),
        (changed(request_headers=["A: b\x00", "A: \u4f60"]), ["/request-headers/0", "/request-headers/1"]),
        (changed(request_headers={"A": ["b", 7], "B": None, "x/y~": "c"}), [f"/request-headers/{n}" for n in ("A/1", "B", "x~1y~0")]),
        (changed(request_headers=["A: b"] * 33), ["/request-headers"]),
        (changed(request_headers=["A: " + "b" * 9000]), ["/request-headers"]),
        (changed(timeout=0), ["/timeout"]),
        (changed(timeout=3601), ["/timeout"]),
        (changed(timeout="5"), ["/timeout"]),
        (changed(max_lateness=0.9), ["/max-lateness"]),
        (changed(max_lateness="1h"), ["/max-lateness"]),
        (changed(max_lateness=10**400), ["/max-lateness"]),
        (changed(retry=3), ["/retry"]),
        (changed(retry={"count": 1.5, "initial": -1}), ["/retry/count", "/retry/initial"]),
        (changed(retry={"multiplier": 0.5, "maximum": "x"}), ["/retry/maximum", "/retry/multiplier"]),
        (changed(retry={"cuont": 1}), ["/retry/cuont"]),
        (changed(retry={"on": "never"}), ["/retry/on"]),
        (changed(retry={"count": 10**400, "multiplier": 10**400}), ["/retry/count", "/retry/multiplier"]),
        (changed(prioritee=1), ["/prioritee"]),
        (changed(eventId="e2"), ["/eventId"]),
        (changed(url=..., destinationUrl="ftp://x/"), ["/destinationUrl"]),
        (changed(application_id=..., application="a b", httpMethod="x", headers=["x"]), ["/application", "/headers/0", "/httpMethod"]),
        (changed(event="x" * 300_000, delay=60), ["/event"]),
        (changed(event=..., eventJson="x" * 300_000), ["/eventJson"]),
    ],
)  # fmt: skip
def test_every_problem_is_named_by_a_pointer_to_what_the_client_wrote(http: FlaskClient, document: Any, pointers: list[str]) -> None:
    refused = http.post("/cassata/add/", data=json.dumps(document), content_type="application/json")

    assert refused.status_code == (413 if "is 300000 bytes" in refused.text else 400)
    assert sorted(error["pointer"] for error in refused.json["errors"]) == pointers
    assert_is_a_problem(refused)


@pytest.mark.parametrize(
    ("document", "hint"),
    [
        (changed(delay=..., expiry=1_724_141_245_000), "looks like milliseconds: write seconds, 1724141245"),
        (changed(delay=..., expiry=1_724_141_245_123.0), "looks like milliseconds: write seconds, 1724141245.123"),
        (changed(delay=..., expiry="2030-01-01T00:00:00"), "add 'Z'"),
        (changed(delay=..., expiry="1900000000"), "without quotes"),
        (changed(event=...), 'write "" for an empty body'),
        (changed(methid="POST"), "did you mean 'method'?"),
        (changed(eventid="x"), "did you mean 'event-id'?"),
        (changed(request_header=[]), "did you mean 'request-headers'?"),
        (changed(destination_url="x"), "did you mean 'url'?"),
    ],
)
def test_a_refusal_says_what_to_write_instead(http: FlaskClient, document: Any, hint: str) -> None:
    assert hint in http.post("/cassata/add/", json=document).json["errors"][0]["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b"{",
        b"{'a': 1}",
        b'{"a": 1,}',
        b"\xef\xbb\xbf{}",
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"event": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e400}',
        b'{"a": -1e400}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 1, "a": 1}',
        b'{"event": {"a": 1, "a": 1}}',
        b"[" * 100_000,
        b'{"event": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        '{"a": 1}'.encode("utf-16"),
        b'{"a": "\x00"}',
        b"{} {}",
    ],
    ids=lambda body: repr(body[:24]),
)
@pytest.mark.parametrize("call", ["POST /cassata/add/", "PUT /cassata/event/shop/e1", "POST /cassata/add/batch"])
def test_what_is_not_json_is_a_bad_request(http: FlaskClient, call: str, body: bytes) -> None:
    method, path = call.split()

    refused = http.open(path, method=method, data=body, content_type="application/json")

    assert refused.status_code == 400
    assert refused.json["type"] == "urn:cassata:problem:malformed-json"
    assert_is_a_problem(refused)


def test_malformed_json_is_shown_where_it_breaks_off(http: FlaskClient) -> None:
    refused = http.post("/cassata/add/", data=b'{"a": 1,\n  b}', content_type="application/json")

    assert refused.json["detail"].endswith("at line 2, column 3.")


def test_deep_nesting_within_reason_is_accepted_and_sent_on(http: FlaskClient) -> None:
    deep = "[" * 31 + "]" * 31

    http.post("/cassata/add/", data=json.dumps(changed(event=None)).replace("null", deep), content_type="application/json")

    assert http.get("/cassata/event/shop/e1").json["event"] == deep


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "application/x-ndjson", "application/json; charset=latin-1"],
)
def test_a_body_of_another_type_is_unsupported(http: FlaskClient, content_type: str | None) -> None:
    refused = http.post("/cassata/add/", data=json.dumps(GOOD), content_type=content_type)

    assert refused.status_code == 415
    assert_is_a_problem(refused)


@pytest.mark.parametrize("content_type", ["application/json", "application/JSON; charset=UTF-8", "application/vnd.shop+json"])
def test_a_body_of_any_json_type_is_read(http: FlaskClient, content_type: str) -> None:
    assert http.post("/cassata/add/", data=json.dumps(GOOD), content_type=content_type).status_code == 201


def test_a_compressed_body_is_unsupported(http: FlaskClient) -> None:
    headers = {"Content-Encoding": "gzip"}
    assert http.post("/cassata/add/", data=b"\x1f\x8b", content_type="application/json", headers=headers).status_code == 415


def test_a_body_over_the_limit_is_refused_before_it_is_read(scheduler: Scheduler) -> None:
    http = create_app(scheduler, Service(maxRequestBytes=2000)).test_client()

    class Unread:
        def read(self, *_: object) -> bytes:
            raise AssertionError("the body was read")

    body = {"wsgi.input": Unread(), "CONTENT_LENGTH": "2001"}
    refused = http.post("/cassata/add/", content_type="application/json", environ_overrides=body)

    assert refused.status_code == 413
    assert_is_a_problem(refused)


@pytest.mark.parametrize(("length", "status"), [(1999, 201), (2000, 413), (2001, 413), (10_000, 413)])
def test_a_chunked_body_over_the_limit_is_refused_and_never_cut_off(scheduler: Scheduler, length: int, status: int) -> None:
    http = create_app(scheduler, Service(maxRequestBytes=2000)).test_client()
    body = json.dumps(GOOD).encode().ljust(length)  # blanks: what is left after a cut would still be JSON
    chunked = {"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}

    answer = http.post("/cassata/add/", content_type="application/json", environ_overrides=chunked)

    assert answer.status_code == status


def test_the_limits_of_the_installation_are_kept(sqlite_url: str) -> None:
    scheduler = Scheduler.open(sqlite_url, limits=Limits(payload_bytes=10, header_bytes=30, horizon_ms=60_000))
    http = create_app(scheduler, Service()).test_client()

    assert http.post("/cassata/add/", json=changed(event="x" * 10, request_headers=["Content-Type: x"])).status_code == 201
    refusals = [changed(event="x" * 11), changed(request_headers=["Content-Type: " + "x" * 19]), changed(delay=61)]
    answers = [http.post("/cassata/add/", json={**refusal, "event-id": "e2"}) for refusal in refusals]
    scheduler.close()

    assert [answer.status_code for answer in answers] == [413, 400, 400]
    assert [answer.json["errors"][0]["pointer"] for answer in answers] == ["/event", "/request-headers", "/delay"]


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("GET", "/", 404, None),
        ("GET", "/cassata", 404, None),
        ("GET", "/cassata/status/shop", 404, None),
        ("GET", "/cassata//status/shop/e1", 404, None),
        ("GET", "/cassata/status/shop/a%2Fb", 404, None),
        ("GET", "/cassata/add/", 405, {"OPTIONS", "POST"}),
        ("DELETE", "/cassata/event/shop/e1", 405, {"GET", "HEAD", "OPTIONS", "PATCH", "PUT"}),
        ("POST", "/cassata/delete/shop/e1", 405, {"DELETE", "GET", "HEAD", "OPTIONS"}),
        ("BREW", "/livez", 405, {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_an_unknown_address_and_a_wrong_method_are_told_in_the_same_form(
    http: FlaskClient, method: str, path: str, status: int, allowed: set[str] | None
) -> None:
    refused = http.open(path, method=method)

    assert refused.status_code == status
    assert ({*refused.headers["Allow"].split(", ")} if "Allow" in refused.headers else None) == allowed
    assert_is_a_problem(refused)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/cassata/statuss/a/b", "/cassata/status/{app}/{event}"),
        ("/cassata/status/a", "/cassata/status/{app}/{event}"),
        ("/cassata/event", "/cassata/event/{app}/{event}"),
        (f"/casata/delete/{'a' * 64}/{'b' * 128}", "/cassata/delete/{app}/{event}"),
        ("/ready", "/readyz"),
        ("/", None),
        ("/favicon.ico", None),
        ("/other/thing/a/b", None),
        (f"/cassata/{'s' * 3000}", None),
        ("/" * 3000, None),
    ],
    ids=lambda value: str(value)[:24],
)
def test_an_unknown_address_names_the_route_that_is_like_it(http: FlaskClient, path: str, meant: str | None) -> None:
    told = f"There is nothing at this address: did you mean {meant}?" if meant else "There is nothing at this address."
    assert http.get(path).json["detail"] == told


def test_a_wrong_method_names_those_that_are_right(http: FlaskClient) -> None:
    refused = http.get("/cassata/add/")
    assert refused.json["detail"] == "This address does not take that method: it takes OPTIONS, POST."


def test_only_the_status_of_no_event_says_that_it_may_be_cancelled(http: FlaskClient) -> None:
    details = {call: http.get(f"/cassata/{call}/shop/none").json["detail"] for call in ("status", "event", "delete")}
    assert details.pop("status") == "There is no such event, or it was cancelled."
    assert set(details.values()) == {"No event with this id exists in this application."}


CALLS = [
    ("add", lambda http: http.post("/cassata/add/", json=GOOD)),
    ("add_all", lambda http: http.post("/cassata/add/batch", json=[GOOD])),
    ("put", lambda http: http.put("/cassata/event/shop/e1", json=GOOD)),
    ("cancel", lambda http: http.delete("/cassata/delete/shop/e1")),
    ("status", lambda http: http.get("/cassata/status/shop/e1")),
    ("event", lambda http: http.get("/cassata/event/shop/e1")),
    ("events", lambda http: http.get("/cassata/events/shop")),
    ("check_ready", lambda http: http.get("/readyz")),
]


@pytest.mark.parametrize(("use_case", "call"), CALLS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (errors.DatabaseUnavailable("Access denied for user 'canary'"), 503, "1"),
        (errors.TablesMissing("canary"), 503, None),
        (errors.CassataError("canary"), 500, None),
        (ZeroDivisionError("canary"), 500, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_inside_tells_the_client_what_to_do_and_nothing_of_the_database(
    http: FlaskClient,
    scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
    use_case: str,
    call: Callable[[FlaskClient], Any],
    error: Exception,
    status: int,
    retry_after: str | None,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(scheduler, use_case, fail)

    answer = call(http)

    assert (answer.status_code, answer.headers.get("Retry-After")) == (status, retry_after)
    assert "canary" not in answer.text
    assert "Traceback" not in answer.text
    assert_is_a_problem(answer)


def test_a_fault_of_the_service_is_reported_to_its_operator_without_the_values(
    http: FlaskClient, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, dict[str, Any]]] = []

    def fail(*_: object) -> None:
        raise ZeroDivisionError("CANARY".lower())

    def subscriber(name: str, facts: dict[str, Any]) -> None:
        told.append((name, facts))

    monkeypatch.setattr(scheduler, "status", fail)
    telemetry.subscribe(subscriber)
    try:
        http.get("/cassata/status/shop/e1")
    finally:
        telemetry.unsubscribe(subscriber)

    [(_, facts)] = [fact for fact in told if fact[0] == "internal error"]
    assert (facts["error"], facts["route"]) == ("ZeroDivisionError", "/cassata/status/<application_id>/<event_id>")
    assert "in fail" in facts["traceback"]
    assert "canary" not in str(facts)


def test_every_error_that_a_scheduler_raises_has_its_number() -> None:
    raised = (errors.UnknownEvent, errors.DuplicateEvent, errors.EventFinished, errors.DatabaseUnavailable, errors.TablesTooNew)
    assert [problems.kind_of(kind.__new__(kind)).status for kind in raised] == [404, 409, 409, 503, 503]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
FIELDS = ["application-id", "event-id", "event", "expiry", "delay", "url", "method", "request-headers", "timeout", "retry"]
NEAR_MISSES = st.dictionaries(st.sampled_from([*FIELDS, "application", "eventId", "count", "events"]), JSON, max_size=6)

PARAMETERS = st.text(max_size=8) | st.sampled_from(["limit", "cursor", "expiry-from"])


@FUZZED
@given(document=JSON | NEAR_MISSES | NEAR_MISSES.map(lambda fields: {**GOOD, **fields}))
def test_any_json_gets_an_answer_and_never_an_internal_error(http: FlaskClient, document: Any) -> None:
    body = json.dumps(document, allow_nan=True)
    for path, method in (("/cassata/add/", "POST"), ("/cassata/add/batch", "POST"), ("/cassata/event/shop/f1", "PUT")):
        assert_is_answered(http.open(path, method=method, data=body, content_type="application/json"))


@FUZZED
@given(body=st.binary(max_size=200), content_type=st.sampled_from(["application/json", "application/x-ndjson", "text/plain", "a/b+json"]))
def test_any_bytes_get_an_answer_and_never_an_internal_error(http: FlaskClient, body: bytes, content_type: str) -> None:
    for path, method in (("/cassata/add/", "POST"), ("/cassata/add/batch", "POST"), ("/cassata/event/shop/f1", "PUT")):
        assert_is_answered(http.open(path, method=method, data=body, content_type=content_type))


@FUZZED
@given(path=st.text(max_size=30), query=st.dictionaries(PARAMETERS, st.text(max_size=20), max_size=3))
def test_any_address_gets_an_answer_and_never_an_internal_error(app: Flask, path: str, query: dict[str, str]) -> None:
    from urllib.parse import quote

    http = app.test_client()
    for call in ("events", "status/shop", "event/shop", "delete/shop", ""):
        address = quote(f"/cassata/{call}/{path}", safe="/%", errors="replace")
        assert_is_answered(http.get(address, query_string={name: value.encode(errors="replace") for name, value in query.items()}))


def assert_is_answered(answer: Any) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert_is_a_problem(answer)


def assert_is_a_problem(answer: Any) -> None:
    assert answer.content_type == "application/problem+json"
    assert answer.json["status"] == answer.status_code
    assert {"type", "title", "status", "detail"} <= answer.json.keys()
    assert all(error["detail"] for error in answer.json.get("errors", ()))
