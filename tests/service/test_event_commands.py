"""`cassata event`, through a real service."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from cassata.cli.event import event
from cassata.scheduler import Scheduler

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
        ["Error", "/event"],
        ["Error", "/request-headers/0"],
        ["Error", "/timeout"],
    ]


def test_an_unknown_event_is_an_error(run: Run) -> None:
    for command in ("status", "get", "delete"):
        refused = run(command, "shop", "none")
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)


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
    assert refused.stderr.startswith("Error: no answer from http://127.0.0.1:1: ")
    assert refused.stderr.endswith("Connection refused\n")


def test_a_table_shows_the_log_of_attempts_and_nothing_that_moves_the_cursor(run: Run, sqlite_scheduler: Scheduler) -> None:
    from cassata.model import Outcome
    from cassata.scheduler import Terms

    add(run, "--in", "0s", "--payload", "\x1b[31mred", "--id", "e1")
    _, claimed = sqlite_scheduler.record_and_claim((), list(sqlite_scheduler.agenda()), 10, Terms())
    [delivery] = claimed.deliveries
    sqlite_scheduler.record([Outcome(delivery, started_at=delivery.due_at, duration_ms=5, status_code=404, excerpt="\x1b]0;title\x07gone")])

    shown = run("get", "shop", "e1").stdout

    assert "FAILED" in shown
    assert "404" in shown
    assert "\\x1b]0;title\\x07gone" in shown
    assert "\x1b" not in shown
