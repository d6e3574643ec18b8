"""Every request that GoScheduler's document prints, sent to a real service as it is printed, but for the host.

Each answer is compared with the documented one, field by field. Where they differ a test says why: EXPECTED names ids, which are made
up, and what follows from them and from times; everything else is named beside the request.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from cassata import database
from cassata.model import Status
from cassata.recurrence import Rule
from cassata.scheduler import Scheduler
from cassata.series import NewSeries
from cassata.service.dialects.goscheduler.wire import IDENTITY_HEADERS
from tests.conftest import Running, wait_until
from tests.dialects.golden_requests import GOLDEN, Answer, differences, post, send
from tests.words import Hand, ManualClock

DOCUMENT: dict[str, Any] = json.loads((GOLDEN / "goscheduler.json").read_text())
SETTINGS = {"CASSATA_SERVICE__DIALECTS": "goscheduler", "CASSATA_SERVICE__HORIZONDAYS": "36500"}  # it schedules for the year 2055
PRINTED_HOST = "http://127.0.0.1:8080"
EXPECTED = {
    "scheduleId": "it is made up anew each time",
    "partitionId": "it follows from the id",
    "scheduleTime": "the document asks for an instant that has passed, or answers with another one than it has asked for",
    "scheduleGroup": "it follows from the time",
}
OLDER = {
    "Ttl": "a field of an older version: the program has none",
    "httpCallback": "how an older version wrote the callback; the other chapters have it as `callback`",
    "callback": "how the other chapters write it, for what this sample has as `httpCallback`",
}
CONFIGURATION = {"configuration": "the other chapter, and the program, answer with it, too"}


@pytest.fixture
def service(sqlite_url: str, service_process: Callable[..., Running]) -> str:
    return service_process(sqlite_url, env=SETTINGS).url


def answers(name: str) -> list[Any]:
    found: list[Any] = DOCUMENT[name]["answers"]
    return found


def check(answer: Answer, documented: Any, *, status: int = 200, but: Collection[str] = (), at: str = "") -> None:
    """Compare an answer with a documented one. `but` are the fields, or whole paths, that have to differ, and do."""
    assert answer.status == status
    found = answer.document
    for step in filter(None, at.split(".")):
        found, documented = found[step], documented[step]
    differing = [path for path in differences(found, documented) if path.rpartition(".")[2] not in EXPECTED]
    names = {path if path in but else path.rpartition(".")[2] for path in differing}
    assert names == set(but), differing


def check_schedule(document: Any, asked_time: int | None = None) -> str:
    """Check what may differ: ids and times have to be such."""
    schedule_id = str(document["scheduleId"])
    assert str(uuid.UUID(schedule_id)) == schedule_id
    assert isinstance(document["partitionId"], int)
    if asked_time is not None:
        assert document["scheduleTime"] == asked_time
        assert document["scheduleGroup"] == asked_time - asked_time % 60
    return schedule_id


def registered(service: str, app_id: str, *, active: bool = True) -> None:
    body = json.dumps({"appId": app_id, "partitions": 5, "active": active})
    assert post(service, "/goscheduler/apps", body).document["status"]["statusCode"] == 201


# --- the chapter on its use ----------------------------------------------------------------------------------------------


def test_register_as_the_usage_has_it(service: str) -> None:
    check(send(service, DOCUMENT["register (usage)"]["request"]), answers("register (usage)")[0])


def test_create_once_as_the_usage_has_it(service: str) -> None:
    registered(service, "test")
    request, (documented,) = DOCUMENT["create once (usage)"]["request"], answers("create once (usage)")
    asked = int(time.time()) + 3_600

    past = send(service, request)
    answer = send(service, request, {"1686676947": str(asked)})

    # As it is printed it asks for 2023, and that is refused in the words of the API's chapter.
    assert past.status == past.document["status"]["statusCode"] == 400
    assert re.fullmatch(
        r"schedule time : 1686676947 is less than current time: \d+ for app: test\. Time cannot be in past\.",
        past.document["status"]["statusMessage"],
    )
    # This sample alone lacks the wrapper that the API's chapter, and the program, have.
    assert set(answer.document["data"]) == {"schedule"}
    unwrapped = Answer(answer.status, {**answer.document, "data": answer.document["data"]["schedule"]}, {})
    check(unwrapped, documented)
    check_schedule(unwrapped.document["data"], asked)


def test_create_cron_as_the_usage_has_it(service: str) -> None:
    registered(service, "test")

    answer = send(service, DOCUMENT["create cron (usage)"]["request"])

    check(answer, answers("create cron (usage)")[0])
    check_schedule(answer.document["data"]["schedule"])


def test_status_as_the_usage_has_it(service: str, sqlite_url: str, worker_process: Callable[..., Running]) -> None:
    worker_process(sqlite_url)
    registered(service, "test")
    asked = int(time.time()) + 1
    # The schedule that is asked about is the one of the chapter before; its callback is this very service.
    created = send(service, DOCUMENT["create once (usage)"]["request"], {"1686676947": str(asked), PRINTED_HOST: service})
    schedule_id = created.document["data"]["schedule"]["scheduleId"]

    def ask() -> Answer:
        return send(service, DOCUMENT["status (usage)"]["request"], {"a675115c-0a0e-11ee-bebb-acde48001122": schedule_id})

    wait_until(lambda: ask().document["data"]["schedule"]["status"] != "SCHEDULED")
    answer = ask()
    answer.document["data"]["schedule"]["callback"]["details"]["url"] = f"{PRINTED_HOST}/goscheduler/healthcheck"
    check(answer, answers("status (usage)")[0])
    check_schedule(answer.document["data"]["schedule"], asked)


# --- the chapter on the API ----------------------------------------------------------------------------------------------


def test_healthcheck(service: str, tmp_path: Path) -> None:
    request, (well, ill) = DOCUMENT["healthcheck"]["request"], answers("healthcheck")

    check(send(service, request), well, but={"status", "code"})  # which the program answers with, in place of the documented one

    with contextlib.closing(sqlite3.connect(tmp_path / "cassata.db", isolation_level=None)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    check(send(service, request), ill, status=404)


def test_register(service: str) -> None:
    chapter, (registered_, refused) = DOCUMENT["register"], answers("register")

    # The request registers "athena", the body beside it "revamp": the answer is that of the latter.
    check(send(service, chapter["request"]), registered_, but={"appId", *CONFIGURATION})
    check(post(service, "/goscheduler/apps", chapter["body"]), registered_, but=CONFIGURATION)
    check(send(service, chapter["request"], {'"appId": "athena"': '"appId": ""'}), refused, status=400)


def test_apps(service: str) -> None:
    request, (documented,) = DOCUMENT["apps"]["request"], answers("apps")
    for app_id, partitions in (("revamp", 2), ("opensource", 5)):
        post(service, "/goscheduler/apps", json.dumps({"appId": app_id, "partitions": partitions, "active": True}))

    one = send(service, request)
    both = send(service, request, {"?app_id=revamp": ""})

    check(both, documented, but=CONFIGURATION)
    check(one, documented, but={"totalCount", "apps"})  # it asks for one, and shows the answer for all
    check(Answer(200, one.document["data"]["apps"][0], {}), documented["data"]["apps"][1], but=CONFIGURATION)


@pytest.mark.parametrize("printed", ["request", "body"])
def test_create_once(service: str, printed: str) -> None:
    registered(service, "revamp")
    chapter, documented = DOCUMENT["create once"], answers("create once")[0]

    answer = send(service, chapter["request"]) if printed == "request" else post(service, "/goscheduler/schedules", chapter["body"])

    check(answer, documented, but=OLDER)
    check_schedule(answer.document["data"]["schedule"], 2687947561)
    older = documented["data"]["schedule"]["httpCallback"]
    assert answer.document["data"]["schedule"]["callback"] == {"type": "http", "details": older}


def test_create_once_refused(service: str) -> None:
    registered(service, "revamp")
    documented = answers("create once")[1]
    replaced = {f"{PRINTED_HOST}/goscheduler/healthcheck": "www.myntra.com", '"method": "GET"': '"method": ""', "2687947561": "1629772970"}

    answer = send(service, DOCUMENT["create once"]["request"], replaced)

    said = answer.document["status"]["statusMessage"]
    answer.document["status"]["statusMessage"] = re.sub(r"current time: \d+", "current time: 1688443428", said)
    check(answer, documented, status=400)


def test_create_cron(service: str) -> None:
    for app_id in ("Athena", "athena"):  # the request has the one, the body beside it the other
        registered(service, app_id)
    chapter, (documented, refused) = DOCUMENT["create cron"], answers("create cron")

    answer = send(service, chapter["request"])
    of_body = post(service, "/goscheduler/schedules", chapter["body"])
    bad = {f"{PRINTED_HOST}/goscheduler/healthcheck": "www.google.com", '"method": "GET"': '"method": ""'}

    check(answer, documented, but={"cronExpression"})  # asked for is */5, answered with */6
    assert answer.document["data"]["schedule"]["cronExpression"] == "*/5 * * * *"
    check_schedule(answer.document["data"]["schedule"])
    check(of_body, documented, but={"cronExpression", "appId"})
    check(send(service, chapter["request"], bad), refused, status=400)


@pytest.mark.parametrize("method", ["GET", "POST"])  # the heading has the one, the request the other
def test_crons(service: str, method: str) -> None:
    registered(service, "revamp")
    request, (documented, none) = DOCUMENT["crons"]["request"], answers("crons")
    replaced = {"--request GET": f"--request {method}"}

    empty = send(service, request, replaced)
    post(service, "/goscheduler/schedules", DOCUMENT["create cron"]["body"], {'"athena"': '"revamp"', "*/5": "*/6"})
    answer = send(service, request, replaced)

    check(empty, none, status=404)
    check(answer, documented)
    check_schedule(answer.document["data"][0])


def test_get(service: str) -> None:
    registered(service, "revamp")
    request, (documented, unknown) = DOCUMENT["get"]["request"], answers("get")
    created = send(service, DOCUMENT["create once"]["request"]).document["data"]["schedule"]["scheduleId"]

    answer = send(service, request, {"1497b35c-1a21-11ee-8689-ceaebc99522c": created})

    check(answer, documented)
    assert check_schedule(answer.document["data"]["schedule"], 2687947561) == created
    check(send(service, request, {"1497b35c-1a21-11ee-8689-ceaebc99522c": "4588e23e-ae06-11ec-bcba-acde48001122"}), unknown, status=404)


@pytest.fixture
def past_runs(service: str, sqlite_url: str) -> Iterator[str]:
    """A cron schedule of "revamp", of every minute, whose runs failed half an hour ago, until nobody sent them any more."""
    registered(service, "revamp")
    begin = int(time.time()) // 60 * 60_000 - 1_800_000
    clock = ManualClock(begin - 30_000)
    scheduler = Scheduler(database.open_engines(sqlite_url), clock=clock)
    series_id = str(uuid.uuid4())
    callback = DOCUMENT["create cron (usage)"]["answers"][0]["data"]["schedule"]["callback"]["details"]
    rule = Rule(cron="* * * * *", start_at=begin, until_at=begin + 600_000_000)
    headers = tuple(callback["headers"].items())
    new = NewSeries("revamp", rule, callback["url"], series_id, "GET", headers, b"{}", identity_headers=IDENTITY_HEADERS)
    scheduler.timetable.create(new)
    hand = Hand(scheduler, clock)
    for minute in range(3):
        clock.instant = begin + minute * 60_000
        scheduler.timetable.advance()
        for delivery in hand.claim() if minute < 2 else ():
            hand.answer(delivery, 404)
    assert {event.status for event in scheduler.events("revamp").events} == {Status.FAILED, Status.PENDING}
    yield series_id
    scheduler.close()


def test_runs(service: str, past_runs: str) -> None:
    request, (documented, none) = DOCUMENT["runs"]["request"], answers("runs")
    printed_id = "1497b35c-1a21-11ee-8689-ceaebc99522c"

    future = send(service, request, {printed_id: past_runs})
    past = send(service, request, {printed_id: past_runs, "when=future&size=1": "when=past"})

    # One of the future is asked for, and eleven are announced, of which three are shown, two of them past. There is always a next one.
    check(future, documented, but={"totalCount", "schedules", "continuationToken"})
    assert future.document["status"]["totalCount"] == len(future.document["data"]["schedules"]) == 1
    scheduled, failed, missed = documented["data"]["schedules"]
    check(Answer(200, future.document["data"]["schedules"][0], {}), scheduled)
    found = past.document["data"]["schedules"]
    assert [schedule["status"] for schedule in found] == ["MISS", "FAILURE", "FAILURE"]
    check(Answer(200, found[0], {}), missed)
    check(Answer(200, found[1], {}), failed)
    for schedule in found:
        check_schedule(schedule, schedule["scheduleTime"])
    check(send(service, request, {printed_id: "1305aec5-e233-11ea-97ed-000d3af279cb"}), none, status=404)


def test_app_schedules(service: str) -> None:
    registered(service, "revamp")
    request, (documented, too_long) = DOCUMENT["app schedules"]["request"], answers("app schedules")

    # Printed with spaces, which no HTTP server takes, GoScheduler's neither: whoever sends it writes them as %20.
    answer = send(service, request)

    check(answer, documented, but={"continuationStartTime"})  # the sample's lies a year before the range that it asks for
    assert answer.document["data"]["continuationStartTime"] == 1688279400  # the end of the range
    check(send(service, request, {"end_time=2023-07-02": "end_time=2023-07-29"}), too_long, status=400)


def test_deactivate_and_activate(service: str) -> None:
    off, (deactivated, unknown) = DOCUMENT["deactivate"]["request"], answers("deactivate")
    on, (activated, unknown_too, already) = DOCUMENT["activate"]["request"], answers("activate")

    check(send(service, off), unknown, status=400)
    check(send(service, on), unknown_too, status=400)
    registered(service, "revamp")
    check(send(service, on), already, status=400)
    check(send(service, off), deactivated)
    check(send(service, on), activated)


def test_bulk_action(service: str) -> None:
    registered(service, "revamp")

    check(send(service, DOCUMENT["bulk action"]["request"]), answers("bulk action")[0])


def test_delete(service: str) -> None:
    registered(service, "revamp")
    request, (documented,) = DOCUMENT["delete"]["request"], answers("delete")
    created = send(service, DOCUMENT["create once"]["request"]).document["data"]["schedule"]["scheduleId"]
    replaced = {"1497b35c-1a21-11ee-8689-ceaebc99522c": created}

    answer = send(service, request, replaced)
    again = send(service, request, replaced)

    check(answer, documented, but=OLDER)
    assert check_schedule(answer.document["data"]["schedule"], 2687947561) == created
    assert (again.status, again.document["status"]["statusMessage"]) == (404, "No Schedules found")  # as the text says, without a sample


def test_no_request_of_the_document_is_left_out() -> None:
    page = Path(__file__).read_text()

    assert [name for name in DOCUMENT if f'DOCUMENT["{name}"]' not in page] == []
