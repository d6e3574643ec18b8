"""The page about the dialect says what it does; and its clients are served by real processes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask

from cassata.config import Service
from cassata.receiver import Received, Receiver
from cassata.scheduler import Scheduler
from cassata.service import create_app
from tests.conftest import Running, wait_until
from tests.dialects.golden_requests import differences
from tests.service.test_documentation import asked

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "dialects" / "goscheduler.md").read_text()
EXAMPLE = re.compile(r"```sh\n(curl [^`]*?)```\n\n```json\n([^`]*?)```")
SETTINGS = {"CASSATA_SERVICE__DIALECTS": "goscheduler"}


@pytest.fixture
def app(scheduler: Scheduler) -> Flask:
    return create_app(scheduler, Service(dialects=["goscheduler"]))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


def test_every_example_is_answered_as_printed(app: Flask) -> None:
    examples: list[tuple[str, str]] = EXAMPLE.findall(PAGE)
    http: Any = app.test_client()

    assert len(examples) == PAGE.count("```sh") == 2
    for command, answer in examples:
        given = asked(http, command.replace(" -d ", " -X POST -d "))  # which is what curl does
        made_up = {"data.schedule.scheduleId", "data.schedule.partitionId"}
        assert set(differences(given, json.loads(answer))) <= made_up, command


def test_every_call_is_in_the_table(app: Flask) -> None:
    routes = [route for endpoint, route in app.extensions["gate"].routes.items() if endpoint.startswith("goscheduler:")]
    declared = {rule.rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/goscheduler")}
    calls = {f"{method} {re.sub(r'<.*?>', '{id}', route.rule)}" for route in routes for method in route.methods}
    plural = {call.replace("/app/", "/apps/").replace("/schedule/", "/schedules/") for call in calls}
    plural = {re.sub(r"/(app|schedule)$", r"/\1s", call) for call in plural}

    assert set(re.findall(r"`((?:GET|POST|PUT|DELETE) /goscheduler[^`]*)`", PAGE)) == plural
    for rule in declared:
        other = re.sub(r"^/goscheduler/(app|schedule)s(?=/|$)", r"/goscheduler/\1", rule)
        assert other in declared


@dataclass(frozen=True, slots=True)
class Shop:
    """An application of a real service with a real worker, which schedules calls of a receiver."""

    base: str
    receiver: Receiver

    def schedule(self, path: str, **when: Any) -> str:
        callback = {"type": "http", "details": {"url": f"{self.receiver.url}{path}", "method": "PUT", "headers": {}}}
        asked = {"appId": "shop", "payload": f"to {path}", "callback": callback, **when}
        return str(requests.post(f"{self.base}/schedules", json=asked, timeout=10).json()["data"]["schedule"]["scheduleId"])

    def status(self, schedule_id: str) -> str:
        return str(requests.get(f"{self.base}/schedules/{schedule_id}", timeout=10).json()["data"]["schedule"]["status"])

    def sent(self, path: str) -> list[Received]:
        return [request for request in self.receiver.requests if request.path == path]


@pytest.fixture
def open_shop(service_process: Callable[..., Running], worker_process: Callable[..., Running], receiver: Receiver) -> Callable[[str], Shop]:
    def start(database_url: str) -> Shop:
        shop = Shop(f"{service_process(database_url, env=SETTINGS).url}/goscheduler", receiver)
        worker_process(database_url)
        requests.post(f"{shop.base}/apps", json={"appId": "shop", "active": True}, timeout=10).raise_for_status()
        return shop

    return start


def test_schedules_are_sent_and_seen_to_their_end(open_shop: Callable[[str], Shop], database_url: str, receiver: Receiver) -> None:
    receiver.answer = lambda request: 404 if request.path.startswith("/no") else 200
    shop, soon = open_shop(database_url), int(time.time()) + 2

    good, bad = shop.schedule("/yes", scheduleTime=soon), shop.schedule("/no", scheduleTime=soon)
    wait_until(lambda: shop.status(good) == "SUCCESS" and shop.status(bad) == "FAILURE", 60)

    assert [request.header("Schedule-Id") for request in shop.sent("/yes")] == [good]
    assert [request.header("Schedule-Id") for request in shop.sent("/no")] == [bad] * 3
    assert (shop.sent("/yes")[0].method, shop.sent("/yes")[0].body) == ("PUT", b"to /yes")


def test_the_next_minute_of_a_cron_is_sent_and_listed(open_shop: Callable[[str], Shop], sqlite_url: str) -> None:
    shop = open_shop(sqlite_url)

    parent = shop.schedule("/cron", cronExpression="* * * * *")
    wait_until(lambda: bool(shop.sent("/cron")), 90)

    assert shop.sent("/cron")[0].header("Parent-Schedule-Id") == parent
    run = shop.sent("/cron")[0].header("Schedule-Id") or ""
    wait_until(lambda: shop.status(run) == "SUCCESS", 60)
    listed = requests.get(f"{shop.base}/schedules/{parent}/runs?when=past", timeout=10).json()["data"]["schedules"]
    assert run in {one["scheduleId"] for one in listed}
