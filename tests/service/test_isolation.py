"""Every route with every kind of key: what is answered is what was declared, and nobody learns of what is not theirs.

The routes are read from the application, so that a new one is covered as soon as it exists.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import create_engine, text
from werkzeug.test import TestResponse

from cassata.config import Service
from cassata.errors import UnknownSeries
from cassata.model import Action, Filter, NewEvent, NewOperation, Scope, Stream
from cassata.recurrence import Rule
from cassata.scheduler import Scheduler
from cassata.series import NewSeries
from cassata.service import create_app
from cassata.service.auth import Route, is_for_people
from cassata.tenants import Changes
from tests.archives import zipped

pytestmark = pytest.mark.tenants

OPEN = {"/livez", "/readyz", "/openapi.json", "/docs"}
CANARY = "canary-of-the-shop"
ARCHIVE = zipped({"script.sh": "echo hello"})
INSTANCE = "s0_20300317T174640Z"
TABLES = ("applications", "api_keys", "events", "attempts", "series", "operations", "outbox", "batches")


SIMPLE_BODIES: dict[str, Any] = {
    "rotate_secret": {"overlap": 0},
    "change_application": {"metadata": {}},
    "begin_operation": {"action": "cancel", "filter": {"last-status": 418}},
}


@dataclass(frozen=True, slots=True)
class Asker:
    """A kind of key. `headers` carry it; invalid ones belong to nobody (`scope` None)."""

    kind: str
    headers: dict[str, str]
    application_id: str | None = None
    scope: Scope | None = None
    query: str = ""

    @property
    def is_foreign(self) -> bool:
        return self.scope is not None and self.application_id == "rival"

    def allows(self, route: Route) -> bool:
        reaches = self.application_id is None or not route.operator
        return reaches and self.scope in {Scope.ADMIN, route.scope}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@dataclass
class House:
    """A service with two applications, shop and rival, and every kind of key there is."""

    scheduler: Scheduler
    url: str
    app: Flask = field(init=False)
    http: FlaskClient = field(init=False)
    numbers: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.app = create_app(self.scheduler, Service(authentication="required"))
        self.http = self.app.test_client()
        self.engine = create_engine(self.url)
        for application_id in ("shop", "rival"):
            self.scheduler.tenants.create(application_id, Changes(metadata={"note": CANARY} if application_id == "shop" else {}))
        self.scheduler.tenants.change("shop", Changes(stream=Stream(f"http://{CANARY}.example/", headers=(("X-Note", CANARY),))))
        self.scheduler.operations.begin(NewOperation("shop", Action.CANCEL, Filter(host=f"{CANARY}.example"), operation_id="op"))
        self.victim = self.key("shop", Scope.READ)[4:12]
        self.askers = list(self._askers())

    def key(self, application_id: str | None, scope: Scope, **more: Any) -> str:
        return self.scheduler.tenants.create_key(application_id, [scope], **more)[1]

    def _askers(self) -> Iterator[Asker]:
        admin = self.key("shop", Scope.ADMIN)
        revoked, expired = self.key(None, Scope.ADMIN), self.key(None, Scope.ADMIN, expires_at=1)
        self.scheduler.tenants.revoke_key(revoked[4:12])
        yield Asker("none", {})
        yield Asker("malformed", bearer("csk_"))
        yield Asker("with NUL", bearer("csk_aaaaaaaa_\0"))
        yield Asker("of 1 MB", bearer("csk_aaaaaaaa_" + "x" * 1_000_000))
        yield Asker("unknown", bearer("csk_aaaaaaaa_" + "x" * 43))
        yield Asker("with the secret of another", bearer(admin[:13] + "x" * 43))
        yield Asker("of another scheme", {"Authorization": f"Basic {admin}"})
        yield Asker("without a scheme", {"Authorization": admin})
        yield Asker("twice", {"Authorization": f"Bearer {admin}, Bearer {admin}"})
        yield Asker("in the query", {}, query=f"key={admin}&access_token={admin}")
        yield Asker("revoked", bearer(revoked))
        yield Asker("expired", bearer(expired))
        for whose, application_id in (("own", "shop"), ("foreign", "rival"), ("operator", None)):
            for scope in Scope:
                token = self.key(application_id, scope)
                yield Asker(f"{whose} {scope}", bearer(token), application_id, scope)

    def ask(self, call: Call, asker: Asker, application_id: str = "shop", event_id: str | None = None) -> TestResponse:
        path = call.path(application_id, event_id or "e0", self.victim)
        if call.endpoint == "put_batch":
            return self.http.put(path, headers=asker.headers, query_string=asker.query, data=ARCHIVE, content_type="application/zip")
        body = call.body(application_id, next(self.numbers))
        return self.http.open(path, method=call.method, headers=asker.headers, json=body, query_string=asker.query)

    def rows(self) -> list[Any]:
        with self.engine.begin() as connection:
            return [connection.execute(text(f"SELECT * FROM {table}")).all() for table in TABLES]

    def tidy_up(self) -> None:
        """Put back what an allowed request may have changed."""
        self.scheduler.tenants.change("shop", Changes(active=True, metadata={"note": CANARY}))
        due = {"due_at": 1_900_000_000_000, "payload": CANARY.encode()}
        self.scheduler.put(NewEvent("shop", f"http://{CANARY}.example/", event_id="e0", **due))
        self.scheduler.batches.put("shop", CANARY, ARCHIVE)
        with self.engine.begin() as connection:
            connection.execute(text("DELETE FROM attempts"))
            columns = "event, fence, number, started_at, duration_ms, excerpt"
            answered = f"SELECT id, 0, 1, 0, 0, '{CANARY}' FROM events WHERE event_id = 'e0'"
            connection.execute(text(f"INSERT INTO attempts ({columns}) {answered}"))
        with contextlib.suppress(UnknownSeries):
            self.scheduler.timetable.delete("shop", "s0")
        rule = Rule(every_ms=60_000, start_at=1_900_000_000_000)
        series = NewSeries("shop", rule, f"http://{CANARY}.example/", series_id="s0", payload=CANARY.encode(), description=CANARY)
        self.scheduler.timetable.create(series)


@dataclass(frozen=True, slots=True)
class Call:
    """One method of one route."""

    method: str
    rule: str
    endpoint: str

    def path(self, application_id: str, event_id: str, prefix: str) -> str:
        ids = {"application_id": application_id, "event_id": event_id, "prefix": prefix, "series_id": "s0", "instance_id": INSTANCE}
        ids["operation_id"] = "op"
        ids["batch_id"] = CANARY
        ids |= {"operation_id": "op", "number": "1"}
        return re.sub("<([a-z_]+)>", lambda found: ids[found[1]], self.rule)

    @property
    def names_its_application(self) -> bool:
        return "<application_id>" in self.rule

    @property
    def takes_events(self) -> bool:
        return self.endpoint in {"add", "add_batch"}

    def body(self, application_id: str, number: int) -> Any:
        event = {"url": "http://receiver.example/", "delay": 60, "event": "x"}
        match self.endpoint:
            case "add":
                return {"application-id": application_id, "event-id": f"a{number}", **event}
            case "add_batch":
                return [{"application-id": application_id, "event-id": f"b{number}", **event}]
            case "put":
                return {"url": f"http://{CANARY}.example/", "expiry": 1_900_000_000, "event": CANARY}  # as it is
            case "create_series" | "preview_series" | "change_following":
                return {"series-id": f"s-{number}", "every": 60, "scheduled-at": 1_900_000_000, "event": "x", "url": event["url"]}
            case "put_series":
                rule = {"every": 60, "scheduled-at": 1_900_000_000}
                return {**rule, "url": f"http://{CANARY}.example/", "event": CANARY, "description": CANARY}  # as it is
            case "change_instance":
                return {"event": "changed"}
            case "create_application":
                return {"application-id": f"new-{number}"}
        return SIMPLE_BODIES.get(self.endpoint, {} if self.method in {"POST", "PATCH"} else None)


@pytest.fixture
def house(sqlite_scheduler: Scheduler, sqlite_url: str) -> Iterator[House]:
    built = House(sqlite_scheduler, sqlite_url)
    yield built
    built.engine.dispose()


def calls(app: Flask) -> list[Call]:
    return [
        Call(method, rule.rule, rule.endpoint)
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"OPTIONS"})
        if rule.rule not in OPEN and not is_for_people(rule.rule)  # pages are asked for with sessions: test_dashboard.py
    ]


def routes(app: Flask) -> dict[str, Route]:
    declared: dict[str, Route] = app.extensions["gate"].routes
    return declared


def test_every_route_but_those_of_health_and_documentation_declares_what_it_needs(house: House) -> None:
    undeclared = {rule.rule for rule in house.app.url_map.iter_rules() if rule.endpoint not in routes(house.app)}
    assert undeclared == OPEN | {"/ui/login", "/ui/static/<name>"}
    for call in calls(house.app):
        route = routes(house.app)[call.endpoint]
        assert call.names_its_application or route.operator or call.takes_events, f"{call.rule} is of nobody"
        assert call.method in {"GET", "HEAD"} or route.scope is not Scope.READ, f"{call.method} {call.rule} changes something"


def test_a_route_that_declares_nothing_cannot_be_reached(house: House) -> None:
    house.app.add_url_rule("/cassata/new", "new", lambda: "secret")
    for asker in house.askers:
        assert house.http.get("/cassata/new", headers=asker.headers).status_code in {401, 500}


def told(answer: TestResponse) -> tuple[int, bytes, dict[str, str]]:
    return answer.status_code, answer.data, {name: value for name, value in answer.headers.items() if name != "Date"}


def is_refused(answer: TestResponse, call: Call, status: int) -> bool:
    if call.endpoint == "add_batch" and status == 404:
        return [result["status-code"] for result in answer.json["results"]] == [404]
    return answer.status_code == status


def expected(call: Call, route: Route, asker: Asker) -> int:
    """What is declared: 401 before 404 before 403; 200 stands for whatever the call itself says."""
    if asker.scope is None:
        return 401
    if asker.is_foreign and call.names_its_application:
        return 404
    if not asker.allows(route):
        return 403
    return 404 if asker.is_foreign and call.takes_events else 200


def test_every_route_answers_every_key_as_declared_and_leaks_nothing(house: House, figure: Callable[[str], None]) -> None:
    refusals: set[bytes] = set()
    leaks, asked = [], calls(house.app)
    house.tidy_up()
    for call in asked:
        for asker in house.askers:
            before = house.rows()
            answer = house.ask(call, asker)
            status = expected(call, routes(house.app)[call.endpoint], asker)
            told_of = f"{asker.kind}: {call.method} {call.rule}: {answer.status_code} {answer.text[:200]}"
            if status == 200:
                assert answer.status_code < 500, told_of
                assert answer.status_code not in {401, 403, 404}, told_of
                house.tidy_up()
                continue
            assert is_refused(answer, call, status), told_of
            if status == 401:
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                refusals.add(answer.data)
            if status == 403 and answer.data:  # HEAD has none
                assert answer.json["scope"] == routes(house.app)[call.endpoint].scope
            if house.rows() != before or CANARY in answer.text or "whsec" in answer.text or house.victim in answer.text:
                leaks.append(told_of)
            if status == 404 and comparable(answer) != comparable(house.ask(call, asker, "nowhere")):
                leaks.append(told_of)
    assert len(refusals - {b""}) == 1
    figure(f"isolation: {len(leaks)} leaks of {len(asked)} routes x {len(house.askers)} keys")
    assert leaks == []


def comparable(answer: TestResponse) -> Any:
    """A batch repeats the event-id that was asked for; else an answer must not differ in anything."""
    if answer.data and "results" in answer.json:
        return [(result["status-code"], result["problem"]) for result in answer.json["results"]]
    return told(answer)


@pytest.mark.parametrize("call", ["status", "event", "delete"])
def test_a_foreign_event_is_answered_as_an_unknown_one_of_ones_own(house: House, call: str) -> None:
    house.tidy_up()
    askers = {asker.kind: asker for asker in house.askers}
    method = "DELETE" if call == "delete" else "GET"
    foreign = house.http.open(f"/cassata/{call}/shop/e0", method=method, headers=askers["foreign admin"].headers)
    unknown = house.http.open(f"/cassata/{call}/rival/e0", method=method, headers=askers["foreign admin"].headers)
    assert told(foreign) == told(unknown)


def test_a_foreign_application_is_decided_on_before_any_table_is_looked_into(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    asker = next(asker for asker in house.askers if asker.kind == "foreign admin")
    house.http.get("/cassata/applications/rival", headers=asker.headers)  # now the key is in mind

    def look(*_: object, **__: object) -> None:
        raise AssertionError("the database was asked")

    rooms = (house.scheduler, house.scheduler.tenants, house.scheduler.timetable, house.scheduler.batches)
    for room in [room._transactions for room in rooms]:
        monkeypatch.setattr(room, "read", look)
        monkeypatch.setattr(room, "write", look)
    for call in calls(house.app):
        if call.names_its_application or call.takes_events:
            assert is_refused(house.ask(call, asker), call, 404), call


def test_nothing_is_told_without_a_key_of_an_address_where_nothing_is(house: House) -> None:
    for method, path in (("GET", "/nowhere"), ("GET", "/cassata/add/"), ("OPTIONS", "/cassata/add/"), ("TRACE", "/")):
        assert house.http.open(path, method=method).status_code == 401
    reader = next(asker for asker in house.askers if asker.kind == "own read")
    assert house.http.get("/nowhere", headers=reader.headers).status_code == 404
    assert house.http.get("/cassata/add/", headers=reader.headers).status_code == 405


def test_what_tells_of_nobody_needs_no_key(house: House) -> None:
    assert {house.http.get(path).status_code for path in OPEN} == {200}
    assert json.loads(house.http.get("/livez").data) == {"status": "alive"}
