"""`cassata import goscheduler`, `recurring` and `jobs`: what waits in a running ancestor, through a real service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cassata.cli import cassata
from cassata.config import Service
from cassata.model import Scope, Status
from cassata.moving import goscheduler
from cassata.scheduler import Scheduler
from cassata.service import create_app
from tests.conftest import wait_until
from tests.service.ancestors import HOUR, GoScheduler, Jobs, Recurring, schedule_id, serving
from tests.service.conftest import Middleman

Run = Callable[..., Result]
NOW = int(time.time())
DAY = 24 * HOUR


@pytest.fixture
def run(service_url: str) -> Run:
    def run(*words: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Result:
        env = {"CASSATA_SERVICE_URL": service_url, "CASSATA_APPLICATION": "", "CASSATA_KEY": ""} | (env or {})
        return CliRunner().invoke(cassata, ["import", *words[:1], "--rate", "1000", *words[1:]], input=stdin, env=env)

    return run


@pytest.fixture
def old() -> GoScheduler:
    return GoScheduler(apps=[{"appId": "shop", "partitions": 2, "active": False, "configuration": {}}])


@pytest.fixture
def old_server(old: GoScheduler) -> Middleman:
    return old.served()


@pytest.fixture
def old_url(old_server: Middleman) -> Iterator[str]:
    with serving(old_server) as url:
        yield url


def stored(scheduler: Scheduler, application_id: str = "shop") -> list[str]:
    return sorted(each.event_id for each in scheduler.events(application_id, limit=1_000).events)


# --- GoScheduler -----------------------------------------------------------------------------------------------------------


def test_a_schedule_keeps_its_id_its_request_and_its_retries(run: Run, old: GoScheduler, old_url: str, sqlite_scheduler: Scheduler) -> None:
    old.schedule(1, NOW + DAY)

    done = run("goscheduler", "--from", old_url)

    assert (done.exit_code, done.stdout) == (0, "1 moved\n")
    event, _ = sqlite_scheduler.event("shop", schedule_id(1))
    assert (event.due_at, event.method, event.url, event.payload) == ((NOW + DAY) * 1000, "GET", "http://receiver.example/1", b"{}")
    assert dict(event.headers) == {"Accept": "application/json", "Schedule-Id": schedule_id(1)}
    assert event.retry is not None
    assert (event.retry.count, event.retry.initial_ms, event.retry.on, event.timeout_ms) == (2, 0, "any", 2_000)


@pytest.mark.parametrize("count", [99, 100, 101, 200, 250])
def test_all_pages_are_read_however_full_they_are(
    run: Run, old: GoScheduler, old_url: str, old_server: Middleman, sqlite_scheduler: Scheduler, count: int
) -> None:
    for number in range(count):
        old.schedule(number, NOW + DAY + 60 * (number % 3))
    for number in range(count, count + 5):
        old.schedule(number, NOW + 100 * DAY + HOUR * number)

    assert run("goscheduler", "--from", old_url).stdout == f"{count + 5} moved\n"
    assert len(stored(sqlite_scheduler)) == count + 5
    assert len(old_server.seen) < 25  # a year is 13 windows


def test_a_second_import_adds_nothing(run: Run, old: GoScheduler, old_url: str) -> None:
    for number in range(3):
        old.schedule(number, NOW + DAY)
    old.cron(9, "*/5 * * * *")

    assert run("goscheduler", "--from", old_url).stdout == "4 moved\n"
    assert run("goscheduler", "--from", old_url).stdout == "0 moved, 4 there already\n"


def test_what_was_cancelled_or_changed_here_stays_so_when_the_import_is_repeated(
    run: Run, old: GoScheduler, old_url: str, sqlite_scheduler: Scheduler
) -> None:
    for number in range(3):
        old.schedule(number, NOW + DAY)
    old.cron(8, "0 0 * * *")
    old.cron(9, "0 0 * * *")
    run("goscheduler", "--from", old_url)
    sqlite_scheduler.cancel("shop", schedule_id(1))
    sqlite_scheduler.change("shop", schedule_id(2), {"url": "http://elsewhere.example/"})
    sqlite_scheduler.timetable.cancel("shop", schedule_id(8))
    sqlite_scheduler.timetable.pause("shop", schedule_id(9))

    assert run("goscheduler", "--from", old_url).stdout == "0 moved, 5 there already\n"
    statuses = {event.event_id: event.status for event in sqlite_scheduler.events("shop", limit=1_000).events}
    assert statuses[schedule_id(1)] is Status.CANCELLED
    assert sqlite_scheduler.event("shop", schedule_id(2))[0].url == "http://elsewhere.example/"
    assert [sqlite_scheduler.timetable.get("shop", schedule_id(n)).status.name for n in (8, 9)] == ["CANCELLED", "PAUSED"]


def test_a_key_moves_nothing_into_an_application_that_is_not_its_own(
    run: Run, old: GoScheduler, old_url: str, sqlite_scheduler: Scheduler
) -> None:
    sqlite_scheduler.tenants.put("other")
    sqlite_scheduler.tenants.put("shop")
    _, token = sqlite_scheduler.tenants.create_key("other", scopes=frozenset(Scope))
    for number in range(3):
        old.schedule(number, NOW + DAY)
    old.cron(9, "0 0 * * *")

    done = run("goscheduler", "--from", old_url, env={"CASSATA_KEY": token})

    assert (done.exit_code, done.stdout) == (1, "")
    assert stored(sqlite_scheduler) == []
    assert sqlite_scheduler.timetable.series("shop") == []


def test_an_application_that_takes_nothing_ends_an_import_before_it_refuses_everything(
    run: Run, old: GoScheduler, old_url: str, sqlite_scheduler: Scheduler
) -> None:
    for number in range(3):
        old.schedule(number, NOW + DAY)
    sqlite_scheduler.tenants.put("shop", active=False)

    done = run("goscheduler", "--from", old_url)

    assert (done.exit_code, done.stdout) == (1, "")
    assert "deactivated" in done.stderr
    assert "start again" in done.stderr


def test_what_has_ended_stays_and_what_was_missed_is_told_and_moved_if_that_is_wanted(
    run: Run, old: GoScheduler, old_url: str, sqlite_scheduler: Scheduler
) -> None:
    for number, status in enumerate(["SUCCESS", "FAILURE", "MISS", "SCHEDULED"]):
        old.schedule(number, NOW - 600, status)

    told = run("goscheduler", "--from", old_url).stdout
    assert told.splitlines()[0] == "1 moved, 2 ended, 1 missed and left out"
    assert "--missed" in told
    assert run("goscheduler", "--from", old_url, "--missed").stdout == "1 moved, 1 there already, 2 ended\n"
    assert stored(sqlite_scheduler) == [schedule_id(2), schedule_id(3)]


def test_only_what_is_due_in_the_range_is_moved(run: Run, old: GoScheduler, old_url: str, sqlite_scheduler: Scheduler) -> None:
    for number, at in enumerate([HOUR, 2 * HOUR, 3 * HOUR]):
        old.schedule(number, (NOW + DAY) // HOUR * HOUR + at)
    begin = datetime.fromtimestamp((NOW + DAY) // HOUR * HOUR + 2 * HOUR, UTC)

    span = ["--since", begin.isoformat(), "--until", str(begin.timestamp() + HOUR)]
    assert run("goscheduler", "--from", old_url, *span).stdout == "1 moved\n"
    assert stored(sqlite_scheduler) == [schedule_id(1)]


def test_a_cron_schedule_becomes_a_series_that_tells_its_receivers_who_it_is(
    run: Run, old: GoScheduler, old_url: str, sqlite_scheduler: Scheduler
) -> None:
    old.cron(1, "0 12 * * MON-FRI")

    assert run("goscheduler", "--from", old_url, "--timezone", "Asia/Tokyo").stdout == "1 moved\n"
    series = sqlite_scheduler.timetable.get("shop", schedule_id(1))
    assert (series.rule.cron, series.rule.timezone) == ("0 12 * * MON-FRI", "Asia/Tokyo")
    assert series.content.identity_headers == {"event-uuid": "Schedule-Id", "series": "Parent-Schedule-Id"}


def test_runs_that_a_series_makes_are_left_to_it_and_those_before_it_are_moved(
    run: Run, old: GoScheduler, old_url: str, sqlite_scheduler: Scheduler
) -> None:
    old.cron(1, "* * * * *")
    before, after = old.schedule(10, NOW - 60), old.schedule(11, NOW + 240)
    old.runs = {schedule_id(1): [before, after]}

    assert run("goscheduler", "--from", old_url).stdout == "2 moved, 1 left to their series\n"
    assert schedule_id(10) in stored(sqlite_scheduler)
    assert schedule_id(11) not in stored(sqlite_scheduler)


def test_runs_of_a_cron_schedule_that_is_refused_are_moved(run: Run, old: GoScheduler, old_url: str, sqlite_scheduler: Scheduler) -> None:
    old.cron(1, "0 0 13 * FRI")
    old.runs = {schedule_id(1): [old.schedule(11, NOW + 240)]}

    done = run("goscheduler", "--from", old_url)

    assert (done.exit_code, done.stdout) == (1, "1 moved, 1 refused\n")
    assert f"refused: {schedule_id(1)}: '0 0 13 * FRI' restricts both days" in done.stderr
    assert stored(sqlite_scheduler) == [schedule_id(11)]
    assert run("goscheduler", "--from", old_url, "--cron-as-written").stdout.startswith("1 moved")


@pytest.mark.parametrize(
    ("expression", "is_read_otherwise"),
    [
        ("*/5 * * * *", False),
        ("0 0 * * *", False),
        ("0 8,12,18 * * *", False),
        ("5-10 1 1-7 JAN *", False),
        ("0 0 */1 * *", False),
        ("3/15 * * * *", True),
        ("0 0 */5 * *", True),
        ("0 0 13 * FRI", True),
    ],
)
def test_a_cron_expression_that_both_read_alike_is_taken(expression: str, is_read_otherwise: bool) -> None:
    assert bool(goscheduler.read_otherwise(expression)) is is_read_otherwise


def test_what_the_service_refuses_is_told_with_the_reason_and_spoils_no_other(run: Run, old: GoScheduler, old_url: str) -> None:
    old.schedule(1, NOW + DAY)
    old.schedule(2, NOW + DAY, callback={"type": "http", "details": {"url": "http://receiver.example/", "method": "TRACE"}})
    old.schedule(3, NOW + DAY, callback={"type": "http", "details": {"headers": 7}})

    done = run("goscheduler", "--from", old_url, "-o", "json")

    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert (told["moved"], told["refused"]) == (1, 2)
    assert {each["id"]: each["reason"].partition(":")[0] for each in told["refusals"]} == {
        schedule_id(2): "/method",
        schedule_id(3): "its callback cannot be read",
    }


@pytest.mark.parametrize("scheduler", ["goscheduler", "jobs"])
def test_a_time_zone_that_there_is_not_is_said_before_anything_is_asked(run: Run, scheduler: str) -> None:
    done = run(scheduler, "--from", "http://127.0.0.1:9", "--timezone", "Asia/Kalkutta")

    assert done.exit_code == 2
    assert "'Asia/Kalkutta' is not a time zone of the IANA database" in done.stderr


def test_a_dry_run_adds_nothing_and_says_what_would_be_moved(run: Run, old: GoScheduler, old_url: str, sqlite_scheduler: Scheduler) -> None:
    old.schedule(1, NOW + DAY)
    old.schedule(2, NOW + DAY, callback={"type": "http", "details": {"url": "ftp://x", "method": "GET"}})
    old.cron(3, "0 0 * * *")

    done = run("goscheduler", "--from", old_url, "--dry-run")

    assert (done.exit_code, done.stdout) == (1, "would be: 2 moved, 1 refused\n")
    assert stored(sqlite_scheduler) == []


def test_only_the_applications_that_are_named_are_moved(run: Run, old: GoScheduler, old_url: str, sqlite_scheduler: Scheduler) -> None:
    old.apps.append({"appId": "other", "partitions": 1, "active": True, "configuration": {"httpRetries": 5, "httpTimeout": 500}})
    old.schedule(1, NOW + DAY)
    old.schedule(2, NOW + DAY, app_id="other")

    assert run("goscheduler", "--from", old_url, "--app", "other").stdout == "1 moved\n"
    event, _ = sqlite_scheduler.event("other", schedule_id(2))
    assert event.retry is not None
    assert (event.retry.count, event.timeout_ms) == (4, 500)
    unknown = run("goscheduler", "--from", old_url, "--app", "nobody")
    assert (unknown.exit_code, unknown.stderr) == (1, f"Error: {old_url} has no application 'nobody'\n")


def away(environ: Any, start_response: Any) -> list[bytes]:
    start_response("503 Service Unavailable", [("Content-Length", "0"), ("Retry-After", "0")])
    return [b""]


def test_an_ancestor_that_fails_now_and_then_is_asked_again(run: Run, old: GoScheduler, old_url: str, old_server: Middleman) -> None:
    old.schedule(1, NOW + DAY)
    old_server.spoil += [away, away]

    assert run("goscheduler", "--from", old_url).stdout == "1 moved\n"


def test_an_import_that_failed_goes_on_where_it_was(
    run: Run, old: GoScheduler, old_url: str, old_server: Middleman, tmp_path: Path, sqlite_scheduler: Scheduler
) -> None:
    for number in range(250):
        old.schedule(number, NOW + DAY)
    old.schedule(300, NOW + DAY, callback={"type": "http", "details": {"url": "ftp://x", "method": "GET"}})
    state = tmp_path / "state.json"

    def breaks_at_the_third_page(environ: Any, start_response: Any) -> Any:
        if "schedules" in environ["PATH_INFO"] and old_server.seen.count("GET /goscheduler/apps/shop/schedules") >= 3:
            old_server.spoil += [away] * 20
            return away(environ, start_response)
        old_server.spoil.append(breaks_at_the_third_page)
        return old_server.app(environ, start_response)

    old_server.spoil.append(breaks_at_the_third_page)
    broken = run("goscheduler", "--from", old_url, "--state", str(state))
    assert (broken.exit_code, len(stored(sqlite_scheduler))) == (1, 200)
    old_server.spoil.clear()
    before = len(old_server.seen)

    done = run("goscheduler", "--from", old_url, "--state", str(state))

    assert done.stderr.splitlines()[0] == "going on: 200 moved"
    assert done.stdout == "250 moved, 1 refused\n"
    assert len(stored(sqlite_scheduler)) == 250
    assert old_server.seen[before:].count("GET /goscheduler/apps/shop/schedules") < 15
    assert not state.exists()


def test_the_state_of_another_import_is_not_gone_on_with(run: Run, old: GoScheduler, old_url: str, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text('{"asked": {}}')
    assert "is of another import" in run("goscheduler", "--from", old_url, "--state", str(state)).stderr
    state.write_text("nonsense")
    assert "is not what an import has written" in run("goscheduler", "--from", old_url, "--state", str(state)).stderr


def test_an_import_that_is_killed_loses_nothing_and_doubles_nothing(
    old: GoScheduler, old_url: str, old_server: Middleman, service_url: str, tmp_path: Path, sqlite_scheduler: Scheduler
) -> None:
    for number in range(250):
        old.schedule(number, NOW + DAY)
    held = threading.Event()

    def holds_the_second_page(environ: Any, start_response: Any) -> Any:
        if old_server.seen.count("GET /goscheduler/apps/shop/schedules") == 2:
            held.wait(30)
        else:
            old_server.spoil.append(holds_the_second_page)
        return old_server.app(environ, start_response)

    old_server.spoil.append(holds_the_second_page)
    words = ["import", "--service", service_url, "goscheduler", "--from", old_url, "--rate", "1000", "--state", str(tmp_path / "state")]
    command = [sys.executable, "-m", "cassata", *words]
    process = subprocess.Popen(command, env={**os.environ, "CASSATA_KEY": ""}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: old_server.seen.count("GET /goscheduler/apps/shop/schedules") == 2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        held.set()
    assert len(stored(sqlite_scheduler)) == 100

    done = subprocess.run(command, env={**os.environ, "CASSATA_KEY": ""}, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "250 moved\n")
    assert done.stderr.startswith("going on: 100 moved\n")
    assert len(stored(sqlite_scheduler)) == 250
    assert {event.status for event in sqlite_scheduler.events("shop", limit=1_000).events} == {Status.PENDING}


# --- DTS-Go ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def dts() -> Jobs:
    return Jobs()


@pytest.fixture
def dts_url(dts: Jobs) -> Iterator[str]:
    with serving(dts.served()) as url:
        yield url


TO_URL = ("--job-url", "http://receiver.example/jobs")


def test_a_job_becomes_a_series_that_sends_what_identifies_it(run: Run, dts: Jobs, dts_url: str, sqlite_scheduler: Scheduler) -> None:
    dts.job(1, maxRetries=4, timeout=30)
    dts.job(2)

    assert run("jobs", "--from", dts_url, *TO_URL, "--timezone", "Asia/Tokyo").stdout == "2 moved\n"
    usual = sqlite_scheduler.timetable.get("jobs", schedule_id(2)).content.retry
    assert usual is not None
    assert usual.count == 3
    series = sqlite_scheduler.timetable.get("jobs", schedule_id(1))
    assert (series.rule.cron, series.rule.timezone, series.content.url) == ("*/5 * * * *", "Asia/Tokyo", "http://receiver.example/jobs")
    assert json.loads(series.content.payload or b"") == {"JobID": schedule_id(1), "Name": "Job 1", "Metadata": {"key": "value"}}
    assert (series.content.name, series.content.description, series.content.metadata) == ("Job 1", "Description", {"key": "value"})
    assert series.content.retry is not None
    assert (series.content.retry.count, series.content.timeout_ms) == (4, 30_000)


def test_jobs_are_moved_whatever_their_spelling_and_those_that_have_ended_stay(run: Run, dts: Jobs, dts_url: str) -> None:
    for number, status in enumerate(
        ["SCHEDULED", "JOB_STATUS_PENDING", "RUNNING", "RETRYING", "COMPLETED", "JOB_STATUS_CANCELLED", "FAILED"]
    ):
        dts.job(number, status=status)
    dts.jobs.append({"id": schedule_id(100), "name": "n", "cron_expression": "@every 1h30m", "status": "JOB_STATUS_SCHEDULED"})

    assert run("jobs", "--from", dts_url, *TO_URL).stdout == "5 moved, 3 ended\n"
    assert run("jobs", "--from", dts_url, *TO_URL).stdout == "0 moved, 5 there already, 3 ended\n"


def test_a_paused_job_stays_paused_until_somebody_resumes_it(run: Run, dts: Jobs, dts_url: str, sqlite_scheduler: Scheduler) -> None:
    dts.job(1, status="PAUSED")

    run("jobs", "--from", dts_url, *TO_URL)
    assert sqlite_scheduler.timetable.get("jobs", schedule_id(1)).status.name == "PAUSED"
    sqlite_scheduler.timetable.resume("jobs", schedule_id(1))
    run("jobs", "--from", dts_url, *TO_URL)
    assert sqlite_scheduler.timetable.get("jobs", schedule_id(1)).status.name == "ACTIVE"


def test_all_pages_of_jobs_are_read(run: Run, dts: Jobs, dts_url: str) -> None:
    for number in range(501):
        dts.job(number, "0 0 1 1 *", status="COMPLETED" if number % 10 else "PENDING")

    assert run("jobs", "--from", dts_url, *TO_URL).stdout == "51 moved, 450 ended\n"


def test_a_run_that_is_overdue_is_told_and_moved_if_that_is_wanted(run: Run, dts: Jobs, dts_url: str, sqlite_scheduler: Scheduler) -> None:
    dts.job(1, nextRun="2026-11-20T12:00:00Z")

    assert run("jobs", "--from", dts_url, *TO_URL).stdout.splitlines()[0] == "1 moved, 1 missed and left out"
    assert run("jobs", "--from", dts_url, *TO_URL, "--missed").stdout == "1 moved, 1 there already\n"
    assert stored(sqlite_scheduler, "jobs") == [f"{schedule_id(1)}_20261120T120000Z"]


def test_a_job_that_cannot_be_is_refused_with_the_reason(run: Run, dts: Jobs, dts_url: str) -> None:
    dts.job(1, "nonsense")
    dts.job(2, "")
    dts.job(3, "", nextRun="2030-01-01T00:00:00Z")

    done = run("jobs", "--from", dts_url, *TO_URL, "-o", "json")

    told = json.loads(done.stdout)
    assert (done.exit_code, told["moved"], [each["id"] for each in told["refusals"]]) == (1, 1, [schedule_id(1), schedule_id(2)])
    assert "neither a cron expression nor a next run" in done.stderr


def test_a_job_or_an_application_whose_id_cannot_be_here_is_refused_and_nothing_else(run: Run, dts: Jobs, dts_url: str) -> None:
    dts.job(1)
    dts.job(2, id="z/../2")
    dts.job(3, "", nextRun="2030-01-01T00:00:00Z")

    done = run("jobs", "--from", dts_url, *TO_URL)
    assert (done.exit_code, done.stdout) == (1, "2 moved, 1 refused\n")
    assert "refused: z/../2: series-id: must be 1 to 111 characters out of" in done.stderr

    done = run("jobs", "--from", dts_url, *TO_URL, "--app", "a b")
    assert (done.exit_code, done.stdout) == (1, "0 moved, 3 refused\n")
    assert "application-id: must be 1 to 64 characters out of" in done.stderr


# --- the recurring-event scheduler -----------------------------------------------------------------------------------------

ONCE = {
    "id": "8b82e04b-7764-430b-bc49-0393235f8927",
    "scheduledAt": "2030-03-09T17:43:00Z",
    "timezone": "Asia/Tokyo",
    "payload": "aGVsbG8gd29ybGQK",
    "destinationTopic": "notification.notifications",
}
SERIES = "318849b6-39b9-47fb-8b23-4fd43089f03f"
RECURRING = {
    "id": SERIES,
    "scheduledAt": "2030-04-15T10:00:00",
    "timezone": "Asia/Tokyo",
    "payload": "aGVsbG8gd29ybGQK",
    "destinationTopic": "a-destination-topic",
    "endsAt": "2030-04-15T10:30:00",
    "recurrence": "RRULE:FREQ=DAILY;COUNT=4\nEXDATE;VALUE=DATE-TIME:20300416T010000Z",
}


@pytest.fixture
def recurring() -> Recurring:
    return Recurring()


@pytest.fixture
def recurring_url(recurring: Recurring) -> Iterator[str]:
    with serving(recurring.served()) as url:
        yield url


def instance(day: int, index: int, **facts: Any) -> dict[str, Any]:
    return {
        "id": f"{SERIES}_203004{day}T010000Z",
        "recurrenceId": SERIES,
        "occurrence": index,
        **{name: RECURRING[name] for name in ("timezone", "payload", "destinationTopic")},
        "scheduledAt": f"2030-04-{day}T10:00:00",
        "endsAt": f"2030-04-{day}T10:30:00",
        "retry": 0,
        "status": "SCHEDULED",
        **facts,
    }


def test_an_event_that_waits_is_moved_by_what_made_it(
    run: Run, recurring: Recurring, recurring_url: str, sqlite_scheduler: Scheduler
) -> None:
    ended = {**ONCE, "id": "done"}
    recurring.statuses = {ONCE["id"]: "SCHEDULED", "done": "PUBLISHED"}

    done = run("recurring", "-", "--from", recurring_url, stdin="\n".join(map(json.dumps, [ONCE, ended])))

    assert (done.exit_code, done.stdout) == (0, "1 moved, 1 ended\n")
    event, _ = sqlite_scheduler.event("recurring", ONCE["id"])
    assert (event.url, event.payload) == ("topic:notification.notifications", b"hello world\n")
    assert event.retry is not None
    assert (event.retry.count, event.retry.on) == (2, "any")


def test_what_nobody_can_know_is_refused_and_told(run: Run, recurring: Recurring, recurring_url: str) -> None:
    recurring.statuses = {"known": "SCHEDULED"}

    done = run("recurring", "-", "--from", recurring_url, stdin="known\nunknown\n{nonsense\n\n")

    assert (done.exit_code, done.stdout) == (1, "0 moved, 3 refused\n")
    assert [line.split(": ")[1:3] for line in done.stderr.splitlines()] == [
        ["known", "nothing tells what it sends"],
        ["unknown", "there is no such event"],
        ["line 3", "cannot be read"],
    ]


def test_a_file_that_is_no_text_is_refused_in_one_sentence(run: Run, recurring_url: str, tmp_path: Path) -> None:
    file = tmp_path / "ids"
    file.write_bytes(b"known\n\xff")
    done = run("recurring", str(file), "--from", recurring_url)
    assert (done.exit_code, done.stderr) == (1, "Error: FILE is not UTF-8 at byte 6\n")


def test_a_header_that_cannot_be_sent_is_refused_and_not_told(run: Run, recurring_url: str) -> None:
    done = run("recurring", "-", "--from", recurring_url, "--header", "Authorization: \u2019canary", stdin="known\n")
    assert done.exit_code == 2
    assert "--header" in done.stderr
    assert "canary" not in done.stderr


def word(status: Status | None) -> str | None:
    return None if status is None else status.name


def test_a_series_is_moved_with_its_exceptions(run: Run, recurring: Recurring, recurring_url: str, sqlite_scheduler: Scheduler) -> None:
    recurring.statuses = {SERIES: "SCHEDULED"}
    recurring.instances = {
        SERIES: [
            instance(15, 0),
            instance(17, 1, status="CANCELED"),
            instance(18, 2, destinationTopic="new-topic", scheduledAt="2030-04-18T11:00:00", endsAt="2030-04-18T11:30:00"),
        ]
    }

    assert run("recurring", "-", "--from", recurring_url, stdin=json.dumps(RECURRING)).stdout == "1 moved\n"
    found = sqlite_scheduler.timetable.instances("recurring", SERIES, 0, 2**42, limit=10)
    assert [(each.instance_id[-16:], word(each.status), each.is_exception) for each in found] == [
        ("20300415T010000Z", None, False),
        ("20300417T010000Z", "CANCELLED", True),
        ("20300418T010000Z", "PENDING", True),
    ]
    changed, _ = sqlite_scheduler.event("recurring", f"{SERIES}_20300418T010000Z")
    assert changed.url == "topic:new-topic"
    assert run("recurring", "-", "--from", recurring_url, stdin=json.dumps(RECURRING)).stdout == "0 moved, 1 there already\n"


def test_of_a_recurring_event_whose_rule_nobody_knows_the_instances_are_moved(
    run: Run, recurring: Recurring, recurring_url: str, sqlite_scheduler: Scheduler
) -> None:
    recurring.statuses = {SERIES: "SCHEDULED"}
    late = {**instance(11, 0), "id": f"{SERIES}_20200101T010000Z", "scheduledAt": "2020-01-01T10:00:00", "endsAt": "2020-01-01T10:30:00"}
    recurring.instances = {SERIES: [late, instance(15, 1), instance(17, 2, status="CANCELED"), instance(18, 3)]}

    assert run("recurring", "-", "--from", recurring_url, stdin=SERIES).stdout == "2 moved\n"
    found = sqlite_scheduler.timetable.instances("recurring", SERIES, 0, 2**42, limit=10)
    assert [(each.index, each.instance_id[-16:], word(each.status)) for each in found][1:] == [
        (1, "20300415T010000Z", None),
        (2, "20300417T010000Z", "CANCELLED"),
        (3, "20300418T010000Z", None),
    ]
    assert sqlite_scheduler.event("recurring", late["id"])[0].due_at == 1_577_840_400_000


# --- from Cassata to Cassata, through its own dialects -----------------------------------------------------------------------


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Scheduler]:
    opened = Scheduler.open(f"sqlite:///{tmp_path / 'another.db'}", create_tables=True)
    yield opened
    opened.close()


def asked_of(scheduler: Scheduler, dialect: str, path: str) -> Any:
    answer = create_app(scheduler, Service(dialects=[dialect])).test_client().get(path)  # type: ignore[list-item]
    assert answer.status_code == 200, answer.text
    return answer.json


def test_schedules_go_through_the_dialect_and_are_told_alike(run: Run, another: Scheduler, sqlite_scheduler: Scheduler) -> None:
    app = create_app(another, Service(dialects=["goscheduler"]))
    http = app.test_client()
    callback = {"type": "http", "details": {"url": "http://receiver.example/", "method": "PUT", "headers": {"X-One": "1"}}}
    http.post("/goscheduler/apps", json={"appId": "shop", "partitions": 3, "active": True, "configuration": {"httpRetries": 7}})
    made = [
        http.post("/goscheduler/schedules", json={"appId": "shop", "payload": "{}", "callback": callback, **when}).json["data"]["schedule"]
        for when in [*({"scheduleTime": NOW + DAY + n} for n in range(20)), {"cronExpression": "0 12 * * MON-FRI"}]
    ]
    with serving(app) as url:
        assert run("goscheduler", "--from", url).stdout == "21 moved\n"
    sqlite_scheduler.tenants.put("shop", metadata={"goscheduler": {"partitions": 3, "configuration": {"httpRetries": 7}}})

    for schedule in made:
        path = f"/goscheduler/schedules/{schedule['scheduleId']}"
        assert asked_of(sqlite_scheduler, "goscheduler", path) == asked_of(another, "goscheduler", path)


def test_events_go_through_the_dialect_recurring_and_are_told_alike(run: Run, another: Scheduler, sqlite_scheduler: Scheduler) -> None:
    app = create_app(another, Service(dialects=["recurring"]))
    http = app.test_client()
    assert http.post("/events", json=ONCE).status_code == 201
    assert http.post("/events", json=RECURRING).status_code == 201
    assert http.patch(f"/events/{SERIES}_20300417T010000Z/cancel").status_code == 200
    with serving(app) as url:
        told = run("recurring", "-", "--from", url, stdin=f"{json.dumps(ONCE)}\n{json.dumps(RECURRING)}\n")
    assert told.stdout == "2 moved\n"

    for path in (f"/events/{SERIES}/instances", f"/events/{SERIES}/status", f"/events/{ONCE['id']}/status"):
        assert asked_of(sqlite_scheduler, "recurring", path) == asked_of(another, "recurring", path)


def test_jobs_go_through_the_dialect_jobs_and_are_told_alike(run: Run, another: Scheduler, sqlite_scheduler: Scheduler) -> None:
    pytest.importorskip("cassata.service.dialects.jobs", reason="joined with the branch `jobs`")
    app = create_app(another, Service(dialects=["jobs"]))
    http = app.test_client()
    metadata = {"url": "http://receiver.example/", "key": "value"}
    job = {"name": "My Job", "description": "Description", "cron_expression": "*/5 * * * *", "metadata": metadata, "priority": 7}
    ids = [
        http.post("/v1/jobs", json={**job, **more}).json["jobId"] for more in ({}, {"max_retries": 3, "timeout": 9}, {"status": "PAUSED"})
    ]
    with serving(app) as url:
        assert run("jobs", "--from", url).stdout == "3 moved\n"

    for job_id in ids:
        told = [asked_of(scheduler, "jobs", f"/v1/jobs/{job_id}") for scheduler in (another, sqlite_scheduler)]
        for document in told:
            del document["createdAt"], document["updatedAt"]
        assert told[0] == told[1]
