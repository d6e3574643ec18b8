"""The contract of DTS-Go over HTTP: what its clients send and get, and what cannot be read."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from cassata import database, schema
from cassata.config import Service
from cassata.model import Outcome, Scope, Status
from cassata.scheduler import Scheduler, Terms
from cassata.service import create_app
from cassata.service.dialects.jobs import calls
from cassata.tenants import Changes
from tests.words import Hand, ManualClock, new_event

URL = "http://127.0.0.1:9/jobs"
HOURLY = {"name": "My Job", "cron_expression": "0 * * * *", "metadata": {"url": URL, "key": "value"}}
ONCE = {"name": "Once", "metadata": {"url": URL}}
Create = Callable[..., str]


@pytest.fixture
def app(scheduler: Scheduler) -> Flask:
    return create_app(scheduler, Service(dialects=["jobs"]))


@pytest.fixture
def http(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def create(http: FlaskClient) -> Create:
    def made(**fields: Any) -> str:
        answered = http.post("/v1/jobs", json={**HOURLY, **fields})
        assert answered.status_code == 200, answered.json
        return str(answered.json["jobId"])

    return made


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(2_500_000_000_000)  # 2049: not that of the host


@pytest.fixture
def hand(database_url: str, clock: ManualClock) -> Iterator[Hand]:
    opened = Scheduler(database.open_engines(database_url, pool_size=10), clock=clock)
    yield Hand(opened, clock)
    opened.close()


def client_of(hand: Hand) -> FlaskClient:
    return create_app(hand.scheduler, Service(dialects=["jobs"])).test_client()


def refused(answered: Any, status: int, code: int, message: str = "") -> None:
    assert (answered.status_code, answered.json["code"], answered.json["details"]) == (status, code, [])
    assert set(answered.json) == {"code", "message", "details"}
    assert re.search(message, answered.json["message"]), answered.json["message"]


def status_of(http: FlaskClient, job_id: str) -> str:
    return str(http.get(f"/v1/jobs/{job_id}").json["status"]).removeprefix("JOB_STATUS_")


def work(scheduler: Scheduler, code: int = 200, **facts: Any) -> int:
    """Make occurrences, and answer all that is due."""
    scheduler.timetable.advance()
    claimed = scheduler.record_and_claim((), list(scheduler.agenda()), 100, Terms())[1].deliveries
    outcomes = [Outcome(delivery, delivery.due_at + 5, 20, status_code=code, excerpt="done", **facts) for delivery in claimed]
    return scheduler.record(outcomes).kept


# --- a job ---------------------------------------------------------------------------------------------------------------


def test_a_job_is_created_and_shown_with_all_its_fields(http: FlaskClient, create: Create) -> None:
    job_id = create(description="Description", priority=5, max_retries=2, timeout=30)

    job = http.get(f"/v1/jobs/{job_id}").json

    assert uuid.UUID(job_id)
    assert {
        name: job[name] for name in ("id", "name", "description", "cronExpression", "priority", "maxRetries", "timeout", "lastRun")
    } == {
        "id": job_id,
        "name": "My Job",
        "description": "Description",
        "cronExpression": "0 * * * *",
        "priority": 5,
        "maxRetries": 2,
        "timeout": 30,
        "lastRun": None,
    }
    assert job["metadata"] == {"url": URL, "key": "value"}
    assert job["status"] == "JOB_STATUS_PENDING"
    for instant in ("createdAt", "updatedAt", "nextRun"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", job[instant])
    assert ":00:00" in job["nextRun"]


def test_both_spellings_are_read_and_numbers_may_be_text(http: FlaskClient) -> None:
    camel = http.post(
        "/v1/jobs", json={"name": "n", "cronExpression": "@hourly", "maxRetries": "1", "timeout": "5", "metadata": {"url": URL}}
    )
    snake = http.post(
        "/v1/jobs", json={"name": "n", "cron_expression": "@hourly", "max_retries": 1, "timeout": 5, "metadata": {"url": URL}}
    )

    told = [http.get(f"/v1/jobs/{answered.json['jobId']}").json for answered in (camel, snake)]

    for job in told:
        assert (job["cronExpression"], job["maxRetries"], job["timeout"]) == ("@hourly", 1, 5)


def test_max_retries_timeout_and_priority_are_used(scheduler: Scheduler, create: Create) -> None:
    job_id = create(cron_expression="", max_retries=1, timeout=7, priority=9)
    scheduler.timetable.advance()

    (event,) = scheduler.events("jobs").events

    assert event.event_id.startswith(job_id)
    assert (event.retry and event.retry.count, event.timeout_ms, event.priority) == (1, 7_000, 9)
    assert scheduler.tenants.application("jobs").prioritized


def test_a_job_that_says_nothing_of_retries_has_three(scheduler: Scheduler, create: Create) -> None:
    retry = scheduler.timetable.get("jobs", create()).content.retry

    assert retry is not None
    assert retry.count == 3


def test_a_run_tells_its_job_and_carries_its_metadata(scheduler: Scheduler, create: Create) -> None:
    job_id = create(cron_expression="")
    scheduler.timetable.advance()

    (delivery,) = scheduler.record_and_claim((), list(scheduler.agenda()), 5, Terms())[1].deliveries

    assert delivery.url == URL
    assert json.loads(delivery.payload or b"") == {"JobID": job_id, "Name": "My Job", "Metadata": {"url": URL, "key": "value"}}


def test_a_job_without_a_url_goes_where_the_service_says(scheduler: Scheduler) -> None:
    http = create_app(scheduler, Service(dialects=["jobs"], jobsUrl="http://127.0.0.1:9/all")).test_client()
    job_id = http.post("/v1/jobs", json={"name": "n", "cron_expression": "@daily", "metadata": {"key": "value"}}).json["jobId"]

    assert scheduler.timetable.get("jobs", job_id).content.url == "http://127.0.0.1:9/all"


def test_a_job_that_would_go_nowhere_is_refused_with_what_to_set(http: FlaskClient, scheduler: Scheduler) -> None:
    scheduler.tenants.create("jobs", Changes(topics={}))
    refused(http.post("/v1/jobs", json={"name": "n", "cron_expression": "@daily"}), 400, 9, "service.jobsUrl")


# --- its life ------------------------------------------------------------------------------------------------------------


def test_a_job_without_a_cron_expression_runs_once_and_completes(http: FlaskClient, scheduler: Scheduler, create: Create) -> None:
    job_id = create(cron_expression="")
    assert status_of(http, job_id) == "PENDING"
    scheduler.timetable.advance()
    assert status_of(http, job_id) == "SCHEDULED"

    claimed = scheduler.record_and_claim((), list(scheduler.agenda()), 5, Terms())[1].deliveries
    assert status_of(http, job_id) == "RUNNING"
    scheduler.record([Outcome(delivery, delivery.due_at, 5, status_code=200) for delivery in claimed])
    job = http.get(f"/v1/jobs/{job_id}").json

    assert job["status"] == "JOB_STATUS_COMPLETED"
    assert job["nextRun"] is None
    assert job["lastRun"] is not None


def test_a_failed_run_is_retried_and_may_be_tried_once_more(http: FlaskClient, scheduler: Scheduler, create: Create) -> None:
    job_id = create(cron_expression="")
    assert work(scheduler, 500) == 1
    assert status_of(http, job_id) == "RETRYING"
    refused_id = create(cron_expression="")
    work(scheduler, 400)
    assert status_of(http, refused_id) == "FAILED"

    again = http.put(f"/v1/jobs/{refused_id}", json={"status": "RETRYING"})

    assert (again.status_code, again.json["status"]) == (200, "JOB_STATUS_SCHEDULED")
    assert work(scheduler) >= 1
    assert status_of(http, refused_id) == "COMPLETED"


@pytest.mark.parametrize("spelling", ["PAUSED", "JOB_STATUS_PAUSED", "paused", 6])
def test_a_job_is_paused_and_resumed_by_its_status(http: FlaskClient, create: Create, spelling: str | int) -> None:
    job_id = create()

    paused = http.put(f"/v1/jobs/{job_id}", json={"status": spelling}).json
    assert (paused["status"], paused["nextRun"]) == ("JOB_STATUS_PAUSED", None)
    resumed = http.put(f"/v1/jobs/{job_id}", json={"status": "SCHEDULED"}).json

    assert resumed["status"] == "JOB_STATUS_PENDING"
    assert resumed["nextRun"] is not None


def test_a_job_may_begin_paused(http: FlaskClient, create: Create) -> None:
    assert status_of(http, create(status="PAUSED")) == "PAUSED"


def test_a_job_that_begins_paused_is_at_no_time_active(
    http: FlaskClient, scheduler: Scheduler, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = scheduler.timetable.create

    def create_and_be_advanced(*args: Any, **how: Any) -> Any:
        series = made(*args, **how)
        scheduler.timetable.advance()
        return series

    monkeypatch.setattr(scheduler.timetable, "create", create_and_be_advanced)
    job_id = create(**ONCE, cron_expression="", status="PAUSED")

    assert status_of(http, job_id) == "PAUSED"
    assert work(scheduler) == 0


@pytest.mark.parametrize("schedules", [False, True])
def test_a_paused_job_that_was_to_run_once_does_so_when_it_goes_on(hand: Hand, clock: ManualClock, schedules: bool) -> None:
    http = client_of(hand)
    job_id = http.post("/v1/jobs", json={**ONCE, "status": "PAUSED"}).json["jobId"]
    clock.advance(600_000)
    hand.scheduler.timetable.advance()
    assert hand.claim() == []

    for _ in range(2):
        if schedules:
            assert http.post("/v1/scheduler/jobs", json={"job": {"id": job_id}}).json == {"scheduleId": job_id}
        else:
            assert http.put(f"/v1/jobs/{job_id}", json={"status": "SCHEDULED"}).json["status"] == "JOB_STATUS_SCHEDULED"
    hand.scheduler.timetable.advance()
    hand.answer(hand.claim_one())
    assert status_of(http, job_id) == "COMPLETED"


def test_a_job_that_runs_once_does_so_whatever_the_clock_of_the_service_shows(hand: Hand) -> None:
    http = client_of(hand)
    job_id = http.post("/v1/jobs", json=ONCE).json["jobId"]

    assert http.get(f"/v1/jobs/{job_id}").json["nextRun"] == "2049-03-22T04:26:40Z"
    hand.scheduler.timetable.advance()
    assert hand.claim_one().event_id.startswith(job_id)


def test_setting_a_job_to_running_has_it_run_now(http: FlaskClient, scheduler: Scheduler, create: Create) -> None:
    job_id = create(cron_expression="0 0 1 1 *")
    refused(http.put(f"/v1/jobs/{job_id}", json={"status": "RUNNING"}), 400, 3, "Invalid state transition from PENDING to RUNNING")
    scheduler.timetable.run_now("jobs", job_id)

    job = http.put(f"/v1/jobs/{job_id}", json={"status": "RUNNING"}).json

    assert job["status"] == "JOB_STATUS_SCHEDULED"  # a worker takes it the next moment
    assert [event.status for event in scheduler.events("jobs").events] == [Status.PENDING] * 2


def test_no_transition_is_made_that_is_not_in_the_table(http: FlaskClient, create: Create) -> None:
    for before, allowed in calls.TRANSITIONS.items():
        if before not in {"PENDING", "PAUSED", "CANCELLED"}:
            continue
        for status in set(calls.TRANSITIONS) - allowed - {before}:
            job_id = create(status="PAUSED" if before == "PAUSED" else "PENDING")
            if before == "CANCELLED":
                http.post(f"/v1/jobs/{job_id}/cancel")
            answered = http.put(f"/v1/jobs/{job_id}", json={"status": status})
            refused(answered, 400, 3, f"^Invalid state transition from {before} to {status}$")


def test_a_cancelled_job_is_final(http: FlaskClient, create: Create) -> None:
    job_id = create()

    assert http.post(f"/v1/jobs/{job_id}/cancel").json == {"success": True, "message": "Job cancelled successfully"}
    assert status_of(http, job_id) == "CANCELLED"
    refused(http.post(f"/v1/jobs/{job_id}/cancel"), 400, 9, "^Cannot cancel job with status: CANCELLED$")
    refused(http.put(f"/v1/jobs/{job_id}", json={"name": "n"}), 400, 9, "^Cannot update job with status: CANCELLED$")


def test_an_update_changes_what_it_names_and_no_more(http: FlaskClient, scheduler: Scheduler, create: Create) -> None:
    job_id = create(description="Description", priority=4, timeout=9)
    before = http.get(f"/v1/jobs/{job_id}").json

    after = http.put(f"/v1/jobs/{job_id}", json={"name": "Updated Job", "cronExpression": "*/5 * * * *"}).json

    changed = {"name": "Updated Job", "cronExpression": "*/5 * * * *", "updatedAt": after["updatedAt"], "nextRun": after["nextRun"]}
    assert after == {**before, **changed}
    assert json.loads(scheduler.timetable.get("jobs", job_id).content.payload or b"")["Name"] == "Updated Job"
    assert http.put(f"/v1/jobs/{job_id}", json={"metadata": {"url": URL + "/2"}}).json["metadata"] == {"url": URL + "/2"}
    assert scheduler.timetable.get("jobs", job_id).content.url == URL + "/2"


def test_what_is_blank_in_an_update_stays_as_it_is(http: FlaskClient, create: Create) -> None:
    job_id = create()
    before = http.get(f"/v1/jobs/{job_id}").json

    assert http.put(f"/v1/jobs/{job_id}", json={"name": " ", "cron_expression": " "}).json == before


def test_deleting_removes_a_job_and_an_unknown_one_is_gone_too(http: FlaskClient, create: Create) -> None:
    job_id = create()

    assert http.delete(f"/v1/jobs/{job_id}").json == {"success": True}
    refused(http.get(f"/v1/jobs/{job_id}"), 404, 5, "^Job not found$")
    assert http.delete(f"/v1/jobs/{job_id}").json == {"success": True}
    assert http.delete(f"/v1/jobs/{uuid.uuid4()}").json == {"success": True}


# --- lists ---------------------------------------------------------------------------------------------------------------


def test_a_list_goes_on_after_the_last_id(http: FlaskClient, create: Create) -> None:
    made = sorted(create(name=f"job {number}") for number in range(5))
    seen: list[str] = []
    last_id = ""
    for _ in range(3):
        page = http.get(f"/v1/jobs?page_size=2&last_id={last_id}").json
        assert page["total"] == len(page["jobs"])
        seen += [job["id"] for job in page["jobs"]]
        last_id = page["nextPage"]

    assert seen == made
    assert last_id == ""


def test_a_list_leaves_out_what_cannot_be_read_and_goes_on(
    http: FlaskClient, scheduler: Scheduler, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "JOBS_PAGE", 2)
    first, *others = sorted(create() for _ in range(5))
    with scheduler._engines.write.begin() as conn:
        conn.execute(schema.series.update().where(schema.series.c.series_id == first).values(rule='{"unknown": 1}'))

    seen = [job["jobId"] for job in http.get("/v1/scheduler/jobs").json["jobs"]]
    assert seen == others


@pytest.mark.parametrize("page_size", [0, -1, 251, 10_000])
def test_a_page_size_outside_1_to_250_is_250(http: FlaskClient, create: Create, page_size: int) -> None:
    create()

    assert len(http.get(f"/v1/jobs?page_size={page_size}").json["jobs"]) == 1


def test_a_list_may_be_of_one_status(http: FlaskClient, create: Create) -> None:
    running, paused = create(), create(status="PAUSED")
    cancelled = create()
    http.post(f"/v1/jobs/{cancelled}/cancel")

    def listed(status: str) -> list[str]:
        return [job["id"] for job in http.get(f"/v1/jobs?status={status}").json["jobs"]]

    assert listed("PAUSED") == listed("JOB_STATUS_PAUSED") == listed("paused") == [paused]
    assert listed("CANCELLED") == [cancelled]
    assert listed("PENDING") == listed("active") == [running]
    assert listed("COMPLETED") == []
    assert sorted(listed("")) == sorted([running, paused, cancelled])


# --- schedules -----------------------------------------------------------------------------------------------------------


def test_a_job_is_scheduled_with_resources_that_are_kept_and_shown(http: FlaskClient) -> None:
    asked = {"job": HOURLY, "resource_requirements": {"cpu": 2, "memory": 512, "storage": 1024}}
    job_id = http.post("/v1/scheduler/jobs", json=asked).json["scheduleId"]

    scheduled = http.get(f"/v1/scheduler/jobs/{job_id}").json

    assert scheduled["jobId"] == job_id
    assert scheduled["resourceRequirements"] == {"cpu": 2, "memory": 512, "storage": 1024}
    assert ":00:00" in scheduled["nextExecutionTime"]
    assert http.get(f"/v1/jobs/{job_id}").json["metadata"] == HOURLY["metadata"]
    assert http.get("/v1/scheduler/jobs").json == {"jobs": [scheduled], "nextPageToken": "", "totalCount": 1}


def test_scheduling_a_paused_job_lets_it_go_on(http: FlaskClient, create: Create) -> None:
    job_id = create(status="PAUSED")
    refused(http.get(f"/v1/scheduler/jobs/{job_id}"), 404, 5, "not found")

    asked = {"job": {"id": job_id}, "resourceRequirements": {"cpu": 1}}
    assert http.post("/v1/scheduler/jobs", json=asked).json == {"scheduleId": job_id}

    assert http.get(f"/v1/scheduler/jobs/{job_id}").json["resourceRequirements"]["cpu"] == 1
    assert status_of(http, job_id) == "PENDING"


def test_cancelling_a_scheduled_job_cancels_the_job(http: FlaskClient, create: Create) -> None:
    job_id = create()

    assert http.delete(f"/v1/scheduler/jobs/{job_id}").json == {"success": True}
    assert status_of(http, job_id) == "CANCELLED"
    refused(http.delete(f"/v1/scheduler/jobs/{uuid.uuid4()}"), 404, 5, "^Job not found$")


# --- executions ----------------------------------------------------------------------------------------------------------


def test_attempts_are_executions(http: FlaskClient, scheduler: Scheduler, create: Create) -> None:
    good = create(cron_expression="")
    work(scheduler)
    bad = create(cron_expression="")
    work(scheduler, 404)

    listed = http.get("/v1/executions").json
    (one,) = http.get(f"/v1/executions?job_id={good}").json["executions"]
    (other,) = http.get("/v1/executions?status=FAILED").json["executions"]

    assert {execution["jobId"] for execution in listed["executions"]} == {good, bad}
    assert (one["status"], one["result"], one["error"]) == ("COMPLETED", "done", "")
    assert (other["jobId"], other["status"], other["error"]) == (bad, "FAILED", "HTTP 404")
    assert one["startTime"] < one["endTime"]
    assert http.get(f"/v1/executions/{one['id']}").json == one


def test_a_run_that_is_under_way_is_an_execution(http: FlaskClient, scheduler: Scheduler, create: Create) -> None:
    job_id = create(cron_expression="")
    scheduler.timetable.advance()
    scheduler.record_and_claim((), list(scheduler.agenda()), 5, Terms())

    (running,) = http.get("/v1/executions").json["executions"]

    assert (running["jobId"], running["status"], running["endTime"]) == (job_id, "RUNNING", None)


def test_executions_go_on_after_the_last_id(http: FlaskClient, scheduler: Scheduler, create: Create) -> None:
    for _ in range(5):
        create(cron_expression="")
    work(scheduler)
    seen: list[str] = []
    last_id = ""
    for _ in range(3):
        page = http.get(f"/v1/executions?page_size=2&last_id={last_id}").json
        seen += [execution["id"] for execution in page["executions"]]
        last_id = page["nextPage"]

    assert len(set(seen)) == len(seen) == 5
    assert last_id == ""


def test_no_page_of_executions_is_empty_but_the_only_one(http: FlaskClient, scheduler: Scheduler, create: Create) -> None:
    for code in (404, 200, 404, 200, 200):
        create(cron_expression="")
        work(scheduler, code)

    first = http.get("/v1/executions?status=FAILED&page_size=1").json
    second = http.get(f"/v1/executions?status=FAILED&page_size=1&last_id={first['nextPage']}").json

    assert [execution["status"] for page in (first, second) for execution in page["executions"]] == ["FAILED"] * 2
    assert second["nextPage"] == ""


def test_the_executions_of_a_job_do_not_go_on_after_those_of_another(http: FlaskClient, scheduler: Scheduler, create: Create) -> None:
    one, other = create(cron_expression=""), create(cron_expression="")
    work(scheduler)
    (foreign,) = http.get(f"/v1/executions?job_id={other}").json["executions"]

    refused(http.get(f"/v1/executions?job_id={one}&last_id={foreign['id']}"), 400, 3, "Invalid last ID")


@pytest.mark.parametrize("event_id", ["plain", "an_event", "e_2030", "_20300415T010000Z"])
def test_the_attempts_of_what_is_no_run_are_no_executions(http: FlaskClient, scheduler: Scheduler, event_id: str) -> None:
    scheduler.add(new_event(event_id, "jobs", due_at=1))
    work(scheduler)

    assert http.get("/v1/executions").json["executions"] == []
    refused(http.get(f"/v1/executions/{event_id}:1"), 404, 5, "Execution not found")


def test_an_execution_that_is_not_there_is_not_found(http: FlaskClient) -> None:
    refused(http.get("/v1/executions/nonsense"), 400, 3, "Invalid execution ID")
    refused(http.get("/v1/executions/e:1"), 404, 5, "Execution not found")
    refused(http.get("/v1/executions?last_id=x"), 400, 3, "Invalid last ID")


# --- what cannot be read, and who may not --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cron_expression": "/5 "}, "Invalid cron expression"),
        ({"cron_expression": "0 */5 * * * *"}, "Invalid cron expression"),
        ({"cron_expression": "@fortnightly"}, "Invalid cron expression"),
        ({"cron_expression": "*/0 * * * *"}, "Invalid cron expression"),
        ({"cron_expression": "@every"}, "Invalid cron expression"),
        ({"cron_expression": "@every 1ms"}, "Invalid cron expression"),
        ({"cron_expression": "@every 99999999999999h"}, "Invalid cron expression"),
        ({"cron_expression": "\udc80"}, "surrogate"),
        ({"name": ""}, "Invalid name"),
        ({"name": "x" * 201}, "Invalid name"),
        ({"name": 5}, "name"),
        ({"priority": 101}, "Invalid priority"),
        ({"priority": -1}, "Invalid priority"),
        ({"priority": 2**31}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"priority": True}, "priority"),
        ({"max_retries": 101}, "Invalid max_retries"),
        ({"max_retries": -1}, "Invalid max_retries"),
        ({"timeout": -1}, "Invalid timeout"),
        ({"timeout": 3601}, "Invalid timeout"),
        ({"metadata": {"url": "ftp://x/"}}, "Invalid url"),
        ({"metadata": {"url": URL, "resource_requirements": "{}"}}, "metadata"),
        ({"metadata": {"url": 5}}, "metadata"),
        ({"metadata": [1]}, "metadata"),
        ({"metadata": {"url": URL, "long": "x" * 20_000}}, "Invalid metadata"),
        ({"status": "RUNNING"}, "Invalid status"),
        ({"status": "odd"}, "Invalid status"),
        ({"status": 99}, "Invalid status"),
        ({"description": "x" * 2_001}, "Invalid description"),
    ],
)
def test_what_a_job_cannot_be_is_refused_in_words_of_its_own(http: FlaskClient, changed: dict[str, Any], message: str) -> None:
    body = json.dumps({**HOURLY, **changed})

    refused(http.post("/v1/jobs", data=body, content_type="application/json"), 400, 3, message)
    assert http.get("/v1/jobs").json == {"jobs": [], "total": 0, "nextPage": ""}


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '"x"', "1", "[" * 5_000, '{"a":' * 2_000, '{"metadata":' * 300 + "1" + "}" * 300])
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/jobs"), ("PUT", "/v1/jobs/x"), ("POST", "/v1/scheduler/jobs")])
def test_a_body_that_is_no_job_is_refused(http: FlaskClient, method: str, path: str, body: str) -> None:
    answered = http.open(path, method=method, data=body, content_type="application/json")

    assert 400 <= answered.status_code < 500
    assert set(answered.json) == {"code", "message", "details"}


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/jobs/%00", "/v1/jobs/.%2e", "/v1/jobs?page_size=x", "/v1/jobs?last_id=%20", "/v1/jobs?status=odd", "/v1/jobs/" + "x" * 500),
        *("/v1/executions/%ff:1", "/v1/executions?job_id=%20", "/v1/scheduler/jobs?page_token=%2f", "/v1/jobs?page_size=99999999999999"),
    ],
)
def test_an_address_that_makes_no_sense_is_refused(http: FlaskClient, path: str) -> None:
    refused(http.get(path), 400, 3)


def test_what_is_not_there_and_a_method_that_is_not_taken_are_told_in_its_form(http: FlaskClient) -> None:
    refused(http.get("/v1/jobs/a/b"), 404, 5)
    refused(http.patch("/v1/jobs"), 405, 12)
    refused(http.post("/v1/jobs", data="x", content_type="text/plain"), 415, 3)
    refused(http.get("/v1/jobs", headers={"Cassata-Application": "a b"}), 400, 3, "Invalid application")


def test_fields_that_are_not_known_are_passed_over(http: FlaskClient) -> None:
    assert http.post("/v1/jobs", json={**HOURLY, "surely-not": 1}).status_code == 200
    assert http.get("/v1/jobs?surely=not").status_code == 200


def test_applications_do_not_see_each_others_jobs(scheduler: Scheduler, http: FlaskClient) -> None:
    guarded = create_app(scheduler, Service(dialects=["jobs"], authentication="required")).test_client()
    scheduler.tenants.create("mine")
    scheduler.tenants.create("theirs")
    keys = {}
    for name in ("mine", "theirs"):
        keys[name] = {"Authorization": f"Bearer {scheduler.tenants.create_key(name, {Scope.PUBLISH, Scope.READ})[1]}"}
    job_id = guarded.post("/v1/jobs", json=ONCE, headers=keys["mine"]).json["jobId"]
    work(scheduler)
    execution = guarded.get("/v1/executions", headers=keys["mine"]).json["executions"][0]["id"]
    foreign = {**keys["theirs"], "Cassata-Application": "mine"}

    for headers in (keys["theirs"], foreign):
        assert guarded.get("/v1/jobs", headers=headers).json["jobs"] == []
        assert guarded.get("/v1/executions", headers=headers).json["executions"] == []
        refused(guarded.get(f"/v1/jobs/{job_id}", headers=headers), 404, 5, "^Job not found$")
        refused(guarded.put(f"/v1/jobs/{job_id}", json={"name": "n"}, headers=headers), 404, 5)
        refused(guarded.post(f"/v1/jobs/{job_id}/cancel", headers=headers), 404, 5)
        refused(guarded.get(f"/v1/scheduler/jobs/{job_id}", headers=headers), 404, 5)
        refused(guarded.get(f"/v1/executions/{execution}", headers=headers), 404, 5)
        assert guarded.delete(f"/v1/jobs/{job_id}", headers=headers).json == {"success": True}
    assert guarded.get(f"/v1/jobs/{job_id}", headers=keys["mine"]).status_code == 200
    refused(guarded.get("/v1/jobs"), 401, 16)


def test_a_key_that_may_only_read_changes_nothing(scheduler: Scheduler) -> None:
    guarded = create_app(scheduler, Service(dialects=["jobs"], authentication="required")).test_client()
    scheduler.tenants.create("mine")
    reader = {"Authorization": f"Bearer {scheduler.tenants.create_key('mine', {Scope.READ})[1]}"}

    assert guarded.get("/v1/jobs", headers=reader).status_code == 200
    refused(guarded.post("/v1/jobs", json=ONCE, headers=reader), 403, 7)


def test_an_operator_says_which_application(scheduler: Scheduler, http: FlaskClient) -> None:
    job_id = http.post("/v1/jobs", json=ONCE, headers={"Cassata-Application": "other"}).json["jobId"]

    assert scheduler.timetable.get("other", job_id).content.name == "Once"
    refused(http.get(f"/v1/jobs/{job_id}"), 404, 5)


def test_a_series_that_was_made_otherwise_is_a_job_too(http: FlaskClient) -> None:
    body = {"url": URL, "event": "x", "recurrence": "RRULE:FREQ=DAILY", "scheduled-at": "2030-01-01T00:00:00Z", "metadata": {"n": 5}}
    assert http.put("/cassata/series/jobs/digest", json=body).status_code == 201

    job = http.get("/v1/jobs/digest").json

    assert (job["name"], job["cronExpression"], job["metadata"]) == ("", "RRULE:FREQ=DAILY", {"n": "5"})


def test_without_the_dialect_nothing_is_there(scheduler: Scheduler) -> None:
    assert create_app(scheduler, Service()).test_client().get("/v1/jobs").status_code == 404
