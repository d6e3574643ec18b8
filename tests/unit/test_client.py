"""The client against a receiver that plays a service which is none, or not well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cassata.client import Client, ClientError, InvalidRequest, ServiceUnavailable
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


@pytest.mark.parametrize("status", [301, 400, 404, 409, 413, 415, 500])
def test_what_will_not_pass_is_not_tried_again(status: int) -> None:
    error, receiver = ask(status, 200)
    assert (error.status_code, len(receiver.requests)) == (status, 1)


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
