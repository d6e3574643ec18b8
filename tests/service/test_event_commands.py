"""`cassata event`, through a real service."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from cassata.cli.event import attempts, event, fields, listing
from cassata.client import Client, Event
from cassata.model import ErrorKind, Outcome, Scope, Status
from cassata.scheduler import Scheduler, Terms

Run = Callable[..., Result]


@pytest.fixture
def run(service_url: str) -> Run:
    def run(*words: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(event, words, input=stdin, env={"CASSATA_SERVICE_URL": service_url, "CASSATA_APPLICATION": ""})

    return run


def add(run: Run, *words: str, stdin: str | bytes | None = None) -> Result:
    return run("add", "http://receiver.example/", "--app", "shop", *words, stdin=stdin)


def test_an_event_can_be_added_shown_listed_and_deleted(run: Run) -> None:
    added = add(run, "--in", "1h30m", "--payload", '{"a": 1}', "--header", "A: b", "--id", "e1", "-o", "json")
    assert added.exit_code == 0
    assert json.loads(added.stdout)["event-id"] == "e1"

    shown = run("get", "shop", "e1", "-o", "json")
    assert json.loads(shown.stdout)["event"] == '{"a": 1}'
    for command in (("status", "shop", "e1"), ("get", "shop", "e1"), ("list", "shop")):
        result = run(*command)
        assert result.exit_code == 0
        assert "e1" in result.stdout
        assert "PENDING" in result.stdout
    assert [found["event-id"] for found in json.loads(run("list", "shop", "--status", "pending", "-o", "json").stdout)] == ["e1"]
    assert run("delete", "shop", "e1").stdout == "cancelled\n"
    assert json.loads(run("list", "shop", "--status", "PENDING", "-o", "json").stdout) == []


def test_a_list_may_be_of_some_events_only(run: Run) -> None:
    for number, url in enumerate(["http://one.test/", "http://two.test:81/"]):
        assert run("add", url, "--app", "shop", "--in", "1h", "--payload", "x", "--id", f"e{number}").exit_code == 0

    def found(*words: str) -> list[str]:
        return [each["event-id"] for each in json.loads(run("list", "shop", *words, "-o", "json").stdout)]

    assert found("--host", "two.test") == ["e1"]
    assert found("--status", "pending", "--status", "failed") == ["e0", "e1"]
    assert found("--newest-first") == ["e1", "e0"]
    assert found("--newest-first", "--limit", "1") == ["e1"]
    assert found("--last-status", "200") == found("--series", "s") == []
    assert run("list", "shop", "--host", "a/b").stderr.startswith("Error: --host: must be a host such as")


@pytest.mark.parametrize(
    ("written", "expiry"),
    [("1900000000.5", "2030-03-17T17:46:40.500Z"), ("2030-01-31T12:00:00+02:00", "2030-01-31T10:00:00.000Z")],
)
def test_an_instant_is_epoch_seconds_or_iso_8601(run: Run, written: str, expiry: str) -> None:
    assert json.loads(add(run, "--at", written, "--method", "get", "-o", "json").stdout)["expiry"] == expiry


def test_a_payload_may_come_from_standard_input(run: Run) -> None:
    add(run, "--in", "5m", "--payload-file", "-", "--id", "e1", stdin="line one\nline two\n")
    assert json.loads(run("get", "shop", "e1", "-o", "json").stdout)["event"] == "line one\nline two\n"


def test_a_payload_that_is_no_text_is_an_error(run: Run) -> None:
    refused = add(run, "--in", "5m", "--payload-file", "-", stdin=b"\xff")
    assert (refused.exit_code, refused.stderr) == (1, "Error: the payload is not UTF-8 at byte 0\n")


def test_every_problem_is_one_line_on_standard_error(run: Run) -> None:
    refused = add(run, "--in", "5m", "--header", "no colon", "--timeout", "0")

    assert refused.exit_code == 1
    assert refused.stdout == ""
    assert [line.split(": ")[:2] for line in refused.stderr.splitlines()] == [
        ["Error", "--payload"],
        ["Error", "--header"],
        ["Error", "--timeout"],
    ]


def test_a_problem_is_told_in_the_words_of_the_command_line(run: Run) -> None:
    for words, line in [
        (("--in", "5m"), "--payload: is required for POST: write --payload '' for an empty body"),
        (("--in", "5m", "--payload", "x", "--id", "a b"), "--id: "),
        (("--in", "4000d", "--payload", "x"), "--in: "),
        (("--at", "4000000000", "--payload", "x"), "--at: "),
        (("--in", "5m", "--payload", "x", "--retry-count", "101"), "--retry-count: "),
    ]:
        assert add(run, *words).stderr.startswith(f"Error: {line}")
    assert run("add", "ftp://x/", "--app", "shop", "--in", "5m", "--payload", "x").stderr.startswith("Error: URL: must begin")
    assert run("add", "http://x/", "--app", "a b", "--in", "5m", "--payload", "x").stderr.startswith("Error: --app: ")


def test_a_bare_number_is_a_duration_in_seconds(run: Run) -> None:
    added = json.loads(add(run, "--in", "90.5", "--timeout", "2.5", "--payload", "x", "--id", "e1", "-o", "json").stdout)
    lasted = datetime.fromisoformat(added["expiry"]) - datetime.fromisoformat(added["created-at"])
    assert lasted == timedelta(seconds=90.5)
    assert json.loads(run("get", "shop", "e1", "-o", "json").stdout)["timeout"] == 2.5


def test_an_unknown_event_is_an_error(run: Run) -> None:
    for command in ("status", "get", "delete"):
        refused = run(command, "shop", "none")
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)


def test_what_can_be_no_id_is_named_as_the_command_calls_it(run: Run) -> None:
    allowed = "must be 1 to 128 characters out of A-Z a-z 0-9 . _ : ~ -\n"
    assert run("get", "shop", "a/b").stderr == f"Error: EVENT: {allowed}"
    assert run("list", "a/b").stderr == f"Error: APP: {allowed.replace('128', '64')}"
    assert add(run, "--in", "5m", "--payload", "x", "--id", "a/b").stderr == f"Error: --id: {allowed}"


def test_the_status_of_a_cancelled_event_says_that_it_may_be_cancelled(run: Run) -> None:
    add(run, "--in", "5m", "--payload", "x", "--id", "e1")
    run("delete", "shop", "e1")
    assert run("status", "shop", "e1").stderr.startswith("Error: There is no such event, or it was cancelled. To see those")
    assert "CANCELLED" in run("get", "shop", "e1").stdout


def test_an_event_can_be_changed(run: Run) -> None:
    add(run, "--in", "1h", "--payload", "x", "--id", "e1", "--timeout", "5", "--header", "A: b")
    version = json.loads(run("get", "shop", "e1", "-o", "json").stdout)["version"]

    words = ("--at", "1900000000", "--payload", "y", "--url", "http://other.test/", "--retry-count", "1", "--reset", "timeout")
    changed = run("change", "shop", "e1", *words, "--reset", "header", "--max-lateness", "1h", "--if-version", version)

    assert (changed.exit_code, "2030-03-17 17:46:40Z" in changed.stdout) == (0, True), changed.stderr
    found = json.loads(run("get", "shop", "e1", "-o", "json").stdout)
    assert (found["event"], found["url"], found["timeout"], found["request-headers"]) == ("y", "http://other.test/", None, [])
    assert (found["retry"]["count"], found["max-lateness"]) == (1, 3600)
    outdated = run("change", "shop", "e1", "--payload", "z", "--if-version", version)
    assert (outdated.exit_code, outdated.stderr.startswith("Error: event 'e1' of 'shop' has been changed")) == (1, True)
    assert run("change", "shop", "e1", "--max-lateness", "0").stderr == "Error: --max-lateness: must be from 1 to 3,153,600,000 seconds\n"


@pytest.mark.parametrize("words", [(), ("--at", "1", "--in", "1"), ("--payload", "x", "--payload-file", "-"), ("--reset", "url")])
def test_a_change_of_nothing_or_of_two_kinds_is_a_wrong_usage(run: Run, words: tuple[str, ...]) -> None:
    assert run("change", "shop", "e1", *words).exit_code == 2


def test_a_list_of_no_events_says_so(run: Run) -> None:
    assert run("list", "shop").stdout == "no events of 'shop'\n"
    assert run("list", "shop", "-o", "json").stdout == "[]\n"


def an_event(status: str = "PENDING", *, event_id: str = "a5f8499f65c8400d903ddabec1002a3a", last_error: str | None = None) -> Event:
    at = datetime(2026, 11, 21, 3, 21, 2, 750_000, tzinfo=UTC)
    return Event(
        "shop",
        event_id,
        Status[status],
        3,
        at,
        None,
        last_error,
        None,
        False,
        False,
        "POST",
        "http://receiver.example/" + "x" * 200,
        at,
        None,
        "1-0",
        {},
    )


def printed(renderable: object, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(renderable)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80, 120, 240])
@pytest.mark.parametrize("last_error", [None, "503 " + "and so on " * 20])
def test_a_list_shows_whole_ids_and_states_one_line_each_at_any_width(width: int, last_error: str | None) -> None:
    listed = [an_event(), an_event("SERVICE_UNAVAILABLE", last_error=last_error), an_event("FAILED", event_id="order-7")]

    head, *lines = printed(listing(listed, width), width)

    assert [line.split()[:2] for line in lines] == [[event.event_id, event.status.name] for event in listed]
    assert all(len(line) <= width for line in lines)
    assert ("last error" in head) == (last_error is not None and width == 240)
    if "expiry" in head:
        assert all("2026-11-21 03:21:02Z" in line for line in lines)
    assert ("expiry" in head) == (width >= 80)


def test_a_list_of_short_ids_shows_what_there_is_room_for() -> None:
    head, line = printed(listing([an_event(event_id="order-7")], 80), 80)
    assert head.split() == ["event", "status", "expiry", "attempts", "request"]
    assert "POST http://receiver.example/" in line
    assert line.rstrip().endswith("…")


def test_an_id_longer_than_the_terminal_is_still_whole() -> None:
    _, *lines = printed(listing([an_event(event_id="0123456789" * 10)], 60), 60)
    assert "".join(line.split()[0] for line in lines) == "0123456789" * 10


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_details_break_no_instant_and_no_answer(run: Run, sqlite_scheduler: Scheduler, service_url: str, width: int) -> None:
    add(run, "--in", "0", "--payload", "x", "--id", "e1")
    _, claimed = sqlite_scheduler.record_and_claim((), list(sqlite_scheduler.agenda()), 10, Terms())
    [delivery] = claimed.deliveries
    late = Outcome(delivery, started_at=1_795_231_262_750, duration_ms=5, error=ErrorKind.CONNECT_FAILED, detail="refused " * 20)
    sqlite_scheduler.record([late])
    with Client(service_url) as client:
        shown = client.event("shop", "e1")

    told = printed(fields(shown), width)
    logged = printed(attempts(shown), width)

    assert any(line.split()[:1] == ["expiry"] and re.search(r" \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", line) for line in told)
    assert logged[1].rstrip() == "   1  2026-11-21 03:21:02Z  5 ms  connect_failed"
    assert all(set(line.split()) == {"refused"} for line in logged[2:])


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--in", "5m", "--at", "1900000000"),
        ("--in", "soon"),
        ("--in", "5m!"),
        ("--in", "99999999999999d"),
        ("--at", "2030-01-01T00:00:00"),
        ("--at", "yesterday"),
        ("--in", "5m", "--method", "BREW"),
        ("--in", "5m", "--payload", "x", "--payload-file", "-"),
    ],
)
def test_a_command_that_cannot_be_understood_exits_with_2(run: Run, words: tuple[str, ...]) -> None:
    assert add(run, *words).exit_code == 2


def test_a_service_that_is_not_there_is_an_error() -> None:
    refused = CliRunner().invoke(event, ["--service", "http://127.0.0.1:1", "--retries", "0", "status", "shop", "e1"])
    assert refused.exit_code == 1
    hint = "Is it running? Type: cassata service start"
    assert refused.stderr == f"Error: no answer from http://127.0.0.1:1: connection refused. {hint}\n"


def test_a_key_is_sent_and_a_wrong_one_is_told_in_the_words_of_the_command_line(run: Run, sqlite_scheduler: Scheduler) -> None:
    sqlite_scheduler.tenants.create("shop")
    _, token = sqlite_scheduler.tenants.create_key("shop", [Scope.READ])
    assert run("--key", token, "list", "shop").exit_code == 0
    unknown = "Error: There is no application with this id. To see those there are: cassata app list\n"
    assert run("--key", token, "list", "rival").stderr == unknown
    assert run("--key", "csk_aaaaaaaa_x", "list", "shop").stderr == (
        "Error: the service wants a valid key: put it into CASSATA_KEY, or give --key; an operator makes one with: cassata key create\n"
    )


def test_an_address_without_http_is_an_error_that_says_what_it_needs() -> None:
    refused = CliRunner().invoke(event, ["--service", "127.0.0.1:8085", "status", "shop", "e1"])
    assert refused.exit_code == 1
    assert "the service's address must begin with http:// or https://" in refused.stderr


def test_a_table_shows_the_log_of_attempts_and_nothing_that_moves_the_cursor(run: Run, sqlite_scheduler: Scheduler) -> None:
    add(run, "--in", "0s", "--payload", "\x1b[31mred", "--id", "e1")
    _, claimed = sqlite_scheduler.record_and_claim((), list(sqlite_scheduler.agenda()), 10, Terms())
    [delivery] = claimed.deliveries
    sqlite_scheduler.record([Outcome(delivery, started_at=delivery.due_at, duration_ms=5, status_code=404, excerpt="\x1b]0;title\x07gone")])

    shown = run("get", "shop", "e1").stdout

    assert "FAILED" in shown
    assert "404" in shown
    assert "\\x1b]0;title\\x07gone" in shown
    assert "\x1b" not in shown
