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

from cassata.cli.moving import import_
from cassata.model import Status
from cassata.moving import goscheduler
from cassata.scheduler import Scheduler
from tests.conftest import wait_until
from tests.service.ancestors import HOUR, GoScheduler, schedule_id, serving
from tests.service.conftest import Middleman

Run = Callable[..., Result]
NOW = int(time.time())
DAY = 24 * HOUR


@pytest.fixture
def run(service_url: str) -> Run:
    def run(*words: str, stdin: str | None = None) -> Result:
        env = {"CASSATA_SERVICE_URL": service_url, "CASSATA_APPLICATION": "", "CASSATA_KEY": ""}
        return CliRunner().invoke(import_, [*words[:1], "--rate", "1000", *words[1:]], input=stdin, env=env)

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
