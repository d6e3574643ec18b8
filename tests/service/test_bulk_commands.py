"""`cassata bulk`, through a real service; a thread stands in for the workers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from cassata.cli.bulk import bulk
from cassata.cli.event import event
from cassata.model import NewEvent, Status
from cassata.scheduler import Scheduler

Run = Callable[..., Result]
FAR = 1_900_000_000_000


@pytest.fixture
def run(service_url: str, sqlite_scheduler: Scheduler) -> Run:
    sqlite_scheduler.add_all([NewEvent("shop", "http://receiver.example/", due_at=FAR, event_id=f"e{number}") for number in range(5)])

    def run(*words: str, group: object = bulk) -> Result:
        return CliRunner().invoke(group, words, env={"CASSATA_SERVICE_URL": service_url})  # type: ignore[arg-type]

    return run


@pytest.fixture
def working(sqlite_scheduler: Scheduler) -> Iterator[None]:
    stopping = threading.Event()

    def work() -> None:
        while not stopping.wait(0.02):
            sqlite_scheduler.operations.step()

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stopping.set()
    thread.join()


def statuses(scheduler: Scheduler) -> set[Status]:
    return {each.status for each in scheduler.events("shop").events}


@pytest.mark.usefixtures("working")
def test_events_are_counted_changed_and_told_of(run: Run, sqlite_scheduler: Scheduler) -> None:
    done = run("cancel", "shop", "--status", "pending", "--yes")

    assert (done.exit_code, done.stdout) == (0, "cancel: 5 events changed\n")
    assert statuses(sqlite_scheduler) == {Status.CANCELLED}
    again = json.loads(run("retry", "shop", "--host", "receiver.example", "--yes", "-o", "json").stdout)
    assert (again["status"], again["changed"]) == ("DONE", 5)
    assert statuses(sqlite_scheduler) == {Status.PENDING}
    assert run("reconcile", "shop", "--status", "completed", "--yes").stdout == "nothing to reconcile\n"
    assert run("reconcile", "shop", "--from", "0", "--yes").stdout == "nothing to reconcile: 5 PENDING, for which it is not\n"


@pytest.mark.usefixtures("working")
def test_what_has_ended_is_removed(run: Run, sqlite_scheduler: Scheduler) -> None:
    assert run("remove", "shop", "--from", "0", "--yes").stdout == "nothing to remove\n"
    assert run("cancel", "shop", "--untried", "--from", "0", "--yes").stdout == "cancel: 5 events changed\n"

    assert run("remove", "shop", "--tried", "--yes").stdout == "nothing to remove\n"
    assert run("remove", "shop", "--from", "0", "--yes").stdout == "remove: 5 events changed\n"

    assert sqlite_scheduler.events("shop").events == []


@pytest.mark.usefixtures("working")
@pytest.mark.parametrize(
    ("option", "due_at"),
    [
        ("--shift=-1h30m", FAR - 5_400_000),
        ("--shift=+90", FAR + 90_000),
        ("--shift=2d", FAR + 2 * 86_400_000),
        ("--at=1900000500", FAR + 500_000),
    ],
)
def test_events_are_rescheduled(run: Run, sqlite_scheduler: Scheduler, option: str, due_at: int) -> None:
    assert run("reschedule", "shop", "--status", "pending", option, "--yes").exit_code == 0
    assert {each.due_at for each in sqlite_scheduler.events("shop").events} == {due_at}


def test_nothing_is_done_unasked(run: Run, sqlite_scheduler: Scheduler) -> None:
    refused = run("cancel", "shop", "--status", "pending")

    assert refused.exit_code == 2
    assert "This would cancel 5 events of 'shop' (5 PENDING). Where nobody can be asked, give --yes." in refused.stderr
    assert list(sqlite_scheduler.operations.list("shop")) == []


def test_an_operation_is_listed_shown_and_stopped(run: Run) -> None:
    begun = json.loads(run("cancel", "shop", "--status", "pending", "--yes", "--no-wait", "-o", "json").stdout)
    names = ("shop", begun["operation-id"])

    assert [each["operation-id"] for each in json.loads(run("list", "shop", "-o", "json").stdout)] == [begun["operation-id"]]
    assert "RUNNING" in run("list", "shop").stdout
    assert "RUNNING" in run("show", *names).stdout
    assert "CANCELLED" in run("stop", *names).stdout
    assert "CANCELLED" in run("show", *names, "--wait").stdout
    assert run("show", "shop", "nobody").stderr.startswith("Error: No operation with this id exists in this application. To see")


def test_an_operation_that_somebody_stops_is_no_success(run: Run, sqlite_scheduler: Scheduler) -> None:
    stopping = threading.Event()

    def stop_all() -> None:
        while not stopping.wait(0.02):
            for operation in sqlite_scheduler.operations.list("shop"):
                sqlite_scheduler.operations.cancel("shop", operation.operation_id)

    thread = threading.Thread(target=stop_all)
    thread.start()
    stopped = run("cancel", "shop", "--status", "pending", "--yes")
    stopping.set()
    thread.join()

    assert (stopped.exit_code, stopped.stdout) == (1, "cancel: stopped by somebody; 0 events changed\n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ("cancel", "shop", "--yes"),
            1,
            "Error: the filter (--status, --from, --until, --host, --last-status, --series, --tried): must not be empty",
        ),
        (("cancel", "shop", "--from", "9", "--until", "5", "--yes"), 1, "Error: --until: must be later than the beginning"),
        (("retry", "shop", "--status", "completed", "--yes"), 1, "Error: --status: names nothing that can be done to"),
        (("cancel", "shop", "--host", "http://x/", "--yes"), 1, "Error: --host: must be a host such as"),
        (("cancel", "shop", "--last-status", "7", "--yes"), 1, "Error: --last-status: must be a status code"),
        (("cancel", "shop", "--series", "nobody", "--yes"), 1, "Error: --series: is not the id of a series"),
        (("reschedule", "shop", "--status", "pending", "--yes"), 2, "Give one of --at and --shift."),
        (("reschedule", "shop", "--status", "pending", "--shift=0", "--yes"), 1, "Error: --shift: must be from"),
        (("reschedule", "shop", "--status", "pending", "--shift=soon", "--yes"), 2, "'soon' is not a duration"),
        (("cancel", "nobody", "--status", "pending", "--yes"), 1, "Error: There is no application with this id."),
    ],
)
def test_what_is_wrong_is_told_in_the_words_of_the_command_line(run: Run, words: tuple[str, ...], code: int, said: str) -> None:
    refused = run(*words)

    assert refused.exit_code == code
    assert said in refused.stderr


def test_the_help_says_that_a_series_outlives_its_events(run: Run) -> None:
    assert "the series itself goes on" in " ".join(run("cancel", "--help").stdout.split())
    assert "goes on" not in run("list", "--help", group=event).stdout


def test_one_event_is_retried(run: Run, sqlite_scheduler: Scheduler) -> None:
    sqlite_scheduler.cancel("shop", "e1")

    assert "PENDING" in run("retry", "shop", "e1", group=event).stdout
    assert run("retry", "shop", "e2", group=event).stderr.startswith("Error: event 'e2' of 'shop' is PENDING: only what failed")


def test_that_nothing_happens_is_said_once(run: Run, monkeypatch: pytest.MonkeyPatch, sqlite_scheduler: Scheduler) -> None:
    monkeypatch.setattr("cassata.cli.bulk.PATIENCE_SECONDS", 0.1)
    looks: list[float] = []

    def look_again(seconds: float) -> None:
        looks.append(seconds)
        threading.Event().wait(0.05)
        if len(looks) == 8:
            while sqlite_scheduler.operations.step():
                pass

    monkeypatch.setattr("cassata.cli.bulk.time.sleep", look_again)
    done = run("cancel", "shop", "--status", "pending", "--yes")

    assert (done.exit_code, done.stdout) == (0, "cancel: 5 events changed\n")
    assert done.stderr == "nothing happens: is a worker running?\n"
