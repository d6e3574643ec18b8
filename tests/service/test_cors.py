"""Pages of other sites: who may ask."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient
from pydantic import ValidationError

from cassata.config import Service
from cassata.model import Scope
from cassata.scheduler import Scheduler
from cassata.service import create_app

PAGE = "https://app.example"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization, content-type"}


@pytest.fixture
def http(sqlite_scheduler: Scheduler) -> FlaskClient:
    return create_app(sqlite_scheduler, Service(authentication="required", corsOrigins=[PAGE])).test_client()


def test_a_page_of_an_origin_that_is_named_may_ask_and_no_other(http: FlaskClient, sqlite_scheduler: Scheduler) -> None:
    _, token = sqlite_scheduler.tenants.create_key(None, scopes=frozenset(Scope))
    asked = http.options("/cassata/event/shop/e1", headers=PREFLIGHT)
    assert (asked.status_code, asked.headers["Access-Control-Allow-Origin"]) == (204, PAGE)
    assert "PUT" in asked.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in asked.headers["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in asked.headers

    answer = http.get("/cassata/applications", headers={"Origin": PAGE, "Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"], answer.vary.to_header()) == (200, PAGE, "Origin")
    foreign = http.get("/cassata/applications", headers={"Origin": "https://other.example", "Authorization": f"Bearer {token}"})
    assert "Access-Control-Allow-Origin" not in foreign.headers
    assert "Access-Control-Allow-Origin" not in http.options("/cassata/event/shop/e1", headers={**PREFLIGHT, "Origin": "null"}).headers


def test_a_page_that_may_ask_needs_a_key_all_the_same(http: FlaskClient, sqlite_scheduler: Scheduler) -> None:
    assert http.get("/cassata/applications", headers={"Origin": PAGE}).status_code == 401
    open_to_this_machine = create_app(sqlite_scheduler, Service(corsOrigins=[PAGE])).test_client()
    assert open_to_this_machine.get("/cassata/applications", headers={"Origin": PAGE}).status_code == 403


def test_the_pages_for_people_are_for_no_other_site(http: FlaskClient) -> None:
    assert "Access-Control-Allow-Origin" not in http.get("/ui", headers={"Origin": PAGE}).headers


def test_unless_somebody_is_named_nobody_may_ask(sqlite_scheduler: Scheduler) -> None:
    answer = create_app(sqlite_scheduler, Service()).test_client().get("/livez", headers={"Origin": PAGE})
    assert not {name for name, _ in answer.headers} & {"Access-Control-Allow-Origin", "Vary"}


@pytest.mark.parametrize("origin", ["*", "app.example", "https://app.example/", "https://app.example/path", "ftp://app.example", "null"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError):
        Service(corsOrigins=[origin])
