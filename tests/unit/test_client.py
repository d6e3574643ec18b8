"""The client against a receiver that plays a service which is none, or not well."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cassata.client import Client, ClientError, Forbidden, InvalidRequest, LimitReached, NewEvent, ServiceUnavailable, Unauthorized
from cassata.receiver import Answer, Receiver

CHECKOUT = Path(__file__).resolve().parents[2]


def ask(*answers: Answer) -> tuple[ClientError, Receiver]:
    """Have the client ask once for a status, with as many retries as there are answers left."""
    turns = iter(answers)
    with Receiver(answer=lambda _: next(turns)) as receiver, Client(receiver.url, retries=len(answers) - 1) as client:
        client.retrying.sleep = lambda _: None
        with pytest.raises(ClientError) as refused:
            client.status("shop", "e1")
    return refused.value, receiver


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    error, receiver = ask(status, (status, "<html>"), (status, '{"detail": "busy"}'))
    assert isinstance(error, ServiceUnavailable)
    assert (str(error), error.status_code, len(receiver.requests)) == ("busy", status, 3)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 409, 413, 415, 500])
def test_what_will_not_pass_is_not_tried_again(status: int) -> None:
    error, receiver = ask(status, 200)
    assert (error.status_code, len(receiver.requests)) == (status, 1)


@pytest.mark.parametrize(("status", "kind"), [(401, Unauthorized), (403, Forbidden), (429, LimitReached)])
def test_what_a_key_may_not_is_an_error_of_its_own(status: int, kind: type[ClientError]) -> None:
    error, _ = ask((status, '{"detail": "no"}'))
    assert (type(error), str(error)) == (kind, "no")


def test_a_limit_that_some_events_of_a_batch_have_reached_is_told_of_each() -> None:
    result = {"index": 0, "event-id": "e1", "status-code": 429, "problem": {"detail": "too many"}}
    with Receiver(answer=lambda _: (200, json.dumps({"results": [result]}))) as receiver, Client(receiver.url) as client:
        [refused] = client.schedule_all([NewEvent("shop", "http://receiver.example/", delay=1)])
    assert isinstance(refused, LimitReached)


@pytest.mark.parametrize(
    ("given", "environment", "sent"),
    [(None, "", None), (None, " csk_env\n", "Bearer csk_env"), ("csk_own", "csk_env", "Bearer csk_own"), ("", "csk_env", None)],
)
def test_the_key_that_is_given_beats_that_of_the_environment_and_netrc_beats_neither(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str | None, environment: str, sent: str | None
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password x")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("CASSATA_KEY", environment)
    with Receiver(answer=lambda _: 404) as receiver, Client(receiver.url, key=given) as client, pytest.raises(ClientError):
        client.status("shop", "e1")
    assert receiver.requests[0].header("Authorization") == sent


def test_a_key_that_no_header_can_hold_is_an_error_that_does_not_repeat_it() -> None:
    with pytest.raises(ClientError, match="copy it again") as refused:
        Client(key="csk_\u2019canary")
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("body", ["<html>", "[]", "", "{}"])
def test_an_answer_of_something_else_than_cassata_is_an_error(body: str) -> None:
    error, _ = ask((200, body))
    assert "not as Cassata does" in str(error)


def test_a_problem_keeps_what_the_service_said_of_it() -> None:
    error, _ = ask((400, '{"detail": "/url: no", "errors": [{"pointer": "/url", "detail": "no"}]}'))
    assert isinstance(error, InvalidRequest)
    assert (str(error), error.errors) == ("/url: no", [{"pointer": "/url", "detail": "no"}])


def test_an_address_that_is_none_is_an_error_at_once() -> None:
    with Client("nowhere") as client, pytest.raises(ClientError, match="cannot be asked"):
        client.status("shop", "e1")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("cassata.client", {"flask", "sqlalchemy", "rich"}),
        ("cassata.cli.event", {"flask", "sqlalchemy", "rich"}),
        ("cassata.cli.listen", {"flask", "sqlalchemy", "rich", "requests"}),
        ("cassata.receiver", {"flask", "sqlalchemy", "requests", "click"}),
    ],
)
def test_what_is_light_stays_light(module: str, absent: set[str]) -> None:
    program = f"import sys, {module}; print(*{absent!r} & sys.modules.keys())"
    imported = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert imported.stdout.strip() == ""
