"""The OpenAPI document says what the service does: it is held against the code, against answers, and used to attack a live service."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jsonschema_rs
import pytest
import schemathesis
from flask import Flask
from flask.testing import FlaskClient
from schemathesis.specs.openapi.checks import negative_data_rejection
from schemathesis.specs.openapi.checks import positive_data_acceptance as acceptance

from cassata.scheduler import Scheduler, Terms
from cassata.service import bulk_wire, openapi, problems, schemas, series_wire, tenancy_wire, wire
from cassata.service.auth import is_for_people
from cassata.service.documentation import page, written
from tests.archives import zipped
from tests.conftest import Running
from tests.service.test_documentation import EXAMPLE, PAGE, SERIES_PAGE, asked
from tests.words import outcome

COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"
WRITTEN_BY_CLIENTS: dict[str, set[str]] = {
    "NewEvent": set(wire.EventDocument.fields()),
    "NewEventAt": set(wire.EventDocument.fields()) - {"application-id", "event-id"},
    "EventChanges": set(wire.ChangeDocument.fields()),
    "InstanceChanges": set(wire.ChangeDocument.fields()) - {"delay"},
    "Retry": set(wire.RetryDocument.fields()),
    "NewSeries": set(series_wire.SeriesDocument.fields()),
    "Preview": set(series_wire.SeriesDocument.fields() | series_wire.PreviewDocument.fields()),
    "NewOperation": set(bulk_wire.OperationDocument.fields()),
    "Filter": set(bulk_wire.FilterDocument.fields()),
    "NewApplication": set(tenancy_wire.ApplicationDocument.fields()),
    "ApplicationChanges": set(tenancy_wire.ChangesDocument.fields()),
    "Limits": set(tenancy_wire.LIMITS),
    "Egress": set(tenancy_wire.EGRESS_FIELDS),
    "Stream": set(tenancy_wire.STREAM_FIELDS),
    "NewKey": set(tenancy_wire.KeyDocument.fields()),
    "Rotation": set(tenancy_wire.RotationDocument.fields()),
}


@pytest.fixture
def scheduler(sqlite_scheduler: Scheduler) -> Scheduler:
    return sqlite_scheduler


@pytest.fixture
def document(app: Flask) -> dict[str, Any]:
    return openapi.document(app)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        yield from ((method.upper(), path, operation) for method, operation in methods.items())


def schema_of(document: dict[str, Any], name: str, *, strict: bool = False) -> jsonschema_rs.Validator:
    """Return what holds values against a schema. `strict`: what the service tells may have no more fields than stand there."""
    components = copy.deepcopy(document["components"])
    if strict:
        for schema in components["schemas"].values():
            if schema.get("properties"):
                schema["additionalProperties"] = False
    return jsonschema_rs.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": components})


# --- the document --------------------------------------------------------------------------------------------------------


def test_the_committed_document_is_the_one_that_is_told(http: FlaskClient, run_cassata: Callable[..., Any]) -> None:
    """Where it is not: `cassata openapi > docs/openapi.json`."""
    committed = COMMITTED.read_text()
    assert http.get("/openapi.json").text == committed
    printed = run_cassata("openapi")
    assert (printed.returncode, printed.stdout) == (0, committed)


def test_every_route_is_in_the_document_and_nothing_else(app: Flask, document: dict[str, Any]) -> None:
    routes = {
        (method, re.sub(r"<(\w+)>", lambda found: f"{{{found[1].replace('_', '-')}}}", rule.rule))
        for rule in app.url_map.iter_rules()
        if not is_for_people(rule.rule)
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {(method, path) for method, path, _ in operations(document)} == routes
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    assert {rule.endpoint for rule in app.url_map.iter_rules() if not is_for_people(rule.rule)} == set(openapi.CALLS)


def test_what_a_route_needs_is_said_of_it(app: Flask, document: dict[str, Any]) -> None:
    gate = app.extensions["gate"]
    for _, _, operation in operations(document):
        route = gate.routes.get(operation["operationId"].removesuffix("_by_get"))
        assert ("security" in operation) == (route is not None)
        if route is not None:
            assert f"scope `{route.scope}`" in operation["description"]
            assert ("operator's" in operation["description"]) == route.operator
            assert {"401", "403"} <= operation["responses"].keys()


def test_every_reference_leads_somewhere_and_every_schema_is_used_and_is_one(document: dict[str, Any]) -> None:
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references == set(document["components"]["schemas"])
    answers = set(re.findall(r'"#/components/responses/(\w+)"', json.dumps(document)))
    assert answers == set(document["components"]["responses"])
    for schema in document["components"]["schemas"].values():
        assert jsonschema_rs.meta.is_valid(schema)


def test_every_kind_of_problem_is_told_of(document: dict[str, Any]) -> None:
    described = json.dumps(document)
    assert [kind.name for kind in problems.KINDS.values() if f"`{kind.name}`" not in described] == []


# --- what clients write ----------------------------------------------------------------------------------------------------


def test_the_fields_of_the_document_are_the_fields_that_are_read() -> None:
    documented = {name for name, schema in schemas.SCHEMAS.items() if schema.get("additionalProperties") is False}
    assert documented == set(WRITTEN_BY_CLIENTS)
    for name, fields in WRITTEN_BY_CLIENTS.items():
        assert set(schemas.SCHEMAS[name]["properties"]) == fields, name
    assert set(openapi.CALLS["events"].query or {}) == {*wire.FILTER_PARAMETERS, "limit", "cursor", "full", "newest-first"}


FULL: dict[str, dict[str, Any]] = {
    "POST /cassata/add/": {
        "application-id": "shop",
        "event-id": "full",
        "url": "http://127.0.0.1:1/",
        "event": {"a": 1},
        "expiry": None,
        "delay": 3600,
        "method": "PUT",
        "request-headers": {"X-One": "1", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
        "timeout": 5,
        "retry": {"count": 1, "initial": 0.5, "multiplier": 2, "maximum": 10},
        "max-lateness": 60,
        "destination": None,
        "priority": 5,
        "keep-output": True,
        "after": None,
    },
    "PATCH /cassata/event/shop/full": {
        "url": "http://127.0.0.1:1/other",
        "event": "b",
        "expiry": "2030-01-31T12:00:00Z",
        "method": "POST",
        "request-headers": ["X-One: 2"],
        "timeout": None,
        "retry": {},
        "max-lateness": None,
        "priority": None,
        "keep-output": False,
    },
    "POST /cassata/series/shop": {
        "application-id": "shop",
        "series-id": "s1",
        "name": "n",
        "description": "d",
        "metadata": {"a": 1},
        "cron": None,
        "recurrence": ["RRULE:FREQ=DAILY"],
        "every": None,
        "timezone": "Europe/Rome",
        "scheduled-at": "2030-01-31T09:00:00",
        "start": None,
        "ends-at": "2030-01-31T10:00:00",
        "until": 1_999_999_999,
        "count": None,
        "catch-up": "all",
        "catch-up-window": "1h30m",
        "overlap": "skip",
        "jitter": 5,
        "identity-headers": {"event": "X-Run-Id"},
        "url": "http://127.0.0.1:1/",
        "event-base64": "AP8=",
        "method": "POST",
        "request-headers": [],
        "timeout": 5,
        "retry": {"count": 0},
        "max-lateness": 60,
        "destination": None,
        "priority": 100,
        "keep-output": True,
        "after": None,
    },
    "POST /cassata/series/shop/preview": {
        "every": "PT15M",
        "scheduled-at": "2030-01-31T09:00:00Z",
        "from": "2030-01-31T12:00:00Z",
        "limit": 2,
    },
    "POST /cassata/bulk/shop": {
        "action": "reschedule",
        "filter": {
            "status": ["PENDING"],
            "expiry-from": 0,
            "expiry-until": 1_900_000_000,
            "host": "127.0.0.1",
            "last-status": 500,
            "series": None,
        },
        "expiry": None,
        "shift": 60,
        "operation-id": "o1",
        "preview": True,
    },
    "POST /cassata/applications": {
        "application-id": "new",
        "active": True,
        "limits": dict.fromkeys(tenancy_wire.LIMITS, 2_000) | {"horizon": 3600},
        "egress": {"policy": "list", "allow": ["10.0.0.0/8"]},
        "topics": {"orders": None, "shop.*": "http://127.0.0.1:1/"},
        "metadata": {"a": 1},
        "stream": {"url": "http://127.0.0.1:1/", "kinds": ["failed"], "request-headers": {"X-One": "1"}},
    },
    "PATCH /cassata/applications/new": {
        "active": False,
        "limits": {"horizon": None},
        "egress": None,
        "topics": None,
        "metadata": None,
        "stream": None,
    },
    "POST /cassata/applications/new/keys": {"scopes": ["read"], "name": "n", "expires-at": "2030-01-31T12:00:00Z"},
    "POST /cassata/applications/new/rotate-secret": {"overlap": 60, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"},
}
"""Every document that clients write, with every field that there is."""


def body_schema(document: dict[str, Any], method: str, path: str) -> str:
    for known_method, known_path, operation in operations(document):
        if known_method == method and re.fullmatch(re.sub(r"\{[\w-]+\}", "[^/]+", known_path), path) and "requestBody" in operation:
            return str(operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]).rsplit("/", 1)[1]
    raise AssertionError(f"no body is described for {method} {path}")


def test_every_field_that_is_documented_is_taken_and_one_that_is_not_is_refused(http: FlaskClient, document: dict[str, Any]) -> None:
    for call, full in FULL.items():
        method, path = call.split()
        schema = body_schema(document, method, path)
        if schema not in {"Preview", "EventChanges"}:
            one_body = {"event", "event-base64"} if {"event", "event-base64"} & set(full) else set()
            assert set(full) | one_body == WRITTEN_BY_CLIENTS[schema], call
        assert [str(error) for error in schema_of(document, schema).iter_errors(full)] == [], call
        refused = http.open(path, method=method, json={**full, "surely-not": 1})
        assert (refused.status_code, [fault["pointer"] for fault in refused.json["errors"]]) == (400, ["/surely-not"]), call
        taken = http.open(path, method=method, json=full)
        assert taken.status_code in {200, 201, 202}, f"{call}: {taken.text}"


def test_every_example_of_a_body_is_accepted(http: FlaskClient, document: dict[str, Any]) -> None:
    http.post("/cassata/applications", json={"application-id": "shop"})
    http.put("/cassata/event/shop/there", json={"url": "http://127.0.0.1:1/", "event": "x", "delay": 60})
    http.post("/cassata/applications", json={"application-id": "twin"})
    http.put("/cassata/series/twin/old", json={**schemas.SCHEMAS["NewSeries"]["examples"][0], "series-id": "old"})
    places = {"application-id": "shop", "event-id": "new", "series-id": "digest", "instance-id": "digest_20300204T080000Z"}
    others = {
        "change": {**places, "event-id": "there"},
        "change_following": {"application-id": "twin", "series-id": "old", "instance-id": "old_20300204T080000Z"},
    }
    for method, path, operation in operations(document):
        for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(operation.get("requestBody", {}))):
            for example in document["components"]["schemas"][name].get("examples", ()):
                here = others.get(operation["operationId"], places)
                address = re.sub(r"\{([\w-]+)\}", lambda found, here=here: here[found[1]], path)  # type: ignore[misc]
                answer = http.open(address, method=method, json=example)
                assert answer.status_code in {200, 201, 202}, f"{method} {address}: {answer.text}"


# --- what is answered ------------------------------------------------------------------------------------------------------


class Witness:
    """A client that holds every answer against the document, strictly."""

    def __init__(self, http: FlaskClient, app: Flask, document: dict[str, Any]) -> None:
        self._http = http
        self._app = app
        self._document = document
        self.seen: set[str] = set()

    def open(self, path: str, **how: Any) -> Any:
        answer = self._http.open(path, **how)
        rule, _ = self._app.url_map.bind("localhost").match(path, method=answer.request.method, return_rule=True)
        known = re.sub(r"<(\w+)>", lambda found: f"{{{found[1].replace('_', '-')}}}", rule.rule)
        operation = self._document["paths"][known][answer.request.method.lower()]
        described = operation["responses"][str(answer.status_code)]
        if "$ref" in described:
            described = self._document["components"]["responses"][described["$ref"].rsplit("/", 1)[1]]
        if answer.status_code < 400:
            self.seen.add(operation["operationId"])
        name = described["content"][answer.mimetype]["schema"].get("$ref", "/").rsplit("/", 1)[1]
        if name:
            faults = [str(error) for error in schema_of(self._document, name, strict=name != "Document").iter_errors(answer.json)]
            assert faults == [], f"{answer.request.method} {path}: {answer.text}"
        return answer

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda path, **how: self.open(path, method=method.upper(), **how)


def test_answers_hold_what_is_documented_and_nothing_else(
    http: FlaskClient, app: Flask, document: dict[str, Any], scheduler: Scheduler
) -> None:
    witness = Witness(http, app, document)
    for page_ in (PAGE, SERIES_PAGE):
        for command, _ in EXAMPLE.findall(page_):
            asked(witness, command)  # type: ignore[arg-type]
    for path in ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/cassata/applications?limit=1", "/cassata/keys"):
        witness.open(path.partition("?")[0], query_string=path.partition("?")[2])
    event = {"url": "http://127.0.0.1:1/", "event": "x", "delay": 60, "retry": {"count": 1}}
    witness.put("/cassata/event/shop/w", json=event)
    witness.put("/cassata/event/shop/w", json={**event, "event": "other"})
    witness.patch("/cassata/event/shop/w", json={"delay": 90})
    witness.patch("/cassata/event/shop/w", json={"delay": 90}, headers={"If-Match": '"1"'})
    witness.get("/cassata/status/shop/w", headers={"Accept": "text/plain"})
    witness.post("/cassata/event/shop/w/retry")
    witness.get("/cassata/delete/shop/w")
    witness.post("/cassata/event/shop/w/retry")
    witness.open("/cassata/events/shop", query_string="full=true&limit=2")
    witness.put("/cassata/event/shop/sent", json={**event, "delay": 0})
    witness.put("/cassata/event/shop/next", json={**event, "after": "sent"})
    scheduler.record([outcome(each) for each in scheduler.record_and_claim((), list(scheduler.agenda()), 10, Terms())[1].deliveries])
    witness.get("/cassata/event/shop/sent")
    witness.get("/cassata/event/shop/next")
    witness.get("/cassata/event/shop/sent/attempts/1/output")
    witness.get("/cassata/event/shop/sent/attempts/9/output")
    series = {"url": "http://127.0.0.1:1/", "event": "x", "every": 3600, "scheduled-at": "2030-01-31T12:00:00Z"}
    witness.put("/cassata/series/shop/first", json=series)
    witness.put("/cassata/series/shop/next", json={"url": "http://127.0.0.1:1/", "event": "x", "after": "first"})
    there, first, second = "/cassata/series/shop/w", "w_20300131T120000Z", "w_20300131T130000Z"
    witness.put(there, json=series)
    witness.post("/cassata/series/shop", json={**series, "series-id": "u"})
    witness.get("/cassata/series/shop")
    witness.open(f"{there}/instances", query_string="limit=2")
    witness.patch(f"{there}/instances/{first}", json={"event": "y"})
    witness.delete(f"{there}/instances/{first}")
    witness.put(f"{there}/instances/{second}/following", json={**series, "scheduled-at": "2030-01-31T13:30:00Z"})
    witness.delete(f"{there}/instances/{first}/following")
    witness.put("/cassata/series/shop/v", json=series)
    for action in ("pause", "resume", "run"):
        witness.post(f"/cassata/series/shop/v/{action}")
    witness.get("/cassata/series/shop/v")
    witness.delete("/cassata/series/shop/v", query_string="purge=true")
    witness.post("/cassata/series/shop/preview", json=series)
    witness.post("/cassata/bulk/shop", json={"action": "cancel", "filter": {"status": "PENDING"}, "operation-id": "o1"})
    witness.get("/cassata/bulk/shop")
    witness.delete("/cassata/bulk/shop/o1")
    witness.get("/cassata/bulk/shop/o1")
    for call in ("activate", "deactivate", "rotate-secret"):
        witness.post(f"/cassata/applications/shop/{call}")
    for call in ("breakers", "stream", "secrets", "keys", ""):
        witness.get(f"/cassata/applications/shop/{call}".removesuffix("/"))
    for keys in ("/cassata/applications/shop/keys", "/cassata/keys"):
        made = witness.post(keys, json={"name": "n"}).json
        witness.delete(f"{keys}/{made['prefix']}")
    witness.put("/cassata/batches/shop/b", data=zipped({"script.sh": ""}), content_type="application/zip")
    witness.get("/cassata/batches/shop/b")
    witness.get("/cassata/batches/shop")
    for call in ("disable", "enable"):
        witness.post(f"/cassata/batches/shop/b/{call}")
    witness.put("/cassata/event/shop/script", json={"destination": {"type": "script", "batch": "b"}, "delay": 60})
    witness.delete("/cassata/batches/shop/b")
    for path in ("/cassata/event/shop/none", "/cassata/status/none/none", "/cassata/series/shop/none", "/cassata/applications/none"):
        witness.get(path)
    witness.post("/cassata/add/", json={"methd": 1})
    witness.post("/cassata/add/", data="{", content_type="application/json")
    witness.post("/cassata/add/", data="x", content_type="text/plain")

    assert {operation["operationId"] for _, _, operation in operations(document)} - witness.seen == set()


# --- the page --------------------------------------------------------------------------------------------------------------


def test_the_page_needs_no_key_no_script_and_nothing_from_elsewhere(http: FlaskClient, document: dict[str, Any]) -> None:
    answer = http.get("/docs", headers={"Authorization": "Bearer nonsense"})
    assert answer.status_code == 200
    assert "script" not in answer.headers["Content-Security-Policy"]
    assert re.findall(r"<(?:script|link|img|iframe|form)\b|\bon\w+=|@import|url\(", answer.text) == []
    assert re.findall(r'(?:src|href)="(?!#|/openapi\.json")', answer.text) == []
    for method, path, operation in operations(document):
        assert f'id="{operation["operationId"]}"' in answer.text, f"{method} {path}"
    targets, ids = set(re.findall(r'href="#([^"]+)"', answer.text)), re.findall(r' id="([^"]+)"', answer.text)
    assert targets - set(ids) == set()
    assert len(ids) == len(set(ids))


def test_what_stands_in_the_document_stays_text_on_the_page(document: dict[str, Any]) -> None:
    document["paths"]["/livez"]["get"]["summary"] = "<script>alert(1)</script> `<b>`"
    shown = page(document)
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt; <code>&lt;b&gt;</code>" in shown
    assert written(document).endswith("}\n")


# --- schemathesis ----------------------------------------------------------------------------------------------------------

NOT_HELD: list[Any] = [acceptance]  # no schema can say how far ahead is too far, or which names of zones there are
IN_A_BATCH: list[Any] = [negative_data_rejection]  # where one that is wrong spoils no other


def test_a_live_service_answers_whatever_it_is_asked_as_documented(
    sqlite_url: str, service_process: Callable[..., Running], is_long: bool
) -> None:
    service = service_process(sqlite_url, "--processes", "1")
    described = schemathesis.openapi.from_dict(json.loads(COMMITTED.read_text()))
    described.config.update(base_url=service.url)
    count = 0
    for found in described.get_all_operations():
        operation = found.ok()
        if operation.label.startswith("PUT /cassata/batches/"):
            continue  # it writes no archives
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            if mode is schemathesis.GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.path_parameters):
                continue

            @hypothesis.settings(
                max_examples=8 if is_long else 4,
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=list(hypothesis.HealthCheck),
                phases=[hypothesis.Phase.generate],
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def asks(case: schemathesis.Case) -> None:
                nonlocal count
                count += 1
                excluded = NOT_HELD + (IN_A_BATCH if case.path.endswith("/batch") else [])
                case.call_and_validate(excluded_checks=excluded, timeout=20)

            asks()
    assert count > 200
    assert service.stop() == 0
    assert "internal error" not in service.output()
