"""The page about the dialect says what it does; and its clients are served by real processes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask

from cassata.config import Service
from cassata.receiver import Receiver
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


def test_schedules_are_sent_and_seen_to_their_end(
    database_url: str, service_process: Callable[..., Running], worker_process: Callable[..., Running], receiver: Receiver
) -> None:
    receiver.answer = lambda request: 404 if request.path.startswith("/no") else 200
    base = f"{service_process(database_url, env=SETTINGS).url}/goscheduler"
    worker_process(database_url)
    requests.post(f"{base}/apps", json={"appId": "shop", "active": True}, timeout=10).raise_for_status()

    def schedule(path: str, **when: Any) -> str:
        callback = {"type": "http", "details": {"url": f"{receiver.url}{path}", "method": "PUT", "headers": {}}}
        asked = {"appId": "shop", "payload": f"to {path}", "callback": callback, **when}
        return str(requests.post(f"{base}/schedules", json=asked, timeout=10).json()["data"]["schedule"]["scheduleId"])

    def status(schedule_id: str) -> str:
        return str(requests.get(f"{base}/schedules/{schedule_id}", timeout=10).json()["data"]["schedule"]["status"])

    soon = int(time.time()) + 2
    good, bad, parent = (
        schedule("/yes", scheduleTime=soon),
        schedule("/no", scheduleTime=soon),
        schedule("/cron", cronExpression="* * * * *"),
    )
    wait_until(lambda: status(good) == "SUCCESS" and status(bad) == "FAILURE", 60)
    wait_until(lambda: any(request.path == "/cron" for request in receiver.requests), 90)

    sent = {path: [request for request in receiver.requests if request.path == path] for path in ("/yes", "/no", "/cron")}
    assert [request.header("Schedule-Id") for request in sent["/yes"]] == [good]
    assert [request.header("Schedule-Id") for request in sent["/no"]] == [bad] * 3
    assert (sent["/yes"][0].method, sent["/yes"][0].body) == ("PUT", b"to /yes")
    assert sent["/cron"][0].header("Parent-Schedule-Id") == parent
    run = sent["/cron"][0].header("Schedule-Id") or ""
    wait_until(lambda: status(run) == "SUCCESS", 60)
    listed = requests.get(f"{base}/schedules/{parent}/runs?when=past", timeout=10).json()["data"]["schedules"]
    assert run in {one["scheduleId"] for one in listed}
