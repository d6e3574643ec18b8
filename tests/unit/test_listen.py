"""`cassata listen` shows each request, answers as told, and ends when it has seen enough."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import requests
from click.testing import CliRunner, Result

from cassata.cli.listen import described, listen
from cassata.receiver import Received, Receiver


@pytest.fixture
def free_port() -> int:
    with Receiver() as taken:
        return taken.port


def listening(port: int, *words: str, requesting: Callable[[str], object]) -> Result:
    """Run the command here, and the requests on a thread as soon as it listens."""

    def request() -> None:
        url = f"http://127.0.0.1:{port}/"
        for _ in range(200):
            try:
                requesting(url)
            except requests.ConnectionError:
                time.sleep(0.02)
            else:
                return

    thread = threading.Thread(target=request)
    thread.start()
    result = CliRunner().invoke(listen, [str(port), *words])
    thread.join()
    return result


def test_requests_are_shown_with_what_cassata_says_of_them(free_port: int) -> None:
    headers = {"Cassata-Attempt": "2", "webhook-id": "evt_1", "Accept": "secret"}

    result = listening(free_port, "--count", "1", requesting=lambda url: requests.put(url, json={"a": 1}, headers=headers, timeout=5))

    assert result.exit_code == 0
    assert f"listening on http://127.0.0.1:{free_port}" in result.stderr
    assert [line.strip() for line in result.stdout.splitlines()[1:]] == ["Cassata-Attempt: 2", "webhook-id: evt_1", "{", '"a": 1', "}"]
    assert result.stdout.splitlines()[0].endswith(" PUT /")
    assert "secret" not in result.stdout


def test_the_first_few_can_be_failures(free_port: int) -> None:
    answers: list[int] = []

    def request(url: str) -> None:
        while len(answers) < 4:
            answers.append(requests.get(url, timeout=5).status_code)

    result = listening(free_port, "--fail-first", "2", "--status", "202", "--count", "4", requesting=request)

    assert (result.exit_code, answers) == (0, [503, 503, 202, 202])


def test_a_port_that_is_taken_is_one_clear_line() -> None:
    with Receiver() as taken:
        port = taken.port
        result = CliRunner().invoke(listen, [str(port)])
    assert result.exit_code == 1
    assert result.stderr == f"Error: cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"\x1b[31mred\x07", "  \\x1b[31mred\\x07"),
        (b"\xff\x00", "  (2 bytes that are not UTF-8)"),
        (b'{"a":"\\u001b[2J"}', '  {\n    "a": "\\u001b[2J"\n  }'),
        (b"[" * 5000, "  " + "[" * 5000),
        ("\u202eexe.\u4f60".encode(), "  \\u202eexe.\u4f60"),
        (b"", ""),
    ],
)
def test_nothing_that_arrives_can_play_with_the_terminal(body: bytes, shown: str) -> None:
    assert described(Received(0, "POST", "/\x1b", [], body)).partition("\n")[2] == shown


def test_what_was_left_out_of_a_body_is_told() -> None:
    assert described(Received(0, "POST", "/", [], b"x", left_out=9)).endswith("  x\n  (9 more bytes)")
